-- Refused by the foreign keys while the ledger names orders that were deleted.
ALTER TABLE accounts ADD CONSTRAINT accounts_order_id_fkey FOREIGN KEY (order_id) REFERENCES orders (id);
ALTER TABLE transfers ADD CONSTRAINT transfers_order_id_fkey FOREIGN KEY (order_id) REFERENCES orders (id);
ALTER FUNCTION kyhan_keep_balances() SECURITY INVOKER;
ALTER FUNCTION kyhan_keep_balances() RESET search_path;
GRANT EXECUTE ON FUNCTION kyhan_keep_balances() TO PUBLIC;
DROP TRIGGER transfers_name_their_order ON transfers;
DROP TRIGGER changes_are_news ON orders;
DROP TRIGGER history_is_news ON order_status_history;
DROP TRIGGER transfers_are_news ON transfers;
DROP TRIGGER messages_are_news ON order_messages;
DROP TRIGGER orders_are_hidden_in_time ON orders;
DROP TRIGGER order_ids_are_used_once ON orders;
DROP TRIGGER orders_truncated_with_ledger ON orders;
DROP TRIGGER orders_keep_their_ids_in_the_ledger ON orders;
DROP TRIGGER orders_without_ledger ON orders;
DROP TRIGGER accounts_keep_their_owner ON accounts;
DROP TRIGGER transfers_have_their_orders ON transfers;
DROP TRIGGER accounts_have_their_orders ON accounts;
DROP FUNCTION kyhan_retry_set_aside(boolean, bigint[]), kyhan_delete_hidden_orders(timestamptz, integer),
    kyhan_transfers_name_their_order(), kyhan_news_of_order(), kyhan_news_of_orders(), kyhan_put_on_line(uuid[]),
    kyhan_orders_are_hidden_in_time(), kyhan_order_ids_are_used_once(), kyhan_accounts_keep_their_owner(), kyhan_order_has_no_ledger(), kyhan_ledger_has_its_orders();
DROP VIEW activity_online, transfers_online, orders_online, order_retention;
DROP INDEX cart_items_order_idx, cart_items_customer_idx, orders_customer_idx, orders_hidden_idx, orders_online_idx;
DROP TABLE records_retention, deleted_orders, retention_holds;

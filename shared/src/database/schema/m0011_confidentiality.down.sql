DROP FUNCTION kyhan_publish_statistics(integer, numeric);
DROP VIEW market_statistics;
DROP TABLE statistics_rule, published_months, published_statistics;
DROP TRIGGER the_erased_get_no_source ON order_sources;
DROP TRIGGER the_erased_have_no_source ON order_sources;
DROP TRIGGER the_erased_said_nothing ON order_messages;
DROP TRIGGER the_erased_say_nothing ON order_messages;
DROP TRIGGER the_erased_bought_nothing ON cart_items;
DROP TRIGGER the_erased_buy_nothing ON cart_items;
DROP TRIGGER the_erased_order_nothing ON orders;
DROP TRIGGER customers_stay_erased ON customers;
DROP TRIGGER messages_record_themselves ON activity;
DROP TRIGGER messages_are_recorded ON order_messages;
DROP FUNCTION kyhan_the_erased_stay_erased(), kyhan_customers_stay_erased(), kyhan_messages_record_themselves(),
    kyhan_messages_recorded(), kyhan_message_digest(order_messages);
ALTER TABLE order_messages DROP COLUMN salt; -- and its check with it
DROP VIEW activity_operations, customers_masked, own_imports;
ALTER TABLE customers DROP COLUMN erased_at;
DROP FUNCTION kyhan_masked_email(text), kyhan_masked_phone(text), kyhan_masked_name(text);
DROP POLICY sources_go_for_the_customer ON order_sources;
DROP POLICY sources_change_for_the_customer ON order_sources;
DROP POLICY sources_are_the_customers ON order_sources;
DROP POLICY sources_are_written ON order_sources;
ALTER TABLE order_sources NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY;
DROP FUNCTION kyhan_customer();

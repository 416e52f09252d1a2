DROP TRIGGER actions_are_news ON activity;
DROP TRIGGER transfers_tell_news ON transfers;
DROP TRIGGER changes_are_news ON orders;
DROP TRIGGER history_is_news ON order_status_history;
DROP TRIGGER messages_are_news ON order_messages;
DROP TRIGGER orders_are_hidden_in_time ON orders;
DROP FUNCTION kyhan_actions_are_news(), kyhan_transfers_are_news(), kyhan_news_of_order(), kyhan_news_of_orders(),
    kyhan_put_on_line(uuid[]), kyhan_orders_are_hidden_in_time();

DROP TABLE cart_items;
DROP FUNCTION kyhan_message_digest(order_messages);
DROP TABLE order_messages, order_status_history;
DROP VIEW orders_online;
DROP TABLE orders;
DROP FUNCTION kyhan_changes_are_dated();
DROP TABLE customers;
DROP FUNCTION kyhan_session_role();

DROP TABLE cart_items, order_sources, order_messages, order_status_history, orders, customers;

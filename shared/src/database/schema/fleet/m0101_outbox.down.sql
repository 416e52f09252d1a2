-- The optional outbox triggers need the outbox. Without it they would make the order system's statements fail.
DROP TRIGGER IF EXISTS kyhan_orders_moments ON orders;
DROP TRIGGER IF EXISTS kyhan_transfers_refunded ON transfers;
DROP TRIGGER IF EXISTS kyhan_orders_recorded ON orders;
DROP TRIGGER IF EXISTS kyhan_orders_changed ON orders;
DROP TRIGGER IF EXISTS kyhan_cart_items_added ON cart_items;
DROP TRIGGER IF EXISTS kyhan_cart_items_changed ON cart_items;
DROP FUNCTION IF EXISTS kyhan_orders_moments(), kyhan_transfers_refunded(), kyhan_orders_recorded(), kyhan_orders_changed(),
    kyhan_cart_items_added(), kyhan_cart_items_changed();
DROP FUNCTION kyhan_discard_set_aside(boolean, bigint[]), kyhan_retry_set_aside(boolean, bigint[]);
DROP TABLE set_aside, outbox;
DROP FUNCTION kyhan_insert_only();

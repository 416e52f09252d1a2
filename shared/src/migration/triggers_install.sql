-- Optional: turns changes of orders and cart_items into events, so that an existing order system need not change a line.
-- Statement-level, so a bulk update pays once. The fleet's own sessions (kyhan.effect) raise their events themselves.

CREATE OR REPLACE FUNCTION kyhan_orders_recorded() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO outbox (event_type, subject_id, occurred_at)
    SELECT e.event_type, o.id, coalesce(e.occurred_at, now())
      FROM added o CROSS JOIN LATERAL (VALUES
               ('order.recorded',     true,                      o.created_at),
               ('order.shipped',      o.status = 'delivering',   o.delivering_since),
               ('order.received',     o.status = 'received',     o.received_at),
               ('order.out_of_stock', o.status = 'out_of_stock', o.out_of_stock_since)
           ) AS e (event_type, happened, occurred_at)
     WHERE e.happened;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION kyhan_orders_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO outbox (event_type, subject_id, occurred_at)
    SELECT e.event_type, n.id, coalesce(e.occurred_at, now())
      FROM after n JOIN before b ON b.id = n.id
           CROSS JOIN LATERAL (VALUES
               ('order.shipped',
                   n.status = 'delivering' AND (b.status, b.delivering_since) IS DISTINCT FROM (n.status, n.delivering_since),
                   n.delivering_since),
               ('order.received',
                   n.status = 'received' AND (b.status, b.received_at) IS DISTINCT FROM (n.status, n.received_at),
                   n.received_at),
               -- A parcel recorded later is what makes an «Hết hàng» a wrong one.
               ('order.out_of_stock',
                   n.status = 'out_of_stock' AND (b.status, b.out_of_stock_since, b.parcel_recorded_at)
                       IS DISTINCT FROM (n.status, n.out_of_stock_since, n.parcel_recorded_at),
                   n.out_of_stock_since),
               ('order.fees_changed',
                   (b.goods_due, b.shipping_due, b.service_due, b.fees_changed_at)
                       IS DISTINCT FROM (n.goods_due, n.shipping_due, n.service_due, n.fees_changed_at),
                   n.fees_changed_at)
           ) AS e (event_type, happened, occurred_at)
     WHERE e.happened;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION kyhan_cart_items_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO outbox (event_type, subject_id, occurred_at)
    SELECT 'cart.item_added', i.id, i.added_at FROM added i WHERE i.order_id IS NULL;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION kyhan_cart_items_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO outbox (event_type, subject_id, occurred_at)
    SELECT 'cart.item_added', n.id, n.added_at
      FROM after n JOIN before b ON b.id = n.id
     WHERE n.order_id IS NULL AND (b.order_id, b.added_at) IS DISTINCT FROM (n.order_id, n.added_at);
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER kyhan_orders_recorded AFTER INSERT ON orders
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (current_setting('kyhan.effect', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION kyhan_orders_recorded();
CREATE OR REPLACE TRIGGER kyhan_orders_changed AFTER UPDATE ON orders
    REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT
    WHEN (current_setting('kyhan.effect', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION kyhan_orders_changed();
CREATE OR REPLACE TRIGGER kyhan_cart_items_added AFTER INSERT ON cart_items
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (current_setting('kyhan.effect', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION kyhan_cart_items_added();
CREATE OR REPLACE TRIGGER kyhan_cart_items_changed AFTER UPDATE ON cart_items
    REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT
    WHEN (current_setting('kyhan.effect', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION kyhan_cart_items_changed();

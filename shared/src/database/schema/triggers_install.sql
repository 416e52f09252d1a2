-- Optional: turns changes of orders and cart_items, and refunds, into events, so that an existing order system need not change a line.
-- Statement-level, so a bulk update pays once. The fleet raises the events of its effects itself.
-- The functions that insert run with the owner's rights: a login of the order system needs none in the fleet's schema.

-- An order system that knows statuses and fees, and no moments: they are filled in where it leaves them out.
CREATE OR REPLACE FUNCTION kyhan_orders_moments() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status = 'delivering' THEN
        NEW.delivering_since := coalesce(NEW.delivering_since, now());
    ELSIF NEW.status = 'received' THEN
        NEW.received_at := coalesce(NEW.received_at, now());
    ELSIF NEW.status = 'out_of_stock' THEN
        NEW.out_of_stock_since := coalesce(NEW.out_of_stock_since, now());
    END IF;
    IF TG_OP = 'UPDATE' THEN
        -- The moment of an earlier time would leave staff no day to correct this one.
        IF NEW.status = 'out_of_stock' AND OLD.status <> 'out_of_stock' AND NEW.out_of_stock_since = OLD.out_of_stock_since THEN
            NEW.out_of_stock_since := now();
        END IF;
        IF (NEW.goods_due, NEW.shipping_due, NEW.service_due) IS DISTINCT FROM (OLD.goods_due, OLD.shipping_due, OLD.service_due)
           AND NEW.fees_changed_at IS NOT DISTINCT FROM OLD.fees_changed_at THEN
            NEW.fees_changed_at := now();
        END IF;
    END IF;
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION kyhan_orders_recorded() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
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

CREATE OR REPLACE FUNCTION kyhan_orders_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
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

CREATE OR REPLACE FUNCTION kyhan_cart_items_added() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO outbox (event_type, subject_id, occurred_at)
    SELECT 'cart.item_added', i.id, i.added_at FROM added i WHERE i.order_id IS NULL;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION kyhan_cart_items_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO outbox (event_type, subject_id, occurred_at)
    SELECT 'cart.item_added', n.id, n.added_at
      FROM after n JOIN before b ON b.id = n.id
     WHERE n.order_id IS NULL AND (b.order_id, b.added_at) IS DISTINCT FROM (n.order_id, n.added_at);
    RETURN NULL;
END $$;

-- A refund leaves an order short as a raised fee does; a payment only leaves less to collect.
CREATE OR REPLACE FUNCTION kyhan_transfers_refunded() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO outbox (event_type, subject_id, occurred_at)
    SELECT 'order.fees_changed', account.order_id, max(added.at)
      FROM added JOIN accounts AS account ON account.id = added.debit_account
     WHERE account.order_id IS NOT NULL
     GROUP BY account.order_id;
    RETURN NULL;
END $$;

REVOKE EXECUTE ON FUNCTION kyhan_orders_recorded(), kyhan_orders_changed(), kyhan_cart_items_added(), kyhan_cart_items_changed(),
    kyhan_transfers_refunded() FROM PUBLIC;

CREATE OR REPLACE TRIGGER kyhan_orders_moments BEFORE INSERT OR UPDATE ON orders FOR EACH ROW
    EXECUTE FUNCTION kyhan_orders_moments();
CREATE OR REPLACE TRIGGER kyhan_transfers_refunded AFTER INSERT ON transfers
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (kyhan_session_role() NOT IN ('worker', 'operator'))
    EXECUTE FUNCTION kyhan_transfers_refunded();
CREATE OR REPLACE TRIGGER kyhan_orders_recorded AFTER INSERT ON orders
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (kyhan_session_role() NOT IN ('worker', 'operator'))
    EXECUTE FUNCTION kyhan_orders_recorded();
CREATE OR REPLACE TRIGGER kyhan_orders_changed AFTER UPDATE ON orders
    REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT
    WHEN (kyhan_session_role() NOT IN ('worker', 'operator'))
    EXECUTE FUNCTION kyhan_orders_changed();
CREATE OR REPLACE TRIGGER kyhan_cart_items_added AFTER INSERT ON cart_items
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (kyhan_session_role() NOT IN ('worker', 'operator'))
    EXECUTE FUNCTION kyhan_cart_items_added();
CREATE OR REPLACE TRIGGER kyhan_cart_items_changed AFTER UPDATE ON cart_items
    REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT
    WHEN (kyhan_session_role() NOT IN ('worker', 'operator'))
    EXECUTE FUNCTION kyhan_cart_items_changed();

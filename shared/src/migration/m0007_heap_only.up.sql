-- confirm-receipt changes an order's status and moments, and nothing else. Where no index holds what changes, not even in its
-- predicate, PostgreSQL writes the new version beside the old one and touches no index (heap-only tuples).
-- Measured: docs/decisions/0017.

DROP INDEX orders_delivering_since_idx;
-- No query could use it: collect-arrears asks for the wrongly «Hết hàng» and for the short ones at once.
DROP INDEX orders_wrongly_out_of_stock_idx;
-- For the sweep of confirm-receipt. delivering_since stays as it is when an order is received.
CREATE INDEX orders_shipped_idx ON orders (delivering_since) WHERE delivering_since IS NOT NULL;
-- Room on each page for the versions of a few orders that change at once.
ALTER TABLE orders SET (fillfactor = 85);

-- Every history row has its order. A foreign key asks row by row, which cost the fleet a quarter of its database's time; this asks
-- once a statement, and not the fleet's own sessions (kyhan.effect), which hold each order locked while they write its history.
ALTER TABLE order_status_history DROP CONSTRAINT order_status_history_order_id_fkey;

CREATE FUNCTION kyhan_history_has_its_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- As a foreign key would: the order cannot go until this transaction ends.
    PERFORM FROM orders WHERE id IN (SELECT order_id FROM added) ORDER BY id FOR KEY SHARE;
    IF EXISTS (SELECT FROM added WHERE NOT EXISTS (SELECT FROM orders WHERE orders.id = added.order_id)) THEN
        RAISE EXCEPTION 'order_status_history names an order that does not exist'
            USING ERRCODE = 'foreign_key_violation', TABLE = 'order_status_history', COLUMN = 'order_id';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER history_has_its_order AFTER INSERT ON order_status_history
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (current_setting('kyhan.effect', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION kyhan_history_has_its_order();
CREATE TRIGGER history_keeps_its_order AFTER UPDATE ON order_status_history
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    EXECUTE FUNCTION kyhan_history_has_its_order();

CREATE FUNCTION kyhan_order_has_no_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM order_status_history AS history JOIN gone ON gone.id = history.order_id
                WHERE NOT EXISTS (SELECT FROM orders WHERE orders.id = history.order_id)) THEN
        RAISE EXCEPTION 'an order cannot go while order_status_history names it'
            USING ERRCODE = 'foreign_key_violation', TABLE = 'orders', COLUMN = 'id';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER orders_without_history AFTER DELETE ON orders
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    EXECUTE FUNCTION kyhan_order_has_no_history();

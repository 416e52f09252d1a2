-- confirm-receipt changes an order's status and moments, and nothing else. Where no index holds what changes, not even in its
-- predicate, PostgreSQL writes the new version beside the old one and touches no index (heap-only tuples).
-- Measured: docs/decisions/0017.

-- For the sweep of confirm-receipt. delivering_since stays as it is when an order is received.
-- First, because building it takes time and locks out only writers. What locks out readers too comes last, as such a lock is
-- held to the end.
CREATE INDEX orders_shipped_idx ON orders (delivering_since) WHERE delivering_since IS NOT NULL;
-- Room on each page for the versions of a few orders that change at once.
ALTER TABLE orders SET (fillfactor = 85);

-- Every history row has its order. A foreign key asks row by row, which cost the fleet a quarter of its database's time; this asks
-- once a statement, and not the fleet's own sessions (kyhan.effect), which hold each order locked while they write its history.
--
-- Like a foreign key's, these checks are made with the rights of the tables' owner, who has to own the functions too: whoever writes
-- history needs no rights on orders.

CREATE FUNCTION kyhan_history_has_its_order() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    held bigint;
BEGIN
    -- As a foreign key would: the order cannot go until this transaction ends. Only what is locked counts as there.
    SELECT count(*) INTO held
      FROM (SELECT FROM orders WHERE id IN (SELECT order_id FROM added) ORDER BY id FOR KEY SHARE) AS locked;
    IF held < (SELECT count(DISTINCT order_id) FROM added) THEN
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

CREATE FUNCTION kyhan_order_has_no_history() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    named boolean;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        named := EXISTS (SELECT FROM order_status_history);
    ELSE
        named := EXISTS (SELECT FROM order_status_history WHERE order_id = OLD.id)
                 AND NOT EXISTS (SELECT FROM orders WHERE id = OLD.id);
    END IF;
    IF named THEN
        RAISE EXCEPTION 'an order cannot go, nor change its id, while order_status_history names it'
            USING ERRCODE = 'foreign_key_violation', TABLE = 'orders', COLUMN = 'id';
    END IF;
    -- A foreign key looks past the transaction's snapshot, and no trigger in SQL can. History written since would be orphaned.
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'orders cannot be deleted, nor change their ids, in a transaction that is %',
                        upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'feature_not_supported',
                  DETAIL = 'Its snapshot does not tell whether order_status_history names them by now.',
                  HINT = 'Do it in a transaction that is READ COMMITTED.';
    END IF;
    RETURN NULL;
END $$;
-- Row by row, as the foreign key did: the fleet deletes no order, and names no id among what it changes.
CREATE TRIGGER orders_without_history AFTER DELETE ON orders FOR EACH ROW
    EXECUTE FUNCTION kyhan_order_has_no_history();
CREATE TRIGGER orders_keep_their_ids AFTER UPDATE OF id ON orders FOR EACH ROW
    WHEN (OLD.id IS DISTINCT FROM NEW.id)
    EXECUTE FUNCTION kyhan_order_has_no_history();
CREATE TRIGGER orders_truncated_with_history AFTER TRUNCATE ON orders FOR EACH STATEMENT
    EXECUTE FUNCTION kyhan_order_has_no_history();

-- They look up their tables in the schema where these are now, whatever the session's search_path is, and in no temporary table of
-- the same name.
DO $$
DECLARE
    place text := (SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
                    WHERE pg_class.oid = 'orders'::regclass);
BEGIN
    EXECUTE format('ALTER FUNCTION kyhan_history_has_its_order() SET search_path = %I, pg_temp', place);
    EXECUTE format('ALTER FUNCTION kyhan_order_has_no_history() SET search_path = %I, pg_temp', place);
END $$;
-- Firing a trigger asks for no right; making one does, and on a table of one's own these would tell which orders exist.
REVOKE EXECUTE ON FUNCTION kyhan_history_has_its_order(), kyhan_order_has_no_history() FROM PUBLIC;

-- From here on readers are locked out as well, for moments.
ALTER TABLE order_status_history DROP CONSTRAINT order_status_history_order_id_fkey;
DROP INDEX orders_delivering_since_idx;
-- No query could use it: collect-arrears asks for the wrongly «Hết hàng» and for the short ones at once.
DROP INDEX orders_wrongly_out_of_stock_idx;

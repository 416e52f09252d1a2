-- Six months on line, then hidden, and deleted only where a deployment wants that (policy point 4): docs/decisions/0022.

-- Orders that are to stay as they are, whatever their age.
CREATE TABLE retention_holds (
    order_id  uuid        PRIMARY KEY REFERENCES orders (id),
    held_at   timestamptz NOT NULL DEFAULT now(),
    held_by   text        NOT NULL,
    why       text        NOT NULL
);

-- Orders that were deleted after they had been hidden for long. The ledger still names their ids.
CREATE TABLE deleted_orders (
    id          uuid        PRIMARY KEY,
    deleted_at  timestamptz NOT NULL DEFAULT now()
);

-- Before which finance and activity records are no longer on line, unless they are about an order that still is. One row.
CREATE TABLE records_retention (
    is_the_only_row  boolean     PRIMARY KEY DEFAULT true CHECK (is_the_only_row),
    hidden_before    timestamptz NOT NULL DEFAULT '1970-01-01 00:00:00+00'
);
INSERT INTO records_retention DEFAULT VALUES;

-- None of them holds what a receipt changes, so receipts stay heap-only.
CREATE INDEX orders_online_idx ON orders (created_at) WHERE hidden_at IS NULL;
CREATE INDEX orders_hidden_idx ON orders (hidden_at) WHERE hidden_at IS NOT NULL;
-- What belongs to a customer, and to an order.
CREATE INDEX orders_customer_idx ON orders (customer_id);
CREATE INDEX cart_items_customer_idx ON cart_items (customer_id);
CREATE INDEX cart_items_order_idx ON cart_items (order_id) WHERE order_id IS NOT NULL;

-- THE definition of how long an order has to be kept, for hiding, deleting and erasing: whether anything is left to do about it, and, if
-- nothing is, when something was last heard of it. Whoever may read this view need not be able to read what it looks at.
--
-- Settled: the status is final, no money is outstanding or held for it, nobody holds it. Of a received order all that is due was paid,
-- and no more; of one that came to nothing each component was refunded, or what is kept of it is due.
-- OFFSET keeps each from being worked out more than once a row.
CREATE VIEW order_retention AS
SELECT orders.id, orders.created_at AS since, orders.hidden_at, judged.settled, heard.newest_at
  FROM orders
       CROSS JOIN LATERAL (
           SELECT (orders.status IN ('received', 'cancelled')
                   OR (orders.status = 'out_of_stock' AND orders.parcel_recorded_at IS NULL))
                  AND NOT orders.on_hold
                  AND NOT EXISTS (SELECT FROM retention_holds WHERE retention_holds.order_id = orders.id)
                  AND NOT EXISTS (SELECT FROM arrears_outstanding WHERE arrears_outstanding.order_id = orders.id)
                  AND NOT EXISTS (
                      SELECT FROM (VALUES ('goods', orders.goods_due), ('shipping', orders.shipping_due), ('service', orders.service_due))
                                  AS part (kind, due)
                             LEFT JOIN accounts ON accounts.order_id = orders.id AND accounts.kind = part.kind
                       WHERE CASE WHEN orders.status = 'received' THEN part.due <> coalesce(accounts.balance, 0)
                                  ELSE coalesce(accounts.balance, 0) NOT IN (0, part.due) END) AS settled
           OFFSET 0) AS judged
       CROSS JOIN LATERAL (
           SELECT CASE WHEN judged.settled THEN
                      greatest(orders.created_at, orders.updated_at, orders.delivering_since, orders.received_at,
                               orders.out_of_stock_since, orders.parcel_recorded_at, orders.fees_changed_at,
                               (SELECT max(at) FROM order_status_history AS history WHERE history.order_id = orders.id),
                               (SELECT max(at) FROM transfers WHERE transfers.order_id = orders.id),
                               (SELECT max(at) FROM order_messages AS message WHERE message.order_id = orders.id),
                               (SELECT max(at) FROM activity WHERE activity.subject_id = orders.id)) END AS newest_at
           OFFSET 0) AS heard;

-- The promise itself, whoever hides: not before six calendar months of Asia/Ho_Chi_Minh after the last news, and not ahead of time.
CREATE FUNCTION kyhan_orders_are_hidden_in_time() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF NEW.hidden_at > now() OR NOT EXISTS (
           SELECT FROM order_retention AS kept
            WHERE kept.id = NEW.id AND kept.settled
              AND (kept.newest_at AT TIME ZONE 'Asia/Ho_Chi_Minh' + interval '6 months') AT TIME ZONE 'Asia/Ho_Chi_Minh' <= NEW.hidden_at) THEN
        RAISE EXCEPTION 'an order is on line for six months after the last news about it, and while anything about it is open'
            USING ERRCODE = 'check_violation', TABLE = 'orders', COLUMN = 'hidden_at';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER orders_are_hidden_in_time BEFORE UPDATE OF hidden_at ON orders FOR EACH ROW
    WHEN (NEW.hidden_at IS NOT NULL AND NEW.hidden_at IS DISTINCT FROM OLD.hidden_at)
    EXECUTE FUNCTION kyhan_orders_are_hidden_in_time();

-- News about a hidden order brings it back on line, for six months at least.
CREATE FUNCTION kyhan_put_on_line(ids uuid[]) RETURNS void LANGUAGE sql SECURITY DEFINER AS $$
    WITH back AS (
        UPDATE orders SET hidden_at = NULL WHERE id = ANY (ids) AND hidden_at IS NOT NULL RETURNING id
    ), recorded AS (
        INSERT INTO activity (actor_kind, action, subject_kind, subject_id)
        SELECT 'system', 'order.unhidden', 'order', id FROM back
    )
    INSERT INTO outbox (event_type, subject_id) SELECT 'order.recorded', id FROM back
$$;
CREATE FUNCTION kyhan_news_of_orders() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    hidden uuid[] := (SELECT array_agg(id) FROM orders WHERE hidden_at IS NOT NULL AND id IN (SELECT order_id FROM added));
BEGIN
    IF hidden IS NOT NULL THEN
        PERFORM kyhan_put_on_line(hidden);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER messages_are_news AFTER INSERT ON order_messages
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_news_of_orders();
-- The fleet's own sessions (kyhan.effect) have judged what they write about.
CREATE TRIGGER transfers_are_news AFTER INSERT ON transfers
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (current_setting('kyhan.effect', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION kyhan_news_of_orders();
CREATE TRIGGER history_is_news AFTER INSERT ON order_status_history
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (current_setting('kyhan.effect', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION kyhan_news_of_orders();
CREATE FUNCTION kyhan_news_of_order() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    PERFORM kyhan_put_on_line(ARRAY[NEW.id]);
    RETURN NULL;
END $$;
CREATE TRIGGER changes_are_news AFTER UPDATE ON orders FOR EACH ROW
    WHEN (OLD.hidden_at IS NOT NULL AND NEW.hidden_at IS NOT NULL
          AND (OLD.status, OLD.on_hold, OLD.goods_due, OLD.shipping_due, OLD.service_due, OLD.delivering_since, OLD.received_at,
               OLD.out_of_stock_since, OLD.parcel_recorded_at, OLD.fees_changed_at)
              IS DISTINCT FROM
              (NEW.status, NEW.on_hold, NEW.goods_due, NEW.shipping_due, NEW.service_due, NEW.delivering_since, NEW.received_at,
               NEW.out_of_stock_since, NEW.parcel_recorded_at, NEW.fees_changed_at))
    EXECUTE FUNCTION kyhan_news_of_order();

-- Money moved for an order is news about it, also where the transfer does not say which order.
CREATE FUNCTION kyhan_transfers_name_their_order() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    NEW.order_id := (SELECT order_id FROM accounts WHERE id IN (NEW.debit_account, NEW.credit_account) AND order_id IS NOT NULL
                      ORDER BY id LIMIT 1);
    RETURN NEW;
END $$;
CREATE TRIGGER transfers_name_their_order BEFORE INSERT ON transfers FOR EACH ROW WHEN (NEW.order_id IS NULL)
    EXECUTE FUNCTION kyhan_transfers_name_their_order();

-- What is on line. Hidden orders stay whole in `orders`.
CREATE VIEW orders_online AS SELECT * FROM orders WHERE hidden_at IS NULL;
CREATE VIEW transfers_online AS
SELECT * FROM transfers
 WHERE at >= (SELECT hidden_before FROM records_retention)
    OR EXISTS (SELECT FROM orders WHERE orders.id = transfers.order_id AND orders.hidden_at IS NULL);
CREATE VIEW activity_online AS
SELECT * FROM activity
 WHERE at >= (SELECT hidden_before FROM records_retention)
    OR EXISTS (SELECT FROM orders WHERE orders.id = activity.subject_id AND orders.hidden_at IS NULL);

-- Accounts and transfers outlive their order, which a foreign key would not let them. What they name has to be there when it is
-- named, as before; the fleet's own sessions (kyhan.effect) hold each order locked while they write about it.
ALTER TABLE accounts DROP CONSTRAINT accounts_order_id_fkey;
ALTER TABLE transfers DROP CONSTRAINT transfers_order_id_fkey;
CREATE FUNCTION kyhan_ledger_has_its_orders() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    held bigint;
BEGIN
    -- As a foreign key would: the order cannot go until this transaction ends. Only what is locked counts as there.
    SELECT count(*) INTO held
      FROM (SELECT FROM orders WHERE id IN (SELECT order_id FROM added) ORDER BY id FOR KEY SHARE) AS locked;
    IF held < (SELECT count(DISTINCT order_id) FROM added) THEN
        RAISE EXCEPTION '% names an order that does not exist', TG_TABLE_NAME
            USING ERRCODE = 'foreign_key_violation', TABLE = TG_TABLE_NAME, COLUMN = 'order_id';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER accounts_have_their_orders AFTER INSERT ON accounts
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (current_setting('kyhan.effect', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION kyhan_ledger_has_its_orders();
CREATE TRIGGER transfers_have_their_orders AFTER INSERT ON transfers
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (current_setting('kyhan.effect', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION kyhan_ledger_has_its_orders();

-- An order goes only by kyhan_delete_hidden_orders(), which leaves its id in deleted_orders, once money was moved for it.
CREATE FUNCTION kyhan_order_has_no_ledger() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    named boolean;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        named := EXISTS (SELECT FROM accounts WHERE order_id IS NOT NULL) OR EXISTS (SELECT FROM transfers WHERE order_id IS NOT NULL);
    ELSE
        named := (EXISTS (SELECT FROM accounts WHERE order_id = OLD.id) OR EXISTS (SELECT FROM transfers WHERE order_id = OLD.id))
                 AND NOT EXISTS (SELECT FROM deleted_orders WHERE id = OLD.id);
    END IF;
    IF named THEN
        RAISE EXCEPTION 'an order cannot go, nor change its id, while the ledger names it'
            USING ERRCODE = 'foreign_key_violation', TABLE = 'orders', COLUMN = 'id';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER orders_without_ledger AFTER DELETE ON orders FOR EACH ROW
    EXECUTE FUNCTION kyhan_order_has_no_ledger();
CREATE TRIGGER orders_keep_their_ids_in_the_ledger AFTER UPDATE OF id ON orders FOR EACH ROW
    WHEN (OLD.id IS DISTINCT FROM NEW.id)
    EXECUTE FUNCTION kyhan_order_has_no_ledger();
CREATE TRIGGER orders_truncated_with_ledger AFTER TRUNCATE ON orders FOR EACH STATEMENT
    EXECUTE FUNCTION kyhan_order_has_no_ledger();

-- Whose an account is and what it is for never changes. Whoever may lock accounts needs a right to change some column of theirs, and
-- this keeps that right to locking.
CREATE FUNCTION kyhan_accounts_keep_their_owner() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'whose an account is never changes' USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER accounts_keep_their_owner BEFORE UPDATE OF id, kind, customer_id, order_id ON accounts FOR EACH ROW
    WHEN ((OLD.id, OLD.kind, OLD.customer_id, OLD.order_id) IS DISTINCT FROM (NEW.id, NEW.kind, NEW.customer_id, NEW.order_id))
    EXECUTE FUNCTION kyhan_accounts_keep_their_owner();
-- An id once used for an order never comes back: the ledger would take the new one's money for the old one's.
CREATE FUNCTION kyhan_order_ids_are_used_once() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF EXISTS (SELECT FROM added JOIN deleted_orders ON deleted_orders.id = added.id) THEN
        RAISE EXCEPTION 'an order of this id was deleted; ids are used once' USING ERRCODE = 'unique_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER order_ids_are_used_once AFTER INSERT ON orders REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    EXECUTE FUNCTION kyhan_order_ids_are_used_once();

-- Deletes orders that were hidden before a moment, oldest first, and all that is kept with them: messages, sources, products, history,
-- and what events said of them. The ledger stays, and names their ids alone. It judges for itself, whatever it is asked for: settled,
-- not held, nothing heard of them and hidden for six months in Asia/Ho_Chi_Minh. How many it deleted.
CREATE FUNCTION kyhan_delete_hidden_orders(hidden_before timestamptz, most integer) RETURNS bigint
LANGUAGE plpgsql STRICT SECURITY DEFINER AS $$
DECLARE
    six_months_ago timestamptz := (now() AT TIME ZONE 'Asia/Ho_Chi_Minh' - interval '6 months') AT TIME ZONE 'Asia/Ho_Chi_Minh';
    before timestamptz := least(hidden_before, six_months_ago);
    chosen uuid[];
    owner record;
BEGIN
    SELECT array_agg(locked.id) INTO chosen
      FROM (SELECT orders.id FROM orders JOIN order_retention AS kept ON kept.id = orders.id
             WHERE orders.hidden_at < before AND kept.settled AND kept.newest_at < six_months_ago
             ORDER BY orders.hidden_at LIMIT least(most, 1000) FOR UPDATE OF orders SKIP LOCKED) AS locked;
    -- Once more, as they are now that they are locked.
    SELECT array_agg(kept.id) INTO chosen
      FROM order_retention AS kept
     WHERE kept.id = ANY (chosen) AND kept.hidden_at < before AND kept.settled AND kept.newest_at < six_months_ago;
    IF chosen IS NULL THEN
        RETURN 0;
    END IF;
    INSERT INTO deleted_orders (id) SELECT unnest(chosen);
    UPDATE outbox SET data = NULL WHERE subject_id = ANY (chosen) AND data IS NOT NULL;
    UPDATE set_aside SET data = NULL WHERE subject_id = ANY (chosen) AND data IS NOT NULL;
    DELETE FROM order_messages WHERE order_id = ANY (chosen);
    DELETE FROM cart_items WHERE order_id = ANY (chosen);
    -- Sources are readable, and so deletable, only in the owning customer's name, for this function too.
    FOR owner IN SELECT DISTINCT customer_id FROM orders WHERE id = ANY (chosen) LOOP
        PERFORM set_config('kyhan.customer_id', owner.customer_id::text, true);
        DELETE FROM order_sources WHERE order_id = ANY (chosen);
    END LOOP;
    PERFORM set_config('kyhan.customer_id', '', true);
    DELETE FROM order_status_history WHERE order_id = ANY (chosen);
    DELETE FROM orders WHERE id = ANY (chosen);
    INSERT INTO activity (actor_kind, action, subject_kind, subject_id)
    SELECT 'system', 'order.deleted', 'order', unnest(chosen);
    RETURN cardinality(chosen);
END $$;

-- What an operator may do with events that were set aside, whatever the order system put into them.
CREATE FUNCTION kyhan_retry_set_aside(everything boolean, ids bigint[]) RETURNS SETOF uuid
LANGUAGE sql SECURITY DEFINER AS $$
    WITH back AS (
        DELETE FROM set_aside WHERE everything OR id = ANY (ids) RETURNING *
    ), put AS (
        INSERT INTO outbox (event_id, event_type, subject_id, occurred_at, data)
        SELECT event_id, event_type, subject_id, occurred_at, data FROM back ORDER BY id
    )
    SELECT event_id FROM back ORDER BY id
$$;

-- The balance is kept whoever moves the money, and nobody needs a right to change one.
ALTER FUNCTION kyhan_keep_balances() SECURITY DEFINER;

REVOKE EXECUTE ON FUNCTION
    kyhan_ledger_has_its_orders(), kyhan_order_has_no_ledger(), kyhan_order_ids_are_used_once(), kyhan_keep_balances(),
    kyhan_orders_are_hidden_in_time(), kyhan_put_on_line(uuid[]), kyhan_news_of_orders(), kyhan_news_of_order(),
    kyhan_transfers_name_their_order(), kyhan_delete_hidden_orders(timestamptz, integer), kyhan_retry_set_aside(boolean, bigint[]) FROM PUBLIC;
-- They look up their tables in the schema where these are now, whatever the session's search_path is.
DO $$
DECLARE
    place text := (SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
                    WHERE pg_class.oid = 'orders'::regclass);
    signature text;
BEGIN
    FOREACH signature IN ARRAY ARRAY[
        'kyhan_ledger_has_its_orders()', 'kyhan_order_has_no_ledger()', 'kyhan_order_ids_are_used_once()', 'kyhan_keep_balances()',
        'kyhan_orders_are_hidden_in_time()', 'kyhan_put_on_line(uuid[])', 'kyhan_news_of_orders()', 'kyhan_news_of_order()',
        'kyhan_transfers_name_their_order()',
        'kyhan_delete_hidden_orders(timestamptz, integer)', 'kyhan_retry_set_aside(boolean, bigint[])'] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', signature, place);
    END LOOP;
END $$;

-- Orders and records stay on line for six months, then they are hidden. They are deleted only if a deployment wants that (policy
-- point 4): docs/decisions/0022. From this file on, the fleet reads the order system's tables.

-- Orders that must stay as they are, whatever their age.
CREATE TABLE retention_holds (
    order_id  uuid        PRIMARY KEY REFERENCES orders (id),
    held_at   timestamptz NOT NULL DEFAULT now(),
    held_by   text        NOT NULL,
    why       text        NOT NULL
);

-- Orders whose arrears could not be collected completely, because of a wallet's floor. The last attempt counts as a change of payments,
-- so the next one is due one period later.
CREATE TABLE arrears_outstanding (
    order_id     uuid        PRIMARY KEY REFERENCES orders (id),
    outstanding  bigint      NOT NULL CHECK (outstanding > 0),
    tried_at     timestamptz NOT NULL
);

-- THE definition of how long an order is kept, for hiding, deleting and erasing: whether the order is settled, and if so, when the last
-- news about it came. A role that may read this view needs no rights on the tables under it.
--
-- Settled means: the status is final, no money is outstanding, and there is no hold. A received order must be paid exactly. For an
-- order that was not received, each component must be refunded, or the amount kept must be due.
-- OFFSET 0 makes PostgreSQL compute each part once per row.
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
                      greatest(orders.created_at, orders.updated_at, orders.changed_at, orders.delivering_since, orders.received_at,
                               orders.out_of_stock_since, orders.parcel_recorded_at, orders.fees_changed_at,
                               (SELECT max(at) FROM order_status_history AS history WHERE history.order_id = orders.id),
                               (SELECT max(at) FROM transfers WHERE transfers.order_id = orders.id),
                               (SELECT max(at) FROM order_messages AS message WHERE message.order_id = orders.id),
                               (SELECT max(at) FROM activity WHERE activity.subject_id = orders.id)) END AS newest_at
           OFFSET 0) AS heard;

-- Finance and activity records from before this moment are no longer on line, unless their order is. One row.
CREATE TABLE records_retention (
    is_the_only_row  boolean     PRIMARY KEY DEFAULT true CHECK (is_the_only_row),
    hidden_before    timestamptz NOT NULL DEFAULT '1970-01-01 00:00:00+00'
);
INSERT INTO records_retention DEFAULT VALUES;
-- Records stay on line for the full six months.
CREATE FUNCTION kyhan_records_are_hidden_in_time() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.hidden_before > (now() AT TIME ZONE 'Asia/Ho_Chi_Minh' - interval '6 months') AT TIME ZONE 'Asia/Ho_Chi_Minh' THEN
        RAISE EXCEPTION 'records must stay on line for six months' USING ERRCODE = 'check_violation', TABLE = 'records_retention';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER records_are_hidden_in_time BEFORE INSERT OR UPDATE ON records_retention FOR EACH ROW
    EXECUTE FUNCTION kyhan_records_are_hidden_in_time();

CREATE VIEW transfers_online AS
SELECT * FROM transfers
 WHERE at >= (SELECT hidden_before FROM records_retention)
    OR EXISTS (SELECT FROM orders WHERE orders.id = transfers.order_id AND orders.hidden_at IS NULL);
CREATE VIEW activity_online AS
SELECT * FROM activity
 WHERE at >= (SELECT hidden_before FROM records_retention)
    OR EXISTS (SELECT FROM orders WHERE orders.id = activity.subject_id AND orders.hidden_at IS NULL);

-- Deletes orders that were hidden before a moment, oldest first, with their messages, sources, products, history and event data. The
-- ledger stays, and keeps only their ids. The function checks for itself: settled, no hold, no news for six months, and hidden for six
-- months, all in Asia/Ho_Chi_Minh. The time hidden counts from the activity record, whose moment only the database can set: a role that
-- may hide an order could back-date hidden_at. Returns how many orders it deleted.
CREATE FUNCTION kyhan_delete_hidden_orders(hidden_before timestamptz, most integer, skip integer) RETURNS bigint
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
               AND EXISTS (SELECT FROM activity AS record
                            WHERE record.subject_id = orders.id AND record.action = 'order.hidden'
                            AND record.at >= orders.hidden_at AND record.at < before)
             ORDER BY orders.hidden_at LIMIT least(most, 1000) OFFSET skip FOR UPDATE OF orders SKIP LOCKED) AS locked;
    -- Check again, now that they are locked.
    SELECT array_agg(kept.id) INTO chosen
      FROM order_retention AS kept
     WHERE kept.id = ANY (chosen) AND kept.hidden_at < before AND kept.settled AND kept.newest_at < six_months_ago
       AND EXISTS (SELECT FROM activity AS record
                    WHERE record.subject_id = kept.id AND record.action = 'order.hidden'
                    AND record.at >= kept.hidden_at AND record.at < before);
    IF chosen IS NULL THEN
        RETURN 0;
    END IF;
    INSERT INTO deleted_orders (id) SELECT unnest(chosen);
    UPDATE outbox SET data = NULL WHERE subject_id = ANY (chosen) AND data IS NOT NULL;
    UPDATE set_aside SET data = NULL WHERE subject_id = ANY (chosen) AND data IS NOT NULL;
    DELETE FROM order_messages WHERE order_id = ANY (chosen);
    DELETE FROM cart_items WHERE order_id = ANY (chosen);
    -- Sources can be read, and so deleted, only for the customer who owns them. This applies to this function too.
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

-- Removes activity ranges that were sealed before a moment, oldest first. It keeps ranges that were altered, that concern an order on
-- line or on hold, or that record when a hidden order was hidden. The function checks their age for itself. Returns how many ranges it
-- removed.
CREATE FUNCTION kyhan_remove_activity(sealed_before timestamptz, most integer) RETURNS bigint
LANGUAGE plpgsql STRICT SECURITY DEFINER AS $$
DECLARE
    six_months_ago timestamptz := (now() AT TIME ZONE 'Asia/Ho_Chi_Minh' - interval '6 months') AT TIME ZONE 'Asia/Ho_Chi_Minh';
    range record;
    recorded bigint;
    removed bigint := 0;
BEGIN
    LOCK TABLE activity_removals IN SHARE ROW EXCLUSIVE MODE;
    FOR range IN
        SELECT seal.* FROM activity_seals AS seal
         WHERE seal.sealed_at < least(sealed_before, six_months_ago)
           AND NOT EXISTS (SELECT FROM activity_removals WHERE activity_removals.number = seal.number)
           AND NOT EXISTS (SELECT FROM activity JOIN orders ON orders.id = activity.subject_id
                                  LEFT JOIN retention_holds ON retention_holds.order_id = orders.id
                            WHERE activity.id BETWEEN seal.first_id AND seal.last_id
                              AND (orders.hidden_at IS NULL OR orders.on_hold OR retention_holds.order_id IS NOT NULL
                                   OR activity.action = 'order.hidden'))
           -- An altered range is evidence.
           AND (SELECT holds FROM kyhan_seal_holds(seal.number))
         ORDER BY seal.number LIMIT least(most, 100) LOOP
        INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail)
        VALUES ('system', 'activity.removed', 'activity', '00000000-0000-0000-0000-000000000000',
                jsonb_build_object('number', range.number, 'rows', range.rows, 'hash', encode(range.hash, 'hex')))
        RETURNING id INTO recorded;
        INSERT INTO activity_removals (number, recorded_as) VALUES (range.number, recorded);
        DELETE FROM activity WHERE id BETWEEN range.first_id AND range.last_id;
        removed := removed + 1;
    END LOOP;
    RETURN removed;
END $$;

-- Discards events that were set aside before a moment, at least 30 days ago, oldest first, and records each. Returns how many.
CREATE FUNCTION kyhan_forget_set_aside(set_aside_before timestamptz, most integer) RETURNS bigint
LANGUAGE sql STRICT SECURITY DEFINER AS $$
    WITH gone AS (
        DELETE FROM set_aside WHERE id IN (
            SELECT id FROM set_aside WHERE set_aside_at < least(set_aside_before, now() - interval '30 days')
             ORDER BY id LIMIT least(most, 1000) FOR UPDATE SKIP LOCKED)
        RETURNING id, event_id, subject_id
    ), recorded AS (
        INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail)
        SELECT 'system', 'event.expired', 'event', event_id, jsonb_build_object('subject_id', subject_id) FROM gone ORDER BY id
    )
    SELECT count(*) FROM gone
$$;
REVOKE EXECUTE ON FUNCTION kyhan_delete_hidden_orders(timestamptz, integer, integer), kyhan_remove_activity(timestamptz, integer),
    kyhan_forget_set_aside(timestamptz, integer) FROM PUBLIC;

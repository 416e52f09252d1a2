ALTER TABLE activity DISABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS activity_is_read ON activity;
DROP POLICY IF EXISTS activity_of_the_fleet ON activity;
DROP POLICY IF EXISTS activity_of_operators ON activity;
DROP POLICY IF EXISTS activity_of_the_order_system ON activity;
ALTER FUNCTION kyhan_messages_record_themselves() RESET search_path;
DROP TRIGGER records_are_hidden_in_time ON records_retention;
DROP TRIGGER actions_are_news ON activity;
DROP TRIGGER transfers_tell_news ON transfers;
DROP TRIGGER changes_are_dated ON orders;
DROP TRIGGER erasures_are_recorded ON customers;
DROP TRIGGER customers_are_erased_once_settled ON customers;
DROP FUNCTION kyhan_records_are_hidden_in_time(), kyhan_actions_are_news(), kyhan_transfers_are_news(), kyhan_changes_are_dated(),
    kyhan_erasures_are_recorded(), kyhan_erasure_is_allowed();
CREATE TRIGGER transfers_are_news AFTER INSERT ON transfers
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (current_setting('kyhan.effect', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION kyhan_news_of_orders();
CREATE OR REPLACE FUNCTION kyhan_orders_are_hidden_in_time() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
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
CREATE OR REPLACE FUNCTION kyhan_delete_hidden_orders(hidden_before timestamptz, most integer) RETURNS bigint
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
CREATE OR REPLACE FUNCTION kyhan_remove_activity(sealed_before timestamptz, most integer) RETURNS bigint
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
                              AND (orders.hidden_at IS NULL OR orders.on_hold OR retention_holds.order_id IS NOT NULL))
           -- What somebody has altered is evidence.
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
CREATE OR REPLACE VIEW order_retention AS
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
ALTER TABLE orders DROP COLUMN changed_at;
DO $$
DECLARE
    place text := (SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
                    WHERE pg_class.oid = 'orders'::regclass);
BEGIN
    EXECUTE format('ALTER FUNCTION kyhan_orders_are_hidden_in_time() SET search_path = %I, pg_temp', place);
    EXECUTE format('ALTER FUNCTION kyhan_remove_activity(timestamptz, integer) SET search_path = %I, pg_temp', place);
    EXECUTE format('ALTER FUNCTION kyhan_delete_hidden_orders(timestamptz, integer) SET search_path = %I, pg_temp', place);
END $$;

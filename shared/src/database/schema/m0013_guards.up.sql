-- What a hostile reading of the three migrations before this one could still do, and no more (policy points 4 to 7).

-- Erasure. The database judges for itself, whoever erases: nobody while money is outstanding, an order under way, or a hold stands,
-- and never without a record of it.
CREATE FUNCTION kyhan_erasure_is_allowed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'no customer is erased in a transaction that is %', current_setting('transaction_isolation')
            USING ERRCODE = 'feature_not_supported', HINT = 'It has to see what it waited for.';
    END IF;
    IF (NEW.full_name, NEW.phone, NEW.email, NEW.address) IS DISTINCT FROM ('', '', '', '') THEN
        RAISE EXCEPTION 'who is erased keeps no personal data' USING ERRCODE = 'check_violation', TABLE = 'customers';
    END IF;
    -- Nobody makes an order or moves money for this customer until it is decided.
    PERFORM FROM customers WHERE id = NEW.id FOR UPDATE;
    PERFORM FROM orders WHERE customer_id = NEW.id ORDER BY id FOR UPDATE;
    PERFORM FROM accounts WHERE customer_id = NEW.id AND kind = 'wallet' FOR UPDATE;
    IF EXISTS (SELECT FROM accounts WHERE customer_id = NEW.id AND kind = 'wallet' AND balance <> 0)
       OR EXISTS (SELECT FROM orders JOIN order_retention AS kept ON kept.id = orders.id
                   WHERE orders.customer_id = NEW.id AND NOT kept.settled) THEN
        RAISE EXCEPTION 'no customer is erased while money is outstanding, an order is under way, or a hold stands'
            USING ERRCODE = 'check_violation', TABLE = 'customers';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER customers_are_erased_once_settled BEFORE UPDATE ON customers FOR EACH ROW
    WHEN (OLD.erased_at IS NULL AND NEW.erased_at IS NOT NULL)
    EXECUTE FUNCTION kyhan_erasure_is_allowed();
CREATE FUNCTION kyhan_erasures_are_recorded() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM activity WHERE subject_id = NEW.id AND action = 'customer.erased' AND at = now()) THEN
        RAISE EXCEPTION 'an erasure is recorded in the transaction that erases' USING ERRCODE = 'check_violation', TABLE = 'customers';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER erasures_are_recorded AFTER UPDATE ON customers DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.erased_at IS NULL AND NEW.erased_at IS NOT NULL)
    EXECUTE FUNCTION kyhan_erasures_are_recorded();

-- Whatever changes about an order is news about it, also where the client leaves updated_at as it was or has another clock. The fleet's own
-- sessions (kyhan.effect) date what they change. No role may set it.
ALTER TABLE orders ADD COLUMN changed_at timestamptz;
CREATE FUNCTION kyhan_changes_are_dated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.changed_at := now();
    RETURN NEW;
END $$;
CREATE TRIGGER changes_are_dated BEFORE UPDATE ON orders FOR EACH ROW
    WHEN ((OLD.status, OLD.on_hold, OLD.goods_due, OLD.shipping_due, OLD.service_due, OLD.delivering_since, OLD.received_at,
           OLD.out_of_stock_since, OLD.parcel_recorded_at, OLD.fees_changed_at)
              IS DISTINCT FROM
          (NEW.status, NEW.on_hold, NEW.goods_due, NEW.shipping_due, NEW.service_due, NEW.delivering_since, NEW.received_at,
           NEW.out_of_stock_since, NEW.parcel_recorded_at, NEW.fees_changed_at)
          AND current_setting('kyhan.effect', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION kyhan_changes_are_dated();
-- As before, with that moment.
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
                      greatest(orders.created_at, orders.updated_at, orders.changed_at, orders.delivering_since, orders.received_at,
                               orders.out_of_stock_since, orders.parcel_recorded_at, orders.fees_changed_at,
                               (SELECT max(at) FROM order_status_history AS history WHERE history.order_id = orders.id),
                               (SELECT max(at) FROM transfers WHERE transfers.order_id = orders.id),
                               (SELECT max(at) FROM order_messages AS message WHERE message.order_id = orders.id),
                               (SELECT max(at) FROM activity WHERE activity.subject_id = orders.id)) END AS newest_at
           OFFSET 0) AS heard;
-- A payment waits for whoever hides its order, and only then looks whether it is hidden: triggers of a statement run in the order of
-- their names, and transfers_have_their_orders takes the lock. What is moved into or out of another order's account is news of that
-- order, too.
DROP TRIGGER transfers_are_news ON transfers;
CREATE FUNCTION kyhan_transfers_are_news() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    others uuid[] := (
        SELECT array_agg(DISTINCT accounts.order_id)
          FROM (SELECT order_id, debit_account AS account FROM added UNION ALL SELECT order_id, credit_account FROM added) AS moved
               JOIN accounts ON accounts.id = moved.account
         WHERE accounts.order_id IS NOT NULL AND accounts.order_id IS DISTINCT FROM moved.order_id);
    hidden uuid[];
BEGIN
    IF others IS NOT NULL THEN
        PERFORM FROM orders WHERE id = ANY (others) ORDER BY id FOR NO KEY UPDATE;
        UPDATE orders SET changed_at = now() WHERE id = ANY (others);
    END IF;
    hidden := (SELECT array_agg(id) FROM orders
                WHERE hidden_at IS NOT NULL
                  AND id = ANY (coalesce(others, '{}') || ARRAY(SELECT DISTINCT order_id FROM added WHERE order_id IS NOT NULL)));
    IF hidden IS NOT NULL THEN
        PERFORM kyhan_put_on_line(hidden);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER transfers_tell_news AFTER INSERT ON transfers
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (current_setting('kyhan.effect', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION kyhan_transfers_are_news();

-- What a customer does about a hidden order is news; what the system and staff record about one is not by itself.
CREATE FUNCTION kyhan_actions_are_news() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    hidden timestamptz;
BEGIN
    -- Whoever is about to hide it is waited for, and whoever comes later waits for this.
    SELECT hidden_at INTO hidden FROM orders WHERE id = NEW.subject_id FOR KEY SHARE;
    IF hidden IS NOT NULL THEN
        PERFORM kyhan_put_on_line(ARRAY[NEW.subject_id]);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER actions_are_news AFTER INSERT ON activity FOR EACH ROW
    WHEN (NEW.actor_kind = 'customer' AND NEW.subject_kind = 'order')
    EXECUTE FUNCTION kyhan_actions_are_news();

-- An order is hidden as it is, and not in one statement with a change that was not judged.
CREATE OR REPLACE FUNCTION kyhan_orders_are_hidden_in_time() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'no order is hidden in a transaction that is %', current_setting('transaction_isolation')
            USING ERRCODE = 'feature_not_supported', HINT = 'It has to see what it waited for.';
    END IF;
    -- Whoever is writing something about it is waited for, and whoever comes later waits for this.
    PERFORM FROM orders WHERE id = NEW.id FOR UPDATE;
    IF NEW.hidden_at > now() OR NOT EXISTS (
           SELECT FROM order_retention AS kept
            WHERE kept.id = NEW.id AND kept.settled
              AND (kept.newest_at AT TIME ZONE 'Asia/Ho_Chi_Minh' + interval '6 months') AT TIME ZONE 'Asia/Ho_Chi_Minh' <= NEW.hidden_at) THEN
        RAISE EXCEPTION 'an order is on line for six months after the last news about it, and while anything about it is open'
            USING ERRCODE = 'check_violation', TABLE = 'orders', COLUMN = 'hidden_at';
    END IF;
    IF (OLD.id, OLD.customer_id, OLD.created_at, OLD.status, OLD.on_hold, OLD.goods_due, OLD.shipping_due, OLD.service_due,
        OLD.delivering_since, OLD.received_at, OLD.out_of_stock_since, OLD.parcel_recorded_at, OLD.fees_changed_at)
           IS DISTINCT FROM
       (NEW.id, NEW.customer_id, NEW.created_at, NEW.status, NEW.on_hold, NEW.goods_due, NEW.shipping_due, NEW.service_due,
        NEW.delivering_since, NEW.received_at, NEW.out_of_stock_since, NEW.parcel_recorded_at, NEW.fees_changed_at) THEN
        RAISE EXCEPTION 'an order is hidden as it is' USING ERRCODE = 'check_violation', TABLE = 'orders', COLUMN = 'hidden_at';
    END IF;
    RETURN NEW;
END $$;

-- Its second period is counted from the record that it was hidden, whose moment nobody but the database can set: whoever may hide an
-- order could date that back.
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
               AND EXISTS (SELECT FROM activity AS record
                            WHERE record.subject_id = orders.id AND record.action = 'order.hidden'
                            AND record.at >= orders.hidden_at AND record.at < before)
             ORDER BY orders.hidden_at LIMIT least(most, 1000) FOR UPDATE OF orders SKIP LOCKED) AS locked;
    -- Once more, as they are now that they are locked.
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

-- That record stays for as long as its order.
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
                              AND (orders.hidden_at IS NULL OR orders.on_hold OR retention_holds.order_id IS NOT NULL
                                   OR activity.action = 'order.hidden'))
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

-- Nor are finance and activity records off line a second early.
CREATE FUNCTION kyhan_records_are_hidden_in_time() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.hidden_before > (now() AT TIME ZONE 'Asia/Ho_Chi_Minh' - interval '6 months') AT TIME ZONE 'Asia/Ho_Chi_Minh' THEN
        RAISE EXCEPTION 'records are on line for six months' USING ERRCODE = 'check_violation', TABLE = 'records_retention';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER records_are_hidden_in_time BEFORE INSERT OR UPDATE ON records_retention FOR EACH ROW
    EXECUTE FUNCTION kyhan_records_are_hidden_in_time();

-- Who asks for the owner's name finds the catalog's own tables, whatever a session has put before them.
ALTER FUNCTION kyhan_messages_record_themselves() SET search_path = pg_catalog, pg_temp;

REVOKE EXECUTE ON FUNCTION
    kyhan_erasure_is_allowed(), kyhan_erasures_are_recorded(), kyhan_transfers_are_news(), kyhan_actions_are_news() FROM PUBLIC;
DO $$
DECLARE
    place text := (SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
                    WHERE pg_class.oid = 'orders'::regclass);
    signature text;
BEGIN
    FOREACH signature IN ARRAY ARRAY[
        'kyhan_erasure_is_allowed()', 'kyhan_erasures_are_recorded()', 'kyhan_transfers_are_news()', 'kyhan_actions_are_news()',
        'kyhan_orders_are_hidden_in_time()', 'kyhan_delete_hidden_orders(timestamptz, integer)',
        'kyhan_remove_activity(timestamptz, integer)'] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', signature, place);
    END LOOP;
END $$;

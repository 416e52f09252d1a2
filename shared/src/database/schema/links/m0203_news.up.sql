-- The six months of the order system's orders (policy point 4): the database checks them, whichever client hides an order, and news
-- about a hidden order brings it back on line.

-- An order is hidden at the earliest six calendar months of Asia/Ho_Chi_Minh after the last news about it. hidden_at is not in the
-- future, and the same statement changes nothing that was not checked.
CREATE FUNCTION kyhan_orders_are_hidden_in_time() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'an order cannot be hidden in a transaction that is %', current_setting('transaction_isolation')
            USING ERRCODE = 'feature_not_supported', HINT = 'It has to see what it waited for.';
    END IF;
    -- This waits for sessions that are writing about the order. Later ones wait for this.
    PERFORM FROM orders WHERE id = NEW.id FOR UPDATE;
    IF NEW.hidden_at > now() OR NOT EXISTS (
           SELECT FROM order_retention AS kept
            WHERE kept.id = NEW.id AND kept.settled
              AND (kept.newest_at AT TIME ZONE 'Asia/Ho_Chi_Minh' + interval '6 months') AT TIME ZONE 'Asia/Ho_Chi_Minh' <= NEW.hidden_at) THEN
        RAISE EXCEPTION 'an order stays on line for six months after the last news about it, and while anything about it is open'
            USING ERRCODE = 'check_violation', TABLE = 'orders', COLUMN = 'hidden_at';
    END IF;
    IF (OLD.id, OLD.customer_id, OLD.created_at, OLD.status, OLD.on_hold, OLD.goods_due, OLD.shipping_due, OLD.service_due,
        OLD.delivering_since, OLD.received_at, OLD.out_of_stock_since, OLD.parcel_recorded_at, OLD.fees_changed_at)
           IS DISTINCT FROM
       (NEW.id, NEW.customer_id, NEW.created_at, NEW.status, NEW.on_hold, NEW.goods_due, NEW.shipping_due, NEW.service_due,
        NEW.delivering_since, NEW.received_at, NEW.out_of_stock_since, NEW.parcel_recorded_at, NEW.fees_changed_at) THEN
        RAISE EXCEPTION 'hiding an order must not change anything else of it' USING ERRCODE = 'check_violation', TABLE = 'orders', COLUMN = 'hidden_at';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER orders_are_hidden_in_time BEFORE UPDATE OF hidden_at ON orders FOR EACH ROW
    WHEN (NEW.hidden_at IS NOT NULL AND NEW.hidden_at IS DISTINCT FROM OLD.hidden_at)
    EXECUTE FUNCTION kyhan_orders_are_hidden_in_time();

-- Brings hidden orders back on line, for at least another six months.
CREATE FUNCTION kyhan_put_on_line(ids uuid[]) RETURNS void LANGUAGE sql SECURITY DEFINER AS $$
    WITH back AS (
        UPDATE orders SET hidden_at = NULL WHERE id = ANY (ids) AND hidden_at IS NOT NULL RETURNING id
    ), recorded AS (
        INSERT INTO activity (actor_kind, action, subject_kind, subject_id)
        SELECT 'system', 'order.unhidden', 'order', id FROM back
    )
    INSERT INTO outbox (event_type, subject_id) SELECT 'order.recorded', id FROM back
$$;

-- Messages and history are news. The fleet has locked and rechecked the orders whose history it writes.
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
CREATE TRIGGER history_is_news AFTER INSERT ON order_status_history
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (kyhan_session_role() NOT IN ('worker', 'operator'))
    EXECUTE FUNCTION kyhan_news_of_orders();

-- A change of the order itself is news.
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

-- A transfer is news about its order, and about every other order whose account it uses. It waits for a session that is hiding the order,
-- and only then checks whether the order is hidden: a statement's triggers fire in the order of their names, and
-- transfers_have_their_orders takes the lock.
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
    WHEN (kyhan_session_role() NOT IN ('worker', 'operator'))
    EXECUTE FUNCTION kyhan_transfers_are_news();

-- What a customer does with a hidden order is news. Activity of the system and of staff is not news by itself.
CREATE FUNCTION kyhan_actions_are_news() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    hidden timestamptz;
BEGIN
    -- This waits for a session that is hiding the order. Later ones wait for this.
    SELECT hidden_at INTO hidden FROM orders WHERE id = NEW.subject_id FOR KEY SHARE;
    IF hidden IS NOT NULL THEN
        PERFORM kyhan_put_on_line(ARRAY[NEW.subject_id]);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER actions_are_news AFTER INSERT ON activity FOR EACH ROW
    WHEN (NEW.actor_kind = 'customer' AND NEW.subject_kind = 'order')
    EXECUTE FUNCTION kyhan_actions_are_news();

REVOKE EXECUTE ON FUNCTION
    kyhan_orders_are_hidden_in_time(), kyhan_put_on_line(uuid[]), kyhan_news_of_orders(), kyhan_news_of_order(), kyhan_transfers_are_news(),
    kyhan_actions_are_news() FROM PUBLIC;

-- What a login of the fleet, a worker's or an operator's, may do to money, orders and carts: exactly what the tasks do. These triggers bind
-- every session whose login is not the order system's or the owner's (kyhan_session_role). Nothing that a session may set frees it.
--
-- They check the shape of each change, not whether it was due: that would repeat the recheck.

-- A transfer of the fleet collects arrears: from the wallet of the order's customer, to a component of that order, and at most what is
-- still missing, and no deeper than the floor of the active policy. It runs after transfers_keep_balances, so the balances include the new
-- transfers.
CREATE FUNCTION kyhan_fleet_collects_arrears() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    floor bigint := (SELECT (policy #>> '{safeguards,wallet_floor}')::bigint FROM policies ORDER BY id DESC LIMIT 1);
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'arrears cannot be collected in a transaction that is %', current_setting('transaction_isolation')
            USING ERRCODE = 'feature_not_supported', HINT = 'It has to see what is missing now.';
    END IF;
    IF NOT EXISTS (SELECT FROM policies) THEN
        RAISE EXCEPTION 'arrears cannot be collected before a policy is applied'
            USING ERRCODE = 'insufficient_privilege', TABLE = 'transfers';
    END IF;
    -- Outer joins, which look up one row at a time.
    IF EXISTS (
        SELECT FROM added
               LEFT JOIN orders ON orders.id = added.order_id
               LEFT JOIN accounts AS wallet ON wallet.id = added.debit_account
               LEFT JOIN accounts AS part ON part.id = added.credit_account
         WHERE (added.reason = 'arrears' AND added.at = now()
                AND orders.status <> 'cancelled' AND (orders.status <> 'out_of_stock' OR orders.parcel_recorded_at IS NOT NULL)
                AND wallet.kind = 'wallet' AND wallet.customer_id = orders.customer_id
                AND (floor IS NULL OR wallet.balance >= floor)
                AND part.order_id = orders.id
                AND part.balance <= CASE part.kind WHEN 'goods' THEN orders.goods_due WHEN 'shipping' THEN orders.shipping_due
                                                   WHEN 'service' THEN orders.service_due END
                AND starts_with(added.idempotency_key, 'collect-arrears:' || orders.id || ':' || part.kind || ':')) IS NOT TRUE) THEN
        RAISE EXCEPTION 'this login may only collect what an order is short of, from the wallet of its customer'
            USING ERRCODE = 'insufficient_privilege', TABLE = 'transfers';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER transfers_of_the_fleet AFTER INSERT ON transfers
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (kyhan_session_role() <> 'order_system')
    EXECUTE FUNCTION kyhan_fleet_collects_arrears();

-- A status changes in the fleet's name in two ways: an order on its way is received, or one wrongly out of stock gets its status back.
-- History records it in the same transaction, and only then.
CREATE FUNCTION kyhan_fleet_writes_history() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF EXISTS (
        SELECT FROM added LEFT JOIN orders ON orders.id = added.order_id
         WHERE (added.at = now() AND orders.updated_at = now() AND orders.status = added.to_status
                AND ((added.from_status, added.to_status, added.reason) = ('delivering', 'received', 'confirm-receipt')
                     OR (added.from_status, added.reason) = ('out_of_stock', 'collect-arrears: parcel on record'))) IS NOT TRUE) THEN
        RAISE EXCEPTION 'this login may only record the status changes of its own tasks'
            USING ERRCODE = 'insufficient_privilege', TABLE = 'order_status_history';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER history_of_the_fleet AFTER INSERT ON order_status_history
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (kyhan_session_role() <> 'order_system')
    EXECUTE FUNCTION kyhan_fleet_writes_history();

-- Called for a change that no task makes, or one that needs a look at the order's history. With the rights of the login that changes the row:
-- the functions that run with the owner's rights check for themselves.
CREATE FUNCTION kyhan_fleet_keeps_to_its_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF kyhan_session_role() = 'order_system' OR current_user = (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = TG_RELID) THEN
        RETURN NULL;
    END IF;
    IF TG_TABLE_NAME = 'orders' THEN
        -- An operator may bring a hidden order back on line (`ops retention unhide`).
        IF OLD.hidden_at IS NOT NULL AND NEW.hidden_at IS NULL AND kyhan_session_role() = 'operator'
           AND (OLD.status, OLD.received_at, OLD.out_of_stock_since, OLD.updated_at)
               IS NOT DISTINCT FROM (NEW.status, NEW.received_at, NEW.out_of_stock_since, NEW.updated_at) THEN
            RETURN NULL;
        END IF;
        -- Wrongly out of stock: back to the status before. The condition is that of collect_arrears.sql.
        IF OLD.status = 'out_of_stock' AND OLD.parcel_recorded_at IS NOT NULL AND NEW.out_of_stock_since IS NULL
           AND NEW.updated_at = now() AND OLD.hidden_at IS NOT DISTINCT FROM NEW.hidden_at
           AND (NEW.received_at IS NOT DISTINCT FROM OLD.received_at OR (OLD.received_at IS NULL AND NEW.received_at = now()))
           AND NEW.status = (
               SELECT CASE WHEN before = 'delivering' AND NEW.delivering_since IS NULL THEN 'in_warehouse' ELSE before END
                 FROM (SELECT coalesce((SELECT from_status FROM order_status_history
                                         WHERE order_id = NEW.id AND to_status = 'out_of_stock'
                                           AND from_status NOT IN ('out_of_stock', 'cancelled')
                                         ORDER BY id DESC LIMIT 1), 'in_warehouse') AS before) AS history) THEN
            RETURN NULL;
        END IF;
    END IF;
    RAISE EXCEPTION 'this % of % is not one that a task makes; this login may only apply the tasks', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege', TABLE = TG_TABLE_NAME;
END $$;
-- Row by row, because these conditions cost less than a transition table: receipts and hidings pass without a call.
CREATE TRIGGER orders_of_the_fleet AFTER UPDATE ON orders FOR EACH ROW
    WHEN (OLD IS DISTINCT FROM NEW
          AND NOT (OLD.status = 'delivering' AND NEW.status = 'received' AND NEW.received_at = now() AND NEW.updated_at = now()
                   AND OLD.hidden_at IS NOT DISTINCT FROM NEW.hidden_at
                   AND OLD.out_of_stock_since IS NOT DISTINCT FROM NEW.out_of_stock_since)
          -- orders_are_hidden_in_time checks when.
          AND NOT (OLD.hidden_at IS NULL AND NEW.hidden_at IS NOT NULL
                   AND (OLD.status, OLD.received_at, OLD.out_of_stock_since, OLD.updated_at)
                       IS NOT DISTINCT FROM (NEW.status, NEW.received_at, NEW.out_of_stock_since, NEW.updated_at))
          AND pg_has_role(session_user, to_regrole('kyhan_order_system'), 'MEMBER') IS NOT TRUE)
    EXECUTE FUNCTION kyhan_fleet_keeps_to_its_tasks();
-- A product of which an order was made is not left in the cart.
CREATE TRIGGER cart_items_of_the_fleet AFTER DELETE ON cart_items FOR EACH ROW
    WHEN (OLD.order_id IS NOT NULL AND pg_has_role(session_user, to_regrole('kyhan_order_system'), 'MEMBER') IS NOT TRUE)
    EXECUTE FUNCTION kyhan_fleet_keeps_to_its_tasks();
-- The right to change a product's moment serves only to lock it.
CREATE TRIGGER cart_items_stay_as_they_are AFTER UPDATE ON cart_items FOR EACH ROW
    WHEN (OLD IS DISTINCT FROM NEW AND pg_has_role(session_user, to_regrole('kyhan_order_system'), 'MEMBER') IS NOT TRUE)
    EXECUTE FUNCTION kyhan_fleet_keeps_to_its_tasks();

-- What a wallet's floor leaves outstanding. Such a row makes an order in any status chargeable, so it names no more than is missing. The
-- balances may be those before or after the charges of the same statement.
CREATE FUNCTION kyhan_fleet_leaves_outstanding() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF EXISTS (
        SELECT FROM added LEFT JOIN orders ON orders.id = added.order_id
         WHERE (added.tried_at = now() AND orders.status NOT IN ('cancelled', 'out_of_stock')
                AND added.outstanding <= (
                    SELECT sum(greatest(part.due - coalesce(accounts.balance, 0), 0))
                      FROM (VALUES ('goods', orders.goods_due), ('shipping', orders.shipping_due), ('service', orders.service_due))
                               AS part (kind, due)
                           LEFT JOIN accounts ON accounts.order_id = orders.id AND accounts.kind = part.kind)) IS NOT TRUE) THEN
        RAISE EXCEPTION 'this login may record as outstanding only what an order is short of'
            USING ERRCODE = 'insufficient_privilege', TABLE = 'arrears_outstanding';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER outstanding_of_the_fleet AFTER INSERT ON arrears_outstanding
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (kyhan_session_role() <> 'order_system')
    EXECUTE FUNCTION kyhan_fleet_leaves_outstanding();
CREATE TRIGGER outstanding_of_the_fleet_again AFTER UPDATE ON arrears_outstanding
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (kyhan_session_role() <> 'order_system')
    EXECUTE FUNCTION kyhan_fleet_leaves_outstanding();

REVOKE EXECUTE ON FUNCTION
    kyhan_fleet_collects_arrears(), kyhan_fleet_writes_history(), kyhan_fleet_keeps_to_its_tasks(), kyhan_fleet_leaves_outstanding()
    FROM PUBLIC;

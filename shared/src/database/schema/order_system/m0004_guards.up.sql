-- What the order system's tables promise, for every role: history and ledger refer to existing orders, order ids are used once, and an
-- erased customer stays erased.
--
-- Like the checks of a foreign key, these run with the rights of the tables' owner, who must own the functions too: a role that writes
-- history needs no rights on orders. Their EXECUTE right is revoked: firing a trigger does not need it, but creating one does, and a
-- trigger on a table of one's own would reveal which orders exist.

-- Every history row has its order. A foreign key checks row by row, which took a quarter of the fleet's database time. This checks once
-- per statement. Of the fleet it asks more: m0205_fleet.
CREATE FUNCTION kyhan_history_has_its_order() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    held bigint;
BEGIN
    -- As a foreign key would: the order cannot be deleted until this transaction ends. Only locked orders count as existing.
    SELECT count(*) INTO held
      FROM (SELECT FROM orders WHERE id IN (SELECT order_id FROM added) ORDER BY id FOR KEY SHARE) AS locked;
    IF held < (SELECT count(DISTINCT order_id) FROM added) THEN
        RAISE EXCEPTION 'order_status_history refers to an order that does not exist'
            USING ERRCODE = 'foreign_key_violation', TABLE = 'order_status_history', COLUMN = 'order_id';
    END IF;
    RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION kyhan_history_has_its_order() FROM PUBLIC;
CREATE TRIGGER history_has_its_order AFTER INSERT ON order_status_history
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (kyhan_session_role() NOT IN ('worker', 'operator'))
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
        RAISE EXCEPTION 'an order cannot be deleted or change its id while order_status_history refers to it'
            USING ERRCODE = 'foreign_key_violation', TABLE = 'orders', COLUMN = 'id';
    END IF;
    -- A foreign key sees past the transaction's snapshot; a trigger in SQL cannot. Later history would be orphaned.
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'orders cannot be deleted or change their ids in a transaction that is %',
                        upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'feature_not_supported',
                  DETAIL = 'Its snapshot does not tell whether order_status_history names them by now.',
                  HINT = 'Do it in a transaction that is READ COMMITTED.';
    END IF;
    RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION kyhan_order_has_no_history() FROM PUBLIC;
-- Row by row, as the foreign key did: the fleet's tasks delete no orders and change no ids.
CREATE TRIGGER orders_without_history AFTER DELETE ON orders FOR EACH ROW
    EXECUTE FUNCTION kyhan_order_has_no_history();
CREATE TRIGGER orders_keep_their_ids AFTER UPDATE OF id ON orders FOR EACH ROW
    WHEN (OLD.id IS DISTINCT FROM NEW.id)
    EXECUTE FUNCTION kyhan_order_has_no_history();
CREATE TRIGGER orders_truncated_with_history AFTER TRUNCATE ON orders FOR EACH STATEMENT
    EXECUTE FUNCTION kyhan_order_has_no_history();

-- Accounts and transfers outlive their order, which a foreign key would forbid. The order must exist when they are inserted. Of
-- the fleet's transfers, m0205_fleet asks more.
CREATE FUNCTION kyhan_ledger_has_its_orders() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    held bigint;
BEGIN
    -- As a foreign key would: the order cannot be deleted until this transaction ends. Only locked orders count as existing.
    SELECT count(*) INTO held
      FROM (SELECT FROM orders WHERE id IN (SELECT order_id FROM added) ORDER BY id FOR KEY SHARE) AS locked;
    IF held < (SELECT count(DISTINCT order_id) FROM added) THEN
        RAISE EXCEPTION '% refers to an order that does not exist', TG_TABLE_NAME
            USING ERRCODE = 'foreign_key_violation', TABLE = TG_TABLE_NAME, COLUMN = 'order_id';
    END IF;
    RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION kyhan_ledger_has_its_orders() FROM PUBLIC;
CREATE TRIGGER accounts_have_their_orders AFTER INSERT ON accounts
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    EXECUTE FUNCTION kyhan_ledger_has_its_orders();
CREATE TRIGGER transfers_have_their_orders AFTER INSERT ON transfers
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (kyhan_session_role() NOT IN ('worker', 'operator'))
    EXECUTE FUNCTION kyhan_ledger_has_its_orders();

-- An order that the ledger refers to can only be deleted by kyhan_delete_hidden_orders(), which records its id in deleted_orders.
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
        RAISE EXCEPTION 'an order cannot be deleted or change its id while the ledger refers to it'
            USING ERRCODE = 'foreign_key_violation', TABLE = 'orders', COLUMN = 'id';
    END IF;
    RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION kyhan_order_has_no_ledger() FROM PUBLIC;
CREATE TRIGGER orders_without_ledger AFTER DELETE ON orders FOR EACH ROW
    EXECUTE FUNCTION kyhan_order_has_no_ledger();
CREATE TRIGGER orders_keep_their_ids_in_the_ledger AFTER UPDATE OF id ON orders FOR EACH ROW
    WHEN (OLD.id IS DISTINCT FROM NEW.id)
    EXECUTE FUNCTION kyhan_order_has_no_ledger();
CREATE TRIGGER orders_truncated_with_ledger AFTER TRUNCATE ON orders FOR EACH STATEMENT
    EXECUTE FUNCTION kyhan_order_has_no_ledger();

-- The id of a deleted order is never used again: the ledger would attribute the old order's money to the new one.
CREATE FUNCTION kyhan_order_ids_are_used_once() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF EXISTS (SELECT FROM added JOIN deleted_orders ON deleted_orders.id = added.id) THEN
        RAISE EXCEPTION 'an order with this id was deleted; ids cannot be reused' USING ERRCODE = 'unique_violation';
    END IF;
    RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION kyhan_order_ids_are_used_once() FROM PUBLIC;
CREATE TRIGGER order_ids_are_used_once AFTER INSERT ON orders REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    EXECUTE FUNCTION kyhan_order_ids_are_used_once();

-- An erased customer stays erased. A session that writes personal data during an erasure waits for it, and then fails.
CREATE FUNCTION kyhan_customers_stay_erased() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.full_name, NEW.phone, NEW.email, NEW.address, NEW.erased_at) IS DISTINCT FROM ('', '', '', '', OLD.erased_at) THEN
        RAISE EXCEPTION 'this customer was erased' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER customers_stay_erased BEFORE UPDATE ON customers FOR EACH ROW WHEN (OLD.erased_at IS NOT NULL)
    EXECUTE FUNCTION kyhan_customers_stay_erased();
-- Its argument is the table it watches.
CREATE FUNCTION kyhan_the_erased_stay_erased() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    whose uuid[];
BEGIN
    CASE TG_ARGV[0]
        WHEN 'orders' THEN
            whose := (SELECT array_agg(DISTINCT customer_id) FROM added);
        WHEN 'cart_items' THEN
            whose := (SELECT array_agg(DISTINCT customer_id) FROM added WHERE (product_ref, product_name) <> ('', ''));
        WHEN 'order_messages' THEN
            whose := (SELECT array_agg(DISTINCT customer_id) FROM orders
                       WHERE id IN (SELECT order_id FROM added WHERE (author, body) <> ('', '')));
        ELSE
            whose := (SELECT array_agg(DISTINCT customer_id) FROM orders WHERE id IN (SELECT order_id FROM added));
    END CASE;
    -- Lock first, so that an erasure in progress has ended before the check.
    PERFORM FROM customers WHERE id = ANY (whose) ORDER BY id FOR KEY SHARE;
    IF EXISTS (SELECT FROM customers WHERE id = ANY (whose) AND erased_at IS NOT NULL) THEN
        RAISE EXCEPTION 'this customer was erased' USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME;
    END IF;
    RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION kyhan_the_erased_stay_erased() FROM PUBLIC;
CREATE TRIGGER the_erased_order_nothing AFTER INSERT ON orders
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_the_erased_stay_erased('orders');
CREATE TRIGGER the_erased_buy_nothing AFTER INSERT ON cart_items
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_the_erased_stay_erased('cart_items');
CREATE TRIGGER the_erased_bought_nothing AFTER UPDATE ON cart_items
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_the_erased_stay_erased('cart_items');
CREATE TRIGGER the_erased_say_nothing AFTER INSERT ON order_messages
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_the_erased_stay_erased('order_messages');
CREATE TRIGGER the_erased_said_nothing AFTER UPDATE ON order_messages
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_the_erased_stay_erased('order_messages');
CREATE TRIGGER the_erased_have_no_source AFTER INSERT ON order_sources
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_the_erased_stay_erased('order_sources');
CREATE TRIGGER the_erased_get_no_source AFTER UPDATE ON order_sources
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_the_erased_stay_erased('order_sources');

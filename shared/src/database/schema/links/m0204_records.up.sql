-- What the order system's changes leave in activity (policy points 5 to 7): every message, and every erasure.

-- Activity keeps a digest of each message about an order: the text can be erased, and cannot be changed without a trace.
CREATE FUNCTION kyhan_messages_recorded() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO activity (actor_kind, actor_id, action, subject_kind, subject_id, detail)
    SELECT CASE WHEN kyhan_customer() IS NULL THEN 'staff' ELSE 'customer' END, kyhan_customer(),
           'order.message_recorded', 'order', message.order_id,
           jsonb_build_object('message_id', message.id, 'sha256', kyhan_message_digest(message))
      FROM (SELECT added::order_messages AS message FROM added) AS row_of, LATERAL (SELECT (row_of.message).*) AS message;
    RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION kyhan_messages_recorded() FROM PUBLIC;
CREATE TRIGGER messages_are_recorded AFTER INSERT ON order_messages
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_messages_recorded();
-- Messages from before this migration are recorded with their own time. With the current time, each would be news about its order.
INSERT INTO activity (at, actor_kind, action, subject_kind, subject_id, detail)
SELECT message.at, 'system', 'order.message_recorded', 'order', message.order_id,
       jsonb_build_object('message_id', message.id, 'sha256', kyhan_message_digest(message), 'afterwards', true)
  FROM order_messages AS message
 WHERE message.salt IS NOT NULL
   AND NOT EXISTS (SELECT FROM activity AS recorded
                    WHERE recorded.subject_id = message.order_id AND recorded.action = 'order.message_recorded'
                      AND recorded.detail ->> 'message_id' = message.id::text)
 ORDER BY message.at, message.id;
-- Only the two statements above record a message. pg_catalog is first in the search_path, so that the owner's name is looked up in the
-- catalog's own tables.
CREATE FUNCTION kyhan_messages_record_themselves() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_user <> (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = TG_RELID) THEN
        RAISE EXCEPTION 'messages are recorded only by their trigger' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER messages_record_themselves BEFORE INSERT ON activity FOR EACH ROW WHEN (NEW.action = 'order.message_recorded')
    EXECUTE FUNCTION kyhan_messages_record_themselves();

-- Messages that differ from their record or have none, except those of erased customers.
CREATE FUNCTION kyhan_messages_altered() RETURNS TABLE (message_id text) LANGUAGE sql STABLE SECURITY DEFINER AS $$
    WITH recorded AS MATERIALIZED (
        SELECT detail ->> 'message_id' AS id, detail ->> 'sha256' AS sha256, subject_id
          FROM activity WHERE action = 'order.message_recorded'
    )
    SELECT coalesce(recorded.id, message.id::text)
      FROM recorded FULL JOIN order_messages AS message ON message.id::text = recorded.id
           LEFT JOIN orders ON orders.id = message.order_id
           LEFT JOIN customers ON customers.id = orders.customer_id
     WHERE CASE -- A message may be deleted only with its order.
                WHEN message.id IS NULL
                THEN NOT EXISTS (SELECT FROM deleted_orders WHERE deleted_orders.id = recorded.subject_id)
                WHEN message.salt IS NULL THEN customers.erased_at IS NULL
                WHEN recorded.id IS NULL THEN message.at > (SELECT since FROM activity_kept)
                ELSE kyhan_message_digest(message) IS DISTINCT FROM recorded.sha256 END
$$;
REVOKE EXECUTE ON FUNCTION kyhan_messages_altered() FROM PUBLIC;

-- An event about an erased customer keeps no data, however late it comes. Of an unknown type, the type is free text, too.
CREATE FUNCTION kyhan_events_of_the_erased() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    whose uuid[] := ARRAY(SELECT NEW.subject_id UNION SELECT customer_id FROM orders WHERE id = NEW.subject_id
                          UNION SELECT customer_id FROM cart_items WHERE id = NEW.subject_id);
BEGIN
    -- An erasure in progress has ended before the check.
    PERFORM FROM customers WHERE id = ANY (whose) ORDER BY id FOR KEY SHARE;
    IF EXISTS (SELECT FROM customers WHERE id = ANY (whose) AND erased_at IS NOT NULL) THEN
        NEW.data := NULL;
        IF TG_TABLE_NAME = 'set_aside' AND to_jsonb(NEW) ->> 'reason' LIKE 'unknown event type%' THEN
            NEW.event_type := 'erased';
        END IF;
    END IF;
    RETURN NEW;
END $$;
REVOKE EXECUTE ON FUNCTION kyhan_events_of_the_erased() FROM PUBLIC;
CREATE TRIGGER the_erased_have_no_events BEFORE INSERT ON outbox FOR EACH ROW WHEN (NEW.data IS NOT NULL)
    EXECUTE FUNCTION kyhan_events_of_the_erased();
CREATE TRIGGER the_erased_have_no_events_aside BEFORE INSERT ON set_aside FOR EACH ROW
    WHEN (NEW.data IS NOT NULL OR NEW.reason LIKE 'unknown event type%')
    EXECUTE FUNCTION kyhan_events_of_the_erased();

-- The database checks every erasure, whichever client asks for it: not while money is outstanding, an order is under way or a hold
-- stands, and never without a record.
CREATE FUNCTION kyhan_erasure_is_allowed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'a customer cannot be erased in a transaction that is %', current_setting('transaction_isolation')
            USING ERRCODE = 'feature_not_supported', HINT = 'It has to see what it waited for.';
    END IF;
    IF (NEW.full_name, NEW.phone, NEW.email, NEW.address) IS DISTINCT FROM ('', '', '', '') THEN
        RAISE EXCEPTION 'an erased customer must have no personal data' USING ERRCODE = 'check_violation', TABLE = 'customers';
    END IF;
    -- No session can make an order or move money for this customer until this transaction ends.
    PERFORM FROM customers WHERE id = NEW.id FOR UPDATE;
    PERFORM FROM orders WHERE customer_id = NEW.id ORDER BY id FOR UPDATE;
    PERFORM FROM accounts WHERE customer_id = NEW.id AND kind = 'wallet' FOR UPDATE;
    IF EXISTS (SELECT FROM accounts WHERE customer_id = NEW.id AND kind = 'wallet' AND balance <> 0)
       OR EXISTS (SELECT FROM orders JOIN order_retention AS kept ON kept.id = orders.id
                   WHERE orders.customer_id = NEW.id AND NOT kept.settled) THEN
        RAISE EXCEPTION 'a customer cannot be erased while money is outstanding, an order is under way, or a hold exists'
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
        RAISE EXCEPTION 'an erasure must be recorded in its own transaction' USING ERRCODE = 'check_violation', TABLE = 'customers';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER erasures_are_recorded AFTER UPDATE ON customers DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.erased_at IS NULL AND NEW.erased_at IS NOT NULL)
    EXECUTE FUNCTION kyhan_erasures_are_recorded();
REVOKE EXECUTE ON FUNCTION kyhan_erasure_is_allowed(), kyhan_erasures_are_recorded() FROM PUBLIC;

-- Activity is sealed: closed ranges of its ids are hashed into a chain, so that a row that is changed, removed or slipped in
-- afterwards is found, whoever did it (policy point 5): docs/decisions/0023.

CREATE TABLE activity_seals (
    number    bigint      PRIMARY KEY CHECK (number > 0),
    -- The range follows on the one before; ids in between that never became rows are part of it.
    first_id  bigint      NOT NULL,
    last_id   bigint      NOT NULL,
    rows      bigint      NOT NULL CHECK (rows >= 0),
    -- Without it the digest of a few rows would tell whoever guesses what they say. Not for those who may not read the rows.
    salt      uuid        NOT NULL,
    -- SHA-256 of the salt and the rows.
    digest    bytea       NOT NULL,
    sealed_at timestamptz NOT NULL DEFAULT now(),
    -- SHA-256 of the chain so far and of all of the above.
    hash      bytea       NOT NULL,
    CHECK (first_id <= last_id)
);
-- Ranges whose rows were removed because of their age. Their seals stay, and so does the chain.
CREATE TABLE activity_removals (
    number       bigint      PRIMARY KEY REFERENCES activity_seals (number),
    removed_at   timestamptz NOT NULL DEFAULT now(),
    -- The row of activity that says so, and is sealed itself in time.
    recorded_as  bigint      NOT NULL
);

-- Since when nothing was removed: what is compared with activity has to be younger.
CREATE VIEW activity_kept AS
SELECT coalesce(max(seal.sealed_at), '1970-01-01 00:00:00+00') AS since FROM activity_removals JOIN activity_seals AS seal USING (number);

-- How many rows a range of ids has, and the SHA-256 of a salt and of them: each as JSON that does not depend on how a session writes
-- moments, in the order of their ids.
CREATE FUNCTION kyhan_activity_digest(first_id bigint, last_id bigint, salt uuid, OUT rows bigint, OUT digest bytea)
LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT count(*), sha256(uuid_send(salt) || convert_to(coalesce(string_agg(jsonb_build_array(
               id, extract(epoch FROM at)::text, actor_kind, actor_id, action, subject_kind, subject_id, detail)::text,
               E'\n' ORDER BY id), ''), 'UTF8'))
      FROM activity WHERE id BETWEEN first_id AND last_id
$$;
-- How many rows there are of a seal's range, and whether they are those that were sealed: for those who may not read them.
CREATE FUNCTION kyhan_seal_holds(number bigint, OUT rows bigint, OUT holds boolean)
LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT now_there.rows, now_there.rows = seal.rows AND now_there.digest = seal.digest
      FROM activity_seals AS seal, LATERAL kyhan_activity_digest(seal.first_id, seal.last_id, seal.salt) AS now_there
     WHERE seal.number = $1
$$;
-- The hash of a seal that follows on another.
CREATE FUNCTION kyhan_seal_hash(before bytea, number bigint, first_id bigint, last_id bigint, rows bigint, digest bytea, sealed_at timestamptz)
RETURNS bytea LANGUAGE sql STABLE AS $$
    SELECT sha256(before || convert_to(jsonb_build_array(
               number, first_id, last_id, rows, encode(digest, 'hex'), extract(epoch FROM sealed_at)::text)::text, 'UTF8'))
$$;
-- Adds a seal over the rows that follow on the last one, `most` of them at the most and not beyond the id `until`, below which no
-- transaction may still be about to insert any: whoever calls it makes sure of that. The number and hash of the seal, or no row.
CREATE FUNCTION kyhan_seal_activity(until bigint, most integer) RETURNS TABLE (number bigint, last_id bigint, hash bytea)
LANGUAGE plpgsql STRICT SECURITY DEFINER AS $$
DECLARE
    before activity_seals;
    seal activity_seals;
BEGIN
    -- One at a time; readers are not kept waiting.
    LOCK TABLE activity_seals IN SHARE ROW EXCLUSIVE MODE;
    SELECT * INTO before FROM activity_seals AS last ORDER BY last.number DESC LIMIT 1;
    seal.number := coalesce(before.number, 0) + 1;
    seal.first_id := coalesce(before.last_id, 0) + 1;
    SELECT max(id) INTO seal.last_id
      FROM (SELECT id FROM activity WHERE id BETWEEN seal.first_id AND until ORDER BY id LIMIT most) AS next;
    IF seal.last_id IS NULL THEN
        RETURN;
    END IF;
    seal.salt := gen_random_uuid();
    SELECT digested.rows, digested.digest INTO seal.rows, seal.digest
      FROM kyhan_activity_digest(seal.first_id, seal.last_id, seal.salt) AS digested;
    seal.sealed_at := now();
    seal.hash := kyhan_seal_hash(coalesce(before.hash, ''), seal.number, seal.first_id, seal.last_id, seal.rows, seal.digest, seal.sealed_at);
    INSERT INTO activity_seals SELECT seal.*;
    RETURN QUERY SELECT seal.number, seal.last_id, seal.hash;
END $$;

CREATE TRIGGER activity_seals_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON activity_seals
    FOR EACH STATEMENT EXECUTE FUNCTION kyhan_insert_only();
CREATE TRIGGER activity_removals_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON activity_removals
    FOR EACH STATEMENT EXECUTE FUNCTION kyhan_insert_only();
-- Six months on line, counted from when a range was sealed (policy point 4): no row in it is younger.
CREATE FUNCTION kyhan_removals_are_old() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF EXISTS (SELECT FROM added JOIN activity_seals AS seal USING (number)
                WHERE added.removed_at <> now()
                   OR seal.sealed_at >= (now() AT TIME ZONE 'Asia/Ho_Chi_Minh' - interval '6 months') AT TIME ZONE 'Asia/Ho_Chi_Minh') THEN
        RAISE EXCEPTION 'activity is kept for six months at least' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER removals_are_old AFTER INSERT ON activity_removals
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_removals_are_old();

-- Rows go only with their whole range, in the transaction that records its removal.
DROP TRIGGER activity_insert_only ON activity;
CREATE TRIGGER activity_insert_only BEFORE UPDATE OR TRUNCATE ON activity
    FOR EACH STATEMENT EXECUTE FUNCTION kyhan_insert_only();
CREATE FUNCTION kyhan_activity_goes_by_range() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF EXISTS (SELECT FROM gone
                WHERE NOT EXISTS (SELECT FROM activity_removals AS removal JOIN activity_seals AS seal USING (number)
                                   WHERE gone.id BETWEEN seal.first_id AND seal.last_id AND removal.removed_at = now())) THEN
        RAISE EXCEPTION 'activity is insert only: DELETE is refused'
            USING ERRCODE = 'insufficient_privilege', HINT = 'Record a correction as a new row.';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER activity_goes_by_range AFTER DELETE ON activity
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION kyhan_activity_goes_by_range();

-- Removes ranges that were sealed before a moment, oldest first: those that are as they were sealed and say nothing about an order that
-- is on line or held. How many ranges went. It judges for itself that they are old enough, whatever it is asked for.
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

-- Messages that are not what activity says was said, or of which it says nothing, but for those of customers who were erased.
CREATE FUNCTION kyhan_messages_altered() RETURNS TABLE (message_id text) LANGUAGE sql STABLE SECURITY DEFINER AS $$
    WITH recorded AS MATERIALIZED (
        SELECT detail ->> 'message_id' AS id, detail ->> 'sha256' AS sha256, subject_id
          FROM activity WHERE action = 'order.message_recorded'
    )
    SELECT coalesce(recorded.id, message.id::text)
      FROM recorded FULL JOIN order_messages AS message ON message.id::text = recorded.id
           LEFT JOIN orders ON orders.id = message.order_id
           LEFT JOIN customers ON customers.id = orders.customer_id
     WHERE CASE -- It may go only with its order.
                WHEN message.id IS NULL
                THEN NOT EXISTS (SELECT FROM deleted_orders WHERE deleted_orders.id = recorded.subject_id)
                WHEN message.salt IS NULL THEN customers.erased_at IS NULL
                WHEN recorded.id IS NULL THEN message.at > (SELECT since FROM activity_kept)
                ELSE kyhan_message_digest(message) IS DISTINCT FROM recorded.sha256 END
$$;

REVOKE EXECUTE ON FUNCTION
    kyhan_activity_digest(bigint, bigint, uuid), kyhan_seal_holds(bigint), kyhan_seal_activity(bigint, integer), kyhan_removals_are_old(),
    kyhan_activity_goes_by_range(), kyhan_remove_activity(timestamptz, integer), kyhan_messages_altered() FROM PUBLIC;
DO $$
DECLARE
    place text := (SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
                    WHERE pg_class.oid = 'orders'::regclass);
    signature text;
BEGIN
    FOREACH signature IN ARRAY ARRAY[
        'kyhan_activity_digest(bigint, bigint, uuid)', 'kyhan_seal_holds(bigint)', 'kyhan_seal_activity(bigint, integer)', 'kyhan_removals_are_old()',
        'kyhan_activity_goes_by_range()', 'kyhan_remove_activity(timestamptz, integer)', 'kyhan_messages_altered()'] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', signature, place);
    END LOOP;
END $$;

-- The record of who did what to which subject (policy point 5). It is insert only, and sealed: closed ranges of its ids are hashed into
-- a chain, which reveals rows that were changed, removed or inserted later by any role: docs/decisions/0023.

CREATE TABLE activity (
    id            bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at            timestamptz NOT NULL DEFAULT now(),
    actor_kind    text        NOT NULL CHECK (actor_kind IN ('customer', 'staff', 'system')),
    actor_id      uuid,
    action        text        NOT NULL,
    subject_kind  text        NOT NULL,
    subject_id    uuid        NOT NULL,
    detail        jsonb       NOT NULL DEFAULT '{}'
);
CREATE INDEX activity_subject_idx ON activity (subject_id);
-- Deletes are checked by activity_goes_by_range.
CREATE TRIGGER activity_insert_only BEFORE UPDATE OR TRUNCATE ON activity
    FOR EACH STATEMENT EXECUTE FUNCTION kyhan_insert_only();

-- What the system and operators did, complete. Customers' actions are in activity; roles/grants.sql says who reads those.
CREATE VIEW activity_operations WITH (security_barrier) AS SELECT * FROM activity WHERE actor_kind <> 'customer';

CREATE TABLE activity_seals (
    number    bigint      PRIMARY KEY CHECK (number > 0),
    -- The range starts where the previous one ended. It includes ids that never became rows.
    first_id  bigint      NOT NULL,
    last_id   bigint      NOT NULL,
    rows      bigint      NOT NULL CHECK (rows >= 0),
    -- Prevents guessing the content of a few rows from their digest. Roles that may not read the rows may not read it.
    salt      uuid        NOT NULL,
    -- SHA-256 of the salt and the rows.
    digest    bytea       NOT NULL,
    sealed_at timestamptz NOT NULL DEFAULT now(),
    -- SHA-256 of the previous seal's hash and the columns above.
    hash      bytea       NOT NULL,
    CHECK (first_id <= last_id)
);
CREATE TRIGGER activity_seals_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON activity_seals
    FOR EACH STATEMENT EXECUTE FUNCTION kyhan_insert_only();

-- How many rows a range of ids has, and the SHA-256 of a salt and these rows, in the order of their ids. Each row is JSON that does not
-- depend on the session's date format.
CREATE FUNCTION kyhan_activity_digest(first_id bigint, last_id bigint, salt uuid, OUT rows bigint, OUT digest bytea)
LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT count(*), sha256(uuid_send(salt) || convert_to(coalesce(string_agg(jsonb_build_array(
               id, extract(epoch FROM at)::text, actor_kind, actor_id, action, subject_kind, subject_id, detail)::text,
               E'\n' ORDER BY id), ''), 'UTF8'))
      FROM activity WHERE id BETWEEN first_id AND last_id
$$;
-- How many rows a seal's range has now, and whether they are the sealed ones. For roles that may not read the rows.
CREATE FUNCTION kyhan_seal_holds(number bigint, OUT rows bigint, OUT holds boolean)
LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT now_there.rows, now_there.rows = seal.rows AND now_there.digest = seal.digest
      FROM activity_seals AS seal, LATERAL kyhan_activity_digest(seal.first_id, seal.last_id, seal.salt) AS now_there
     WHERE seal.number = $1
$$;
-- A seal's hash, given the hash of the seal before it.
CREATE FUNCTION kyhan_seal_hash(before bytea, number bigint, first_id bigint, last_id bigint, rows bigint, digest bytea, sealed_at timestamptz)
RETURNS bytea LANGUAGE sql STABLE AS $$
    SELECT sha256(before || convert_to(jsonb_build_array(
               number, first_id, last_id, rows, encode(digest, 'hex'), extract(epoch FROM sealed_at)::text)::text, 'UTF8'))
$$;
-- Up to which id rows are sealed next, and the transactions that may still add one of them. One row, kept by kyhan_seal_activity().
CREATE TABLE activity_closing (
    is_the_only_row  boolean     PRIMARY KEY DEFAULT true CHECK (is_the_only_row),
    last_id          bigint      NOT NULL DEFAULT 0,
    -- Their virtual ids.
    open             text[]      NOT NULL DEFAULT '{}',
    since            timestamptz NOT NULL DEFAULT now()
);
INSERT INTO activity_closing DEFAULT VALUES;
-- The virtual ids of the transactions that hold a write lock on activity.
CREATE FUNCTION kyhan_activity_writers() RETURNS text[] LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(array_agg(DISTINCT virtualtransaction), '{}') FROM pg_locks
     WHERE locktype = 'relation' AND granted AND relation = 'activity'::regclass
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND mode NOT IN ('AccessShareLock', 'RowShareLock')
$$;
REVOKE EXECUTE ON FUNCTION kyhan_activity_writers() FROM PUBLIC;

-- Adds a seal over the rows that follow the last seal: at most `most` rows, up to the id `until`, and only rows before which no open
-- transaction can still add another. It finds out for itself: a caller could claim otherwise, and what commits later would for ever look
-- like a forgery. Returns the seal's number and hash, or no row.
--
-- A transaction locks the table for writing before it draws an id, and ids are drawn in order. So every transaction with an id below
-- the newest visible one has ended, or holds that lock when the locks are read after that id.
CREATE FUNCTION kyhan_seal_activity(until bigint, most integer) RETURNS TABLE (number bigint, last_id bigint, hash bytea)
LANGUAGE plpgsql STRICT SECURITY DEFINER AS $$
DECLARE
    before activity_seals;
    seal activity_seals;
    closing activity_closing;
    newest bigint;
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'activity cannot be sealed in a transaction that is %', current_setting('transaction_isolation')
            USING ERRCODE = 'feature_not_supported', HINT = 'It has to see what committed meanwhile.';
    END IF;
    -- One at a time. Readers do not wait.
    LOCK TABLE activity_seals IN SHARE ROW EXCLUSIVE MODE;
    SELECT * INTO before FROM activity_seals AS last ORDER BY last.number DESC LIMIT 1;
    SELECT * INTO closing FROM activity_closing;
    IF closing.last_id <= coalesce(before.last_id, 0) THEN
        SELECT coalesce(max(id), 0) INTO newest FROM activity;
        UPDATE activity_closing SET last_id = newest, open = kyhan_activity_writers(), since = clock_timestamp() RETURNING * INTO closing;
    ELSIF cardinality(closing.open) > 0 THEN
        UPDATE activity_closing
           SET open = ARRAY(SELECT unnest(closing.open) INTERSECT SELECT unnest(kyhan_activity_writers())) RETURNING * INTO closing;
    END IF;
    IF cardinality(closing.open) > 0 THEN
        RETURN;
    END IF;
    seal.number := coalesce(before.number, 0) + 1;
    seal.first_id := coalesce(before.last_id, 0) + 1;
    SELECT max(id) INTO seal.last_id
      FROM (SELECT id FROM activity WHERE id BETWEEN seal.first_id AND least(until, closing.last_id)
             ORDER BY id LIMIT least(most, 10000)) AS next;
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
REVOKE EXECUTE ON FUNCTION kyhan_activity_digest(bigint, bigint, uuid), kyhan_seal_holds(bigint), kyhan_seal_activity(bigint, integer)
    FROM PUBLIC;

-- Ranges whose rows were removed because of their age. Their seals stay in the chain.
CREATE TABLE activity_removals (
    number       bigint      PRIMARY KEY REFERENCES activity_seals (number),
    removed_at   timestamptz NOT NULL DEFAULT now(),
    -- The activity row that records the removal. It is sealed itself later.
    recorded_as  bigint      NOT NULL
);
CREATE TRIGGER activity_removals_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON activity_removals
    FOR EACH STATEMENT EXECUTE FUNCTION kyhan_insert_only();
-- Activity stays on line for six months after its range was sealed (policy point 4). No row is younger than its seal.
CREATE FUNCTION kyhan_removals_are_old() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF EXISTS (SELECT FROM added JOIN activity_seals AS seal USING (number)
                WHERE added.removed_at <> now()
                   OR seal.sealed_at >= (now() AT TIME ZONE 'Asia/Ho_Chi_Minh' - interval '6 months') AT TIME ZONE 'Asia/Ho_Chi_Minh') THEN
        RAISE EXCEPTION 'activity must be kept for at least six months' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION kyhan_removals_are_old() FROM PUBLIC;
CREATE TRIGGER removals_are_old AFTER INSERT ON activity_removals
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_removals_are_old();

-- Rows can only be deleted with their whole range, in the transaction that records its removal.
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
REVOKE EXECUTE ON FUNCTION kyhan_activity_goes_by_range() FROM PUBLIC;
CREATE TRIGGER activity_goes_by_range AFTER DELETE ON activity
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION kyhan_activity_goes_by_range();

-- When rows were last removed: only what is younger can be compared with activity.
CREATE VIEW activity_kept AS
SELECT coalesce(max(seal.sealed_at), '1970-01-01 00:00:00+00') AS since FROM activity_removals JOIN activity_seals AS seal USING (number);

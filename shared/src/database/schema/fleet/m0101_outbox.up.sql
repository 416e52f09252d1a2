-- The fleet's door: events wait in the outbox, and invalid ones are set aside.

-- For the tables whose rows never change. A trigger applies to every role, superusers and owners included; grants restrict further.
CREATE FUNCTION kyhan_insert_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is insert only: % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'insufficient_privilege', HINT = 'Record a correction as a new row.';
END $$;

-- The order system inserts events here in its own transaction. The relay deletes them once the broker has confirmed their wake-ups.
CREATE TABLE outbox (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id       uuid        NOT NULL DEFAULT gen_random_uuid(),
    -- Both limits keep what one batch of invalid events moves small.
    event_type     text        NOT NULL CONSTRAINT outbox_event_type_has_at_most_200_bytes CHECK (octet_length(event_type) <= 200),
    subject_id     uuid        NOT NULL,
    -- The order system's own time: days ago, after an import.
    occurred_at    timestamptz NOT NULL DEFAULT now(),
    data           jsonb       CONSTRAINT outbox_data_has_at_most_64_kib CHECK (octet_length(data::text) <= 65536),
    -- How long the event has waited for the relay counts from here, by the database's clock.
    waiting_since  timestamptz NOT NULL DEFAULT now()
);
-- The relay polls. A trigger with NOTIFY would take a lock at the commit, one for the whole database, behind which the order system's
-- other commits wait.

-- Invalid events, each with its reason; complete, unless the event could not be moved with its data. They never block the events behind them.
CREATE TABLE set_aside (
    id            bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id      uuid        NOT NULL,
    event_type    text        NOT NULL,
    subject_id    uuid        NOT NULL,
    occurred_at   timestamptz NOT NULL,
    data          jsonb       CONSTRAINT set_aside_data_has_at_most_64_kib CHECK (octet_length(data::text) <= 65536),
    reason        text        NOT NULL,
    set_aside_at  timestamptz NOT NULL DEFAULT now()
);
-- No role may delete from set_aside directly. An operator may do two things with its events: put them back into the outbox …
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
-- … or discard them, which `ops set-aside discard` records.
CREATE FUNCTION kyhan_discard_set_aside(everything boolean, ids bigint[]) RETURNS TABLE (event_id uuid, subject_id uuid)
LANGUAGE sql SECURITY DEFINER AS $$
    DELETE FROM set_aside WHERE everything OR id = ANY (ids) RETURNING event_id, subject_id
$$;
REVOKE EXECUTE ON FUNCTION kyhan_retry_set_aside(boolean, bigint[]), kyhan_discard_set_aside(boolean, bigint[]) FROM PUBLIC;

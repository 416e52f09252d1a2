-- The fleet's door: events wait in the outbox, and invalid ones are set aside.

-- The order system inserts events here in its own transaction. The relay deletes them once the broker has confirmed their wake-ups.
CREATE TABLE outbox (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id       uuid        NOT NULL DEFAULT gen_random_uuid(),
    event_type     text        NOT NULL,
    subject_id     uuid        NOT NULL,
    -- The order system's own time: days ago, after an import.
    occurred_at    timestamptz NOT NULL DEFAULT now(),
    data           jsonb,
    -- How long the event has waited for the relay counts from here, by the database's clock.
    waiting_since  timestamptz NOT NULL DEFAULT now()
);
-- Wakes the relay at commit. The fleet does not notify: its events fall due hours later, and NOTIFY takes a lock that serialises all
-- commits of the database.
CREATE FUNCTION kyhan_outbox_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM added) THEN
        NOTIFY kyhan_outbox;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER outbox_notify AFTER INSERT ON outbox REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (kyhan_session_role() NOT IN ('worker', 'operator'))
    EXECUTE FUNCTION kyhan_outbox_notify();

-- Invalid events, complete, each with its reason. They never block the events behind them.
CREATE TABLE set_aside (
    id            bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id      uuid        NOT NULL,
    event_type    text        NOT NULL,
    subject_id    uuid        NOT NULL,
    occurred_at   timestamptz NOT NULL,
    data          jsonb,
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

-- This system's own tables.

-- Events wait here, written in the order system's own transaction, until the relay has them confirmed by the broker.
CREATE TABLE outbox (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id     uuid        NOT NULL DEFAULT gen_random_uuid(),
    event_type   text        NOT NULL,
    subject_id   uuid        NOT NULL,
    occurred_at  timestamptz NOT NULL DEFAULT now(),
    data         jsonb
);
-- Wakes the relay at commit. Sessions of the fleet itself (kyhan.effect) stay quiet: what they raise falls due hours
-- later, and NOTIFY takes a lock over all commits of the database.
CREATE FUNCTION kyhan_outbox_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM added) THEN
        NOTIFY kyhan_outbox;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER outbox_notify AFTER INSERT ON outbox REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (current_setting('kyhan.effect', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION kyhan_outbox_notify();

-- Events that make no sense, whole, with the reason; they never block those behind them.
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

-- Who did what to what: insert only.
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
CREATE TRIGGER activity_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON activity
    FOR EACH STATEMENT EXECUTE FUNCTION kyhan_insert_only();

-- Orders whose arrears a wallet's floor left outstanding. The last try counts as a change of payments,
-- so the next one falls due one period later.
CREATE TABLE arrears_outstanding (
    order_id     uuid        PRIMARY KEY REFERENCES orders (id),
    outstanding  bigint      NOT NULL CHECK (outstanding > 0),
    tried_at     timestamptz NOT NULL
);

-- Every rung ever declared. AMQP cannot list queues, and a rung that the policy forgot must still be found to be removed.
CREATE TABLE rungs (
    queue        text        PRIMARY KEY,
    exchange     text        NOT NULL,
    declared_at  timestamptz NOT NULL DEFAULT now()
);

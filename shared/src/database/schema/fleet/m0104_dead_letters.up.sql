-- Dead letters, kept until a recheck or an operator decides about them: docs/decisions/0019.

-- What a body is found by: its SHA-256 together with its headers.
CREATE FUNCTION kyhan_body_hash(headers bytea, body bytea) RETURNS bytea LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT sha256(int4send(octet_length(headers)) || headers || body)
$$;

-- The original messages, each stored once: a packed message becomes one letter for each of up to 1,000 subjects.
CREATE TABLE dead_letter_bodies (
    hash     bytea  PRIMARY KEY CHECK (hash = kyhan_body_hash(headers, body)),
    -- A table of AMQP values, as JSON.
    headers  bytea  NOT NULL,
    body     bytea  NOT NULL
);

CREATE TABLE dead_letters (
    -- Stable: the same failure of the same message has the same id.
    id               uuid        PRIMARY KEY,
    state            text        NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'replayed', 'resolved', 'discarded')),
    -- The task. Null if the message could not be decoded.
    kind             text,
    subject_id       uuid,
    wakeup_id        uuid,
    -- Why it failed.
    reason           text        NOT NULL,
    cause            text        NOT NULL,
    -- The cause without ids and numbers. Letters are grouped by it.
    cause_group      text        NOT NULL,
    attempts         integer     NOT NULL CHECK (attempts >= 0),
    first_failed_at  timestamptz,
    last_failed_at   timestamptz NOT NULL,
    worker           text,
    trace_id         text,
    -- The original message.
    queue            text        NOT NULL,
    routing_key      text        NOT NULL,
    body_hash        bytea       NOT NULL REFERENCES dead_letter_bodies (hash),
    -- The letter that this one corrects.
    repaired_from    uuid        UNIQUE REFERENCES dead_letters (id),
    stored_at        timestamptz NOT NULL DEFAULT now(),
    -- The decision: when, by whom, and why.
    decided_at       timestamptz,
    decided_by       text,
    decided_why      text,
    CHECK (CASE state WHEN 'open' THEN num_nonnulls(decided_at, decided_by, decided_why) = 0
                      ELSE num_nulls(decided_at, decided_by, decided_why) = 0 END)
);
CREATE INDEX dead_letters_open_idx ON dead_letters (last_failed_at, id) WHERE state = 'open';
CREATE INDEX dead_letters_failed_idx ON dead_letters (last_failed_at, id);
CREATE INDEX dead_letters_subject_idx ON dead_letters (subject_id) WHERE subject_id IS NOT NULL;
CREATE INDEX dead_letters_body_idx ON dead_letters (body_hash);

-- Deletes the bodies whose last letter was deleted. It locks them first, and looks for letters in a second statement, which
-- sees those that were stored while it waited for the locks.
CREATE FUNCTION kyhan_drop_bodies() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    locked bytea[];
BEGIN
    SELECT coalesce(array_agg(hash), '{}') INTO locked
      FROM (SELECT hash FROM dead_letter_bodies WHERE hash IN (SELECT body_hash FROM gone) ORDER BY hash FOR UPDATE) AS bodies;
    DELETE FROM dead_letter_bodies AS body
     WHERE hash = ANY (locked) AND NOT EXISTS (SELECT FROM dead_letters AS letter WHERE letter.body_hash = body.hash);
    RETURN NULL;
END $$;
CREATE TRIGGER dead_letters_drop_bodies AFTER DELETE ON dead_letters REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    EXECUTE FUNCTION kyhan_drop_bodies();

-- What a replay of selected letters would do, as checked when it was planned, and the progress of its run.
CREATE TABLE replay_plans (
    id                 uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    state              text        NOT NULL DEFAULT 'planned' CHECK (state IN ('planned', 'running', 'stopped', 'done')),
    made_at            timestamptz NOT NULL DEFAULT now(),
    -- The name that the operator gave, and the login, which the database took from the session; likewise below.
    made_by            text        NOT NULL,
    made_login         text        NOT NULL DEFAULT session_user,
    why                text        NOT NULL,
    -- The number of the policy under which it was made.
    policy             bigint,
    -- A digest of the plan and its letters (kyhan_plan_digest): what is approved and what is run.
    digest             text,
    -- How its letters were selected.
    filter             jsonb       NOT NULL,
    -- The expected totals.
    amount             bigint      NOT NULL CHECK (amount >= 0),
    customers          integer     NOT NULL CHECK (customers >= 0),
    -- How far the result may differ from them.
    tolerance_letters  integer     NOT NULL CHECK (tolerance_letters >= 0),
    tolerance_amount   bigint      NOT NULL CHECK (tolerance_amount >= 0),
    needs_approval     boolean     NOT NULL,
    approved_by        text,
    approved_login     text        CHECK (approved_login <> made_login),
    approved_at        timestamptz,
    approved_digest    text,
    -- The process that runs it. A process that takes the run over writes its own id, and the previous one can do nothing more.
    run                uuid,
    run_by             text,
    run_login          text,
    started_at         timestamptz,
    stopped_why        text,
    finished_at        timestamptz,
    CHECK ((approved_by IS NULL) = (approved_at IS NULL)),
    CHECK (approved_login IS NULL OR num_nulls(approved_by, approved_digest) = 0),
    CHECK ((run IS NULL) = (run_by IS NULL)),
    CHECK ((state = 'done') = (finished_at IS NOT NULL))
);

CREATE TABLE replay_plan_letters (
    plan_id        uuid        NOT NULL REFERENCES replay_plans (id) ON DELETE CASCADE,
    letter_id      uuid        NOT NULL REFERENCES dead_letters (id) ON DELETE CASCADE,
    position       integer     NOT NULL,
    -- What a replay would do, as checked.
    verdict        text        NOT NULL CHECK (verdict IN ('applies', 'moot', 'waits', 'fails', 'unreadable')),
    why            text,
    amount         bigint      NOT NULL DEFAULT 0 CHECK (amount >= 0),
    -- What the replay did. Null until then.
    result         text        CHECK (result IN ('applied', 'moot', 'failed', 'changed', 'left')),
    result_why     text,
    result_amount  bigint      NOT NULL DEFAULT 0 CHECK (result_amount >= 0),
    at             timestamptz,
    PRIMARY KEY (plan_id, letter_id),
    UNIQUE (plan_id, position),
    CHECK ((result IS NULL) = (at IS NULL))
);
CREATE INDEX replay_plan_letters_letter_idx ON replay_plan_letters (letter_id);

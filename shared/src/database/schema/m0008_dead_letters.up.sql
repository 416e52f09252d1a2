-- What died, kept until the recheck or an operator has decided about it: docs/decisions/0019.

CREATE TABLE dead_letters (
    -- Stable: the same failure of the same message has the same id.
    id               uuid        PRIMARY KEY,
    state            text        NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'replayed', 'resolved', 'discarded')),
    -- What it was to do; null where it could not be understood.
    kind             text,
    subject_id       uuid,
    wakeup_id        uuid,
    -- Why it died.
    reason           text        NOT NULL,
    cause            text        NOT NULL,
    -- The cause without what differs from letter to letter (ids, numbers): what letters are grouped by.
    cause_group      text        NOT NULL,
    attempts         integer     NOT NULL CHECK (attempts >= 0),
    first_failed_at  timestamptz,
    last_failed_at   timestamptz NOT NULL,
    worker           text,
    trace_id         text,
    -- The message as it was.
    queue            text        NOT NULL,
    routing_key      text        NOT NULL,
    -- A table of AMQP values, as JSON.
    headers          bytea       NOT NULL,
    body             bytea       NOT NULL,
    -- The letter that this one corrects.
    repaired_from    uuid        UNIQUE REFERENCES dead_letters (id),
    stored_at        timestamptz NOT NULL DEFAULT now(),
    -- What became of it, who decided it, and why.
    decided_at       timestamptz,
    decided_by       text,
    decided_why      text,
    CHECK (CASE state WHEN 'open' THEN num_nonnulls(decided_at, decided_by, decided_why) = 0
                      ELSE num_nulls(decided_at, decided_by, decided_why) = 0 END)
);
CREATE INDEX dead_letters_open_idx ON dead_letters (last_failed_at, id) WHERE state = 'open';
CREATE INDEX dead_letters_failed_idx ON dead_letters (last_failed_at, id);
CREATE INDEX dead_letters_subject_idx ON dead_letters (subject_id) WHERE subject_id IS NOT NULL;

-- What a replay of chosen letters would do, as checked when it was planned, and how far its run has come.
CREATE TABLE replay_plans (
    id                 uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    state              text        NOT NULL DEFAULT 'planned' CHECK (state IN ('planned', 'running', 'stopped', 'done')),
    made_at            timestamptz NOT NULL DEFAULT now(),
    made_by            text        NOT NULL,
    why                text        NOT NULL,
    -- How its letters were chosen.
    filter             jsonb       NOT NULL,
    -- What it would do, in all.
    amount             bigint      NOT NULL CHECK (amount >= 0),
    customers          integer     NOT NULL CHECK (customers >= 0),
    -- By how much what it does may differ from that.
    tolerance_letters  integer     NOT NULL CHECK (tolerance_letters >= 0),
    tolerance_amount   bigint      NOT NULL CHECK (tolerance_amount >= 0),
    needs_approval     boolean     NOT NULL,
    approved_by        text        CHECK (approved_by <> made_by),
    approved_at        timestamptz,
    -- The process that runs it: whoever takes it over names another, and the one before can do nothing more.
    run                uuid,
    run_by             text,
    started_at         timestamptz,
    stopped_why        text,
    finished_at        timestamptz,
    CHECK ((approved_by IS NULL) = (approved_at IS NULL)),
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
    -- What it did; null while it is to be done.
    result         text        CHECK (result IN ('applied', 'moot', 'failed', 'changed', 'left')),
    result_why     text,
    result_amount  bigint      NOT NULL DEFAULT 0 CHECK (result_amount >= 0),
    at             timestamptz,
    PRIMARY KEY (plan_id, letter_id),
    UNIQUE (plan_id, position),
    CHECK ((result IS NULL) = (at IS NULL))
);
CREATE INDEX replay_plan_letters_letter_idx ON replay_plan_letters (letter_id);

-- Kinds of which nothing is applied until somebody resumes them.
CREATE TABLE pauses (
    kind       text        PRIMARY KEY,
    paused_at  timestamptz NOT NULL DEFAULT now(),
    paused_by  text        NOT NULL,
    why        text        NOT NULL
);

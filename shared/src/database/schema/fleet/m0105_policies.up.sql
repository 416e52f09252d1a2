-- What operators decide for the whole fleet.

-- The policies that operators applied: docs/decisions/0021. The newest one is active. Without any, each process uses its settings, and
-- nothing is replayed.
CREATE TABLE policies (
    id            bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Its lines. For kinds to which it is released gradually, also how, and the previous policy.
    policy        jsonb       NOT NULL,
    applied_at    timestamptz NOT NULL DEFAULT now(),
    -- The name that the operator gave, and the login of the session.
    applied_by    text        NOT NULL,
    applied_login text        NOT NULL DEFAULT session_user,
    why           text        NOT NULL,
    -- The progress of scheduling what it made due earlier: by kind, wake-ups up to this id are confirmed.
    scheduled_to  jsonb       NOT NULL DEFAULT '{}',
    went_on_at    timestamptz NOT NULL DEFAULT now(),
    -- When all of these wake-ups were confirmed.
    scheduled_at  timestamptz
);

-- Kinds that the workers do not apply until an operator resumes them.
CREATE TABLE pauses (
    kind       text        PRIMARY KEY,
    paused_at  timestamptz NOT NULL DEFAULT now(),
    paused_by  text        NOT NULL,
    why        text        NOT NULL
);

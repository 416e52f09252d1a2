-- The policies that operators applied: docs/decisions/0021. The newest one is in force; where there is none, each process has that of
-- its settings.
CREATE TABLE policies (
    id            bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Its lines; and of the kinds of which it takes hold little by little, how, and the policy before.
    policy        jsonb       NOT NULL,
    applied_at    timestamptz NOT NULL DEFAULT now(),
    applied_by    text        NOT NULL,
    why           text        NOT NULL,
    -- How far the wake-ups have come of what it made due earlier: by kind, everything up to this id is confirmed.
    scheduled_to  jsonb       NOT NULL DEFAULT '{}',
    went_on_at    timestamptz NOT NULL DEFAULT now(),
    -- When all of them were.
    scheduled_at  timestamptz
);

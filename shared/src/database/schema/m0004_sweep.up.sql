-- What the sweep has woken, so that a row that keeps failing is not woken every minute for ever.
CREATE TABLE swept (
    kind        text        NOT NULL,
    subject_id  uuid        NOT NULL,
    due_at      timestamptz NOT NULL,
    at          timestamptz NOT NULL,
    times       integer     NOT NULL CHECK (times > 0),
    PRIMARY KEY (kind, subject_id)
);

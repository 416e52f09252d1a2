-- What the fleet remembers about the wake-ups (messages) that wait in the broker.

-- Every rung (delay queue) ever declared. AMQP cannot list queues, and a rung that the policy no longer uses must be found to be removed.
CREATE TABLE rungs (
    queue        text        PRIMARY KEY,
    exchange     text        NOT NULL,
    declared_at  timestamptz NOT NULL DEFAULT now()
);

-- What the sweep has woken, so that it does not wake a failing row every minute for ever.
CREATE TABLE swept (
    kind        text        NOT NULL,
    subject_id  uuid        NOT NULL,
    due_at      timestamptz NOT NULL,
    at          timestamptz NOT NULL,
    times       integer     NOT NULL CHECK (times > 0),
    PRIMARY KEY (kind, subject_id)
);

-- The worker that leads, and when its last round ended. An advisory lock elects it, which any login of this database could take: a lock
-- alone shows nothing. At most one row.
CREATE TABLE leader (
    is_the_only_row  boolean     PRIMARY KEY DEFAULT true CHECK (is_the_only_row),
    instance         text        NOT NULL,
    since            timestamptz NOT NULL DEFAULT now(),
    beat_at          timestamptz NOT NULL DEFAULT now()
);

-- The progress of an interrupted `ops rebuild`, per fleet and kind: wake-ups up to this id are confirmed.
CREATE TABLE rebuilds (
    prefix  text        NOT NULL,
    kind    text        NOT NULL,
    cursor  uuid        NOT NULL,
    at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (prefix, kind)
);

-- Probe messages that wait in the rungs. One that is due and has not arrived shows a stalled rung.
CREATE TABLE canaries (
    id            uuid        PRIMARY KEY,
    queue         text        NOT NULL,
    published_at  timestamptz NOT NULL,
    due_at        timestamptz NOT NULL,
    arrived_at    timestamptz
);
CREATE INDEX canaries_queue_idx ON canaries (queue, published_at);

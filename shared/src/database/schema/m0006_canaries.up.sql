-- Messages that wait in the rungs to tell that these move: one that has not arrived although it is due means a jam.
CREATE TABLE canaries (
    id            uuid        PRIMARY KEY,
    queue         text        NOT NULL,
    published_at  timestamptz NOT NULL,
    due_at        timestamptz NOT NULL,
    arrived_at    timestamptz
);
CREATE INDEX canaries_queue_idx ON canaries (queue, published_at);

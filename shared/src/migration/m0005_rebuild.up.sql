-- How far an interrupted `ops rebuild` has come, per kind: everything up to this id is confirmed.
CREATE TABLE rebuilds (
    kind    text        PRIMARY KEY,
    cursor  uuid        NOT NULL,
    at      timestamptz NOT NULL DEFAULT now()
);

-- How far an interrupted `ops rebuild` has come, per fleet and kind: everything up to this id is confirmed.
CREATE TABLE rebuilds (
    prefix  text        NOT NULL,
    kind    text        NOT NULL,
    cursor  uuid        NOT NULL,
    at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (prefix, kind)
);

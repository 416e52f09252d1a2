DROP FUNCTION kyhan_discard_set_aside(boolean, bigint[]);
ALTER TABLE outbox DROP COLUMN waiting_since;

-- Since when an event waits for the relay, by the database's clock. occurred_at is what the order system says: days ago, after an import.
ALTER TABLE outbox ADD COLUMN waiting_since timestamptz NOT NULL DEFAULT now();

-- What an operator has decided not to schedule; `ops set-aside discard` records it. No role may delete from set_aside itself.
CREATE FUNCTION kyhan_discard_set_aside(everything boolean, ids bigint[]) RETURNS TABLE (event_id uuid, subject_id uuid)
LANGUAGE sql SECURITY DEFINER AS $$
    DELETE FROM set_aside WHERE everything OR id = ANY (ids) RETURNING event_id, subject_id
$$;
REVOKE EXECUTE ON FUNCTION kyhan_discard_set_aside(boolean, bigint[]) FROM PUBLIC;

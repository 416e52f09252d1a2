-- Stores dead letters. $1 to $3 are the rows: id, subject, number of the message; $4 to $16 are what the messages hold, where an empty text
-- stands for what is not known; $17 is the queue, $18 those of the ids that are decided.
--
-- What comes again changes nothing. What has failed again since is open again, with its latest failure. A letter whose death has no moment
-- of its own was stored with the moment of its storing: it cannot have died later.
--
-- A message is stored once for all its rows, and only if some row is new. Its row is locked, so that it is not deleted meanwhile. Foreign
-- keys are checked at the end of the statement.
WITH message AS MATERIALIZED (
    SELECT *, kyhan_body_hash(headers, body) AS hash
      FROM unnest($4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::bigint[], $10::text[], $11::text[],
                  $12::text[], $13::text[], $14::text[], $15::bytea[], $16::bytea[])
           WITH ORDINALITY AS given (kind, wakeup_id, reason, cause, cause_group, attempts, first_failed_at,
                                     last_failed_at, worker, trace_id, routing_key, headers, body, number)
), came AS (
    SELECT one.id, nullif(one.subject_id, '')::uuid AS subject_id, kind, wakeup_id, reason, cause, cause_group, attempts,
           first_failed_at, last_failed_at, worker, trace_id, routing_key, hash
      FROM unnest($1::uuid[], $2::text[], $3::bigint[]) AS one (id, subject_id, number) JOIN message USING (number)
), stored AS (
    INSERT INTO dead_letters AS letter
           (id, kind, subject_id, wakeup_id, reason, cause, cause_group, attempts, first_failed_at, last_failed_at, worker,
            trace_id, queue, routing_key, body_hash)
    SELECT id, nullif(kind, ''), subject_id, nullif(wakeup_id, '')::uuid, reason, cause, cause_group, attempts,
           nullif(first_failed_at, '')::timestamptz, coalesce(nullif(last_failed_at, '')::timestamptz, now()),
           nullif(worker, ''), nullif(trace_id, ''), $17, routing_key, hash
      FROM came ORDER BY id
    ON CONFLICT (id) DO UPDATE
       SET last_failed_at = EXCLUDED.last_failed_at, attempts = greatest(letter.attempts, EXCLUDED.attempts),
           reason = EXCLUDED.reason, cause = EXCLUDED.cause, cause_group = EXCLUDED.cause_group, worker = EXCLUDED.worker,
           state = 'open', decided_at = NULL, decided_by = NULL, decided_why = NULL
     WHERE EXCLUDED.last_failed_at > letter.last_failed_at AND EXCLUDED.last_failed_at <> EXCLUDED.stored_at
    RETURNING letter.id, letter.body_hash, letter.xmax = 0 AS fresh
), kept AS (
    INSERT INTO dead_letter_bodies AS known (hash, headers, body)
    SELECT DISTINCT ON (hash) hash, headers, body FROM message WHERE hash IN (SELECT body_hash FROM stored WHERE fresh) ORDER BY hash
    ON CONFLICT (hash) DO UPDATE SET hash = known.hash
), reopened AS (
    INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail)
    SELECT 'system', 'dead_letter.reopened', 'dead_letter', id,
           '{"by": "kyhan", "why": "it failed again", "changed": {"state": "open"}}'::jsonb
      FROM stored WHERE id = ANY($18::uuid[])
    RETURNING 1
)
SELECT (SELECT coalesce(array_agg(id), '{}') FROM stored WHERE fresh) AS fresh, (SELECT count(*) FROM reopened) AS reopened

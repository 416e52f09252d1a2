//! The statements by which letters become rows. One says what is decided already and locks it, one inserts; both in id order, so
//! that two that store the same letters wait for each other.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sea_orm::{DatabaseTransaction, DbErr, FromQueryResult, Value};
use shared::{
    database::{one, scalar, statement},
    message::dead_letter::cause_group,
};
use uuid::Uuid;

use super::Entry;

/// What became of some letters.
#[derive(FromQueryResult)]
pub(super) struct Stored {
    /// The rows that were not there before.
    pub fresh: Vec<Uuid>,
    /// How many had been decided about, and are open again.
    pub reopened: i64,
}

/// Stores letters of a queue. The transaction is the caller's.
pub(super) async fn insert(tx: &DatabaseTransaction, letters: &[Entry], queue: &str) -> Result<Stored, DbErr> {
    let columns = Columns::of(letters);
    let decided = scalar(tx, statement(DECIDED, [columns.ids.clone().into()])).await?;
    one(tx, statement(INSERT, columns.bound(queue, decided))).await
}

/// The letters among `$1` that somebody has decided about, locked in id order against whoever decides now.
const DECIDED: &str = "SELECT coalesce(array_agg(id) FILTER (WHERE state <> 'open'), '{}') AS decided
                         FROM (SELECT id, state FROM dead_letters WHERE id = ANY($1) ORDER BY id FOR UPDATE) AS known";

/// Rows (`$1` to `$3`: id, subject, number of the message) and what their messages say (`$4` to `$16`); an empty text stands for what
/// is not known. `$17`: the queue; `$18`: those of the ids that are decided.
///
/// What comes again changes nothing. What has failed again since is open again, and says how it failed now. A letter whose death has
/// no moment of its own, as it was never told, was stored with that of its storing: it cannot have died later.
const INSERT: &str = r#"
    WITH came AS (
        SELECT one.id, nullif(one.subject_id, '')::uuid AS subject_id, message.*
          FROM unnest($1::uuid[], $2::text[], $3::bigint[]) AS one (id, subject_id, number)
               JOIN unnest($4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::bigint[], $10::text[], $11::text[],
                           $12::text[], $13::text[], $14::text[], $15::bytea[], $16::bytea[])
                    WITH ORDINALITY AS message (kind, wakeup_id, reason, cause, cause_group, attempts, first_failed_at,
                                                last_failed_at, worker, trace_id, routing_key, headers, body, number)
               USING (number)
    ), stored AS (
        INSERT INTO dead_letters AS letter
               (id, kind, subject_id, wakeup_id, reason, cause, cause_group, attempts, first_failed_at, last_failed_at, worker,
                trace_id, queue, routing_key, headers, body)
        SELECT id, nullif(kind, ''), subject_id, nullif(wakeup_id, '')::uuid, reason, cause, cause_group, attempts,
               nullif(first_failed_at, '')::timestamptz, coalesce(nullif(last_failed_at, '')::timestamptz, now()),
               nullif(worker, ''), nullif(trace_id, ''), $17, routing_key, headers, body
          FROM came ORDER BY id
        ON CONFLICT (id) DO UPDATE
           SET last_failed_at = EXCLUDED.last_failed_at, attempts = greatest(letter.attempts, EXCLUDED.attempts),
               reason = EXCLUDED.reason, cause = EXCLUDED.cause, cause_group = EXCLUDED.cause_group, worker = EXCLUDED.worker,
               state = 'open', decided_at = NULL, decided_by = NULL, decided_why = NULL
         WHERE EXCLUDED.last_failed_at > letter.last_failed_at AND EXCLUDED.last_failed_at <> EXCLUDED.stored_at
        RETURNING letter.id, letter.xmax = 0 AS fresh
    ), reopened AS (
        INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail)
        SELECT 'system', 'dead_letter.reopened', 'dead_letter', id,
               '{"by": "kyhan", "why": "it failed again", "changed": {"state": "open"}}'::jsonb
          FROM stored WHERE id = ANY($18::uuid[])
        RETURNING 1
    )
    SELECT (SELECT coalesce(array_agg(id), '{}') FROM stored WHERE fresh) AS fresh, (SELECT count(*) FROM reopened) AS reopened"#;

/// What [`INSERT`] is given, column by column.
#[derive(Default)]
struct Columns {
    ids: Vec<Uuid>,
    subjects: Vec<String>,
    numbers: Vec<i64>,
    texts: [Vec<String>; 10],
    attempts: Vec<i64>,
    headers: Vec<Vec<u8>>,
    bodies: Vec<Vec<u8>>,
}

/// Each row once, in id order, with the number of its message and its subject: of a letter that came twice at once the later death
/// counts, as one statement may not touch a row twice.
fn newest(letters: &[Entry]) -> BTreeMap<Uuid, (i64, Option<Uuid>)> {
    let mut rows: BTreeMap<Uuid, (i64, Option<Uuid>)> = BTreeMap::new();
    let mut deaths = BTreeMap::new();
    for (Entry { letter, rows: of_letter, .. }, number) in letters.iter().zip(1..) {
        for (id, subject) in of_letter {
            if deaths.get(id).is_none_or(|before| *before < letter.died_at) {
                deaths.insert(*id, letter.died_at);
                rows.insert(*id, (number, *subject));
            }
        }
    }
    rows
}

impl Columns {
    fn of(letters: &[Entry]) -> Self {
        let mut columns = Self::default();
        for Entry { letter, headers, .. } in letters {
            let moment = |at: Option<DateTime<Utc>>| at.map(|at| at.to_rfc3339()).unwrap_or_default();
            let id = |id: Option<Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
            let first = letter.first_failed_at.map(|first| letter.died_at.map_or(first, |died| died.min(first)));
            let texts = [
                letter.kind.clone().unwrap_or_default(),
                id(letter.wakeup),
                letter.reason.clone(),
                letter.cause.clone(),
                cause_group(&letter.cause),
                moment(first),
                moment(letter.died_at),
                letter.worker.clone().unwrap_or_default(),
                letter.trace_id().unwrap_or_default(),
                letter.routing_key.clone(),
            ];
            for (column, text) in columns.texts.iter_mut().zip(texts) {
                // PostgreSQL's texts hold no NUL.
                column.push(text.replace('\0', "\u{fffd}"));
            }
            columns.attempts.push(letter.attempts.min(i32::MAX.cast_unsigned()).into());
            columns.headers.push(headers.clone());
            columns.bodies.push(letter.body.clone());
        }
        for (row, (number, subject)) in newest(letters) {
            columns.ids.push(row);
            columns.subjects.push(subject.map(|id| id.to_string()).unwrap_or_default());
            columns.numbers.push(number);
        }
        columns
    }

    fn bound(self, queue: &str, decided: Vec<Uuid>) -> Vec<Value> {
        let [kind, wakeup, reason, cause, group, first, last, worker, trace, key] = self.texts.map(Value::from);
        vec![
            self.ids.into(),
            self.subjects.into(),
            self.numbers.into(),
            kind,
            wakeup,
            reason,
            cause,
            group,
            self.attempts.into(),
            first,
            last,
            worker,
            trace,
            key,
            self.headers.into(),
            self.bodies.into(),
            queue.into(),
            decided.into(),
        ]
    }
}

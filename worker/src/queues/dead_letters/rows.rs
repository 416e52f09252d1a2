//! The statements that store dead letters: one reads and locks the letters that are already decided, one inserts. Both work in id order,
//! so that two workers that store the same letters wait for each other and cannot deadlock.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, QueryResult, Value};
use shared::{database::statement, message::dead_letter::cause_group};
use uuid::Uuid;

use super::Entry;

/// The result of storing letters.
pub(super) struct Stored {
    /// The ids of the new rows.
    pub fresh: Vec<Uuid>,
    /// How many decided letters were reopened.
    pub reopened: i64,
}

/// Stores letters of a queue. The caller commits the transaction.
pub(super) async fn insert(tx: &DatabaseTransaction, letters: &[Entry], queue: &str) -> Result<Stored, DbErr> {
    let one = |row: Option<QueryResult>| row.ok_or_else(|| DbErr::RecordNotFound("an aggregate".into()));
    let columns = Columns::of(letters);
    let known = one(tx.query_one_raw(statement(DECIDED, [columns.ids.clone().into()])).await?)?;
    let row = one(tx.query_one_raw(statement(INSERT, columns.bound(queue, known.try_get("", "decided")?))).await?)?;
    Ok(Stored { fresh: row.try_get("", "fresh")?, reopened: row.try_get("", "reopened")? })
}

/// The ids among `$1` that are decided, locked in id order against concurrent decisions.
const DECIDED: &str = "SELECT coalesce(array_agg(id) FILTER (WHERE state <> 'open'), '{}') AS decided
                         FROM (SELECT id, state FROM dead_letters WHERE id = ANY($1) ORDER BY id FOR UPDATE) AS known";

/// Inserts rows (`$1` to `$3`: id, subject, number of the message) with the columns of their messages (`$4` to `$16`); an empty text means
/// unknown. `$17`: the queue; `$18`: the ids that are decided.
///
/// A redelivered letter changes nothing. A letter that has failed again is reopened, with its new failure. A letter without a time of
/// failure is stored with the time of storing, so it never counts as a later failure.
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

/// The parameters of [`INSERT`], column by column.
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

/// Each row once, in id order, with the number of its message and its subject. If a batch holds a letter twice, the later failure counts,
/// because one statement may not update a row twice.
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
                // PostgreSQL's text cannot hold NUL.
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

//! The statements that store dead letters: one reads and locks the letters that are already decided, one inserts. Both work in id order,
//! so that two workers that store the same letters wait for each other and cannot deadlock.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sea_orm::{DatabaseTransaction, DbErr, FromQueryResult, Value};
use shared::{
    database::{one, scalar, statement},
    message::dead_letter::cause_group,
};
use uuid::Uuid;

use super::LetterEntry;

/// The result of storing letters.
#[derive(FromQueryResult)]
pub(super) struct Stored {
    /// The ids of the new rows.
    pub fresh: Vec<Uuid>,
    /// How many decided letters were reopened.
    pub reopened: i64,
}

/// Stores letters of a queue. The caller commits the transaction.
pub(super) async fn insert(tx: &DatabaseTransaction, letters: &[LetterEntry], queue: &str) -> Result<Stored, DbErr> {
    let columns = Columns::of(letters);
    let decided = scalar(tx, statement(DECIDED, [columns.ids.clone().into()])).await?;
    one(tx, statement(INSERT, columns.bound(queue, decided))).await
}

/// The ids among `$1` that are decided, locked in id order against concurrent decisions.
const DECIDED: &str = "SELECT coalesce(array_agg(id) FILTER (WHERE state <> 'open'), '{}') AS decided
                         FROM (SELECT id, state FROM dead_letters WHERE id = ANY($1) ORDER BY id FOR UPDATE) AS known";

/// Inserts them: see the file.
const INSERT: &str = include_str!("insert.sql");

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
fn newest(letters: &[LetterEntry]) -> BTreeMap<Uuid, (i64, Option<Uuid>)> {
    let mut rows: BTreeMap<Uuid, (i64, Option<Uuid>)> = BTreeMap::new();
    let mut deaths = BTreeMap::new();
    for (LetterEntry { letter, rows: of_letter, .. }, number) in letters.iter().zip(1..) {
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
    fn of(letters: &[LetterEntry]) -> Self {
        let mut columns = Self::default();
        for LetterEntry { letter, headers, .. } in letters {
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

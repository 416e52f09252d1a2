//! One letter: the line that stands for it in a list, and the whole of it. What it says is never changed: it is the evidence.

use std::str::FromStr;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr, QueryResult};
use serde::{Serialize, Serializer};
use shared::database::statement;
use uuid::Uuid;

use super::groups::GROUP_ID;

/// A letter without its message and its history.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub id: Uuid,
    pub state: String,
    /// What it was to do, where that could be understood.
    pub kind: Option<String>,
    pub subject_id: Option<Uuid>,
    pub reason: String,
    /// How often it failed.
    pub attempts: i32,
    pub first_failed_at: Option<DateTime<Utc>>,
    pub last_failed_at: DateTime<Utc>,
    /// The group of its cause, for `--group`.
    pub group: String,
    /// The chain of causes, outermost first.
    pub cause: String,
    pub decided_at: Option<DateTime<Utc>>,
    pub decided_by: Option<String>,
    pub decided_why: Option<String>,
}

/// A letter whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Letter {
    #[serde(flatten)]
    pub summary: Summary,
    pub wakeup_id: Option<Uuid>,
    pub worker: Option<String>,
    pub trace_id: Option<String>,
    pub stored_at: DateTime<Utc>,
    /// The queue in which it was found, and the original message's routing key.
    pub queue: String,
    pub routing_key: String,
    /// The original headers: a table of AMQP values, as JSON.
    #[serde(serialize_with = "json_or_base64")]
    pub headers: Vec<u8>,
    /// The original bytes; in JSON as base64.
    #[serde(serialize_with = "base64")]
    pub body: Vec<u8>,
    /// The letter that this one corrects, and the one that corrects it.
    pub repaired_from: Option<Uuid>,
    pub repaired_as: Option<Uuid>,
    /// The plans of replays that it was part of, oldest first.
    pub plans: Vec<PlanLine>,
}

/// A letter's line in a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlanLine {
    pub plan_id: Uuid,
    pub plan_state: String,
    /// What a replay would have done, as checked.
    pub verdict: String,
    /// What it did, and when; `None` where it was not its turn yet.
    pub result: Option<String>,
    pub at: Option<DateTime<Utc>>,
}

/// The columns of a [`Summary`], of a row under the alias `letter`.
pub(super) fn summary_columns() -> String {
    format!(
        "letter.id, letter.state, letter.kind, letter.subject_id, letter.reason, letter.attempts, letter.first_failed_at,
         letter.last_failed_at, {GROUP_ID} AS group_id, letter.cause, letter.decided_at, letter.decided_by, letter.decided_why"
    )
}

/// The letter of this id, whole.
///
/// # Errors
/// The database's.
pub async fn by_id(db: &impl ConnectionTrait, id: Uuid) -> Result<Option<Letter>, DbErr> {
    let sql = format!(
        "SELECT {summary}, letter.wakeup_id, letter.worker, letter.trace_id, letter.stored_at, letter.queue, letter.routing_key,
                letter.headers, letter.body, letter.repaired_from,
                (SELECT id FROM dead_letters AS repaired WHERE repaired.repaired_from = letter.id) AS repaired_as
           FROM dead_letters AS letter WHERE letter.id = $1",
        summary = summary_columns(),
    );
    let Some(row) = db.query_one_raw(statement(&sql, [id.into()])).await? else { return Ok(None) };
    Ok(Some(Letter {
        summary: Summary::read(&row)?,
        wakeup_id: row.try_get("", "wakeup_id")?,
        worker: row.try_get("", "worker")?,
        trace_id: row.try_get("", "trace_id")?,
        stored_at: row.try_get("", "stored_at")?,
        queue: row.try_get("", "queue")?,
        routing_key: row.try_get("", "routing_key")?,
        headers: row.try_get("", "headers")?,
        body: row.try_get("", "body")?,
        repaired_from: row.try_get("", "repaired_from")?,
        repaired_as: row.try_get("", "repaired_as")?,
        plans: plans(db, id).await?,
    }))
}

async fn plans(db: &impl ConnectionTrait, letter: Uuid) -> Result<Vec<PlanLine>, DbErr> {
    let sql = "SELECT line.plan_id, plan.state, line.verdict, line.result, line.at
                 FROM replay_plan_letters AS line JOIN replay_plans AS plan ON plan.id = line.plan_id
                WHERE line.letter_id = $1 ORDER BY plan.made_at, plan.id";
    let rows = db.query_all_raw(statement(sql, [letter.into()])).await?;
    rows.iter()
        .map(|row| {
            Ok(PlanLine {
                plan_id: row.try_get("", "plan_id")?,
                plan_state: row.try_get("", "state")?,
                verdict: row.try_get("", "verdict")?,
                result: row.try_get("", "result")?,
                at: row.try_get("", "at")?,
            })
        })
        .collect()
}

impl Summary {
    pub(super) fn read(row: &QueryResult) -> Result<Self, DbErr> {
        Ok(Self {
            id: row.try_get("", "id")?,
            state: row.try_get("", "state")?,
            kind: row.try_get("", "kind")?,
            subject_id: row.try_get("", "subject_id")?,
            reason: row.try_get("", "reason")?,
            attempts: row.try_get("", "attempts")?,
            first_failed_at: row.try_get("", "first_failed_at")?,
            last_failed_at: row.try_get("", "last_failed_at")?,
            group: row.try_get("", "group_id")?,
            cause: row.try_get("", "cause")?,
            decided_at: row.try_get("", "decided_at")?,
            decided_by: row.try_get("", "decided_by")?,
            decided_why: row.try_get("", "decided_why")?,
        })
    }
}

/// A letter's id, or how it begins: at least eight hex digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdPrefix {
    text: String,
    /// The ids that begin so lie between these.
    first: Uuid,
    last: Uuid,
}

/// A text that no id can be named by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a letter is named by its id or the first eight hex digits of it or more")]
pub struct NotAnId;

impl FromStr for IdPrefix {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const LEAST: usize = 8;
        let digits: String = text.chars().filter(|character| *character != '-').collect();
        if !(LEAST..=32).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NotAnId);
        }
        let id = |text: String| text.parse().map_err(|_| NotAnId);
        Ok(Self { text: text.to_owned(), first: id(format!("{digits:0<32}"))?, last: id(format!("{digits:f<32}"))? })
    }
}

/// Why a letter was not found by how its id begins.
#[derive(Debug, thiserror::Error)]
pub enum NotOne {
    #[error("no dead letter's id begins with {0}; see `ops dead list --state all`")]
    None(String),
    #[error("the ids of several dead letters begin with {prefix}; say more of one: {ids}")]
    Several { prefix: String, ids: String },
    #[error("PostgreSQL: {0}")]
    Database(#[from] DbErr),
}

/// The id of the one letter whose id begins so.
///
/// # Errors
/// [`NotOne`]; of several letters it names the first few.
pub async fn named(db: &impl ConnectionTrait, prefix: &IdPrefix) -> Result<Uuid, NotOne> {
    const NAMED: usize = 10;
    let sql = "SELECT id FROM dead_letters WHERE id BETWEEN $1 AND $2 ORDER BY id LIMIT $3";
    let most = i64::try_from(NAMED + 1).unwrap_or(i64::MAX);
    let rows = db.query_all_raw(statement(sql, [prefix.first.into(), prefix.last.into(), most.into()])).await?;
    let found = rows.iter().map(|row| row.try_get_by_index::<Uuid>(0)).collect::<Result<Vec<_>, _>>()?;
    match found.as_slice() {
        [] => Err(NotOne::None(prefix.text.clone())),
        [one] => Ok(*one),
        several => {
            let more = if several.len() > NAMED { ", …" } else { "" };
            let ids = several.iter().take(NAMED).map(Uuid::to_string).collect::<Vec<_>>().join(", ");
            Err(NotOne::Several { prefix: prefix.text.clone(), ids: ids + more })
        }
    }
}

fn base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
}

fn json_or_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    match serde_json::from_slice::<serde_json::Value>(bytes) {
        Ok(json) => json.serialize(serializer),
        Err(_) => base64(bytes, serializer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_named_by_how_it_begins() {
        let prefix: IdPrefix = "5f0c1d2e-a".parse().unwrap();
        assert_eq!(prefix.first.to_string(), "5f0c1d2e-a000-0000-0000-000000000000");
        assert_eq!(prefix.last.to_string(), "5f0c1d2e-afff-ffff-ffff-ffffffffffff");
        let whole: IdPrefix = "5f0c1d2e-a000-0000-0000-000000000001".parse().unwrap();
        assert_eq!(whole.first, whole.last);
        for text in ["", "5f0c1d2", "5f0c1d2g", "' OR true", "5f0c1d2e-a000-0000-0000-0000000000011"] {
            assert_eq!(text.parse::<IdPrefix>(), Err(NotAnId), "{text}");
        }
    }
}

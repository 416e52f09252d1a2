//! One letter: its summary in a list, and all of it. Its content never changes, because it is evidence.

use std::str::FromStr;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DbErr, DerivePartialModel, EntityTrait, QueryFilter, QueryOrder, QuerySelect, sea_query::Expr,
};
use serde::{Serialize, Serializer};
use shared::database::entity::{
    dead_letters::{self, Column},
    replay_plan_letters, replay_plans,
};
use uuid::Uuid;

use super::groups::GROUP_ID;

/// A letter without its message and its history.
#[derive(Clone, Debug, PartialEq, Serialize, DerivePartialModel)]
#[sea_orm(entity = "dead_letters::Entity")]
pub struct Summary {
    pub id: Uuid,
    pub state: String,
    /// The kind of its task; `None`: it could not be read.
    pub kind: Option<String>,
    pub subject_id: Option<Uuid>,
    pub reason: String,
    /// The number of failed attempts.
    pub attempts: i32,
    pub first_failed_at: Option<DateTime<Utc>>,
    pub last_failed_at: DateTime<Utc>,
    /// The group of its cause, for `--group`.
    #[sea_orm(from_expr = "Expr::cust(GROUP_ID)")]
    pub group: String,
    /// The chain of causes, outermost first.
    pub cause: String,
    pub decided_at: Option<DateTime<Utc>>,
    pub decided_by: Option<String>,
    pub decided_why: Option<String>,
}

/// A complete letter.
#[derive(Clone, Debug, PartialEq, Serialize, DerivePartialModel)]
#[sea_orm(entity = "dead_letters::Entity")]
pub struct Letter {
    #[serde(flatten)]
    #[sea_orm(nested)]
    pub summary: Summary,
    pub wakeup_id: Option<Uuid>,
    pub worker: Option<String>,
    pub trace_id: Option<String>,
    pub stored_at: DateTime<Utc>,
    /// The queue that a worker took it from, and the original message's routing key.
    pub queue: String,
    pub routing_key: String,
    /// The original headers: a table of AMQP values, as JSON.
    #[sea_orm(from_expr = "Expr::cust(HEADERS)")]
    #[serde(serialize_with = "json_or_base64")]
    pub headers: Vec<u8>,
    /// The original bytes; in JSON as base64.
    #[sea_orm(from_expr = "Expr::cust(BODY)")]
    #[serde(serialize_with = "base64")]
    pub body: Vec<u8>,
    /// The letter that this one corrects, and the one that corrects it.
    pub repaired_from: Option<Uuid>,
    #[sea_orm(from_expr = "Expr::cust(REPAIRED_AS)")]
    pub repaired_as: Option<Uuid>,
    /// The replay plans that contain it, oldest first.
    #[sea_orm(skip)]
    pub plans: Vec<PlanLine>,
}

/// A letter's line in a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, DerivePartialModel)]
#[sea_orm(entity = "replay_plan_letters::Entity")]
pub struct PlanLine {
    pub plan_id: Uuid,
    #[sea_orm(from_expr = "replay_plans::Column::State")]
    pub plan_state: String,
    /// What a replay would do, as checked when the plan was made.
    pub verdict: String,
    /// What the replay did, and when; `None`: it has not been replayed yet.
    pub result: Option<String>,
    pub at: Option<DateTime<Utc>>,
}

/// SQL: the letter that corrects a row of `dead_letters`.
const REPAIRED_AS: &str = "(SELECT id FROM dead_letters AS repaired WHERE repaired.repaired_from = dead_letters.id)";

/// SQL: the original message of a row of `dead_letters`.
const HEADERS: &str = "(SELECT headers FROM dead_letter_bodies WHERE hash = dead_letters.body_hash)";
const BODY: &str = "(SELECT body FROM dead_letter_bodies WHERE hash = dead_letters.body_hash)";

/// The complete letter with this id.
///
/// # Errors
/// Database errors.
pub async fn by_id(db: &impl ConnectionTrait, id: Uuid) -> Result<Option<Letter>, DbErr> {
    let letter = dead_letters::Entity::find_by_id(id).into_partial_model::<Letter>().one(db).await?;
    let Some(letter) = letter else { return Ok(None) };
    let plans = replay_plan_letters::Entity::find()
        .inner_join(replay_plans::Entity)
        .filter(replay_plan_letters::Column::LetterId.eq(id))
        .order_by_asc(replay_plans::Column::MadeAt)
        .order_by_asc(replay_plans::Column::Id);
    Ok(Some(Letter { plans: plans.into_partial_model().all(db).await?, ..letter }))
}

/// A letter's id, or its first digits: at least eight hex digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdPrefix {
    text: String,
    /// The range of ids with this prefix.
    first: Uuid,
    last: Uuid,
}

/// The error for a text that is not an id or a prefix of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be the id of a dead letter, or at least its first eight hex digits")]
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

/// Why a prefix does not identify one letter.
#[derive(Debug, thiserror::Error)]
pub enum NotOne {
    #[error("no dead letter's id begins with {0}; see `ops dead list --state all`")]
    None(String),
    #[error("the ids of several dead letters begin with {prefix}; give more digits of one: {ids}")]
    Several { prefix: String, ids: String },
    #[error("PostgreSQL: {0}")]
    Database(#[from] DbErr),
}

/// The id of the only letter whose id has this prefix.
///
/// # Errors
/// [`NotOne`]; if several match, it lists the first few.
pub async fn named(db: &impl ConnectionTrait, prefix: &IdPrefix) -> Result<Uuid, NotOne> {
    const NAMED: usize = 10;
    let ids = dead_letters::Entity::find().select_only().column(Column::Id);
    let so = ids.filter(Column::Id.between(prefix.first, prefix.last)).order_by_asc(Column::Id);
    let found: Vec<Uuid> = so.limit(NAMED as u64 + 1).into_tuple().all(db).await?;
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

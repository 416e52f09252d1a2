//! Events that the relay could not schedule: listed, put back into the outbox once the cause is mended, or discarded.

use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, TransactionTrait};
use serde::Serialize;
use serde_json::json;
use shared::database::statement;
use uuid::Uuid;

use crate::actor::Actor;

/// An event set aside by the relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SetAside {
    pub id: i64,
    pub event_type: String,
    pub subject: Uuid,
    /// As PostgreSQL writes it: it may be a moment that no calendar holds.
    pub occurred_at: String,
    pub set_aside_at: String,
    pub reason: String,
}

/// The newest `most` of them, and how many there are.
///
/// # Errors
/// The database's.
pub async fn list(db: &DatabaseConnection, most: u64) -> Result<(Vec<SetAside>, i64), DbErr> {
    let sql = "SELECT id, event_type, subject_id, occurred_at::text AS occurred_at, set_aside_at::text AS set_aside_at, reason,
                      count(*) OVER () AS all
                 FROM set_aside ORDER BY id DESC LIMIT $1";
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let mut all = 0;
    let mut found = Vec::new();
    for row in db.query_all_raw(statement(sql, [most.into()])).await? {
        all = row.try_get("", "all")?;
        found.push(SetAside {
            id: row.try_get("", "id")?,
            event_type: row.try_get("", "event_type")?,
            subject: row.try_get("", "subject_id")?,
            occurred_at: row.try_get("", "occurred_at")?,
            set_aside_at: row.try_get("", "set_aside_at")?,
            reason: row.try_get("", "reason")?,
        });
    }
    Ok((found, all))
}

/// Puts these (or all, when there are none) back into the outbox, with a record of each. How many.
///
/// # Errors
/// The database's; nothing is put back then.
pub async fn retry(db: &DatabaseConnection, actor: &Actor, ids: &[i64]) -> Result<u64, DbErr> {
    // Whatever the order system put into them stays unread.
    let sql = "SELECT kyhan_retry_set_aside($1, $2)";
    let tx = db.begin().await?;
    let back = tx.query_all_raw(statement(sql, [ids.is_empty().into(), ids.to_vec().into()])).await?;
    let events = back.iter().map(|row| row.try_get_by_index(0)).collect::<Result<Vec<Uuid>, _>>()?;
    actor.record_each(&tx, "set_aside.retried", ("event", &events), None, json!({ "set_aside": false })).await?;
    tx.commit().await?;
    Ok(events.len() as u64)
}

/// Deletes these (or all, when there are none), with a record of each. How many.
///
/// # Errors
/// The database's; nothing is deleted then.
pub async fn discard(db: &DatabaseConnection, actor: &Actor, ids: &[i64], why: &str) -> Result<u64, DbErr> {
    let sql = "SELECT event_id, subject_id FROM kyhan_discard_set_aside($1, $2)";
    let tx = db.begin().await?;
    let discarded = tx.query_all_raw(statement(sql, [ids.is_empty().into(), ids.to_vec().into()])).await?;
    for row in &discarded {
        let (event, subject): (Uuid, Uuid) = (row.try_get("", "event_id")?, row.try_get("", "subject_id")?);
        actor.record(&tx, "set_aside.discarded", ("event", event), Some(why), json!({ "subject": subject })).await?;
    }
    tx.commit().await?;
    Ok(discarded.len() as u64)
}

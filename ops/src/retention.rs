//! Retention by hand: holding an order as it is, whatever its age, letting go of it, and putting a hidden one back on line. Each is
//! recorded in the transaction that does it, with who and why; whoever does it again changes nothing.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, QueryResult, TransactionTrait};
use serde::Serialize;
use serde_json::json;
use shared::{database::statement, domain::event::EventType};
use uuid::Uuid;

use crate::actor::Actor;

/// A hold on an order: it is neither hidden nor deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hold {
    pub order: Uuid,
    pub code: String,
    pub since: DateTime<Utc>,
    /// The operator who placed it.
    pub by: String,
    pub why: String,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done<T> {
    Now(T),
    /// It was so before, and nothing was changed.
    Before(T),
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    #[error("no order has the code or id {0:?}")]
    Unknown(String),
    #[error("PostgreSQL: {0}")]
    Database(#[from] DbErr),
}

/// An order by its code or id, locked.
struct Order {
    id: Uuid,
    code: String,
    hidden_at: Option<DateTime<Utc>>,
}

/// Places a hold.
///
/// # Errors
/// [`RetentionError`].
pub async fn hold(db: &DatabaseConnection, actor: &Actor, order: &str, why: &str) -> Result<Done<Hold>, RetentionError> {
    let tx = db.begin().await?;
    let Order { id, .. } = find(&tx, order).await?;
    let sql = "INSERT INTO retention_holds (order_id, held_by, why) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    let placed = tx.execute_raw(statement(sql, [id.into(), actor.name().into(), why.into()])).await?.rows_affected() > 0;
    let hold = read(&tx, id).await?.ok_or_else(|| DbErr::RecordNotFound("a hold".into()))?;
    if !placed {
        tx.rollback().await?;
        return Ok(Done::Before(hold));
    }
    actor.record(&tx, "order.held", ("order", id), Some(why), json!({ "held": true })).await?;
    tx.commit().await?;
    Ok(Done::Now(hold))
}

/// Takes a hold away; the code of the order and the hold that there was, if any.
///
/// # Errors
/// [`RetentionError`].
pub async fn release(
    db: &DatabaseConnection,
    actor: &Actor,
    order: &str,
    why: &str,
) -> Result<(String, Option<Hold>), RetentionError> {
    let tx = db.begin().await?;
    let Order { id, code, .. } = find(&tx, order).await?;
    let Some(hold) = read(&tx, id).await? else {
        tx.rollback().await?;
        return Ok((code, None));
    };
    tx.execute_raw(statement("DELETE FROM retention_holds WHERE order_id = $1", [id.into()])).await?;
    actor.record(&tx, "order.released", ("order", id), Some(why), json!({ "held": false })).await?;
    tx.commit().await?;
    Ok((code, Some(hold)))
}

/// Puts a hidden order back on line. It is news about the order: it stays there for six months at least. Its code, and since when it
/// was hidden; [`Done::Before`] where it was on line.
///
/// # Errors
/// [`RetentionError`].
pub async fn unhide(
    db: &DatabaseConnection,
    actor: &Actor,
    order: &str,
    why: &str,
) -> Result<Done<(String, Option<DateTime<Utc>>)>, RetentionError> {
    let tx = db.begin().await?;
    let Order { id, code, hidden_at } = find(&tx, order).await?;
    if hidden_at.is_none() {
        tx.rollback().await?;
        return Ok(Done::Before((code, None)));
    }
    tx.execute_raw(statement("UPDATE orders SET hidden_at = NULL WHERE id = $1", [id.into()])).await?;
    actor.record(&tx, "order.unhidden", ("order", id), Some(why), json!({ "hidden_at": null })).await?;
    // A wake-up to hide it again, as it has none any more.
    let sql = "INSERT INTO outbox (event_type, subject_id, occurred_at) VALUES ($1, $2, now())";
    tx.execute_raw(statement(sql, [EventType::OrderRecorded.name().into(), id.into()])).await?;
    tx.commit().await?;
    Ok(Done::Now((code, hidden_at)))
}

/// Every hold, oldest first.
///
/// # Errors
/// The database's.
pub async fn holds(db: &DatabaseConnection) -> Result<Vec<Hold>, DbErr> {
    let rows = db.query_all_raw(statement(&format!("{HOLDS} ORDER BY held_at, order_id"), [])).await?;
    rows.iter().map(of_row).collect()
}

const HOLDS: &str =
    "SELECT order_id, orders.code, held_at, held_by, why FROM retention_holds JOIN orders ON orders.id = order_id";

async fn read(tx: &DatabaseTransaction, id: Uuid) -> Result<Option<Hold>, DbErr> {
    let row = tx.query_one_raw(statement(&format!("{HOLDS} WHERE order_id = $1"), [id.into()])).await?;
    row.map(|row| of_row(&row)).transpose()
}

fn of_row(row: &QueryResult) -> Result<Hold, DbErr> {
    Ok(Hold {
        order: row.try_get("", "order_id")?,
        code: row.try_get("", "code")?,
        since: row.try_get("", "held_at")?,
        by: row.try_get("", "held_by")?,
        why: row.try_get("", "why")?,
    })
}

async fn find(tx: &DatabaseTransaction, order: &str) -> Result<Order, RetentionError> {
    let sql =
        "SELECT id, code, hidden_at FROM orders WHERE code = $1 OR id = $2 ORDER BY code = $1 DESC LIMIT 1 FOR NO KEY UPDATE";
    let id = Uuid::parse_str(order.trim()).ok();
    let row = tx.query_one_raw(statement(sql, [order.into(), id.into()])).await?;
    let row = row.ok_or_else(|| RetentionError::Unknown(order.to_owned()))?;
    Ok(Order { id: row.try_get("", "id")?, code: row.try_get("", "code")?, hidden_at: row.try_get("", "hidden_at")? })
}

//! Manual retention: place or release a hold on an order, or make a hidden order visible again. Each is recorded in its own transaction,
//! with who did it and why. All are idempotent.

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveValue::Set, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, EntityTrait, FromQueryResult,
    TransactionTrait, sea_query::OnConflict,
};
use serde::Serialize;
use serde_json::json;
use shared::{
    database::{
        entity::{outbox, retention_holds},
        statement,
    },
    domain::event::EventType,
};
use uuid::Uuid;

use crate::actor::Operator;

/// A hold on an order: it is neither hidden nor deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, FromQueryResult)]
pub struct Hold {
    pub order: Uuid,
    pub code: String,
    pub since: DateTime<Utc>,
    /// The operator who placed it.
    pub by: String,
    pub why: String,
}

/// The result of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeOutcome<T> {
    Now(T),
    /// It was already so; nothing was changed.
    Before(T),
}

/// Why a change failed.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    #[error("no order has the code or id {0:?}")]
    Unknown(String),
    #[error("PostgreSQL: {0}")]
    Database(#[from] DbErr),
}

/// An order by its code or id, locked.
#[derive(FromQueryResult)]
struct Order {
    id: Uuid,
    code: String,
    hidden_at: Option<DateTime<Utc>>,
}

/// Places a hold.
///
/// # Errors
/// [`RetentionError`].
pub async fn hold(
    db: &DatabaseConnection,
    actor: &Operator,
    order: &str,
    why: &str,
) -> Result<ChangeOutcome<Hold>, RetentionError> {
    let tx = db.begin().await?;
    let Order { id, .. } = find(&tx, order).await?;
    let wanted = retention_holds::ActiveModel {
        order_id: Set(id),
        held_by: Set(actor.name().to_owned()),
        why: Set(why.to_owned()),
        ..Default::default()
    };
    let wanted = retention_holds::Entity::insert(wanted).on_conflict(OnConflict::new().do_nothing().to_owned());
    let placed = wanted.exec_without_returning(&tx).await? > 0;
    let hold = read(&tx, id).await?.ok_or_else(|| DbErr::RecordNotFound("a hold".into()))?;
    if !placed {
        tx.rollback().await?;
        return Ok(ChangeOutcome::Before(hold));
    }
    actor.record(&tx, "order.held", ("order", id), Some(why), json!({ "held": true })).await?;
    tx.commit().await?;
    Ok(ChangeOutcome::Now(hold))
}

/// Releases a hold. Returns the order's code, and the hold if there was one.
///
/// # Errors
/// [`RetentionError`].
pub async fn release(
    db: &DatabaseConnection,
    actor: &Operator,
    order: &str,
    why: &str,
) -> Result<(String, Option<Hold>), RetentionError> {
    let tx = db.begin().await?;
    let Order { id, code, .. } = find(&tx, order).await?;
    let Some(hold) = read(&tx, id).await? else {
        tx.rollback().await?;
        return Ok((code, None));
    };
    retention_holds::Entity::delete_by_id(id).exec(&tx).await?;
    actor.record(&tx, "order.released", ("order", id), Some(why), json!({ "held": false })).await?;
    tx.commit().await?;
    Ok((code, Some(hold)))
}

/// Makes a hidden order visible again. This counts as activity, so the order stays visible for at least six months. Returns its code, and
/// since when it was hidden; [`ChangeOutcome::Before`]: it was not hidden.
///
/// # Errors
/// [`RetentionError`].
pub async fn unhide(
    db: &DatabaseConnection,
    actor: &Operator,
    order: &str,
    why: &str,
) -> Result<ChangeOutcome<(String, Option<DateTime<Utc>>)>, RetentionError> {
    let tx = db.begin().await?;
    let Order { id, code, hidden_at } = find(&tx, order).await?;
    if hidden_at.is_none() {
        tx.rollback().await?;
        return Ok(ChangeOutcome::Before((code, None)));
    }
    tx.execute_raw(statement("UPDATE orders SET hidden_at = NULL WHERE id = $1", [id.into()])).await?;
    actor.record(&tx, "order.unhidden", ("order", id), Some(why), json!({ "hidden_at": null })).await?;
    // Schedules a new wake-up to hide it, because the old one is spent.
    let event = outbox::ActiveModel {
        event_type: Set(EventType::OrderRecorded.name().to_owned()),
        subject_id: Set(id),
        ..Default::default()
    };
    outbox::Entity::insert(event).exec_without_returning(&tx).await?;
    tx.commit().await?;
    Ok(ChangeOutcome::Now((code, hidden_at)))
}

/// Every hold, oldest first.
///
/// # Errors
/// Database errors.
pub async fn holds(db: &DatabaseConnection) -> Result<Vec<Hold>, DbErr> {
    Hold::find_by_statement(statement(&format!("{HOLDS} ORDER BY held_at, order_id"), [])).all(db).await
}

const HOLDS: &str = "SELECT order_id AS order, orders.code, held_at AS since, held_by AS by, why
      FROM retention_holds JOIN orders ON orders.id = order_id";

async fn read(tx: &DatabaseTransaction, id: Uuid) -> Result<Option<Hold>, DbErr> {
    Hold::find_by_statement(statement(&format!("{HOLDS} WHERE order_id = $1"), [id.into()])).one(tx).await
}

async fn find(tx: &DatabaseTransaction, order: &str) -> Result<Order, RetentionError> {
    let sql =
        "SELECT id, code, hidden_at FROM orders WHERE code = $1 OR id = $2 ORDER BY code = $1 DESC LIMIT 1 FOR NO KEY UPDATE";
    let id = Uuid::parse_str(order.trim()).ok();
    let found = Order::find_by_statement(statement(sql, [order.into(), id.into()])).one(tx).await?;
    found.ok_or_else(|| RetentionError::Unknown(order.to_owned()))
}

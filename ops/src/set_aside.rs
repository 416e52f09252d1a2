//! Events that the relay could not schedule. Operators list them, and discard them or, once the cause is fixed, put them back into the
//! outbox.

use sea_orm::{
    ColumnTrait, DatabaseConnection, DbErr, DerivePartialModel, EntityTrait, FromQueryResult, QueryOrder, QuerySelect,
    TransactionTrait,
    sea_query::{Expr, ExprTrait},
};
use serde::Serialize;
use serde_json::json;
use shared::database::{column, entity::set_aside, statement};
use uuid::Uuid;

use crate::actor::Operator;

/// An event set aside by the relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, DerivePartialModel)]
#[sea_orm(entity = "set_aside::Entity")]
pub struct SetAsideEvent {
    pub id: i64,
    pub event_type: String,
    #[sea_orm(from_col = "subject_id")]
    pub subject: Uuid,
    /// As text from PostgreSQL, because chrono cannot represent every timestamp.
    #[sea_orm(from_expr = "set_aside::Column::OccurredAt.into_expr().cast_as(\"text\")")]
    pub occurred_at: String,
    #[sea_orm(from_expr = "set_aside::Column::SetAsideAt.into_expr().cast_as(\"text\")")]
    pub set_aside_at: String,
    pub reason: String,
}

/// The newest `most` events, and the number of all.
///
/// # Errors
/// Database errors.
pub async fn list(db: &DatabaseConnection, most: u64) -> Result<(Vec<SetAsideEvent>, i64), DbErr> {
    #[derive(DerivePartialModel)]
    struct EventWithCount {
        #[sea_orm(nested)]
        event: SetAsideEvent,
        #[sea_orm(from_expr = "Expr::cust(\"count(*) OVER ()\")")]
        all: i64,
    }
    let newest = set_aside::Entity::find().order_by_desc(set_aside::Column::Id).limit(most);
    let found = newest.into_partial_model::<EventWithCount>().all(db).await?;
    let all = found.first().map_or(0, |counted| counted.all);
    Ok((found.into_iter().map(|counted| counted.event).collect(), all))
}

/// Puts these events (all, if the list is empty) back into the outbox, and records each. Returns how many.
///
/// # Errors
/// Database errors; nothing is put back then.
pub async fn retry(db: &DatabaseConnection, actor: &Operator, ids: &[i64]) -> Result<u64, DbErr> {
    // A function, so that operators need no access to the data that the order system put into the events.
    let sql = "SELECT kyhan_retry_set_aside($1, $2)";
    let tx = db.begin().await?;
    let events: Vec<Uuid> = column(&tx, statement(sql, [ids.is_empty().into(), ids.to_vec().into()])).await?;
    actor.record_each(&tx, "set_aside.retried", ("event", &events), None, json!({ "set_aside": false })).await?;
    tx.commit().await?;
    Ok(events.len() as u64)
}

/// Deletes these events (all, if the list is empty), and records each. Returns how many.
///
/// # Errors
/// Database errors; nothing is deleted then.
pub async fn discard(db: &DatabaseConnection, actor: &Operator, ids: &[i64], why: &str) -> Result<u64, DbErr> {
    #[derive(FromQueryResult)]
    struct Gone {
        event_id: Uuid,
        subject_id: Uuid,
    }
    let sql = "SELECT event_id, subject_id FROM kyhan_discard_set_aside($1, $2)";
    let tx = db.begin().await?;
    let discarded = Gone::find_by_statement(statement(sql, [ids.is_empty().into(), ids.to_vec().into()])).all(&tx).await?;
    for Gone { event_id, subject_id } in &discarded {
        actor.record(&tx, "set_aside.discarded", ("event", *event_id), Some(why), json!({ "subject": subject_id })).await?;
    }
    tx.commit().await?;
    Ok(discarded.len() as u64)
}

//! Recording what customers and staff do, and what is said about an order, in the caller's own transaction (policy point 5): it is on
//! record if and only if what it is about has happened. From any other language the same by SQL: insert into `activity` and
//! `order_messages`; the moment is the database's own.

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr};
use serde_json::Value;
use shared::{database::statement, domain::confidential::Confidential};
use uuid::Uuid;

/// Who did something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    Customer(Uuid),
    /// A member of staff, by an id of the order system's.
    Staff(Option<Uuid>),
}

/// Something that somebody did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    pub actor: Actor,
    /// Like `order.address_changed`.
    pub action: &'static str,
    /// A kind, like `order`, and an id.
    pub subject: (&'static str, Uuid),
    /// Ids, codes and amounts: it is sealed, so it cannot be erased. What was said belongs into a [`Message`], and personal data into
    /// neither.
    pub detail: Value,
}

/// Something that was said about an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub order: Uuid,
    pub author: Confidential<String>,
    pub body: Confidential<String>,
}

/// Records an action. A customer's about an order is news of that order, and holds it until the transaction ends: several are recorded in
/// the order of their orders' ids, on the connection that changes these.
///
/// # Errors
/// The database's.
pub async fn action(tx: &DatabaseTransaction, action: &Action) -> Result<(), DbErr> {
    let (kind, id) = match action.actor {
        Actor::Customer(id) => ("customer", Some(id)),
        Actor::Staff(id) => ("staff", id),
    };
    let sql =
        "INSERT INTO activity (actor_kind, actor_id, action, subject_kind, subject_id, detail) VALUES ($1, $2, $3, $4, $5, $6)";
    let (subject_kind, subject) = action.subject;
    let values =
        [kind.into(), id.into(), action.action.into(), subject_kind.into(), subject.into(), action.detail.clone().into()];
    tx.execute_raw(statement(sql, values)).await.map(|_| ())
}

/// Keeps a message, and records a digest of it by which a later change is found; its id. Said by the customer in whose name the session
/// acts (`kyhan.customer_id`), else by staff.
///
/// # Errors
/// The database's.
pub async fn message(tx: &DatabaseTransaction, message: &Message) -> Result<Uuid, DbErr> {
    let sql = "INSERT INTO order_messages (order_id, author, body) VALUES ($1, $2, $3) RETURNING id";
    let values = [message.order.into(), message.author.expose().as_str().into(), message.body.expose().as_str().into()];
    let row = tx.query_one_raw(statement(sql, values)).await?;
    row.ok_or_else(|| DbErr::RecordNotFound("a row that was inserted".into()))?.try_get("", "id")
}

//! Records the actions of customers and staff, and the messages about an order, in the caller's transaction (policy point 5): the record
//! exists if and only if the action was committed. Other languages insert into `activity` and `order_messages` by SQL. The database sets
//! the time.

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr};
use serde_json::Value;
use shared::{database::statement, domain::confidential::Confidential};
use uuid::Uuid;

/// Who performed an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    Customer(Uuid),
    /// A member of staff, by an id of the order system.
    Staff(Option<Uuid>),
}

/// An action of a customer or of staff.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    pub actor: Actor,
    /// The name of the action, for example `order.address_changed`.
    pub action: &'static str,
    /// What the action was about: a kind, for example `order`, and an id.
    pub subject: (&'static str, Uuid),
    /// Ids, codes and amounts. Activity is sealed and cannot be erased, so text belongs in a [`Message`], and personal data in neither.
    pub detail: Value,
}

/// A message about an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub order: Uuid,
    pub author: Confidential<String>,
    pub body: Confidential<String>,
}

/// Records an action. A customer's action on an order counts as activity of that order and locks the order until the transaction ends. Record
/// several in the order of their order ids, on the connection that changes the orders.
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

/// Stores a message and records a digest of it, by which a later change is found. Returns the message's id. It counts as the customer's if
/// the session acts for one (`kyhan.customer_id`), else as staff's.
///
/// # Errors
/// The database's.
pub async fn message(tx: &DatabaseTransaction, message: &Message) -> Result<Uuid, DbErr> {
    let sql = "INSERT INTO order_messages (order_id, author, body) VALUES ($1, $2, $3) RETURNING id";
    let values = [message.order.into(), message.author.expose().as_str().into(), message.body.expose().as_str().into()];
    let row = tx.query_one_raw(statement(sql, values)).await?;
    row.ok_or_else(|| DbErr::RecordNotFound("a row that was inserted".into()))?.try_get("", "id")
}

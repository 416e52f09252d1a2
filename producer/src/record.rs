//! Recording what customers and staff do, and what is said about an order, in the caller's own transaction (policy point 5): it is on
//! record if and only if what it is about has happened. From any other language the same by SQL: insert into `activity` and
//! `order_messages`; the moment is the database's own.

use sea_orm::{ActiveValue::Set, DatabaseTransaction, DbErr, EntityTrait};
use serde_json::Value;
use shared::{
    database::entity::{activity, order_messages},
    domain::confidential::Confidential,
};
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
    let (subject_kind, subject_id) = action.subject;
    let row = activity::ActiveModel {
        actor_kind: Set(kind.to_owned()),
        actor_id: Set(id),
        action: Set(action.action.to_owned()),
        subject_kind: Set(subject_kind.to_owned()),
        subject_id: Set(subject_id),
        detail: Set(action.detail.clone()),
        ..Default::default()
    };
    activity::Entity::insert(row).exec_without_returning(tx).await.map(|_| ())
}

/// Keeps a message, and records a digest of it by which a later change is found; its id. Said by the customer in whose name the session
/// acts (`kyhan.customer_id`), else by staff.
///
/// # Errors
/// The database's.
pub async fn message(tx: &DatabaseTransaction, message: &Message) -> Result<Uuid, DbErr> {
    let row = order_messages::ActiveModel {
        order_id: Set(message.order),
        author: Set(message.author.clone()),
        body: Set(message.body.clone()),
        ..Default::default()
    };
    Ok(order_messages::Entity::insert(row).exec(tx).await?.last_insert_id)
}

//! Records the actions of customers and staff, and the messages about an order, in the caller's transaction (policy point 5): the record
//! exists if and only if the action was committed. Other languages insert into `kyhan.activity` and `order_messages` by SQL. The database sets
//! the time.

use sea_orm::{ActiveValue::Set, DatabaseTransaction, DbErr, EntityTrait, QueryTrait};
use serde_json::Value;
use shared::{
    database::entity::{activity, order_messages},
    domain::confidential::Confidential,
    settings::DatabaseSettings,
};
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

/// Writes into the schemas of the settings, whatever the `search_path` of the caller's connection is.
#[derive(Clone, Debug)]
pub struct ActivityRecorder {
    schema: String,
    order_system_schema: String,
}

impl ActivityRecorder {
    #[must_use]
    pub fn new(DatabaseSettings { schema, order_system_schema, .. }: &DatabaseSettings) -> Self {
        Self { schema: schema.clone(), order_system_schema: order_system_schema.clone() }
    }

    /// Records an action. A customer's action on an order counts as activity of that order and locks the order until the transaction ends.
    /// Record several in the order of their order ids, on the connection that changes the orders.
    ///
    /// # Errors
    /// The database's.
    pub async fn action(&self, tx: &DatabaseTransaction, action: &Action) -> Result<(), DbErr> {
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
        let mut insert = activity::Entity::insert(row);
        QueryTrait::query(&mut insert).into_table((self.schema.clone(), activity::Entity));
        insert.exec_without_returning(tx).await.map(|_| ())
    }

    /// Stores a message and records a digest of it, by which a later change is found. Returns the message's id. It counts as the
    /// customer's if the session acts for one (`kyhan.customer_id`), else as staff's.
    ///
    /// # Errors
    /// The database's.
    pub async fn message(&self, tx: &DatabaseTransaction, message: &Message) -> Result<Uuid, DbErr> {
        let row = order_messages::ActiveModel {
            order_id: Set(message.order),
            author: Set(message.author.clone()),
            body: Set(message.body.clone()),
            ..Default::default()
        };
        let mut insert = order_messages::Entity::insert(row);
        QueryTrait::query(&mut insert).into_table((self.order_system_schema.clone(), order_messages::Entity));
        Ok(insert.exec(tx).await?.last_insert_id)
    }
}

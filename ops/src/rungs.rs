//! Removes rungs that the policy no longer uses, once they are empty. AMQP cannot list queues, so the database remembers every rung that
//! was declared.

use std::time::Duration;

use sea_orm::{ColumnTrait, DatabaseConnection, DbErr, EntityTrait, QueryFilter, QueryOrder, sea_query::Expr};
use shared::{
    broker::{Broker, BrokerError},
    database::entity::rungs,
    message::topology::{QueueRole, Topology},
};

use crate::OpsError;

/// Time between deleting a rung's exchange and checking its queue, so that messages in transit have arrived.
const ON_ITS_WAY: Duration = Duration::from_secs(2);

/// The result for a rung that the policy no longer uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pruned {
    Removed,
    /// It still holds this many messages, and drains by itself.
    Waiting(u32),
    /// It was already gone.
    Gone,
}

/// Removes the empty rungs that were declared under this topology's prefix and that it no longer has.
///
/// # Errors
/// [`OpsError`]; the next call continues.
pub async fn prune(db: &DatabaseConnection, broker: &Broker, topology: &Topology) -> Result<Vec<(String, Pruned)>, OpsError> {
    let used = used(topology);
    let mut pruned = Vec::new();
    for rungs::Model { queue, exchange, .. } in forgotten(db, topology).await? {
        let shared = used.iter().any(|used| *used == exchange || used.starts_with(&format!("{exchange}.")));
        let done = prune_one(broker, &queue, (!shared).then_some(exchange.as_str())).await?;
        if !matches!(done, Pruned::Waiting(_)) {
            rungs::Entity::delete_by_id(queue.clone()).exec(db).await?;
        }
        pruned.push((queue, done));
    }
    Ok(pruned)
}

/// The queues of a topology's rungs.
fn used(topology: &Topology) -> Vec<String> {
    topology.queues().into_iter().filter(|queue| queue.role == QueueRole::Rung).map(|queue| queue.name).collect()
}

/// The rungs declared under this prefix that the topology no longer has. They drain, so their wake-ups still reach the lanes.
pub(crate) async fn forgotten(db: &DatabaseConnection, topology: &Topology) -> Result<Vec<rungs::Model>, DbErr> {
    // Not LIKE, because an underscore in a prefix would be a wildcard.
    let declared = rungs::Entity::find().filter(Expr::cust_with_values("starts_with(queue, $1)", [topology.rung_prefix()]));
    let unused = declared.filter(rungs::Column::Queue.ne_all(used(topology)));
    unused.order_by_asc(rungs::Column::Queue).all(db).await
}

/// Deletes the exchange first, so that no message can arrive after the queue was found empty.
async fn prune_one(broker: &Broker, queue: &str, exchange: Option<&str>) -> Result<Pruned, BrokerError> {
    let Some(first) = broker.observe(queue).await? else { return Ok(Pruned::Gone) };
    if first.messages > 0 {
        return Ok(Pruned::Waiting(first.messages));
    }
    if let Some(exchange) = exchange {
        broker.delete_exchange(exchange).await?;
    }
    tokio::time::sleep(ON_ITS_WAY).await;
    // Just after a broker restart a count of 0 is unreliable. Getting a message is reliable, because the queue answers only once it has
    // recovered. Without its exchange it receives no new messages, and those that it holds still expire into their lane.
    match broker.is_empty(queue).await? {
        Some(true) => broker.delete_queue(queue).await.map(|()| Pruned::Removed),
        Some(false) => Ok(Pruned::Waiting(first.messages.max(1))),
        // Another process pruned it.
        None => Ok(Pruned::Gone),
    }
}

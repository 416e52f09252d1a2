//! Rungs that the policy no longer uses: once empty they are removed. AMQP cannot list queues, so the rungs ever declared are
//! remembered in the database.

use std::time::Duration;

use sea_orm::{ColumnTrait, DatabaseConnection, DbErr, EntityTrait, QueryFilter, QueryOrder, sea_query::Expr};
use shared::{
    broker::{Broker, BrokerError},
    database::entity::rungs,
    message::topology::{QueueRole, Topology},
};

use crate::OpsError;

/// Between taking a rung's exchange away and looking into its queue: what was on its way has arrived then.
const ON_ITS_WAY: Duration = Duration::from_secs(2);

/// What became of a rung that the policy no longer uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pruned {
    Removed,
    /// It still holds so many wake-ups, and drains by itself.
    Waiting(u32),
    /// It was gone already.
    Gone,
}

/// Removes the rungs, of those remembered under this topology's prefix, that it no longer has and that are empty.
///
/// # Errors
/// [`OpsError`]; running it again goes on where it stopped.
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

/// The queues of the rungs that a topology has.
fn used(topology: &Topology) -> Vec<String> {
    topology.queues().into_iter().filter(|queue| queue.role == QueueRole::Rung).map(|queue| queue.name).collect()
}

/// The rungs ever declared under this prefix that the topology no longer has: they drain, and what waits there wakes.
pub(crate) async fn forgotten(db: &DatabaseConnection, topology: &Topology) -> Result<Vec<rungs::Model>, DbErr> {
    // Not LIKE: an underscore in a prefix is no wildcard.
    let declared = rungs::Entity::find().filter(Expr::cust_with_values("starts_with(queue, $1)", [topology.rung_prefix()]));
    let unused = declared.filter(rungs::Column::Queue.ne_all(used(topology)));
    unused.order_by_asc(rungs::Column::Queue).all(db).await
}

/// The exchange goes first, so that nothing can come in while the queue is seen to be empty.
async fn prune_one(broker: &Broker, queue: &str, exchange: Option<&str>) -> Result<Pruned, BrokerError> {
    let Some(first) = broker.observe(queue).await? else { return Ok(Pruned::Gone) };
    if first.messages > 0 {
        return Ok(Pruned::Waiting(first.messages));
    }
    if let Some(exchange) = exchange {
        broker.delete_exchange(exchange).await?;
    }
    tokio::time::sleep(ON_ITS_WAY).await;
    // A count of 0 means nothing just after a restart: the queue is asked for a message, which it answers only once it has
    // recovered. Without its exchange it takes nothing new, and what it holds still expires into its lane.
    match broker.is_empty(queue).await? {
        Some(true) => broker.delete_queue(queue).await.map(|()| Pruned::Removed),
        Some(false) => Ok(Pruned::Waiting(first.messages.max(1))),
        // Somebody else prunes, too.
        None => Ok(Pruned::Gone),
    }
}

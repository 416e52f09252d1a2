//! The rungs that were ever declared, in the table `rungs`: AMQP cannot list queues.

use sea_orm::{ConnectionTrait, DbErr};

use super::{
    connection::{ANSWER_WITHIN, within},
    statement,
};
use crate::message::topology::{QueueRole, Topology};

/// Records the rungs that were declared, so that `ops topology prune` finds those that the policy no longer uses.
///
/// # Errors
/// A database error.
pub async fn remember(db: &impl ConnectionTrait, topology: &Topology) -> Result<(), DbErr> {
    let (queues, exchanges): (Vec<String>, Vec<String>) =
        topology.queues().into_iter().filter(|q| q.role == QueueRole::Rung).map(|q| (q.name, q.exchange)).unzip();
    let sql = "INSERT INTO rungs (queue, exchange) SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING";
    within(ANSWER_WITHIN, db.execute_raw(statement(sql, [queues.into(), exchanges.into()]))).await.map(|_| ())
}

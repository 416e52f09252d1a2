//! The wake-ups that a measurement begins with, made as the fleet makes them.

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use shared::{
    broker::{Broker, Outgoing},
    database,
    pack::{Waiting, pack},
    wakeup::TraceContext,
};
use tests::sandbox::Sandbox;
use uuid::Uuid;

/// Messages that name `each` subjects, in this order, and wait for so long; nothing waits for what is due.
pub fn of(
    sandbox: &Sandbox,
    kind: &'static str,
    subjects: &[Uuid],
    each: usize,
    now: DateTime<Utc>,
    wait: TimeDelta,
) -> Vec<Outgoing> {
    let topology = sandbox.settings.topology();
    let trace = TraceContext::default();
    // Chunk by chunk: packed together they would be put into the order of their ids.
    let packed = subjects.chunks(each).flat_map(|chunk| {
        let waiting = chunk.iter().map(|subject| Waiting { kind, subject: *subject, due_at: now + wait, wait, attempt: 0 });
        pack(waiting, topology.ladder(), topology.shards(), each, &trace)
    });
    packed.map(|packed| Outgoing::of(&packed, &topology)).collect()
}

/// Puts due wake-ups of these subjects into their lane. How many messages they are.
pub async fn put(sandbox: &Sandbox, broker: &Broker, kind: &'static str, subjects: &[Uuid], each: usize) -> Result<usize> {
    let now = database::now(&sandbox.db).await?;
    let messages = of(sandbox, kind, subjects, each, now, TimeDelta::zero());
    let publisher = broker.publisher().await?;
    publisher.publish_all(&messages).await?;
    publisher.close().await;
    Ok(messages.len())
}

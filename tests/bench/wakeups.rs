//! Makes the wake-ups that a measurement begins with, as the fleet makes them.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use shared::{
    broker::Broker,
    database,
    message::{
        outgoing::Outgoing,
        pack::{WaitingSubject, pack},
        wakeup::{TraceContext, Wakeup},
    },
};
use tests::sandbox::Sandbox;
use uuid::Uuid;

use crate::bare::Bare;

/// Messages that name `each` subjects, in this order, and wait for the given time; zero for due ones.
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
    // Pack chunk by chunk, because packing sorts the subjects by id.
    let packed = subjects.chunks(each).flat_map(|chunk| {
        let waiting =
            chunk.iter().map(|subject| WaitingSubject { kind, subject: *subject, due_at: now + wait, wait, attempt: 0 });
        pack(waiting, topology.ladder(), topology.shards(), each, &trace)
    });
    packed.map(|packed| Outgoing::of(&packed, &topology)).collect()
}

/// Publishes due wake-ups of these subjects into their lane. Returns the number of messages.
pub async fn put(sandbox: &Sandbox, broker: &Broker, kind: &'static str, subjects: &[Uuid], each: usize) -> Result<usize> {
    let now = database::now(&sandbox.db).await?;
    let messages = of(sandbox, kind, subjects, each, now, TimeDelta::zero());
    let publisher = broker.publisher().await?;
    publisher.publish_all(&messages).await?;
    publisher.close().await;
    Ok(messages.len())
}

/// Takes the wake-ups out of their rung again, and checks that every subject is named once.
pub async fn take_all(sandbox: &Sandbox, bare: &Bare, subjects: &[Uuid]) -> Result<()> {
    let topology = sandbox.settings.topology();
    let broker = sandbox.broker().await?;
    let (mut named, mut twice) = (HashSet::new(), 0);
    for (_, rung) in topology.rungs() {
        let waiting = broker.observe(&rung).await?.map_or(0, |seen| seen.messages);
        let see = |delivery: lapin::message::Delivery| {
            let wakeup = Wakeup::decode(&delivery.data, delivery.properties.headers().as_ref())?;
            twice += wakeup.subjects.iter().filter(|subject| !named.insert(**subject)).count();
            Ok(())
        };
        bare.take(&rung, usize::try_from(waiting)?, see).await?;
    }
    broker.close().await;
    let missing = subjects.iter().filter(|subject| !named.contains(subject)).count();
    ensure!(
        missing == 0 && twice == 0 && named.len() == subjects.len(),
        "of the wake-ups {missing} are missing, {twice} came twice"
    );
    Ok(())
}

//! A whole job: the library schedules events in bulk, their wake-ups wait in a rung and expire, and a worker applies them. Measures the CPU
//! time of all processes: the producer, which is this process, the broker, the database, and the worker. It includes what the servers use
//! while they wait.

use std::time::Duration;

use anyhow::Result;
use producer::{Producer, schedule::event};
use shared::domain::event::EventType;

use crate::{
    figure::{Figure, Reach, number},
    harness::{BenchHarness, settle, until, until_depth},
    population::{CONFIRM_RECEIPT, due_of},
    process::RunningProcess,
    usage::Cpu,
};

const JOB: &str = "CPU per job, scheduled to done";

pub const NAMES: &[&str] = &[JOB];

/// The orders are two weeks old, so each is due when its wake-up arrives.
const POLICY: &str = r#"
    [[policy]]
    on = "order.shipped"
    task = "confirm-receipt"
    after = "2s"
    [sweep]
    every_ms = 3600000
"#;

pub async fn measure(harness: &BenchHarness) -> Result<Vec<Figure>> {
    let sandbox = harness.sandbox("job", POLICY, &[]).await?;
    let (load, count) = (&CONFIRM_RECEIPT, harness.of(200_000, 50_000));
    let mut values = Vec::new();
    for round in harness.rounds(3) {
        let ids = load.make(&sandbox, count).await?;
        settle(&sandbox).await?;
        let broker = sandbox.broker().await?;
        let producer = Producer::connect(&sandbox.settings).await?;
        let worker = RunningProcess::worker(&sandbox)?;
        let events: Vec<_> = ids.iter().map(|id| event(EventType::OrderShipped, *id)).collect();
        let before = Cpu::now(&harness.pair, &[])?;
        producer.schedule(&events).await?;
        until("every job is done", Duration::from_millis(100), async || {
            Ok(load.begun(&sandbox).await? >= due_of(count) && load.applied(&sandbox).await? >= due_of(count))
        })
        .await?;
        let used = Cpu::now(&harness.pair, &[worker.pid])?.since(before);
        producer.close().await;
        until_depth(&sandbox, &broker, "", 0).await?;
        broker.close().await;
        worker.stop().await?;
        load.check(&sandbox, count).await?;
        let value = used.sum() * 1e6 / number(count);
        harness.say(JOB, round, value, None, "µs");
        values.push(value);
    }
    sandbox.remove().await?;
    Ok(vec![Figure::plain(JOB, "µs", values).judged(Reach::AtMost(35.0))])
}

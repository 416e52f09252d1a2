//! A worker's start: from the spawn of its process to the commit of its first effect, whose wake-up is already in the lane. And the memory of
//! an idle worker.

use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use tests::sandbox::Sandbox;
use tokio::time::Instant;

use crate::{
    clock::{Clock, millis},
    figure::{Figure, Reach, median},
    harness::{BenchHarness, ask, settle, until},
    population::CONFIRM_RECEIPT,
    process::RunningProcess,
    usage::Memory,
    wakeups,
};

const START: &str = "start";
const IDLE: &str = "worker memory, idle";

pub const NAMES: &[&str] = &[START, IDLE];

/// The age of an idle worker when its memory is read.
const IDLE_AFTER: Duration = Duration::from_secs(5);
/// A round is the median of this many starts, of one in a quick run.
const STARTS: usize = 3;

pub async fn measure(harness: &BenchHarness) -> Result<Vec<Figure>> {
    let sandbox = harness.sandbox("start", CONFIRM_RECEIPT.policy, &[]).await?;
    let (mut starts, mut idle) = (Vec::new(), Vec::new());
    if harness.wants(START) {
        for round in harness.rounds(usize::MAX) {
            let mut of_round = Vec::new();
            for _ in 0..harness.of(STARTS, 1) {
                of_round.push(start(&sandbox).await?);
            }
            let value = median(of_round);
            harness.say(START, round, value, None, "ms");
            starts.push(value);
        }
    }
    if harness.wants(IDLE) {
        for round in harness.rounds(3) {
            let worker = RunningProcess::worker(&sandbox)?;
            tokio::time::sleep(IDLE_AFTER).await;
            let memory = Memory::of(worker.pid)?.now;
            worker.stop().await?;
            harness.say(IDLE, round, memory, None, "MiB");
            idle.push(memory);
        }
    }
    sandbox.remove().await?;
    let figures = [
        Figure::plain(START, "ms", starts).judged(Reach::AtMost(1_000.0)),
        Figure::plain(IDLE, "MiB", idle).judged(Reach::AtMost(64.0)),
    ];
    Ok(figures.into_iter().filter(|figure| !figure.rounds.is_empty()).collect())
}

async fn start(sandbox: &Sandbox) -> Result<f64> {
    let load = &CONFIRM_RECEIPT;
    let ids = load.make(sandbox, 1).await?;
    let broker = sandbox.broker().await?;
    wakeups::put(sandbox, &broker, load.kind, &ids, 1).await?;
    broker.close().await;
    settle(sandbox).await?;
    let clock = Clock::set(&sandbox.db).await?;
    let spawned = Instant::now();
    let worker = RunningProcess::worker(sandbox)?;
    until("the order is received", Duration::from_millis(20), async || Ok(load.applied(sandbox).await? == 1)).await?;
    let committed: Option<DateTime<Utc>> =
        ask(sandbox, "SELECT pg_xact_commit_timestamp(xmin) FROM order_status_history").await?;
    worker.stop().await?;
    load.check(sandbox, 1).await?;
    Ok(millis(committed.context("no commit timestamp")? - clock.at(spawned)))
}

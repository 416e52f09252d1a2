//! Scheduling and draining while a million messages, or as many as requested, wait in the rungs, compared with the same before and after.
//! Each round's ceiling is the mean of its two neighbours in time. Each phase begins once the broker is idle, because its work just after it
//! took or lost a million messages is not part of their waiting.

use anyhow::{Result, ensure};
use chrono::TimeDelta;
use producer::Producer;
use shared::{broker::Broker, database};
use tests::sandbox::Sandbox;
use uuid::Uuid;

use crate::{
    bare::Bare,
    drain::Drain,
    figure::{Figure, Reach, median, number, shown},
    harness::{BenchHarness, rest, until_depth},
    population::CONFIRM_RECEIPT,
    schedule, wakeups,
};

const SCHEDULE: &str = "waiting: schedule";
const PACKED: &str = "waiting: drain, packed";
const UNPACKED: &str = "waiting: drain, unpacked";

pub const NAMES: &[&str] = &[SCHEDULE, PACKED, UNPACKED];

/// How many rounds each of the three phases has.
const ROUNDS: usize = 2;
/// The rungs in which the messages wait, in days: rungs of the ladder and of the policy.
const DAYS: [i64; 4] = [1, 7, 14, 30];
/// How many messages are kept in memory at a time.
const PORTION: usize = 25_000;

/// The results of one phase, by figure and round.
type Phase = [Vec<f64>; 3];

pub async fn measure(harness: &BenchHarness) -> Result<Vec<Figure>> {
    let sandbox = harness.sandbox("waiting", CONFIRM_RECEIPT.policy, &[]).await?;
    let broker = sandbox.broker().await?;
    let count = harness.waiting();

    rest(harness).await?;
    let before = phase(harness, &sandbox, &broker, "none waiting yet").await?;
    empty(&sandbox, &broker).await?;
    let rate = fill(&sandbox, count).await?;
    until_depth(&sandbox, &broker, "rung.", count).await?;
    rest(harness).await?;
    harness.say("made to wait", 1, rate, None, "messages/s");
    let with = phase(harness, &sandbox, &broker, &format!("{} waiting", shown(number(count)))).await?;
    ensure!(sandbox.depth(&broker, "rung.").await? >= u32::try_from(count)?, "what waited is gone");
    empty(&sandbox, &broker).await?;
    rest(harness).await?;
    let after = phase(harness, &sandbox, &broker, "none waiting any more").await?;
    broker.close().await;
    sandbox.remove().await?;

    let with_how_many = format!("with {}", shown(number(count)));
    let figures = NAMES.iter().enumerate().filter(|(_, name)| harness.wants(name)).map(|(at, name)| {
        let ceilings: Vec<f64> = before[at].iter().zip(&after[at]).map(|(before, after)| before.midpoint(*after)).collect();
        Figure::beside(format!("{with_how_many} {name}"), "subjects/s", &with[at], &ceilings, Reach::OfCeiling(0.9))
    });
    Ok(figures.collect())
}

async fn phase(harness: &BenchHarness, sandbox: &Sandbox, broker: &Broker, now: &str) -> Result<Phase> {
    let producer = Producer::connect(&sandbox.settings).await?;
    let load = &CONFIRM_RECEIPT;
    let drain = |count, each| Drain { load, count, each, workers: 1 };
    let [mut scheduled, mut packed, mut unpacked] = Phase::default();
    for round in harness.rounds(ROUNDS) {
        if harness.wants(SCHEDULE) {
            scheduled.push(schedule::in_bulk(sandbox, broker, &producer, harness.of(1_000_000, 200_000)).await?);
        }
        if harness.wants(PACKED) {
            let drain = drain(harness.of(100_000, 10_000), sandbox.settings.naming.pack_max);
            packed.push(drain.run(harness, sandbox).await?.rate);
        }
        if harness.wants(UNPACKED) {
            unpacked.push(drain(harness.of(100_000, 10_000), 1).run(harness, sandbox).await?.rate);
        }
        for (name, values) in [(SCHEDULE, &scheduled), (PACKED, &packed), (UNPACKED, &unpacked)] {
            if let Some(value) = values.last() {
                harness.say(&format!("{name}, {now}"), round, *value, None, "subjects/s");
            }
        }
    }
    producer.close().await;
    Ok([scheduled, packed, unpacked])
}

/// Publishes waiting messages of one subject each, and returns the confirms per second.
async fn fill(sandbox: &Sandbox, count: usize) -> Result<f64> {
    let bare = Bare::connect(&sandbox.settings).await?;
    let (mut rates, mut left) = (Vec::new(), count);
    while left > 0 {
        for days in DAYS {
            let portion = PORTION.min(left);
            left -= portion;
            let subjects: Vec<Uuid> = (0..portion).map(|_| Uuid::new_v4()).collect();
            let now = database::now(&sandbox.db).await?;
            let messages = wakeups::of(sandbox, CONFIRM_RECEIPT.kind, &subjects, 1, now, TimeDelta::days(days));
            if !messages.is_empty() {
                rates.push(bare.publish(&messages).await?);
            }
        }
    }
    bare.close().await?;
    Ok(median(rates))
}

async fn empty(sandbox: &Sandbox, broker: &Broker) -> Result<()> {
    let bare = Bare::connect(&sandbox.settings).await?;
    for (_, queue) in sandbox.settings.topology().rungs() {
        bare.purge(&queue).await?;
    }
    bare.close().await?;
    until_depth(sandbox, broker, "rung.", 0).await
}

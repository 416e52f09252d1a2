//! Scheduling through the library: in bulk, where it packs, and one event at a time. The ceiling is a bare loop that publishes the same
//! messages, made beforehand.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use producer::{
    Producer,
    schedule::{event, plan},
};
use shared::{
    broker::Broker,
    domain::event::{Event, EventType},
    message::{ladder::Hop, outgoing::Outgoing, wakeup::TraceContext},
    settings::Settings,
};
use tests::sandbox::Sandbox;
use tokio::{task::JoinSet, time::Instant};
use uuid::Uuid;

use crate::{
    bare::Bare,
    figure::{Figure, Reach, median, number},
    harness::{BenchHarness, until_depth},
    population::CONFIRM_RECEIPT,
    wakeups,
};

const BULK: &str = "schedule, bulk";
const SINGLY: &str = "schedule, one by one";

pub const NAMES: &[&str] = &[BULK, SINGLY];

/// How many callers share one producer.
const CALLERS: usize = 64;

pub async fn measure(harness: &BenchHarness) -> Result<Vec<Figure>> {
    let sandbox = harness.sandbox("schedule", CONFIRM_RECEIPT.policy, &[]).await?;
    let (broker, bare) = (sandbox.broker().await?, Bare::connect(&sandbox.settings).await?);
    let producer = Arc::new(Producer::connect(&sandbox.settings).await?);
    let (bulk, singly) = (harness.of(2_000_000, 300_000), harness.of(1_500, 200));
    let [mut bulks, mut bare_bulks, mut singles, mut bare_singles] = [const { Vec::new() }; 4];
    for round in harness.rounds(usize::MAX) {
        if harness.wants(BULK) {
            let value = in_bulk(&sandbox, &broker, &producer, bulk).await?;
            empty(&sandbox, &broker, &bare).await?;
            let messages = ready_made(&sandbox.settings, &events(bulk), sandbox.settings.naming.pack_max)?;
            let ceiling = bare.publish(&messages).await? * number(bulk) / number(messages.len());
            empty(&sandbox, &broker, &bare).await?;
            harness.say(BULK, round, value, Some(ceiling), "subjects/s");
            bulks.push(value);
            bare_bulks.push(ceiling);
        }
        // The bare loop of single messages also measures this machine's broker, by which bulk is judged.
        let messages = ready_made(&sandbox.settings, &events(CALLERS * singly), 1)?;
        let ceiling = bare.publish(&messages).await?;
        empty(&sandbox, &broker, &bare).await?;
        bare_singles.push(ceiling);
        if harness.wants(SINGLY) {
            let value = one_by_one(&sandbox, &bare, &producer, singly).await?;
            empty(&sandbox, &broker, &bare).await?;
            harness.say(SINGLY, round, value, Some(ceiling), "subjects/s");
            singles.push(value);
        }
    }
    Arc::into_inner(producer).context("a caller is left")?.close().await;
    bare.close().await?;
    broker.close().await;
    sandbox.remove().await?;

    let reach = Reach::Bulk { share: 0.8, rate: 190_000.0, machine: 30_000.0, bare: median(bare_singles.iter().copied()) };
    let figures = [
        Figure::beside(BULK, "subjects/s", &bulks, &bare_bulks, reach),
        Figure::beside(SINGLY, "subjects/s", &singles, &bare_singles, Reach::OfCeiling(0.8)),
    ];
    Ok(figures.into_iter().filter(|figure| harness.wants(&figure.name)).collect())
}

/// Schedules a large slice in one call; returns the subjects per second until the last confirm.
pub async fn in_bulk(sandbox: &Sandbox, broker: &Broker, producer: &Producer, count: usize) -> Result<f64> {
    let before = sandbox.depth(broker, "rung.").await?;
    let events = events(count);
    let began = Instant::now();
    let beyond = producer.schedule(&events).await?;
    let took = began.elapsed();
    ensure!(beyond.is_empty(), "{} events lie beyond the calendar's end", beyond.len());
    // The events of one caller are packed into full messages.
    let messages = count.div_ceil(sandbox.settings.naming.pack_max);
    until_depth(sandbox, broker, "rung.", usize::try_from(before)? + messages).await?;
    Ok(number(count) / took.as_secs_f64())
}

/// Each caller schedules one event after the other over the shared producer. Concurrent callers share a wake-up, so afterwards the subjects
/// in the rung are counted.
async fn one_by_one(sandbox: &Sandbox, bare: &Bare, producer: &Arc<Producer>, each: usize) -> Result<f64> {
    let events = events(CALLERS * each);
    let mut calling = JoinSet::new();
    let began = Instant::now();
    for own in events.chunks(each) {
        let (producer, own) = (Arc::clone(producer), own.to_vec());
        calling.spawn(async move {
            for event in own {
                producer.schedule(&[event]).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(called) = calling.join_next().await {
        called??;
    }
    let took = began.elapsed();
    let subjects: Vec<Uuid> = events.iter().map(|event| event.subject).collect();
    wakeups::take_all(sandbox, bare, &subjects).await?;
    Ok(number(events.len()) / took.as_secs_f64())
}

/// Events of orders that ship now.
fn events(count: usize) -> Vec<Event> {
    (0..count).map(|_| event(EventType::OrderShipped, Uuid::new_v4())).collect()
}

/// The messages of these events, as the library makes them, with at most `each` subjects per message.
fn ready_made(settings: &Settings, events: &[Event], each: usize) -> Result<Vec<Outgoing>> {
    let topology = settings.topology();
    let now: DateTime<Utc> = events.last().context("no events")?.occurred_at;
    let plan = plan(events, now, &settings.policy, &topology, each, &TraceContext::default());
    ensure!(plan.wakeups.iter().all(|packed| matches!(packed.hop, Hop::Rung(_))), "a message would not wait");
    Ok(plan.messages(&topology))
}

/// Empties the rungs, so that the next run begins as this one did.
async fn empty(sandbox: &Sandbox, broker: &Broker, bare: &Bare) -> Result<()> {
    for (_, queue) in sandbox.settings.topology().rungs() {
        bare.purge(&queue).await?;
    }
    until_depth(sandbox, broker, "rung.", 0).await
}

//! A burst: messages that expire at the same time move from their rungs into the lanes, which have no consumer. Each message's TTL is the
//! time left until then; the rungs are the fleet's own, with at-least-once dead-lettering.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::TimeDelta;
use lapin::types::ShortString;
use shared::{broker::Broker, database};
use tests::sandbox::Sandbox;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    bare::Bare,
    figure::{Figure, FigureRound, number},
    harness::{BenchHarness, PATIENCE},
    population::CONFIRM_RECEIPT,
    wakeups,
};

pub const NAMES: &[&str] = &["burst, shards 1", "burst, shards 2", "burst, shards 4"];
const SHARDS: [&str; 3] = ["1", "2", "4"];

/// How many messages are published with the same TTL, which takes some hundredths of a second.
const PORTION: usize = 500;
/// The pause between two looks at the lanes.
const LOOK: Duration = Duration::from_millis(20);
/// The lead in addition to the time that publishing takes.
const SPARE: Duration = Duration::from_secs(1);

pub async fn measure(harness: &BenchHarness) -> Result<Vec<Figure>> {
    let count = harness.of(100_000, 10_000);
    let mut figures: Vec<Figure> = NAMES.iter().map(|name| Figure::plain(*name, "messages/s", [])).collect();
    // An estimate first, then twice the time that publishing took.
    let mut lead = Duration::from_micros(u64::try_from(count)? * 150) + SPARE;
    for round in harness.rounds(3) {
        for (figure, shards) in figures.iter_mut().zip(SHARDS).filter(|(figure, _)| harness.wants(&figure.name)) {
            let sandbox = harness.sandbox("burst", CONFIRM_RECEIPT.policy, &[("KYHAN_TOPOLOGY_SHARDS", shards)]).await?;
            let (value, published_in) = burst(&sandbox, count, lead).await?;
            lead = published_in * 2 + SPARE;
            sandbox.remove().await?;
            harness.say(&figure.name, round, value, None, figure.unit);
            figure.rounds.push(FigureRound { value, ceiling: None });
        }
    }
    figures.retain(|figure| !figure.rounds.is_empty());
    Ok(figures)
}

/// Messages per second from the first to the last arrival in the lanes, and how long publishing took.
async fn burst(sandbox: &Sandbox, count: usize, lead: Duration) -> Result<(f64, Duration)> {
    let bare = Bare::connect(&sandbox.settings).await?;
    let broker = sandbox.broker().await?;
    let now = database::now(&sandbox.db).await?;
    let subjects: Vec<Uuid> = (0..count).map(|_| Uuid::new_v4()).collect();
    let mut messages = wakeups::of(sandbox, CONFIRM_RECEIPT.kind, &subjects, 1, now, TimeDelta::hours(1));
    let began = Instant::now();
    let moment = began + lead;
    for portion in messages.chunks_mut(PORTION) {
        let left = moment.checked_duration_since(Instant::now()).context("publishing took longer than its lead")?;
        for message in portion.iter_mut() {
            let left = ShortString::from(left.as_millis().to_string());
            message.properties = message.properties.clone().with_expiration(left);
        }
        bare.publish(portion).await?;
    }
    let published_in = began.elapsed();
    bare.close().await?;
    ensure!(depth(sandbox, &broker).await? == 0, "some expired before all were there");

    let mut first: Option<(Instant, usize)> = None;
    let deadline = Instant::now() + PATIENCE;
    let rate = loop {
        let (there, at) = (depth(sandbox, &broker).await?, Instant::now());
        match first {
            Some((began, begun)) if there >= count => break number(there - begun) / (at - began).as_secs_f64(),
            None if there > 0 => first = Some((at, there)),
            _ => {}
        }
        ensure!(at < deadline, "{there} of {count} came");
        tokio::time::sleep(LOOK).await;
    };
    broker.close().await;
    Ok((rate, published_in))
}

async fn depth(sandbox: &Sandbox, broker: &Broker) -> Result<usize> {
    Ok(usize::try_from(sandbox.depth(broker, "due.").await?)?)
}

//! The broker's part of an unpacked drain: a bare consumer takes and acks the same wake-ups and applies nothing. A worker costs at least this
//! plus the SQL alone.

use anyhow::{Context, Result};
use tests::sandbox::Sandbox;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    bare::Bare,
    figure::{Figure, number},
    harness::{BenchHarness, rest, until_depth},
    usage::Cpu,
    wakeups,
};

pub const NAME: &str = "bare consumer, unpacked";

/// The result of one round.
pub struct TakingRound {
    /// Messages per second.
    pub rate: f64,
    /// CPU seconds per message.
    broker: f64,
    client: f64,
}

/// Publishes `count` messages of one subject each into a kind's lane and takes them out again.
pub async fn round(harness: &BenchHarness, sandbox: &Sandbox, kind: &'static str, count: usize) -> Result<TakingRound> {
    let ids: Vec<Uuid> = (0..count).map(|_| Uuid::new_v4()).collect();
    let (broker, lane) = (sandbox.broker().await?, sandbox.settings.topology().lanes(kind).next().context("no lane")?);
    wakeups::put(sandbox, &broker, kind, &ids, 1).await?;
    until_depth(sandbox, &broker, &format!("due.{kind}."), count).await?;
    rest(harness).await?;
    let bare = Bare::connect(&sandbox.settings).await?;
    let (before, began) = (Cpu::now(&harness.pair, &[])?, Instant::now());
    bare.take(&lane, count, |_| Ok(())).await?;
    let (took, cpu) = (began.elapsed(), Cpu::now(&harness.pair, &[])?.since(before));
    bare.close().await?;
    broker.close().await;
    let each = |seconds: f64| seconds / number(count);
    let taken = TakingRound { rate: number(count) / took.as_secs_f64(), broker: each(cpu.broker), client: each(cpu.own) };
    Ok(taken)
}

pub fn figures(taken: &[TakingRound]) -> [Figure; 3] {
    let of = |what: fn(&TakingRound) -> f64| taken.iter().map(what).collect::<Vec<_>>();
    [
        Figure::plain(NAME, "messages/s", of(|taken| taken.rate)),
        Figure::plain(format!("{NAME}: broker"), "µs", of(|taken| taken.broker * 1e6)),
        Figure::plain(format!("{NAME}: client"), "µs", of(|taken| taken.client * 1e6)),
    ]
}

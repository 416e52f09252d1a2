//! Scenarios of RabbitMQ: restarted, killed, stopped, wiped.

use std::time::Duration;

use anyhow::Result;
use rand::{RngExt, rngs::StdRng};
use tests::{
    fleet,
    pair::{Pair, Server},
};

use crate::{
    checker::Spans,
    harness::{FaultHarness, ScenarioSettings},
    postgres::stopped_for_a_while,
    scenario::ScenarioRun,
};

pub fn restarted(harness: &FaultHarness, rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move { again(harness, rng, harness.setting.form(1, 3), async |pair| pair.stop(Server::RabbitMq).await).await })
}

pub fn killed(harness: &FaultHarness, rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move { again(harness, rng, harness.setting.form(1, 4), async |pair| pair.kill(Server::RabbitMq).await).await })
}

async fn again(harness: &FaultHarness, mut rng: StdRng, times: u32, down: impl AsyncFn(&Pair) -> Result<()>) -> Result<()> {
    harness.start()?;
    harness
        .populate_during(async {
            for _ in 0..times {
                tokio::time::sleep(Duration::from_millis(rng.random_range(1_500..=3_500))).await;
                down(&harness.setting.pair).await?;
                harness.setting.pair.up().await?;
            }
            Ok(())
        })
        .await?;
    harness.note(format!("{times} times"));
    Ok(())
}

pub fn stopped(harness: &FaultHarness, rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(stopped_for_a_while(harness, rng, Server::RabbitMq))
}

pub fn wiped_and_rebuilt(harness: &FaultHarness, mut rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move {
        harness.start()?;
        harness
            .populate_during(async {
                tokio::time::sleep(Duration::from_millis(rng.random_range(2_600..=3_000))).await;
                harness.setting.pair.kill(Server::RabbitMq).await?;
                harness.setting.pair.wipe_rabbitmq()?;
                harness.setting.pair.up().await?;
                // What an operator does when the broker has come back empty.
                for arguments in [&["topology", "declare"][..], &["rebuild"]] {
                    fleet::output(fleet::command("ops", &harness.env(&[]), arguments)?).await?;
                }
                Ok(())
            })
            .await?;
        harness.note("rebuilt by `ops rebuild`; no sweep within an hour");
        Ok(())
    })
}

/// Spans so long that everything waits in the broker when it is lost, and a sweep that is too late to help.
pub fn without_sweep() -> ScenarioSettings {
    let spans = Spans { confirm: 12_000, arrears: 9_000, purge: 10_000 };
    ScenarioSettings { spans, ..ScenarioSettings::with(&[("KYHAN_SWEEP_GRACE_MS", "3600000")]) }
}

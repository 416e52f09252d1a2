//! Scenarios of workers: undisturbed ones for comparison, and ones killed at random times and at the two critical instants.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use rand::{RngExt, rngs::StdRng};
use sea_orm::ConnectionTrait;
use shared::database::statement;
use uuid::Uuid;

use crate::{
    harness::{FaultHarness, ScenarioSettings},
    proxy::{Conduct, Proxy, address},
    scenario::ScenarioRun,
    tap::{Deadly, Tap},
};

const WORKERS: [&str; 2] = ["worker-1", "worker-2"];

/// The undisturbed run, to compare the others with.
pub fn left_alone(harness: &FaultHarness, _rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move {
        harness.start()?;
        harness.populate_during(std::future::ready(Ok(()))).await
    })
}

pub fn killed_ten_times(harness: &FaultHarness, mut rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move {
        harness.start()?;
        let kills = 10;
        harness
            .populate_during(async {
                for _ in 0..kills {
                    tokio::time::sleep(Duration::from_millis(rng.random_range(100..=900))).await;
                    // If this worker is still starting, kill the other one.
                    let first = rng.random_range(0..WORKERS.len());
                    while !(harness.fleet.drivers().kill(WORKERS[first]) || harness.fleet.drivers().kill(WORKERS[1 - first])) {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
                Ok(())
            })
            .await?;
        harness.note(format!("{kills} kills"));
        Ok(())
    })
}

pub fn killed_between_commit_and_ack(harness: &FaultHarness, rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(killed_at_an_ack(harness, rng, Deadly::AfterCommit))
}

pub fn killed_between_confirm_and_ack(harness: &FaultHarness, rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(killed_at_an_ack(harness, rng, Deadly::AfterConfirm))
}

/// With one consumer per lane, a confirm and the next ack belong together.
pub fn one_consumer() -> ScenarioSettings {
    ScenarioSettings::with(&[("KYHAN_WORKER_CONSUMERS", "1"), ("KYHAN_WORKER_BATCH_MAX", "32")])
}

/// Each worker has its own tap, which kills it at acks chosen beforehand.
async fn killed_at_an_ack(harness: &FaultHarness, mut rng: StdRng, deadly: Deadly) -> Result<()> {
    let kills = harness.setting.form(3, 10);
    let amqp_url = &harness.setting.pair.servers.amqp_url;
    let (mut taps, mut proxies) = (Vec::new(), Vec::new());
    harness.relay(&[])?;
    for name in WORKERS {
        let pauses = (0..kills).map(|_| rng.random_range(0..8)).collect();
        let tap = Arc::new(Tap::new(harness.fleet.drivers(), name, deadly, pauses));
        let proxy = Proxy::start(vec![address(amqp_url)?], Conduct::Tapped(Arc::clone(&tap))).await?;
        harness.worker(name, &[("KYHAN_AMQP_URL", proxy.url(amqp_url)?)])?;
        taps.push(tap);
        proxies.push(proxy);
    }
    let wake_early = async {
        // Subjects woken too early have to be postponed, so there are follow-ups to confirm.
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(150)).await;
            for (kind, situation) in [("confirm-receipt", "paid"), ("collect-arrears", "short"), ("purge-cart-item", "in-cart")] {
                let subjects = newest(harness, situation).await?;
                harness.publish(harness.wakeup(kind, &subjects)).await?;
            }
        }
        Ok(())
    };
    harness.populate_during(wake_early).await?;
    let ended = harness.until_over().await;
    let killed: u32 = taps.iter().map(|tap| tap.kills()).sum();
    harness.note(format!("{killed} kills"));
    if killed == 0 {
        harness.unexpected(1, "no worker was killed: the tap saw no such ack");
    }
    // Stop the workers before their proxies.
    harness.fleet.stop_all().await?;
    ended
}

/// Some subjects that are not due yet.
pub async fn newest(harness: &FaultHarness, situation: &str) -> Result<Vec<Uuid>> {
    let sql = "SELECT coalesce(array_agg(subject), '{}') AS chosen FROM (
                   SELECT subject FROM fault_book WHERE situation = $1 ORDER BY at DESC, subject LIMIT 40) AS picked";
    let row = harness.sandbox.db.query_one_raw(statement(sql, [situation.into()])).await?;
    Ok(row.map(|row| row.try_get("", "chosen")).transpose()?.unwrap_or_default())
}

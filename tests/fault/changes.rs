//! Scenarios of change: a longer and a shorter policy, a rolling restart of the whole fleet, an order system that works on the same rows.

use std::time::Duration;

use anyhow::Result;
use rand::{RngExt, rngs::StdRng};

use crate::{
    acts, checker,
    checker::Spans,
    harness::{FaultHarness, ScenarioSettings},
    population::{Pace, tolerable},
    scenario::ScenarioRun,
};

const PLAYERS: [&str; 3] = ["relay", "worker-1", "worker-2"];
/// The longest time without an effect that a rolling restart may cause.
const GAP_MAX_MS: i64 = 5_000;

/// How long the order system's work may take.
const BUSY_MAX: Duration = Duration::from_secs(60);

const SHORT: Spans = Spans { confirm: 3_000, arrears: 2_000, purge: 2_500 };
const MIDDLING: Spans = Spans { confirm: 8_000, arrears: 7_000, purge: 7_500 };
const LONG: Spans = Spans { confirm: 14_000, arrears: 11_000, purge: 12_500 };

pub fn begins_middling() -> ScenarioSettings {
    ScenarioSettings { spans: MIDDLING, ..ScenarioSettings::default() }
}

pub fn begins_long() -> ScenarioSettings {
    ScenarioSettings { spans: Spans { confirm: 30_000, arrears: 28_000, purge: 29_000 }, ..ScenarioSettings::default() }
}

/// Wake-ups of the old policy arrive too early and have to be postponed.
pub fn policy_lengthened(harness: &FaultHarness, _rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(change_policy(harness, LONG))
}

/// Wake-ups of the old policy arrive too late: the sweep has to find the rows.
pub fn policy_shortened(harness: &FaultHarness, _rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(change_policy(harness, SHORT))
}

/// Under the old policy only the relay runs, so everything waits where the old policy put it, and nothing has had its effect.
async fn change_policy(harness: &FaultHarness, spans: Spans) -> Result<()> {
    harness.relay(&[])?;
    harness.populate_during(std::future::ready(Ok(()))).await?;
    harness.fleet.stop_all().await?;
    harness.judge_by(spans);
    harness.apply(spans).await?;
    harness.start()?;
    harness.note(format!("arrears after {} ms instead of {}", spans.arrears, harness.spans_at_first().arrears));
    Ok(())
}

pub fn rolling_restart(harness: &FaultHarness, mut rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move {
        harness.start()?;
        let rounds = harness.setting.form(1, 3);
        let pace = Pace { slices: 50 * i64::from(rounds), over: Duration::from_secs(11) * rounds };
        let roll = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            for _ in 0..rounds {
                for name in PLAYERS {
                    harness.fleet.stop(name).await?;
                    if name == "relay" {
                        harness.relay(&[])?;
                    } else {
                        harness.worker(name, &[])?;
                    }
                    tokio::time::sleep(Duration::from_millis(rng.random_range(1_000..=2_000))).await;
                }
            }
            Ok(())
        };
        harness.populate_at(pace, roll).await?;
        harness.until_over().await?;
        let gap = checker::longest_gap_ms(&harness.sandbox.db).await?;
        harness.note(format!("each process replaced {rounds} times; longest time without an effect {gap} ms"));
        if gap > GAP_MAX_MS {
            harness.unexpected(1, "a gap of over 5 s under load");
        }
        Ok(())
    })
}

/// Everything falls due at once, while fees, payments and parcels change on the same rows.
pub fn order_system_at_work(harness: &FaultHarness, mut rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move {
        harness.start()?;
        let (enough, mut turns, mut refused) = (harness.setting.form(150, 600), 0, 0);
        let busy = async {
            let end = tokio::time::Instant::now() + BUSY_MAX;
            while turns < enough && tokio::time::Instant::now() < end {
                for act in acts::BUSY {
                    match act.busily(&harness.sandbox.db, rng.random()).await {
                        Ok(acted) => turns += u32::from(acted),
                        Err(error) => {
                            refused += 1;
                            tolerable(&error)?;
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(rng.random_range(5..=40))).await;
            }
            Ok(())
        };
        harness.populate_at(Pace::BURST, busy).await?;
        harness.note(format!("{turns} transactions of the order system, 20 rows each; {refused} lost to the fleet's locks"));
        Ok(())
    })
}

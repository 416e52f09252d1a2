//! Scenarios of a flaky network: traffic between the workers and a server is delayed, truncated, reset, or swallowed for a while.

use std::time::Duration;

use anyhow::Result;
use rand::{RngExt, rngs::StdRng};

use crate::{
    harness::FaultHarness,
    proxy::{Conduct, Flaws, Proxy, address},
    scenario::ScenarioRun,
};

pub fn flaky_to_rabbitmq(harness: &FaultHarness, rng: StdRng) -> ScenarioRun<'_> {
    let flaws = Flaws { seed: 0, delay: 50_000, truncate: 6_000, reset: 6_000, silence: 1_000 };
    Box::pin(flaky(harness, rng, flaws, "KYHAN_AMQP_URL", &harness.setting.pair.servers.amqp_url))
}

pub fn flaky_to_postgres(harness: &FaultHarness, rng: StdRng) -> ScenarioRun<'_> {
    let flaws = Flaws { seed: 0, delay: 30_000, truncate: 4_000, reset: 4_000, silence: 500 };
    Box::pin(flaky(
        harness,
        rng,
        flaws,
        "KYHAN_DATABASE_URL",
        harness.sandbox.env.get("KYHAN_DATABASE_URL").map_or("", String::as_str),
    ))
}

async fn flaky(harness: &FaultHarness, mut rng: StdRng, flaws: Flaws, variable: &str, url: &str) -> Result<()> {
    let proxy = Proxy::start(vec![address(url)?], Conduct::Flaky(Flaws { seed: rng.random(), ..flaws })).await?;
    harness.start_with(&[(variable, proxy.url(url)?)])?;
    let span = harness.setting.form(Duration::from_secs(8), Duration::from_secs(30));
    harness
        .populate_during(async {
            tokio::time::sleep(span).await;
            Ok(())
        })
        .await?;
    harness.note(format!("for {} s: {}", span.as_secs(), proxy.happened.say()));
    proxy.heal();
    harness.until_over().await?;
    // Stop the fleet before its network.
    harness.fleet.stop_all().await
}

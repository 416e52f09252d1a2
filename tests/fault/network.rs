//! Scenarios of a flaky network: traffic between the workers and a server is delayed, truncated, reset, or swallowed for a while.

use std::time::Duration;

use anyhow::Result;
use rand::{RngExt, rngs::StdRng};

use crate::{
    proxy::{Conduct, Flaws, Proxy, address},
    scenario::Play,
    stage::Stage,
};

pub fn flaky_to_rabbitmq(stage: &Stage, rng: StdRng) -> Play<'_> {
    let flaws = Flaws { seed: 0, delay: 50_000, truncate: 6_000, reset: 6_000, silence: 1_000 };
    Box::pin(flaky(stage, rng, flaws, "KYHAN_AMQP_URL", &stage.setting.pair.servers.amqp_url))
}

pub fn flaky_to_postgres(stage: &Stage, rng: StdRng) -> Play<'_> {
    let flaws = Flaws { seed: 0, delay: 30_000, truncate: 4_000, reset: 4_000, silence: 500 };
    Box::pin(flaky(
        stage,
        rng,
        flaws,
        "KYHAN_DATABASE_URL",
        stage.sandbox.env.get("KYHAN_DATABASE_URL").map_or("", String::as_str),
    ))
}

async fn flaky(stage: &Stage, mut rng: StdRng, flaws: Flaws, variable: &str, url: &str) -> Result<()> {
    let proxy = Proxy::start(vec![address(url)?], Conduct::Flaky(Flaws { seed: rng.random(), ..flaws })).await?;
    stage.start_with(&[(variable, proxy.url(url)?)])?;
    let span = stage.setting.form(Duration::from_secs(8), Duration::from_secs(30));
    stage
        .populate_during(async {
            tokio::time::sleep(span).await;
            Ok(())
        })
        .await?;
    stage.note(format!("for {} s: {}", span.as_secs(), proxy.happened.say()));
    proxy.heal();
    stage.until_over().await?;
    // Stop the fleet before its network.
    stage.fleet.stop_all().await
}

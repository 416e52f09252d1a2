//! Scenarios of a cluster: the leader killed while everything falls due, and a node cut off and joined again.

use std::time::Duration;

use anyhow::Context;
use rand::{RngExt, rngs::StdRng};

use crate::{
    harness::{FaultHarness, ScenarioSettings},
    place::ServerLayout,
    population::Pace,
    scenario::ScenarioRun,
};

pub fn three() -> ScenarioSettings {
    // One message per subject, so that the burst has many messages. A node that rejoins needs time.
    let patience = Duration::from_secs(200);
    ScenarioSettings { place: ServerLayout::Cluster, patience, ..ScenarioSettings::with(&[("KYHAN_TOPOLOGY_PACK_MAX", "1")]) }
}

pub fn leader_killed_in_a_burst(harness: &FaultHarness, mut rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move {
        harness.start()?;
        let lane = harness.settings().topology().lane("confirm-receipt", 0);
        let mut cluster = harness.standing.cluster().await.context("no cluster")?;
        let leader = cluster.leader(&lane).await?;
        harness
            .populate_at(Pace::BURST, async {
                // The first subjects fall due two seconds after they were made.
                tokio::time::sleep(Duration::from_millis(rng.random_range(2_500..=4_500))).await;
                cluster.kill(leader)?;
                tokio::time::sleep(harness.setting.form(Duration::from_secs(3), Duration::from_secs(15))).await;
                cluster.revive(leader).await
            })
            .await?;
        harness.note("the leader of a lane killed with -9, and started again");
        Ok(())
    })
}

pub fn node_partitioned_away(harness: &FaultHarness, mut rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move {
        harness.start()?;
        let span = harness.setting.form(Duration::from_secs(10), Duration::from_secs(30));
        let cluster = harness.standing.cluster().await.context("no cluster")?;
        let lane = harness.settings().topology().lane("confirm-receipt", 0);
        // Cut off the leader, which has the largest effect.
        let leader = cluster.leader(&lane).await?;
        harness
            .populate_during(async {
                tokio::time::sleep(Duration::from_millis(rng.random_range(1_500..=2_500))).await;
                cluster.partition(leader, true).await?;
                tokio::time::sleep(span).await;
                cluster.partition(leader, false).await?;
                cluster.await_nodes(3).await
            })
            .await?;
        harness.note(format!("a lane's leader cut off for {} s: {}", span.as_secs(), cluster.means()));
        Ok::<_, anyhow::Error>(())
    })
}

//! Scenarios of a RabbitMQ that runs but restricts the fleet: it blocks publishers, or closes the channel of a consumer that does not ack.

use std::time::Duration;

use rand::{RngExt, rngs::StdRng};
use tests::pair::{self, Server};

use crate::{
    harness::{FaultHarness, ScenarioSettings},
    scenario::ScenarioRun,
    worker::newest,
};

/// Timeouts shorter than the alarm, so that each kind of waiting is exercised.
pub fn impatient() -> ScenarioSettings {
    ScenarioSettings::with(&[("KYHAN_AMQP_CONFIRM_TIMEOUT_MS", "1000"), ("KYHAN_WORKER_HOLD_MS", "2500")])
}

/// A memory alarm: RabbitMQ stops reading from connections that publish.
pub fn blocks_publishers(harness: &FaultHarness, mut rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move {
        harness.start()?;
        let span = harness.setting.form(Duration::from_secs(5), Duration::from_secs(20));
        let pair = &harness.setting.pair;
        harness
            .populate_during(async {
                tokio::time::sleep(Duration::from_millis(rng.random_range(1_200..=1_800))).await;
                // Subjects woken too early have to be postponed, and the follow-up cannot be published.
                for (kind, situation) in
                    [("confirm-receipt", "paid"), ("collect-arrears", "short"), ("purge-cart-item", "in-cart")]
                {
                    let subjects = newest(harness, situation).await?;
                    harness.publish(harness.wakeup(kind, &subjects)).await?;
                }
                pair.rabbitmqctl(&["set_vm_memory_high_watermark", "absolute", "1MB"]).await?;
                tokio::time::sleep(span).await;
                pair.rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]).await
            })
            .await?;
        harness.note(format!("an alarm of {} s", span.as_secs()));
        if !harness.logs_contain("blocks publishers")? {
            harness.unexpected(1, "RabbitMQ blocked no publisher");
        }
        Ok(())
    })
}

/// A batch is held longer than RabbitMQ waits for acks.
pub fn long_hold() -> ScenarioSettings {
    ScenarioSettings::with(&[("KYHAN_WORKER_HOLD_MS", "3600000")])
}

/// RabbitMQ's `consumer_timeout` closes the channel of a consumer that holds a message for too long.
pub fn loses_patience(harness: &FaultHarness, mut rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move {
        let pair = &harness.setting.pair;
        let set = |timeout: &str, tick: &str| {
            format!(
                "application:set_env(rabbit, consumer_timeout, {timeout}), application:set_env(rabbit, channel_tick_interval, {tick})."
            )
        };
        pair.rabbitmqctl(&["eval", &set("1500", "300")]).await?;
        harness.start()?;
        let span = harness.setting.form(Duration::from_secs(6), Duration::from_secs(20));
        let disturbed = harness
            .populate_during(async {
                tokio::time::sleep(Duration::from_millis(rng.random_range(2_500..=3_000))).await;
                pair.stop(Server::Postgres).await?;
                tokio::time::sleep(span).await;
                pair.up().await
            })
            .await;
        pair.rabbitmqctl(&["eval", &set("1800000", "60000")]).await?;
        disturbed?;
        harness.note(format!("batches held for {} s, consumer_timeout 1.5 s", span.as_secs()));
        if !harness.logs_contain("invalid channel state: Closed")? {
            harness.unexpected(1, "RabbitMQ closed no channel");
        }
        Ok(())
    })
}

pub fn lacks() -> Option<String> {
    pair::binaries().is_none().then(|| "RabbitMQ's own scripts are not found here".to_owned())
}

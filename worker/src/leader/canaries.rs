//! Sends a canary into every rung whose last one is old enough, and exports the ages of the rungs' heads. Any worker records the canaries
//! that arrive (`queues/canary.rs`); the ages are computed from the table `canaries` alone.

use futures::{FutureExt, future::BoxFuture};
use opentelemetry::{KeyValue, global, metrics::Gauge};
use sea_orm::DbErr;
use shared::{
    broker::{Broker, BrokerError},
    database::canaries::{self, RungAge},
    domain::span::signed_ms,
    message::canary::{Canary, RungQueue},
};

use super::{Duty, DutyError, DutyRound};
use crate::context::Context;

/// The duty that sends canaries, and its metrics.
pub(super) struct CanariesDuty {
    head_age: Gauge<f64>,
    overdue: Gauge<f64>,
}

impl CanariesDuty {
    pub(super) fn new() -> Self {
        let meter = global::meter("kyhan");
        let gauge = |name, what| meter.f64_gauge(name).with_unit("s").with_description(what).build();
        Self {
            head_age: gauge("kyhan.rung.head_age", "Age of the oldest canary in a rung; at most about the rung's duration"),
            overdue: gauge("kyhan.rung.overdue", "By how much that canary is overdue; zero in a healthy system"),
        }
    }

    async fn send(&self, context: &Context, broker: &Broker) -> Result<(), DbErr> {
        let every = context.settings.sweep.every;
        let mut blocked = false;
        for (canary, place) in canaries::send(&context.db, &context.topology, every).await? {
            // Each by itself: a rung that refuses its canary must not stop those of the others. A broker that blocks publishers refuses
            // all of them.
            let published = if blocked { Err(BrokerError::Blocked) } else { publish(context, broker, &canary, place).await };
            if let Err(error) = published {
                tracing::warn!(queue = canary.queue, %error, "a canary could not be published");
                blocked |= matches!(error, BrokerError::Blocked);
                canaries::withdraw(&context.db, &canary).await?;
            }
        }
        self.record(context).await
    }

    /// Exports the rungs' ages and logs the rungs that have stalled. The sweep still wakes what is overdue in a stalled rung.
    async fn record(&self, context: &Context) -> Result<(), DbErr> {
        let grace = signed_ms(context.settings.sweep.grace);
        for RungAge { queue, head_age, overdue, .. } in canaries::ages(&context.db, &context.topology).await? {
            let of_queue = [KeyValue::new("queue", queue.clone())];
            self.head_age.record(head_age.as_seconds_f64(), &of_queue);
            self.overdue.record(overdue.as_seconds_f64(), &of_queue);
            if overdue.num_milliseconds() > grace {
                tracing::error!(queue, overdue_s = overdue.num_seconds(), "a rung has stalled: its canary is overdue");
            }
        }
        let lost = canaries::forget(&context.db, &context.topology).await?;
        if lost > 0 {
            tracing::error!(lost, "canaries were lost in their rungs; wake-ups may be lost, too; run `ops audit`");
        }
        Ok(())
    }
}

impl Duty for CanariesDuty {
    fn name(&self) -> &'static str {
        "the canaries"
    }

    fn decides_leadership(&self) -> bool {
        true
    }

    fn round<'a>(&'a mut self, round: &'a DutyRound<'a>) -> BoxFuture<'a, Result<(), DutyError>> {
        async { Ok(self.send(round.context, round.broker().await?).await?) }.boxed()
    }
}

/// Publishes over a new channel, because RabbitMQ closes the channel if the exchange does not exist.
async fn publish(context: &Context, broker: &Broker, canary: &Canary, place: RungQueue) -> Result<(), BrokerError> {
    let publisher = broker.publisher().await?;
    let published = publisher.publish_all(&[canary.message(&context.topology, place)]).await;
    publisher.close().await;
    published
}

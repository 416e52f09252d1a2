//! Sends a canary into every rung whose last one is old enough, and records how old the rungs' heads are. Any worker notes the canaries that
//! arrive (`queues/canary.rs`); what they show follows from the table `canaries` alone.

use futures::{FutureExt, future::BoxFuture};
use opentelemetry::{KeyValue, global, metrics::Gauge};
use sea_orm::DbErr;
use shared::{
    broker::{Broker, BrokerError},
    database::canaries::{self, RungAge},
    domain::span::signed_ms,
    message::canary::{Canary, Place},
};

use super::{Duty, DutyError, Round};
use crate::context::Context;

/// See above.
pub(super) struct Canaries {
    head_age: Gauge<f64>,
    overdue: Gauge<f64>,
}

impl Canaries {
    pub(super) fn new() -> Self {
        let meter = global::meter("kyhan");
        let gauge = |name, what| meter.f64_gauge(name).with_unit("s").with_description(what).build();
        Self {
            head_age: gauge("kyhan.rung.head_age", "Age of the oldest canary waiting in a rung; about its duration at most"),
            overdue: gauge("kyhan.rung.overdue", "How long that canary should have left its rung; zero in a healthy system"),
        }
    }

    async fn send(&self, context: &Context, broker: &Broker) -> Result<(), DbErr> {
        let every = context.settings.sweep.every;
        let mut blocked = false;
        for (canary, place) in canaries::send(&context.db, &context.topology, every).await? {
            // Each by itself: a rung that takes none must not keep the others from being watched. A broker that is blocked takes
            // none of them.
            let published = if blocked { Err(BrokerError::Blocked) } else { publish(context, broker, &canary, place).await };
            if let Err(error) = published {
                tracing::warn!(queue = canary.queue, %error, "a rung takes no canary");
                blocked |= matches!(error, BrokerError::Blocked);
                canaries::withdraw(&context.db, &canary).await?;
            }
        }
        self.record(context).await
    }

    /// A rung that does not move holds its wake-ups back; the sweep still wakes what is overdue.
    async fn record(&self, context: &Context) -> Result<(), DbErr> {
        let grace = signed_ms(context.settings.sweep.grace);
        for RungAge { queue, head_age, overdue, .. } in canaries::ages(&context.db, &context.topology).await? {
            let of_queue = [KeyValue::new("queue", queue.clone())];
            self.head_age.record(head_age.as_seconds_f64(), &of_queue);
            self.overdue.record(overdue.as_seconds_f64(), &of_queue);
            if overdue.num_milliseconds() > grace {
                tracing::error!(queue, overdue_s = overdue.num_seconds(), "a rung does not move: its canary is overdue");
            }
        }
        let lost = canaries::forget(&context.db, &context.topology).await?;
        if lost > 0 {
            tracing::error!(lost, "canaries were lost in their rungs, and wake-ups perhaps with them; see `ops audit`");
        }
        Ok(())
    }
}

impl Duty for Canaries {
    fn name(&self) -> &'static str {
        "the canaries"
    }

    fn decides_leadership(&self) -> bool {
        true
    }

    fn round<'a>(&'a mut self, round: &'a Round<'a>) -> BoxFuture<'a, Result<(), DutyError>> {
        async { Ok(self.send(round.context, round.broker().await?).await?) }.boxed()
    }
}

/// Over a channel of its own: RabbitMQ closes one over which something goes to an exchange that is not there.
async fn publish(context: &Context, broker: &Broker, canary: &Canary, place: Place) -> Result<(), BrokerError> {
    let publisher = broker.publisher().await?;
    let published = publisher.publish_all(&[canary.message(&context.topology, place)]).await;
    publisher.close().await;
    published
}

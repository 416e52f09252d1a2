//! Canaries: messages that wait in a rung among the wake-ups, so that a rung that no longer moves is noticed. The sweep's leader
//! sends them, any worker notes that they have come; what is said of a rung follows from the rows of `canaries` alone.

use std::time::Duration;

use opentelemetry::{KeyValue, global, metrics::Gauge};
use sea_orm::DbErr;
use shared::{
    broker::{Broker, BrokerError},
    database::{
        canaries::{self, RungAge},
        failure::{Trouble, trouble},
        within,
    },
    message::canary::{Canary, Place},
    process::redact::told,
};

use crate::{
    batch::Batch,
    lane::{Context, Left},
    patience::Patience,
    settle::Settle,
};

/// How long PostgreSQL may take to note some canaries.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Notes the canaries of a batch and acks them; or why to leave, when the database stayed away until told so.
pub(crate) async fn process(
    batch: &Batch,
    settle: &Settle<'_>,
    context: &Context,
    patience: &Patience<'_>,
) -> Result<Option<Left>, BrokerError> {
    let Some(last) = batch.last_tag() else { return Ok(None) };
    let mut canaries = Vec::with_capacity(batch.len());
    for message in batch.messages() {
        match Canary::decode(&message.body) {
            Ok(canary) => canaries.push(canary),
            // Nothing is lost with it: what it would have said of its rung, the next one says.
            Err(why) => tracing::warn!(why, bytes = message.body.len(), "a message in the canaries' lane that is none"),
        }
    }
    let mut tries = 0;
    while let Err(error) = within(ANSWER_WITHIN, canaries::arrived(&context.db, &canaries)).await {
        match trouble(&error) {
            // A connection that lay idle through an outage is dead, and shows it only now.
            Trouble::Cut | Trouble::Conflict if tries < context.settings.database.max_connections => tries += 1,
            Trouble::Conflict | Trouble::Failure => {
                tracing::error!(error = told(&error), "canaries that have come cannot be noted, and will be missed");
                return settle.ack_up_to(last).await.map(|()| None);
            }
            Trouble::Cut | Trouble::Away => {
                if patience.for_postgres(&error).await.is_none() {
                    return Ok(Some(Left::ToldTo));
                }
            }
        }
    }
    patience.postgres_is_back();
    settle.ack_up_to(last).await.map(|()| None)
}

/// Sends a canary into every rung whose last one is old enough, and says how the rungs are.
pub(crate) struct Keeper {
    head_age: Gauge<f64>,
    overdue: Gauge<f64>,
}

impl Keeper {
    pub(crate) fn new() -> Self {
        let meter = global::meter("kyhan");
        let gauge = |name, what| meter.f64_gauge(name).with_unit("s").with_description(what).build();
        Self {
            head_age: gauge("kyhan.rung.head_age", "Age of the oldest canary waiting in a rung; about its duration at most"),
            overdue: gauge("kyhan.rung.overdue", "How long that canary should have left its rung; zero in a healthy system"),
        }
    }

    pub(crate) async fn round(&self, context: &Context, broker: &Broker) -> Result<(), DbErr> {
        let every = Duration::from_millis(context.settings.sweep.every_ms);
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
        self.tell(context).await
    }

    /// A rung that does not move holds its wake-ups back; the sweep still wakes what is overdue.
    async fn tell(&self, context: &Context) -> Result<(), DbErr> {
        let grace = i64::try_from(context.settings.sweep.grace_ms).unwrap_or(i64::MAX);
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

/// Over a channel of its own: RabbitMQ closes one over which something goes to an exchange that is not there.
async fn publish(context: &Context, broker: &Broker, canary: &Canary, place: Place) -> Result<(), BrokerError> {
    let publisher = broker.publisher().await?;
    let published = publisher.publish_all(&[canary.message(&context.topology, place)]).await;
    publisher.close().await;
    published
}

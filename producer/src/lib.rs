//! The order system's door: events become wake-ups that wait in RabbitMQ until they are due.
//!
//! Three ways in with the same result: the outbox that the [`relay`] drains, `producer emit` for people, and this library:
//!
//! ```no_run
//! # async fn example(settings: shared::settings::Settings, order: uuid::Uuid) -> Result<(), Box<dyn std::error::Error>> {
//! use producer::{Producer, schedule::event};
//! use shared::domain::event::EventType;
//!
//! let producer = Producer::connect(&settings).await?;
//! producer.schedule(&[event(EventType::OrderShipped, order)]).await?; // confirmed by the broker when this returns
//! producer.close().await;
//! # Ok(())
//! # }
//! ```

mod flush;
mod outbox;
pub mod record;
pub mod relay;
pub mod schedule;

use shared::{
    broker::{Broker, BrokerError},
    domain::event::Event,
    process::telemetry::trace_context,
    settings::Settings,
};

use flush::{Flushing, Terms};

/// A Rust caller's own way to schedule, without the outbox: what it returns for is confirmed by the broker. Call it after
/// your transaction has committed; if your process dies in between, the wake-up is lost until a sweep finds the overdue row.
/// An outbox row in your transaction has no such gap.
///
/// It schedules by the policy of the settings that it is given. Where one was applied to the database, give it those of
/// [`shared::database::active_policy::of`]; else its wake-ups come by the policy before, and a sweep makes up for those that come late.
///
/// One for a whole process: callers that come together share wake-ups and wait for each other's confirms, and what is refused of
/// one is not refused of the others.
pub struct Producer {
    flushing: Flushing,
}

impl Producer {
    /// Connects, and declares the topology, or finds it where RabbitMQ does not let this login declare.
    ///
    /// # Errors
    /// [`BrokerError`]; [`BrokerError::Missing`] until somebody has run `ops topology declare`.
    pub async fn connect(settings: &Settings) -> Result<Self, BrokerError> {
        let broker = Broker::connect(&settings.amqp, "kyhan producer").await?;
        let topology = settings.topology();
        broker.declare_or_find(&topology).await?;
        let terms = Terms { policy: settings.policy.clone(), topology, pack_max: settings.naming.pack_max };
        Ok(Self { flushing: Flushing::start(terms, broker) })
    }

    /// Schedules everything that follows from `events`, packed and pipelined, and returns once all of it is confirmed: with those
    /// of the events from which something would fall due beyond the calendar's end, and of which nothing is scheduled.
    ///
    /// # Errors
    /// [`BrokerError`]; schedule the same events again then, over a new connection where this one is gone: twice does no harm.
    pub async fn schedule(&self, events: &[Event]) -> Result<Vec<Event>, BrokerError> {
        self.flushing.schedule(events, &trace_context(&tracing::Span::current())).await
    }

    /// Closes the connection.
    pub async fn close(self) {
        if let Some(broker) = self.flushing.end().await {
            broker.close().await;
        }
    }
}

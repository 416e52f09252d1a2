//! The producer: turns events of the order system into wake-ups that wait in RabbitMQ until they are due.
//!
//! There are three ways to publish an event, with the same result: the outbox, which the [`relay`] drains; `producer emit`, by hand; and
//! this library:
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
mod portion;
pub mod record;
pub mod relay;
pub mod schedule;

use shared::{
    broker::{Broker, BrokerError},
    domain::event::Event,
    process::telemetry::trace_context,
    settings::Settings,
};

use flush::{FlushSettings, Flushing};

/// Schedules events from Rust without the outbox, and returns once the broker has confirmed their wake-ups. Call it after your transaction
/// has committed. If your process dies in between, the wake-up is lost until a sweep finds the overdue row. An outbox row in your
/// transaction has no such gap.
///
/// It uses the policy of the settings that you pass. Pass those of [`shared::database::active_policy::of`], which hold the active policy.
/// Otherwise wake-ups follow the file's policy; those that come early go back, and the sweep finds
/// the rows of those that come late.
///
/// Use one producer per process: concurrent callers share wake-ups and confirms. A wake-up that the broker refuses fails only the caller
/// whose events it names.
pub struct Producer {
    flushing: Flushing,
}

impl Producer {
    /// Connects and declares the topology, or checks that it exists if this login may not declare.
    ///
    /// # Errors
    /// [`BrokerError`]; [`BrokerError::Missing`] until an operator has run `ops topology declare`.
    pub async fn connect(settings: &Settings) -> Result<Self, BrokerError> {
        let broker = Broker::connect(&settings.amqp, "kyhan producer").await?;
        let topology = settings.topology();
        broker.declare_or_find(&topology).await?;
        let terms = FlushSettings { policy: settings.policy.clone(), topology, pack_max: settings.naming.pack_max };
        Ok(Self { flushing: Flushing::start(terms, broker) })
    }

    /// Schedules the wake-ups of `events`, packed and pipelined, and returns once the broker has confirmed all of them. Returns the events
    /// with a deadline beyond the end of the calendar; nothing is scheduled for these.
    ///
    /// # Errors
    /// [`BrokerError`]. Schedule the same events again then, over a new producer if the connection is lost; scheduling is idempotent.
    pub async fn schedule(&self, events: &[Event]) -> Result<Vec<Event>, BrokerError> {
        self.flushing.schedule(events, &trace_context(&tracing::Span::current())).await
    }

    /// Finishes the running requests and closes the connection.
    pub async fn close(self) {
        if let Some(broker) = self.flushing.end().await {
            broker.close().await;
        }
    }
}

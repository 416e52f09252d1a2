//! The order system's door: events become wake-ups that wait in RabbitMQ until they are due.
//!
//! Three ways in with the same result: the outbox that the [`relay`] drains, `producer emit` for people, and this library:
//!
//! ```no_run
//! # async fn example(settings: shared::settings::Settings, order: uuid::Uuid) -> Result<(), Box<dyn std::error::Error>> {
//! use producer::{Producer, schedule::event};
//! use shared::event::EventType;
//!
//! let producer = Producer::connect(&settings).await?;
//! producer.schedule(&[event(EventType::OrderShipped, order)]).await?; // confirmed by the broker when this returns
//! producer.close().await;
//! # Ok(())
//! # }
//! ```

mod outbox;
pub mod relay;
pub mod schedule;

use shared::{
    broker::{Broker, BrokerError, Publisher},
    event::Event,
    policy::Policy,
    settings::Settings,
    telemetry::trace_context,
    topology::Topology,
};

use schedule::Plan;

/// A Rust caller's own way to schedule, without the outbox: what it returns for is confirmed by the broker. Call it after
/// your transaction has committed; if your process dies in between, the wake-up is lost until a sweep finds the overdue row.
/// An outbox row in your transaction has no such gap.
pub struct Producer {
    broker: Broker,
    publisher: Publisher,
    policy: Policy,
    topology: Topology,
    pack_max: usize,
}

impl Producer {
    /// Connects and declares the topology.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn connect(settings: &Settings) -> Result<Self, BrokerError> {
        let broker = Broker::connect(&settings.amqp, "kyhan producer").await?;
        let topology = settings.topology();
        broker.declare(&topology).await?;
        let publisher = broker.publisher().await?;
        Ok(Self { broker, publisher, policy: settings.policy.clone(), topology, pack_max: settings.naming.pack_max })
    }

    /// Schedules everything that follows from `events`, packed and pipelined, and returns what it was once all of it is
    /// confirmed. An event from which something would fall due beyond the calendar's end is named in [`Plan::beyond`].
    ///
    /// # Errors
    /// [`BrokerError`]; schedule the same events again then, over a new connection where this one is gone: twice does no harm.
    pub async fn schedule(&self, events: &[Event]) -> Result<Plan, BrokerError> {
        let trace = trace_context(&tracing::Span::current());
        let plan = schedule::plan(events, schedule::now(), &self.policy, &self.topology, self.pack_max, &trace);
        self.publisher.publish_all(&plan.messages(&self.topology)).await?;
        Ok(plan)
    }

    /// Closes the connection.
    pub async fn close(self) {
        self.publisher.close().await;
        self.broker.close().await;
    }
}

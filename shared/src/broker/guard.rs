//! The start-up guard: a process that takes wake-ups runs only on a broker that keeps them. A topology that differs from ours
//! is refused, with what could be lost and what to do.

use lapin::{
    ErrorKind,
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldTable},
};

use super::{Broker, BrokerError, close_channel, declare::PRECONDITION_FAILED};
use crate::message::topology::Topology;

impl Broker {
    /// Declares or finds the topology, as [`Broker::declare_or_find`] does, and checks that the broker dead-letters at least
    /// once.
    ///
    /// # Errors
    /// [`BrokerError::Inequivalent`] or [`BrokerError::Unsafe`]: do not take wake-ups. [`BrokerError::Missing`]: not yet.
    pub async fn guard(&self, topology: &Topology) -> Result<(), BrokerError> {
        self.declare_or_find(topology).await?;
        self.dead_letters_at_least_once(topology).await
    }

    /// RabbitMQ 3.10 and 3.11 dead-letter at least once only with the feature flag `stream_queue`, and silently at most once
    /// without it; later versions always have it. To find out, this declares an exclusive stream, which RabbitMQ never
    /// creates: the error names the flag if it is missing, and otherwise what is wrong with the stream. A login that may not
    /// configure a queue of this name receives neither error, so a worker may configure this queue, and nothing else
    /// (`deploy/rabbitmq/users`).
    /// <https://www.rabbitmq.com/docs/quorum-queues#dead-lettering>
    async fn dead_letters_at_least_once(&self, topology: &Topology) -> Result<(), BrokerError> {
        let channel = self.channel().await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
        let impossible = QueueDeclareOptions { durable: true, exclusive: true, ..QueueDeclareOptions::default() };
        let Err(error) = channel.queue_declare(topology.guard().as_str().into(), impossible, arguments).await else {
            // A broker that can create it has the flag; as it is exclusive, it ends with the connection.
            close_channel(&channel).await;
            return Ok(());
        };
        match error.kind() {
            ErrorKind::ProtocolError(said) if said.get_message().as_str().contains("feature flag") => Err(BrokerError::Unsafe(
                "RabbitMQ lacks the feature flag stream_queue, without which expired wake-ups are dead-lettered at most once; \
                 run `rabbitmqctl enable_feature_flag stream_queue`"
                    .to_owned(),
            )),
            ErrorKind::ProtocolError(said) if said.get_id() == PRECONDITION_FAILED => Ok(()),
            ErrorKind::ProtocolError(_) => {
                tracing::warn!(
                    %error,
                    "cannot check whether RabbitMQ dead-letters at least once; before RabbitMQ 3.12, let this login configure the \
                     queue that the error names"
                );
                Ok(())
            }
            _ => Err(error.into()),
        }
    }
}

/// What a difference could cause, by the argument that RabbitMQ names in it.
pub(super) fn at_stake(difference: &str) -> &'static str {
    const STAKES: [(&str, &str); 7] = [
        ("'x-dead-letter-strategy'", "messages that expire while their lane is missing or full would be lost"),
        ("'x-overflow'", "dead-lettering would not be at least once, and a full queue would drop its head"),
        ("'x-delivery-limit'", "a wake-up that stops its workers would do so forever, or be dropped"),
        ("'x-queue-type'", "its messages would not be replicated"),
        ("'x-dead-letter-exchange'", "messages that expire or are given up would not arrive where they should"),
        ("'x-message-ttl'", "wake-ups would arrive at another time than its name states"),
        ("'alternate-exchange'", "one message that no lane takes would block its rung"),
    ];
    STAKES.iter().find(|(argument, _)| difference.contains(argument)).map_or("it could lose messages", |(_, stake)| stake)
}

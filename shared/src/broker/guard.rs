//! The start-up guard: a process that takes wake-ups runs only on a broker that keeps them. What differs from our topology is
//! refused with what would be lost by it and what to do.

use lapin::{
    ErrorKind,
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldTable},
};

use super::{Broker, BrokerError, close_channel, declare::PRECONDITION_FAILED};
use crate::message::topology::Topology;

impl Broker {
    /// Declares or finds the topology, as [`Broker::declare_or_find`] does, and makes sure that the broker keeps what it promises.
    ///
    /// # Errors
    /// [`BrokerError::Inequivalent`] or [`BrokerError::Unsafe`]: do not take wake-ups then. [`BrokerError::Missing`]: not yet.
    pub async fn guard(&self, topology: &Topology) -> Result<(), BrokerError> {
        self.declare_or_find(topology).await?;
        self.dead_letters_at_least_once(topology).await
    }

    /// RabbitMQ 3.10 and 3.11 dead-letter at least once only with the feature flag `stream_queue`, and without it silently at
    /// most once; later versions always have it. Asked for a stream such as cannot be, an exclusive one, RabbitMQ names the flag
    /// where it is missing, and else what is wrong with the stream; nothing is made in either case. It says neither to somebody who may
    /// not configure a queue of this name, which is why a worker may, and nothing else (`deploy/rabbitmq/users`).
    /// <https://www.rabbitmq.com/docs/quorum-queues#dead-lettering>
    async fn dead_letters_at_least_once(&self, topology: &Topology) -> Result<(), BrokerError> {
        let channel = self.channel().await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
        let impossible = QueueDeclareOptions { durable: true, exclusive: true, ..QueueDeclareOptions::default() };
        let Err(error) = channel.queue_declare(topology.guard().as_str().into(), impossible, arguments).await else {
            // A broker that can do it lacks no flag; exclusive, it goes with the connection.
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
                    "it is not known whether RabbitMQ dead-letters at least once; before 3.12 let this login configure the queue \
                     that was asked for"
                );
                Ok(())
            }
            _ => Err(error.into()),
        }
    }
}

/// What could be lost by a difference, by the argument that RabbitMQ names in it.
pub(super) fn at_stake(difference: &str) -> &'static str {
    const STAKES: [(&str, &str); 7] = [
        ("'x-dead-letter-strategy'", "what expires while its lane is missing or full would be lost"),
        ("'x-overflow'", "dead-lettering would not be at least once, and a full queue would drop its head"),
        ("'x-delivery-limit'", "a wake-up that stops its workers would do so for ever, or be dropped"),
        ("'x-queue-type'", "what waits in it would not be replicated"),
        ("'x-dead-letter-exchange'", "what expires or is given up would not arrive where it should"),
        ("'x-message-ttl'", "wake-ups would come at another time than its name says"),
        ("'alternate-exchange'", "one message that no lane takes would jam its rung"),
    ];
    STAKES
        .iter()
        .find(|(argument, _)| difference.contains(argument))
        .map_or("it may not keep what it is given", |(_, stake)| stake)
}

//! The start-up guard: a process that takes wake-ups runs only on a broker that keeps them. What differs from our topology is
//! refused with what would be lost by it and what to do.

use lapin::{
    ErrorKind,
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};

use super::{Broker, BrokerError, close_channel};
use crate::topology::Topology;

impl Broker {
    /// Declares the topology, as [`Broker::declare`] does, and makes sure that the broker keeps what it promises.
    ///
    /// # Errors
    /// [`BrokerError::Inequivalent`] or [`BrokerError::Unsafe`]: do not take wake-ups then.
    pub async fn guard(&self, topology: &Topology) -> Result<(), BrokerError> {
        self.declare(topology).await?;
        self.dead_letters_at_least_once(topology).await
    }

    /// RabbitMQ 3.10 and 3.11 dead-letter at least once only with the feature flag `stream_queue`, and without it silently at
    /// most once. Whether a stream can be declared tells; later versions always have the flag.
    /// <https://www.rabbitmq.com/docs/quorum-queues#dead-lettering>
    async fn dead_letters_at_least_once(&self, topology: &Topology) -> Result<(), BrokerError> {
        let channel = self.channel().await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
        arguments.insert("x-initial-cluster-size".into(), AMQPValue::LongInt(1));
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let name = topology.guard();
        match channel.queue_declare(name.as_str().into(), durable, arguments).await {
            Ok(_) => {
                channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await?;
                close_channel(&channel).await;
                Ok(())
            }
            Err(error) => match error.kind() {
                ErrorKind::ProtocolError(said) if said.get_message().as_str().contains("feature flag") => {
                    Err(BrokerError::Unsafe(
                        "RabbitMQ lacks the feature flag stream_queue, without which expired wake-ups are dead-lettered at most \
                         once; run `rabbitmqctl enable_feature_flag stream_queue`"
                            .to_owned(),
                    ))
                }
                // Another process takes its probe away at this moment, or this user may declare nothing but ours.
                ErrorKind::ProtocolError(_) => {
                    tracing::debug!(%error, "not known whether RabbitMQ dead-letters at least once");
                    Ok(())
                }
                _ => Err(error.into()),
            },
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

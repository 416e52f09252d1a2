//! The start-up guard: a process that takes wake-ups runs only on a broker that keeps them. A topology that differs from ours
//! is refused, with what could be lost and what to do.

use lapin::{
    BasicProperties, ErrorKind,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};

use super::{Broker, BrokerError, close_channel, declare::PRECONDITION_FAILED};
use crate::message::{ladder::Hop, topology::Topology, wakeup::MESSAGE_MAX};

impl Broker {
    /// Declares or finds the topology, as [`Broker::declare_or_find`] does, and checks that the broker dead-letters at least
    /// once. Warns if the broker accepts messages larger than any of the fleet's.
    ///
    /// # Errors
    /// [`BrokerError::Inequivalent`] or [`BrokerError::Unsafe`]: do not take wake-ups. [`BrokerError::Missing`]: not yet.
    pub async fn guard(&self, topology: &Topology) -> Result<(), BrokerError> {
        self.declare_or_find(topology).await?;
        self.dead_letters_at_least_once(topology).await?;
        if self.accepts_large_messages(topology).await? {
            tracing::warn!(
                recommended = MESSAGE_MAX,
                "RabbitMQ accepts messages larger than the fleet's: each consumer may have to hold one as large as the broker's limit; \
                 set max_message_size = {MESSAGE_MAX} in rabbitmq.conf"
            );
        }
        Ok(())
    }

    /// Whether the broker accepts a message that is larger than [`MESSAGE_MAX`] by one byte. No AMQP method reports its limit, so
    /// this publishes one to the exchange of a rung, with a routing key that no queue of a rung is bound with. It is dropped there,
    /// or refused with an error that ends the channel, which RabbitMQ logs once for each start of a worker.
    #[expect(clippy::disallowed_methods, reason = "this message is not to arrive anywhere")]
    async fn accepts_large_messages(&self, topology: &Topology) -> Result<bool, BrokerError> {
        let Some(rung) = topology.ladder().rungs().first() else { return Ok(false) };
        let channel = self.channel().await?;
        self.answered(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let (exchange, nowhere) = (topology.exchange_of(Hop::Rung(*rung)), "size");
        let probe = vec![0; MESSAGE_MAX + 1];
        let published = self.answered(async {
            let options = BasicPublishOptions::default();
            channel
                .basic_publish(exchange.as_str().into(), nowhere.into(), options, &probe, BasicProperties::default())
                .await?
                .await
        });
        match published.await {
            Ok(_) => {
                close_channel(&channel).await;
                Ok(true)
            }
            Err(BrokerError::Protocol(error)) if matches!(error.kind(), ErrorKind::ProtocolError(_)) => Ok(false),
            Err(error) => Err(error),
        }
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

//! Bare lapin loops without the fleet: the ceilings of publishing, scheduling and punctuality.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use lapin::{
    Channel, Confirmation, Connection, ConnectionProperties, Consumer,
    message::Delivery,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, QueuePurgeOptions,
    },
    types::FieldTable,
};
use shared::{broker::close_channel, message::outgoing::Outgoing, settings::Settings};
use tokio::time::Instant;

use crate::figure::number;

/// Publishes in flight, as many as the fleet's.
const IN_FLIGHT: usize = 1_024;
/// The prefetch of a bare consumer.
const PREFETCH: u16 = 1_024;
/// Timeout of waiting for an expected message.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection and one channel in confirm mode.
pub struct Bare {
    connection: Connection,
    channel: Channel,
}

impl Bare {
    pub async fn connect(settings: &Settings) -> Result<Self> {
        let properties = ConnectionProperties::default().with_connection_name("kyhan bench".into());
        let connection = Connection::connect(settings.amqp.url.expose(), properties).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, channel })
    }

    /// Publishes everything, pipelined, and returns the confirms per second. The messages are made before the clock starts.
    pub async fn publish(&self, messages: &[Outgoing]) -> Result<f64> {
        let began = Instant::now();
        // Poll the publishes together, because one after the other would wait for the socket each time.
        stream::iter(messages).map(|message| self.publish_one(message)).buffer_unordered(IN_FLIGHT).try_collect::<()>().await?;
        Ok(number(messages.len()) / began.elapsed().as_secs_f64())
    }

    #[expect(clippy::disallowed_methods, reason = "the bare loop that the fleet's publishing is measured against")]
    async fn publish_one(&self, message: &Outgoing) -> Result<()> {
        let Outgoing { exchange, routing_key, properties, body } = message;
        let (exchange, routing_key) = (exchange.as_str().into(), routing_key.as_str().into());
        let options = BasicPublishOptions::default();
        let sent = self.channel.basic_publish(exchange, routing_key, options, body, properties.clone()).await?;
        ensure!(matches!(sent.await?, Confirmation::Ack(None)), "RabbitMQ did not take a message");
        Ok(())
    }

    /// Publishes each message at its scheduled time, however long the earlier ones take.
    pub async fn publish_at(self: Arc<Self>, messages: Vec<(Instant, Outgoing)>) -> Result<()> {
        let mut sending = tokio::task::JoinSet::new();
        for (moment, message) in messages {
            tokio::time::sleep_until(moment).await;
            let bare = Arc::clone(&self);
            sending.spawn(async move { bare.publish_one(&message).await });
        }
        while let Some(sent) = sending.join_next().await {
            sent??;
        }
        Ok(())
    }

    /// Consumes and acks `count` messages of a queue, and passes each to `see` on arrival.
    pub async fn take(&self, queue: &str, count: usize, mut see: impl FnMut(Delivery) -> Result<()>) -> Result<()> {
        let channel = self.connection.create_channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let none = FieldTable::default;
        let mut consumer = channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), none()).await?;
        let mut unacked = 0;
        for left in (0..count).rev() {
            let delivery = next(&mut consumer).await.with_context(|| format!("{} more should be in {queue}", left + 1))?;
            let tag = delivery.delivery_tag;
            see(delivery)?;
            unacked += 1;
            if left == 0 || unacked >= PREFETCH / 4 {
                ack_up_to(&channel, tag).await?;
                unacked = 0;
            }
        }
        close_channel(&channel).await;
        Ok(())
    }

    pub async fn purge(&self, queue: &str) -> Result<()> {
        self.channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await?;
        Ok(())
    }

    pub async fn close(self) -> Result<()> {
        close_channel(&self.channel).await;
        Ok(self.connection.close(200, "done".into()).await?)
    }
}

async fn next(consumer: &mut Consumer) -> Result<Delivery> {
    let next = tokio::time::timeout(PATIENCE, consumer.next()).await.context("nothing comes")?;
    Ok(next.context("the consumer was cancelled")??)
}

#[expect(clippy::disallowed_methods, reason = "a bare consumer of the bench, which is no part of the fleet")]
async fn ack_up_to(channel: &Channel, tag: u64) -> Result<()> {
    Ok(channel.basic_ack(tag, BasicAckOptions { multiple: true }).await?)
}

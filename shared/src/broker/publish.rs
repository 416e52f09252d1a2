//! Publishing: pipelined, persistent and mandatory; a message counts as sent only when the broker has confirmed it.

use std::time::Duration;

use futures::{TryStreamExt, stream::FuturesUnordered};
use lapin::{Channel, Confirmation, ConnectionStatus, options::BasicPublishOptions};
use tokio::sync::Mutex;

use super::{BrokerError, close_channel, silent};
use crate::message::outgoing::Outgoing;

/// Most publishes that wait for their confirms at once on one channel.
const IN_FLIGHT_MAX: usize = 1_024;
/// The interval between checks whether the broker still blocks publishers.
const BLOCKED_POLL: Duration = Duration::from_millis(200);

/// A channel in confirm mode, the only way to publish.
///
/// RabbitMQ returns a message without naming the publish, and lapin attaches it to the next confirm. So a channel publishes
/// for one caller at a time, and no longer publishes once an answer for a caller that has gone may still arrive.
pub struct Publisher {
    pub(super) channel: Channel,
    pub(super) status: ConnectionStatus,
    pub(super) confirm_timeout: Duration,
    /// Whether every publish so far was answered.
    pub(super) sound: Mutex<bool>,
}

impl Publisher {
    /// Publishes all of `messages`, pipelined, and waits until each is confirmed.
    ///
    /// # Errors
    /// The first failure. Some of the messages may have been sent then; it is safe to send all of them again, over another
    /// channel, as the recheck decides. [`BrokerError::Unsound`] on a channel that failed earlier.
    pub async fn publish_all(&self, messages: &[Outgoing]) -> Result<(), BrokerError> {
        if messages.is_empty() {
            return Ok(());
        }
        let mut sound = self.sound.lock().await;
        // If the caller is cancelled midway, it stays false.
        if !std::mem::take(&mut *sound) {
            return Err(BrokerError::Unsound);
        }
        self.pipelined(messages).await?;
        *sound = true;
        Ok(())
    }

    async fn pipelined(&self, messages: &[Outgoing]) -> Result<(), BrokerError> {
        let mut waiting = FuturesUnordered::new();
        for message in messages {
            if waiting.len() >= IN_FLIGHT_MAX {
                waiting.try_next().await?;
            }
            waiting.push(self.publish(message));
        }
        waiting.try_collect().await
    }

    #[expect(clippy::disallowed_methods, reason = "the one owner of publishing: mandatory, confirmed, returned messages read")]
    async fn publish(&self, message: &Outgoing) -> Result<(), BrokerError> {
        let Outgoing { exchange, routing_key, properties, body } = message;
        let sent = async {
            // Mandatory: a message that no queue takes comes back instead of vanishing.
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            self.channel
                .basic_publish(exchange.as_str().into(), routing_key.as_str().into(), options, body, properties.clone())
                .await?
                .await
        };
        let confirmation =
            tokio::time::timeout(self.confirm_timeout, sent).await.map_err(|_| silent(&self.status, self.confirm_timeout))??;
        match confirmation {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(returned)) => {
                let reply = format!("{} {}", returned.reply_code, returned.reply_text);
                Err(BrokerError::Returned { exchange: exchange.clone(), routing_key: routing_key.clone(), reply })
            }
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(BrokerError::Nacked { exchange: exchange.clone() }),
        }
    }

    /// Whether the connection is still open, for callers with nothing to publish.
    ///
    /// # Errors
    /// [`BrokerError::Lost`].
    pub fn check(&self) -> Result<(), BrokerError> {
        if self.status.connected() { Ok(()) } else { Err(BrokerError::Lost) }
    }

    /// Waits until an alarm of the broker ends, or the connection is lost. RabbitMQ reports that it blocks only after a
    /// publish, and reports when the alarm is over.
    pub async fn unblocked(&self) {
        while self.status.blocked() && self.status.connected() {
            tokio::time::sleep(BLOCKED_POLL).await;
        }
    }

    /// Closes the channel.
    pub async fn close(self) {
        close_channel(&self.channel).await;
    }
}

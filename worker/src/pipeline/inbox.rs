//! Inbox: the deliveries of a consumer that are not settled, bounded in bytes. AMQP bounds them only in number, so what exceeds the bound is
//! returned to its queue unread, and the consumer is cancelled; the next one begins with a smaller [`super::prefetch`].

use std::collections::VecDeque;

use futures::{FutureExt, StreamExt};
use lapin::{Channel, Consumer, message::Delivery, options::BasicCancelOptions};
use shared::{broker::BrokerError, message::dead_letter::memory_of};

use super::settle::return_unread;

/// Most bytes that a consumer holds, in deliveries that wait and in the batch in hand; one message may exceed it.
pub(crate) const HELD_MAX: usize = 4 * 1024 * 1024;

/// The memory that a delivery takes: its buffer, and its headers, which take up to 60 times as much as on the wire.
pub(crate) fn weight_of(delivery: &Delivery) -> usize {
    delivery.data.capacity() + delivery.properties.headers().as_ref().map_or(0, memory_of)
}

/// A consumer and the deliveries that it has taken from its connection.
pub struct Inbox {
    channel: Channel,
    consumer: Consumer,
    waiting: VecDeque<Delivery>,
    /// The bytes that wait, and those of the batch in hand.
    bytes: usize,
    in_hand: usize,
    /// The largest delivery since it was last asked for.
    largest: usize,
    cancelled: bool,
    /// How the consumer ended.
    end: Option<BrokerError>,
}

impl Inbox {
    pub(crate) const fn new(channel: Channel, consumer: Consumer) -> Self {
        Self { channel, consumer, waiting: VecDeque::new(), bytes: 0, in_hand: 0, largest: 0, cancelled: false, end: None }
    }

    /// The next delivery; it counts as in hand until the end of the next [`Inbox::during`].
    ///
    /// # Errors
    /// The consumer, its channel or its connection is gone, and nothing waits any more.
    pub(crate) async fn next(&mut self) -> Result<Delivery, BrokerError> {
        if let Some(delivery) = self.waiting.pop_front() {
            let weight = weight_of(&delivery);
            self.bytes -= weight;
            self.in_hand += weight;
            return Ok(delivery);
        }
        let delivery = self.receive().await?;
        self.in_hand += weight_of(&delivery);
        Ok(delivery)
    }

    /// A delivery from the connection.
    async fn receive(&mut self) -> Result<Delivery, BrokerError> {
        if let Some(error) = &self.end {
            return Err(error.clone());
        }
        let error = match self.consumer.next().await {
            Some(Ok(delivery)) => {
                self.largest = self.largest.max(weight_of(&delivery));
                return Ok(delivery);
            }
            Some(Err(error)) => error.into(),
            None => BrokerError::Cancelled,
        };
        self.end = Some(error.clone());
        Err(error)
    }

    /// Does `work` on the batch in hand, and meanwhile takes what arrives from the connection, which would otherwise keep all of it.
    pub(crate) async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => {
                    self.in_hand = 0;
                    return done;
                }
                arrived = self.receive(), if self.end.is_none() => {
                    let Ok(delivery) = arrived else { continue };
                    let weight = weight_of(&delivery);
                    if self.bytes + self.in_hand + weight <= HELD_MAX {
                        self.bytes += weight;
                        self.waiting.push_back(delivery);
                    } else {
                        self.cancel();
                        return_unread(&self.channel, delivery.delivery_tag);
                    }
                }
            }
        }
    }

    /// Cancels the consumer. Deliveries up to the cancel still arrive, so none returns to the queue only because of it.
    pub(crate) fn cancel(&mut self) {
        if std::mem::replace(&mut self.cancelled, true) {
            return;
        }
        let (channel, tag) = (self.channel.clone(), self.consumer.tag());
        // Not awaited here: the answer comes only behind the deliveries that are on their way, which must be taken meanwhile. An error ends
        // the consumer, too.
        tokio::spawn(async move { channel.basic_cancel(tag, BasicCancelOptions::default()).await });
    }

    /// Whether it was cancelled here, and so ends without an error.
    pub(crate) const fn is_cancelled(&self) -> bool {
        self.cancelled
    }

    /// The weight of the largest delivery since the last call.
    pub(crate) const fn take_largest(&mut self) -> usize {
        std::mem::replace(&mut self.largest, 0)
    }

    /// Whether nothing was delivered that is not settled, and nothing will be. Cancels the consumer.
    pub(crate) async fn holds_nothing(&mut self) -> bool {
        if !self.waiting.is_empty() || self.consumer.next().now_or_never().flatten().is_some() {
            return false;
        }
        // If the channel is gone, all deliveries have returned to the queue.
        let cancelled = self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default()).await;
        cancelled.is_err() || self.consumer.next().now_or_never().flatten().is_none()
    }
}

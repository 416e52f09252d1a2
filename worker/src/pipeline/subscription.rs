//! One consumer on its own channel, and how much it takes: its prefetch and the limits of its next batch.

use lapin::{
    Channel,
    options::{BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use shared::broker::BrokerError;

use super::{
    batch::{self, Batch, BatchEnd, BatchLimits},
    handler::Handler,
    inbox::Inbox,
    prefetch::Prefetch,
};
use crate::context::Context;

/// What a subscription consumes.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub channel: &'a Channel,
    pub queue: &'a str,
    /// The number of the consumer among the worker's consumers of the queue.
    pub number: usize,
}

pub(super) struct Subscription<'a> {
    source: Source<'a>,
    inbox: Inbox,
    prefetch: Prefetch,
    limits: BatchLimits,
    next: BatchLimits,
}

impl<'a> Subscription<'a> {
    pub(super) async fn start(source: Source<'a>, prefetch: Prefetch, limits: BatchLimits) -> Result<Self, BrokerError> {
        let inbox = source.consume(&prefetch).await?;
        Ok(Self { source, inbox, prefetch, limits, next: limits })
    }

    /// Takes the next batch.
    pub(super) async fn fill(&mut self, handler: Handler, context: &Context) -> (Batch, BatchEnd) {
        let barred = context.barred(handler.kind());
        batch::fill(&mut self.inbox, handler.kind(), self.next, barred, &context.shutdown).await
    }

    /// Adapts the limits and the prefetch to a batch.
    pub(super) fn adapt(&mut self, batch: &Batch) {
        self.next = self.limits.after(batch);
        if !batch.is_empty() && self.prefetch.follows(batch, self.inbox.take_largest()) {
            self.inbox.cancel();
        }
    }

    /// Does `work` on the batch in hand, and meanwhile bounds what arrives.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        self.inbox.during(work).await
    }

    /// Goes on after the consumer was lost, if it was cancelled to consume again with another prefetch.
    pub(super) async fn recover(&mut self, lost: BrokerError) -> Result<(), BrokerError> {
        if !(self.inbox.is_cancelled() && matches!(lost, BrokerError::Cancelled)) {
            return Err(lost);
        }
        self.prefetch.fits(self.inbox.take_largest());
        self.inbox = self.source.consume(&self.prefetch).await?;
        Ok(())
    }

    /// Whether the consumer has no untaken delivery, and will get none. Cancels the consumer.
    pub(super) async fn holds_nothing(&mut self) -> bool {
        self.inbox.holds_nothing().await
    }
}

impl Source<'_> {
    async fn consume(self, prefetch: &Prefetch) -> Result<Inbox, BrokerError> {
        // Per consumer, not global: quorum queues do not support a global prefetch, and RabbitMQ 4 refuses it.
        self.channel.basic_qos(prefetch.messages(), BasicQosOptions { global: false }).await?;
        // The first consumer of each worker gets the messages while it can take them, so that light traffic becomes a few batches and not
        // many transactions with one message each. <https://www.rabbitmq.com/docs/consumer-priority>
        let mut arguments = FieldTable::default();
        let priority = i32::try_from(self.number).map_or(i32::MIN, |number| -number);
        arguments.insert("x-priority".into(), AMQPValue::LongInt(priority));
        let consumer =
            self.channel.basic_consume(self.queue.into(), "".into(), BasicConsumeOptions::default(), arguments).await?;
        Ok(Inbox::new(self.channel.clone(), consumer))
    }
}

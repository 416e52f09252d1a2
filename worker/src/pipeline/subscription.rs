//! One consumer on its own channel, and how much it takes: its prefetch and the limits of its next batch.

use futures::{FutureExt, StreamExt};
use lapin::{
    Channel, Consumer,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use shared::broker::BrokerError;

use super::{
    batch::{self, Batch, BatchEnd, BatchLimits},
    handler::Handler,
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
    consumer: Consumer,
    prefetch: Prefetch,
    limits: BatchLimits,
    next: BatchLimits,
    /// Whether the consumer is cancelled, to consume again with another prefetch after its last deliveries.
    renewing: bool,
}

impl<'a> Subscription<'a> {
    pub(super) async fn start(source: Source<'a>, prefetch: Prefetch, limits: BatchLimits) -> Result<Self, BrokerError> {
        let consumer = source.consume(&prefetch).await?;
        Ok(Self { source, consumer, prefetch, limits, next: limits, renewing: false })
    }

    /// Takes the next batch.
    pub(super) async fn fill(&mut self, handler: Handler, context: &Context) -> (Batch, BatchEnd) {
        let barred = context.barred(handler.kind());
        batch::fill(&mut self.consumer, handler.kind(), self.next, barred, &context.shutdown).await
    }

    /// Adapts the limits and the prefetch to a batch.
    pub(super) async fn adapt(&mut self, batch: &Batch) -> Result<(), BrokerError> {
        self.next = self.limits.after(batch);
        if !batch.is_empty() && self.prefetch.follows(batch) && !self.renewing {
            // Deliveries up to the cancel still arrive, so no message returns to the queue and counts as delivered again.
            self.source.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default()).await?;
            self.renewing = true;
        }
        Ok(())
    }

    /// Goes on after the consumer was lost, if it was cancelled to consume again.
    pub(super) async fn recover(&mut self, lost: BrokerError) -> Result<(), BrokerError> {
        if !(self.renewing && matches!(lost, BrokerError::Cancelled)) {
            return Err(lost);
        }
        self.consumer = self.source.consume(&self.prefetch).await?;
        self.renewing = false;
        Ok(())
    }

    /// Whether the consumer has no untaken delivery, and will get none. Cancels the consumer.
    pub(super) async fn holds_nothing(&mut self) -> bool {
        if self.consumer.next().now_or_never().flatten().is_some() {
            return false;
        }
        // If the channel is gone, all deliveries have returned to the queue.
        let cancelled = self.source.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default()).await;
        cancelled.is_err() || self.consumer.next().now_or_never().flatten().is_none()
    }
}

impl Source<'_> {
    async fn consume(self, prefetch: &Prefetch) -> Result<Consumer, BrokerError> {
        // Per consumer, not global: quorum queues do not support a global prefetch, and RabbitMQ 4 refuses it.
        self.channel.basic_qos(prefetch.messages(), BasicQosOptions { global: false }).await?;
        // The first consumer of each worker gets the messages while it can take them, so that light traffic becomes a few batches and not
        // many transactions with one message each. <https://www.rabbitmq.com/docs/consumer-priority>
        let mut arguments = FieldTable::default();
        let priority = i32::try_from(self.number).map_or(i32::MIN, |number| -number);
        arguments.insert("x-priority".into(), AMQPValue::LongInt(priority));
        Ok(self.channel.basic_consume(self.queue.into(), "".into(), BasicConsumeOptions::default(), arguments).await?)
    }
}

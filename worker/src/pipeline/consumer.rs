//! A queue's consumers: each takes messages over its own channel and hands them to the queue's handler, batch after batch, in delivery
//! order. While one waits for a commit, the others go on. They share one connection to consume and one to publish, so that they can still
//! ack while the broker blocks publishers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::try_join_all;
use shared::{
    broker::{Broker, BrokerError, close_channel},
    database::pause::Pause,
    domain::{span::signed_ms, tasks},
    message::topology::{CANARY, Topology},
    process::{
        backoff::backoff,
        health::{Health, HealthPart, UNREACHED},
    },
};

use super::{
    batch::{Batch, BatchEnd},
    handler::{Hand, Handler, StopReason},
    patience::{Patience, Pauses},
    settle::Settle,
    subscription::{Source, Subscription},
};
use crate::{context::Context, watch::WATCH_EVERY};

/// How long a consumer of a paused kind keeps its deliveries before it returns them to the lane. By then every worker has read the pause.
/// A worker that has not would take them, which counts as one more delivery.
const RETURN_AFTER: Duration = WATCH_EVERY.saturating_add(Duration::from_secs(1));

/// The consumers of every queue except the rungs.
pub(crate) fn all(topology: &Topology, consumers: u16, health: &Health) -> Vec<Consumers> {
    let of = |handler, queue: String, routing_key, consumers| {
        let part = |number| {
            let part = health.part(format!("{queue} #{number}"));
            part.down(UNREACHED);
            part
        };
        Consumers { handler, parts: (0..consumers).map(part).collect(), queue, routing_key }
    };
    let mut all = Vec::new();
    for shard in 0..topology.shards() {
        for task in tasks::ALL {
            let (kind, most) = (task.kind(), task.batches_at_once().unwrap_or(u16::MAX));
            let routing_key = Some(Topology::routing_key(kind, shard));
            all.push(of(Handler::Lane(kind), topology.lane(kind, shard), routing_key, consumers.min(most)));
        }
        all.push(of(Handler::Canaries, topology.lane(CANARY, shard), None, 1));
    }
    all.push(of(Handler::Quarantine, topology.quarantine(), None, 1));
    for queue in [topology.dead(), topology.unrouted()] {
        all.push(of(Handler::DeadLetters, queue, None, 1));
    }
    all
}

/// One queue and its consumers.
pub(crate) struct Consumers {
    pub handler: Handler,
    pub queue: String,
    /// The routing key of its messages; `None` for a queue that gets messages of many lanes.
    pub routing_key: Option<String>,
    /// The health part of each consumer. They exist from the start, so that the process is not ready before all consumers are.
    pub parts: Vec<HealthPart>,
}

impl Consumers {
    /// Consumes until shutdown, and reconnects when a connection is lost.
    pub(crate) async fn run(self, context: Arc<Context>) {
        let (mut pauses, mut before) = (None, None);
        while let Some((broker, outlet)) = connect(&context).await {
            let settled = AtomicU64::new(0);
            let again = pauses.is_some();
            let served = async {
                if again {
                    // The worker checked the topology at start, but a broker that was lost may have come back empty.
                    broker.declare_or_find(&context.topology).await?;
                }
                // A lost channel ends all consumers of the queue, because the connection is probably lost, too.
                try_join_all((0..self.parts.len()).map(|number| self.attend(number, &broker, &outlet, &context, &settled))).await
            };
            let served = served.await;
            outlet.close().await;
            broker.close().await;
            let Err(error) = served else { return };
            if !error.repeats(before.as_ref()) {
                tracing::warn!(lane = self.queue, %error, "lost RabbitMQ; unsettled wake-ups return to their lane");
            }
            for part in &self.parts {
                part.down(error.to_string());
            }
            before = Some(error);
            pause(&mut pauses, settled.into_inner(), &context).await;
        }
    }

    /// Runs one consumer until shutdown. During an outage of PostgreSQL, or while the kind is paused, the consumer is cancelled: its
    /// prefetched messages return to the lane, which then has no consumer.
    async fn attend(
        &self,
        number: usize,
        broker: &Broker,
        outlet: &Broker,
        context: &Context,
        settled: &AtomicU64,
    ) -> Result<(), BrokerError> {
        let (mut pauses, part) = (None, &self.parts[number]);
        loop {
            if self.rest(part, context).await.is_none() {
                return Ok(());
            }
            let before = settled.load(Ordering::Relaxed);
            match self.serve(number, broker, outlet, context, settled).await? {
                StopReason::Shutdown => return Ok(()),
                StopReason::Outage => part.down("PostgreSQL is away; nothing is consumed"),
                StopReason::Paused { .. } => {}
            }
            context.shutdown.run_until_cancelled(context.postgres.ended()).await;
            pause(&mut pauses, settled.load(Ordering::Relaxed) - before, context).await;
        }
    }

    /// Waits while the lane's kind is paused; `None` on shutdown.
    async fn rest(&self, part: &HealthPart, context: &Context) -> Option<()> {
        while let Some(pause) = self.pause(context) {
            part.rests(pause.to_string());
            context.shutdown.run_until_cancelled(self.resumed(context)).await?;
        }
        Some(())
    }

    fn pause(&self, context: &Context) -> Option<Pause> {
        self.handler.kind().and_then(|kind| context.paused.of(kind))
    }

    async fn resumed(&self, context: &Context) {
        if let Some(kind) = self.handler.kind() {
            context.paused.ended(kind).await;
        }
    }

    /// Consumes over one channel; `settled` counts the settled batches.
    async fn serve(
        &self,
        number: usize,
        broker: &Broker,
        outlet: &Broker,
        context: &Context,
        settled: &AtomicU64,
    ) -> Result<StopReason, BrokerError> {
        let (worker, part) = (&context.settings.worker, &self.parts[number]);
        let settle = Settle {
            channel: broker.channel().await?,
            publisher: outlet.publisher().await?,
            topology: &context.topology,
            detours: &context.detours,
            routing_key: self.routing_key.clone(),
            worker,
            name: &context.name,
            pack_max: context.settings.naming.pack_max,
        };
        let (prefetch, limits) = self.handler.limits(worker);
        let source = Source { channel: &settle.channel, queue: &self.queue, number };
        let mut subscription = Subscription::start(source, prefetch, limits).await?;
        part.up();
        let stop = loop {
            if let Some(stop) = self.step(&mut subscription, part, &settle, context, settled).await? {
                break stop;
            }
        };
        if matches!(stop, StopReason::Paused { holds_messages: true }) {
            self.keep_deliveries(part, context).await;
        }
        // Closing the channel returns the unsettled messages to the queue.
        close_channel(&settle.channel).await;
        settle.publisher.close().await;
        Ok(stop)
    }

    /// Takes one batch and processes it; returns why the consumer has to stop, if it has to.
    async fn step(
        &self,
        subscription: &mut Subscription<'_>,
        part: &HealthPart,
        settle: &Settle<'_>,
        context: &Context,
        settled: &AtomicU64,
    ) -> Result<Option<StopReason>, BrokerError> {
        let (batch, end) = subscription.fill(self.handler, context).await;
        match end {
            BatchEnd::Outage => return Ok(Some(StopReason::Outage)),
            BatchEnd::Paused => {
                let holds_messages = !batch.is_empty() || !subscription.holds_nothing().await;
                return Ok(Some(StopReason::Paused { holds_messages }));
            }
            BatchEnd::Full | BatchEnd::Shutdown | BatchEnd::Lost(_) => {}
        }
        subscription.adapt(&batch);
        if !batch.is_empty() {
            if let Some(stop) = subscription.during(self.hold(batch, part, settle, context)).await? {
                return Ok(Some(stop));
            }
            settled.fetch_add(1, Ordering::Relaxed);
        }
        match end {
            BatchEnd::Shutdown => Ok(Some(StopReason::Shutdown)),
            BatchEnd::Lost(error) => subscription.recover(error).await.map(|()| None),
            BatchEnd::Full | BatchEnd::Outage | BatchEnd::Paused => Ok(None),
        }
    }

    /// Keeps the deliveries of a paused kind for [`RETURN_AFTER`]. The consumer is not cancelled here: RabbitMQ 3.10 redelivers what one
    /// cancelled consumer returns to another one, and counts each delivery.
    async fn keep_deliveries(&self, part: &HealthPart, context: &Context) {
        if let Some(pause) = self.pause(context) {
            part.rests(pause.to_string());
            let resumed = tokio::time::timeout(RETURN_AFTER, self.resumed(context));
            context.shutdown.run_until_cancelled(resumed).await;
        }
    }

    /// Processes a batch. If it waits for a server longer than `worker.hold_ms`, its messages return to the queue, before RabbitMQ closes
    /// the channel by its `consumer_timeout`. Processing goes on waiting, and so detects the end of the outage.
    async fn hold(
        &self,
        batch: Batch,
        part: &HealthPart,
        settle: &Settle<'_>,
        context: &Context,
    ) -> Result<Option<StopReason>, BrokerError> {
        let patience = Patience::new(&context.postgres, &context.abandon);
        let hand = Hand { queue: &self.queue, settle, context, patience: &patience };
        let mut processing = std::pin::pin!(self.handler.handle(batch, &hand));
        let hold = context.settings.worker.hold;
        tokio::select! {
            done = &mut processing => return done,
            () = patience.longer_than(hold) => {}
        }
        tracing::warn!(
            lane = self.queue,
            hold_ms = signed_ms(hold),
            "a batch waited longer than worker.hold_ms; it returns to its queue"
        );
        part.down("waiting for a server; holds no messages");
        close_channel(&settle.channel).await;
        // The messages have returned to the queue. Processing ends with an error at the ack, because the channel is closed.
        processing.await
    }
}

/// Waits before the next try. The pause grows while nothing is settled in between, because each try counts as one more delivery of the
/// prefetched messages.
async fn pause(pauses: &mut Option<Pauses>, settled: u64, context: &Context) {
    if settled > 0 {
        *pauses = None;
    }
    let pause = pauses.get_or_insert_with(|| Box::new(backoff())).next().unwrap_or_default();
    context.shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
}

/// A connection to consume and one to publish; `None` on shutdown.
async fn connect(context: &Context) -> Option<(Broker, Broker)> {
    let (amqp, outage, shutdown) = (&context.settings.amqp, &context.rabbitmq, &context.shutdown);
    let broker = Broker::connect_until(amqp, "kyhan worker", outage, shutdown).await?;
    let Some(outlet) = Broker::connect_until(amqp, "kyhan worker, publishing", outage, shutdown).await else {
        broker.close().await;
        return None;
    };
    Some((broker, outlet))
}

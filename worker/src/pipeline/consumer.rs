//! A queue's consumers: each takes messages over a channel of its own and leads them through the rooms, batch after batch, in the order in
//! which they came; while one waits for a commit, the others apply. They share a connection, and a second one for what they publish, so that
//! a broker that blocks publishers does not keep them from acking.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::try_join_all};
use lapin::{
    Channel, Consumer,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use shared::{
    broker::{Broker, BrokerError, close_channel},
    database::pause::Pause,
    domain::tasks,
    message::topology::{CANARY, Topology},
    process::{
        backoff::backoff,
        health::{Health, Part, UNREACHED},
    },
};

use super::{
    batch::{self, Batch, End},
    handler::{Hand, Handler, Stop},
    patience::Patience,
    prefetch::Prefetch,
    settle::Settle,
};
use crate::{context::Context, watch::WATCH_EVERY};

/// How long what was delivered of a kind that turns out to be paused is kept before it returns to its lane: by then every worker has
/// looked. Those that have not would take it, and it would be counted as delivered each time.
const RETURN_AFTER: Duration = WATCH_EVERY.saturating_add(Duration::from_secs(1));

/// The consumers of every queue but the rungs.
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
    /// By which its messages come; `None` where they are of many lanes.
    pub routing_key: Option<String>,
    /// How each of its consumers is. From the start, so that the process is not ready before all of them are.
    pub parts: Vec<Part>,
}

impl Consumers {
    /// Serves until told to shut down, over one pair of connections after the other.
    pub(crate) async fn run(self, context: Arc<Context>) {
        let (mut pauses, mut before) = (None, None);
        while let Some((broker, outlet)) = connect(&context).await {
            let settled = AtomicU64::new(0);
            let again = pauses.is_some();
            let served = async {
                if again {
                    // The worker has declared or found everything once; a broker that was lost may have come back empty.
                    broker.declare_or_find(&context.topology).await?;
                }
                // Whoever loses its channel ends them all: the broker has something against this connection, or is gone.
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

    /// One consumer, until told to shut down. In an outage of PostgreSQL it leaves, and what it had prefetched is back in the lane,
    /// where nobody takes it while it could not be applied; and likewise while its kind is paused.
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
                Stop::Shutdown => return Ok(()),
                Stop::Outage => part.down("PostgreSQL is away; nothing is taken"),
                Stop::Paused => {}
            }
            context.shutdown.run_until_cancelled(context.postgres.ended()).await;
            pause(&mut pauses, settled.load(Ordering::Relaxed) - before, context).await;
        }
    }

    /// Rests for as long as the lane's kind is paused; `None` when told to shut down meanwhile.
    async fn rest(&self, part: &Part, context: &Context) -> Option<()> {
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

    /// Serves over one channel; `settled` counts the batches.
    async fn serve(
        &self,
        number: usize,
        broker: &Broker,
        outlet: &Broker,
        context: &Context,
        settled: &AtomicU64,
    ) -> Result<Stop, BrokerError> {
        let (worker, part) = (&context.settings.worker, &self.parts[number]);
        let settle = Settle {
            channel: broker.channel().await?,
            publisher: outlet.publisher().await?,
            topology: &context.topology,
            routing_key: self.routing_key.clone(),
            worker,
            name: &context.name,
            pack_max: context.settings.naming.pack_max,
        };
        let (mut prefetch, limits) = self.handler.limits(worker);
        let mut consumer = consume(&settle.channel, &self.queue, &prefetch, number).await?;
        part.up();
        let mut now = limits;
        let (mut again, mut empty_handed) = (false, false);
        let stop = loop {
            let barred = context.barred(self.handler.kind());
            let (batch, end) = batch::fill(&mut consumer, self.handler.kind(), now, barred, &context.shutdown).await;
            match end {
                End::Outage => break Stop::Outage,
                End::Paused => {
                    empty_handed = batch.is_empty() && holds_nothing(&settle.channel, &mut consumer).await;
                    break Stop::Paused;
                }
                End::Full | End::Shutdown | End::Lost(_) => {}
            }
            now = limits.after(&batch);
            if !batch.is_empty() {
                if prefetch.follows(&batch) && !again {
                    // What was delivered until then still comes, so nothing goes back and counts as delivered once more.
                    settle.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
                    again = true;
                }
                if let Some(stop) = self.hold(batch, part, &settle, context).await? {
                    break stop;
                }
                settled.fetch_add(1, Ordering::Relaxed);
            }
            match end {
                End::Full | End::Outage | End::Paused => {}
                End::Lost(BrokerError::Cancelled) if again => {
                    consumer = consume(&settle.channel, &self.queue, &prefetch, number).await?;
                    again = false;
                }
                End::Shutdown => break Stop::Shutdown,
                End::Lost(error) => return Err(error),
            }
        };
        if let (Stop::Paused, Some(pause), false) = (&stop, self.pause(context), empty_handed) {
            part.rests(pause.to_string());
            // It is not cancelled: among cancelled consumers RabbitMQ 3.10 passes round what one of them returns, and counts each time.
            let resumed = tokio::time::timeout(RETURN_AFTER, self.resumed(context));
            context.shutdown.run_until_cancelled(resumed).await;
        }
        // Closing the channel returns what was prefetched and not settled.
        close_channel(&settle.channel).await;
        settle.publisher.close().await;
        Ok(stop)
    }

    /// Holds a batch while it is processed. One that waits too long for a server returns to its lane, before RabbitMQ loses its
    /// patience with this consumer; the waiting goes on without it, and its end is the end of the outage.
    async fn hold(&self, batch: Batch, part: &Part, settle: &Settle<'_>, context: &Context) -> Result<Option<Stop>, BrokerError> {
        let patience = Patience::new(&context.postgres, &context.abandon);
        let hand = Hand { queue: &self.queue, settle, context, patience: &patience };
        let mut processing = std::pin::pin!(self.handler.handle(batch, &hand));
        let hold = context.settings.worker.hold;
        tokio::select! {
            done = &mut processing => return done,
            () = patience.longer_than(hold) => {}
        }
        tracing::warn!(lane = self.queue, hold_ms = hold.as_millis(), "held for too long: what is in hand returns to the lane");
        part.down("waits for a server; nothing is in hand");
        close_channel(&settle.channel).await;
        // What was taken returns by now. It ends with the ack, which this channel can give no more.
        processing.await
    }
}

/// Waits before the next try: longer each time that nothing was settled in between, as each time what was prefetched returns and has
/// been delivered once more.
async fn pause(pauses: &mut Option<Pauses>, settled: u64, context: &Context) {
    if settled > 0 {
        *pauses = None;
    }
    let pause = pauses.get_or_insert_with(|| Box::new(backoff())).next().unwrap_or_default();
    context.shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
}

type Pauses = Box<dyn Iterator<Item = Duration> + Send>;

/// A connection to consume over and one to publish over; `None` when told to shut down.
async fn connect(context: &Context) -> Option<(Broker, Broker)> {
    let (amqp, outage, shutdown) = (&context.settings.amqp, &context.rabbitmq, &context.shutdown);
    let broker = Broker::connect_until(amqp, "kyhan worker", outage, shutdown).await?;
    let Some(outlet) = Broker::connect_until(amqp, "kyhan worker, publishing", outage, shutdown).await else {
        broker.close().await;
        return None;
    };
    Some((broker, outlet))
}

/// Whether nothing was delivered to a consumer that is not yet taken, and nothing will be.
async fn holds_nothing(channel: &Channel, consumer: &mut Consumer) -> bool {
    if consumer.next().now_or_never().flatten().is_some() {
        return false;
    }
    // Of a channel that is gone everything has returned.
    let cancelled = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await;
    cancelled.is_err() || consumer.next().now_or_never().flatten().is_none()
}

async fn consume(channel: &Channel, queue: &str, prefetch: &Prefetch, number: usize) -> Result<Consumer, BrokerError> {
    // Per consumer, not global: quorum queues know no global prefetch, and RabbitMQ 4 refuses it.
    channel.basic_qos(prefetch.messages(), BasicQosOptions { global: false }).await?;
    // The first consumer of each worker gets what comes while it can take it, so that a little traffic is a few batches and not many
    // transactions of one. <https://www.rabbitmq.com/docs/consumer-priority>
    let mut arguments = FieldTable::default();
    arguments.insert("x-priority".into(), AMQPValue::LongInt(i32::try_from(number).map_or(i32::MIN, |number| -number)));
    Ok(channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), arguments).await?)
}

//! A lane's consumers: each takes messages over a channel of its own and leads them through the rooms, batch after batch, in the
//! order in which they came; while one waits for a commit, the others apply. They share a connection, and a second one for what
//! they publish, so that a broker that blocks publishers does not keep them from acking.

use std::{
    collections::HashMap,
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
use sea_orm::DatabaseConnection;
use shared::{
    broker::{Broker, BrokerError, close_channel},
    database::{pause::Pause, statements::Statements},
    message::topology::Topology,
    process::{backoff::backoff, health::Part, outage::Outage, telemetry},
    settings::Settings,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    WATCH_EVERY,
    apply::{self, Unanswered},
    batch::{self, Batch, End, Limits},
    canary,
    patience::Patience,
    paused::Paused,
    prefetch::Prefetch,
    settle::Settle,
    store,
    tally::Tally,
};

/// Most messages of a batch to whose producers its span links; a span is not a list of everything.
const LINKS_MAX: usize = 32;

/// How long what was delivered of a kind that turns out to be paused is kept before it returns to its lane: by then every worker has
/// looked. Those that have not would take it, and it would be counted as delivered each time.
const RETURN_AFTER: Duration = WATCH_EVERY.saturating_add(Duration::from_secs(1));

/// What all lanes of a worker share.
pub(crate) struct Context {
    pub settings: Settings,
    pub topology: Topology,
    /// This process: its host and pid.
    pub name: String,
    pub db: DatabaseConnection,
    /// Of every kind.
    pub statements: HashMap<&'static str, Statements>,
    pub tally: Arc<Tally>,
    pub postgres: Outage,
    pub rabbitmq: Outage,
    pub paused: Arc<Paused>,
    /// Stop taking.
    pub shutdown: CancellationToken,
    /// Stop waiting for a server, too.
    pub abandon: CancellationToken,
}

impl Context {
    /// Ends this life, as another policy is in force: the next one is lived by that.
    pub(crate) fn outdated(&self) {
        if !self.shutdown.is_cancelled() {
            tracing::info!("another policy is in force; the lanes begin anew by it");
            self.shutdown.cancel();
        }
    }

    /// Waits until nothing of a kind is to be taken, and says why.
    async fn barred(&self, kind: Option<&'static str>) -> End {
        tokio::select! {
            biased;
            () = self.postgres.began() => End::Outage,
            () = self.paused.began(kind) => End::Paused,
        }
    }
}

/// One queue and its consumers.
pub(crate) struct Lane {
    pub of: Of,
    pub queue: String,
    /// By which its messages come; `None` where they are of many lanes.
    pub routing_key: Option<String>,
    /// How each of its consumers is. From the start, so that the process is not ready before all of them are.
    pub parts: Vec<Part>,
}

/// Why a consumer has left its lane.
pub(crate) enum Left {
    ToldTo,
    /// PostgreSQL is away.
    Outage,
    /// The lane's kind is paused.
    Paused,
}

/// What a queue holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// Due wake-ups of a kind.
    Kind(&'static str),
    /// Wake-ups of any kind that were delivered too often: one is taken in hand at a time, so that one that stops its worker
    /// takes no other down with it.
    Quarantine,
    /// The rungs' canaries.
    Canaries,
    /// Dead letters, or messages that no lane took: they are stored.
    DeadLetters,
}

impl Of {
    const fn kind(self) -> Option<&'static str> {
        match self {
            Self::Kind(kind) => Some(kind),
            Self::Quarantine | Self::Canaries | Self::DeadLetters => None,
        }
    }
}

impl Lane {
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
                Left::ToldTo => return Ok(()),
                Left::Outage => part.down("PostgreSQL is away; nothing is taken"),
                Left::Paused => {}
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
        self.of.kind().and_then(|kind| context.paused.of(kind))
    }

    async fn resumed(&self, context: &Context) {
        if let Some(kind) = self.of.kind() {
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
    ) -> Result<Left, BrokerError> {
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
        let (mut prefetch, limits) = match self.of {
            Of::Kind(_) => (Prefetch::of(worker), Limits::from(worker)),
            Of::Canaries => (Prefetch::fixed(worker.prefetch), Limits::from(worker)),
            Of::Quarantine => (Prefetch::fixed(1), Limits::ALONE),
            Of::DeadLetters => (Prefetch::fixed(store::MESSAGES_MAX), Limits::of_letters(store::MESSAGES_MAX)),
        };
        let mut consumer = consume(&settle.channel, &self.queue, &prefetch, number).await?;
        part.up();
        let mut now = limits;
        let (mut again, mut empty_handed) = (false, false);
        let left = loop {
            let barred = context.barred(self.of.kind());
            let (batch, end) = batch::fill(&mut consumer, self.of.kind(), now, barred, &context.shutdown).await;
            match end {
                End::Outage => break Left::Outage,
                End::Paused => {
                    empty_handed = batch.is_empty() && holds_nothing(&settle.channel, &mut consumer).await;
                    break Left::Paused;
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
                if let Some(left) = self.hold(batch, part, &settle, context).await? {
                    break left;
                }
                settled.fetch_add(1, Ordering::Relaxed);
            }
            match end {
                End::Full | End::Outage | End::Paused => {}
                End::Lost(BrokerError::Cancelled) if again => {
                    consumer = consume(&settle.channel, &self.queue, &prefetch, number).await?;
                    again = false;
                }
                End::Shutdown => break Left::ToldTo,
                End::Lost(error) => return Err(error),
            }
        };
        if let (Left::Paused, Some(pause), false) = (&left, self.pause(context), empty_handed) {
            part.rests(pause.to_string());
            // It is not cancelled: among cancelled consumers RabbitMQ 3.10 passes round what one of them returns, and counts each time.
            let resumed = tokio::time::timeout(RETURN_AFTER, self.resumed(context));
            context.shutdown.run_until_cancelled(resumed).await;
        }
        // Closing the channel returns what was prefetched and not settled.
        close_channel(&settle.channel).await;
        settle.publisher.close().await;
        Ok(left)
    }

    /// Holds a batch while it is processed. One that waits too long for a server returns to its lane, before RabbitMQ loses its
    /// patience with this consumer; the waiting goes on without it, and its end is the end of the outage.
    async fn hold(&self, batch: Batch, part: &Part, settle: &Settle<'_>, context: &Context) -> Result<Option<Left>, BrokerError> {
        let patience = Patience::new(&context.postgres, &context.abandon);
        let mut processing = std::pin::pin!(self.process(batch, settle, context, &patience));
        let hold_ms = context.settings.worker.hold_ms;
        tokio::select! {
            done = &mut processing => return done,
            () = patience.longer_than(Duration::from_millis(hold_ms)) => {}
        }
        tracing::warn!(lane = self.queue, hold_ms, "held for too long: what is in hand returns to the lane");
        part.down("waits for a server; nothing is in hand");
        close_channel(&settle.channel).await;
        // What was taken returns by now. It ends with the ack, which this channel can give no more.
        processing.await
    }

    /// One batch through apply and settle; why to leave, when it was left unsettled.
    async fn process(
        &self,
        batch: Batch,
        settle: &Settle<'_>,
        context: &Context,
        patience: &Patience<'_>,
    ) -> Result<Option<Left>, BrokerError> {
        if self.of == Of::Canaries {
            return canary::process(&batch, settle, context, patience).await;
        }
        if self.of == Of::DeadLetters {
            let stored = store::process(batch, &self.queue, settle, context, patience).await?;
            return Ok((!stored).then_some(Left::ToldTo));
        }
        if self.of == Of::Quarantine
            && let Some((message, wakeup)) = batch.alone()
        {
            if context.paused.of(wakeup.kind).is_some() {
                return settle.send_home(message, wakeup, patience).await.map(|()| None);
            }
            if wakeup.subjects.len() > 1 {
                tracing::warn!(kind = wakeup.kind, subjects = wakeup.subjects.len(), "delivered too often; it is taken apart");
                return settle.take_apart(message, wakeup, patience).await.map(|()| None);
            }
        }
        let kind = self.of.kind().or_else(|| batch.wakeups().next().map(|wakeup| wakeup.kind));
        let span = tracing::info_span!("batch", otel.kind = "consumer", kind, messages = batch.len());
        for wakeup in batch.wakeups().take(LINKS_MAX) {
            telemetry::link(&span, &wakeup.trace);
        }
        async {
            let outcomes = match kind.and_then(|kind| context.statements.get(kind)) {
                Some(statements) => {
                    let database = &context.settings.database;
                    apply::apply(&context.db, database, statements, batch.asked(), patience).await
                }
                None => Ok(HashMap::new()),
            };
            let outcomes = match outcomes {
                Ok(outcomes) => outcomes,
                Err(Unanswered::Abandoned) => return Ok(Some(Left::ToldTo)),
                Err(Unanswered::Outdated) => {
                    context.outdated();
                    return Ok(Some(Left::ToldTo));
                }
                Err(Unanswered::Paused(pause)) => {
                    context.paused.met(pause);
                    return match batch.alone() {
                        // Here other kinds wait behind it, and it was delivered often enough.
                        Some((message, wakeup)) if self.of == Of::Quarantine => {
                            settle.send_home(message, wakeup, patience).await.map(|()| None)
                        }
                        _ => Ok(Some(Left::Paused)),
                    };
                }
            };
            let settled = batch.answer(outcomes);
            settle.settle(&settled, patience).await?;
            context.tally.count(kind.unwrap_or("unknown"), &settled);
            Ok(None)
        }
        .instrument(span)
        .await
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

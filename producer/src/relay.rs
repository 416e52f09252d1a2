//! The relay: drains the outbox. One transaction takes events, publishes their wake-ups, waits for the confirms and commits; while one batch
//! waits for its confirms, the relay takes another.
//!
//! A relay that is killed at any point loses nothing. What was published and not committed is published again, which the recheck makes
//! harmless.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use opentelemetry::{KeyValue, global, metrics::Counter};
use sea_orm::{DatabaseConnection, DatabaseTransaction, DbErr, TransactionTrait};
use shared::{
    broker::{Broker, BrokerError, Detours, Publisher},
    database::{
        self, Client, DatabaseError,
        active_policy::{self, Governed},
        failure::is_refused,
        probe::judge,
        rights::{self, Lacking},
        unanswered, within,
    },
    message::topology::Topology,
    process::{
        backoff::backoff,
        health::{Health, HealthPart, UNREACHED},
        outage::Outage,
        redact::redacted,
        telemetry::trace_context,
    },
    settings::Settings,
};
use tokio::time::{Instant, Interval};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    outbox::{self, TakenEvents},
    portion::Portion,
    schedule,
};

/// Longest batch without its confirms; after it PostgreSQL counts as unreachable.
const BATCH_MAX: Duration = Duration::from_secs(300);
/// Most batches of each of the two sides in one round; between rounds the relay checks for shutdown and policy changes.
const BATCHES_MAX: usize = 16;
/// Connections to PostgreSQL that two concurrent batches need.
const CONNECTIONS_OF_TWO: u32 = 2;
/// How long a round may still take after a shutdown signal.
const GRACE: Duration = Duration::from_secs(20);

/// Why the relay stopped without a shutdown signal.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// Why a batch was not relayed; it is retried.
#[derive(Debug, thiserror::Error)]
enum BatchError {
    #[error("PostgreSQL: {0}")]
    Database(#[from] DbErr),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// What a relay has relayed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RelayReport {
    /// Events taken from the outbox.
    pub events: u64,
    /// Wake-ups confirmed by the broker.
    pub wakeups: u64,
    /// Events set aside.
    pub set_aside: u64,
}

/// Drains the outbox until `shutdown`. Reports the state of both servers to `health`.
///
/// # Errors
/// [`RelayError`] when waiting would not help: a database without the schema, or a topology that differs.
pub async fn run(settings: &Settings, health: &Health, shutdown: CancellationToken) -> Result<RelayReport, RelayError> {
    let done = RelayCounts::new();
    let mut reporting = tokio::time::interval(settings.telemetry.report_every);
    // The relay restarts when the policy changes, because what it publishes and where depend on it.
    while !shutdown.is_cancelled() {
        Box::pin(live(settings, health, &done, &mut reporting, &shutdown)).await?;
    }
    done.say();
    Ok(done.report())
}

/// Drains the outbox under the active policy until `shutdown` or until the policy changes.
async fn live(
    settings: &Settings,
    health: &Health,
    done: &RelayCounts,
    reporting: &mut Interval,
    shutdown: &CancellationToken,
) -> Result<(), RelayError> {
    let (postgresql, rabbitmq) = (health.part("postgresql"), health.part("rabbitmq"));
    let Some(governed) = active_policy::connect_until(settings, Client::Producer, &postgresql, shutdown).await? else {
        return Ok(());
    };
    let Governed { db, settings } = governed;
    let portion = Mutex::new(Portion::new(settings.relay.batch_max));
    let (topology, detours) = (settings.topology(), Detours::default());
    let relay = Relay { settings, topology, detours, portion, postgresql, rabbitmq, done };
    let drained = relay.drain(&db, shutdown, reporting).await;
    // Closing waits for connections in use, which never return if the server is away.
    let _ = tokio::time::timeout(Duration::from_secs(5), db.close()).await;
    drained
}

/// The counts so far.
struct RelayCounts {
    report: Mutex<RelayReport>,
    counter: Counter<u64>,
}

impl RelayCounts {
    fn new() -> Self {
        let counter =
            global::meter("kyhan").u64_counter("kyhan.relay.events").with_description("Events taken from the outbox").build();
        Self { report: Mutex::default(), counter }
    }

    fn count(&self, events: usize, wakeups: usize, set_aside: usize) {
        let [events, wakeups, set_aside] = [events, wakeups, set_aside].map(|count| count as u64);
        self.counter.add(events, &[KeyValue::new("outcome", "scheduled")]);
        self.counter.add(set_aside, &[KeyValue::new("outcome", "set_aside")]);
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.events += events + set_aside;
        report.wakeups += wakeups;
        report.set_aside += set_aside;
    }

    fn report(&self) -> RelayReport {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self) {
        let RelayReport { events, wakeups, set_aside } = self.report();
        if events > 0 {
            tracing::info!(events, wakeups, set_aside, "relayed so far");
        }
    }
}

struct Relay<'a> {
    settings: Settings,
    topology: Topology,
    /// Around rungs that are full.
    detours: Detours,
    portion: Mutex<Portion>,
    postgresql: HealthPart,
    rabbitmq: HealthPart,
    done: &'a RelayCounts,
}

impl Relay<'_> {
    /// Drains, and reconnects to RabbitMQ when the connection is lost.
    async fn drain(
        &self,
        db: &DatabaseConnection,
        shutdown: &CancellationToken,
        reporting: &mut Interval,
    ) -> Result<(), RelayError> {
        let (mut pauses, mut told) = (backoff(), None);
        let amqp = &self.settings.amqp;
        self.rabbitmq.down(UNREACHED);
        let outage = Outage::of("RabbitMQ");
        let mut connected = Broker::connect_first(amqp, "kyhan relay", &outage, shutdown).await?;
        while let Some(broker) = connected {
            let before = self.done.report();
            match self.over(&broker, db, shutdown, reporting).await {
                Ok(()) => {
                    broker.close().await;
                    return Ok(());
                }
                Err(error) if error.is_final() => return Err(error.into()),
                Err(error) => {
                    if !error.repeats(told.as_ref()) {
                        tracing::warn!(%error, "the relay lost RabbitMQ; events wait in the outbox");
                    }
                    self.rabbitmq.down(error.to_string());
                    broker.close().await;
                    // Missing rungs may belong to a policy that is no longer active.
                    if matches!(error, BrokerError::Missing(_))
                        && shutdown.run_until_cancelled(self.is_outdated(db)).await.unwrap_or(true)
                    {
                        return Ok(());
                    }
                    told = Some(error);
                    if self.done.report() != before {
                        pauses = backoff();
                    }
                    let pause = pauses.next().unwrap_or_default();
                    shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
                }
            }
            connected = Broker::connect_until(amqp, "kyhan relay", &outage, shutdown).await;
        }
        Ok(())
    }

    /// Relays batch after batch over one connection, until shutdown or until the policy changes.
    async fn over(
        &self,
        broker: &Broker,
        db: &DatabaseConnection,
        shutdown: &CancellationToken,
        reporting: &mut Interval,
    ) -> Result<(), BrokerError> {
        broker.declare_or_find(&self.topology).await?;
        let publishers = [broker.publisher().await?, broker.publisher().await?];
        self.rabbitmq.up();
        let mut idle = false;
        let mut outage: Option<Box<dyn Iterator<Item = Duration> + Send>> = None;
        let mut remembered = false;
        let mut looked: Option<Instant> = None;
        while !shutdown.is_cancelled() {
            if looked.is_none_or(|looked| looked.elapsed() > active_policy::LOOK_EVERY) {
                looked = Some(Instant::now());
                database::refresh(db, &self.settings.database, Client::Producer);
                if shutdown.run_until_cancelled(self.is_outdated(db)).await.unwrap_or(true) {
                    break;
                }
            }
            if !remembered {
                remembered = database::rungs::remember(db, &self.topology).await.is_ok();
            }
            let Some(round) = self.round_in_time(db, &publishers, shutdown, idle).await else { break };
            idle = matches!(round, Ok(0));
            let pause = match round {
                Ok(0) => {
                    publishers[0].check()?;
                    self.settings.relay.poll
                }
                Ok(_) => Duration::ZERO,
                Err(BatchError::Broker(error @ BrokerError::Blocked)) => {
                    tracing::warn!(%error, "events wait in the outbox until RabbitMQ accepts publishes");
                    self.rabbitmq.down(error.to_string());
                    shutdown.run_until_cancelled(publishers[0].unblocked()).await;
                    // Messages published during the alarm may still be in flight on this connection.
                    return Err(error);
                }
                Err(BatchError::Broker(error)) => {
                    self.detours.note(&error);
                    close(publishers).await;
                    return Err(error);
                }
                Err(BatchError::Database(error)) => {
                    let trouble = judge(db, &error).await;
                    let smaller = self.portion().failed(trouble);
                    if let Some(pause) = smaller {
                        let events = self.portion().events();
                        tracing::warn!(error = redacted(&error), events, "a batch of events failed; trying this many at once");
                        shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
                        continue;
                    }
                    let away = trouble.is_outage();
                    let lacking = self.lacking(db, &error).await;
                    // The text of a statement's error may quote a row, so it is not shown on /readyz.
                    self.postgresql.down(match &lacking {
                        Some(lacking) => lacking.to_string(),
                        None if away => redacted(&error),
                        None => "a statement fails; see the log".into(),
                    });
                    let pauses = outage.get_or_insert_with(|| {
                        let error = lacking.map_or_else(|| redacted(&error), |lacking| lacking.to_string());
                        tracing::warn!(error, away, "the relay cannot use PostgreSQL; retrying");
                        Box::new(backoff())
                    });
                    let pause = pauses.next().unwrap_or_default();
                    shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
                    continue;
                }
            };
            self.postgresql.up();
            if outage.take().is_some() {
                tracing::info!("the relay can use PostgreSQL again");
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                _ = reporting.tick() => self.done.say(),
                () = tokio::time::sleep(pause) => {}
            }
        }
        close(publishers).await;
        Ok(())
    }

    /// The privileges that the login lacks, if an error says that it lacks any.
    async fn lacking(&self, db: &DatabaseConnection, error: &DbErr) -> Option<Lacking> {
        if !is_refused(error) {
            return None;
        }
        let asked = rights::lacking(db.get_postgres_connection_pool(), Client::Producer);
        tokio::time::timeout(self.settings.database.acquire_timeout, asked).await.ok()?.ok()?
    }

    /// Whether another policy is active; `false` if that cannot be read.
    async fn is_outdated(&self, db: &DatabaseConnection) -> bool {
        let outdated = active_policy::number(db).await.is_ok_and(|number| number != self.settings.policy.number());
        if outdated {
            tracing::info!("the active policy has changed; the relay restarts");
        }
        outdated
    }

    /// A round. After a shutdown signal it may finish its batches within [`GRACE`]; `None` when that is over.
    async fn round_in_time(
        &self,
        db: &DatabaseConnection,
        publishers: &[Publisher; 2],
        shutdown: &CancellationToken,
        idle: bool,
    ) -> Option<Result<usize, BatchError>> {
        let out_of_patience = async {
            shutdown.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            round = self.round(db, publishers, shutdown, idle) => Some(round),
            () = out_of_patience => None,
        }
    }

    /// One batch and, if it was full, more of them, two at a time: one publishes while the other takes. Returns how many events. After an
    /// `idle` round it first asks, which costs a tenth of an empty batch, whether there are any.
    async fn round(
        &self,
        db: &DatabaseConnection,
        [one, other]: &[Publisher; 2],
        shutdown: &CancellationToken,
        idle: bool,
    ) -> Result<usize, BatchError> {
        if idle && !within(self.settings.database.acquire_timeout, outbox::is_waiting(db)).await? {
            return Ok(0);
        }
        let portion = *self.portion();
        let full = portion.events() as usize;
        // Rows with lower ids that commit late are left for the next round.
        let taken_up_to = AtomicI64::new(i64::MIN);
        let first = self.batch_in_time(db, one, &taken_up_to).await?;
        // While batches fail, one at a time, so that it is known which one did.
        if first < full || portion.is_reduced() {
            return Ok(first);
        }
        let side = async |publisher: &Publisher| {
            let mut events = 0;
            for _ in 0..BATCHES_MAX {
                let batch = if shutdown.is_cancelled() { 0 } else { self.batch_in_time(db, publisher, &taken_up_to).await? };
                events += batch;
                if batch < full {
                    break;
                }
            }
            Ok::<_, BatchError>(events)
        };
        // Each of two batches needs a connection.
        if self.settings.database.max_connections < CONNECTIONS_OF_TWO {
            return Ok(first + side(one).await?);
        }
        // Run both to the end, because a batch that is cancelled may already be committed.
        let (one, other) = futures::join!(side(one), side(other));
        Ok(first + one? + other?)
    }

    async fn batch_in_time(
        &self,
        db: &DatabaseConnection,
        publisher: &Publisher,
        taken_up_to: &AtomicI64,
    ) -> Result<usize, BatchError> {
        let longest = BATCH_MAX + self.settings.amqp.confirm_timeout;
        tokio::time::timeout(longest, self.batch(db, publisher, taken_up_to)).await.unwrap_or_else(|_| Err(unanswered().into()))
    }

    /// One transaction: take, publish, wait for the confirms, commit. Returns how many events it took.
    async fn batch(&self, db: &DatabaseConnection, publisher: &Publisher, taken_up_to: &AtomicI64) -> Result<usize, BatchError> {
        let tx = db.begin().await?;
        let after = taken_up_to.load(Ordering::Relaxed);
        let portion = *self.portion();
        let Some(taken) = outbox::take(&tx, portion, after).await? else {
            tx.rollback().await?;
            return Ok(0);
        };
        taken_up_to.fetch_max(taken.last, Ordering::Relaxed);
        let span =
            tracing::info_span!("relay", otel.kind = "producer", events = taken.events.len(), wakeups = tracing::field::Empty);
        self.relay(tx, taken, publisher).instrument(span).await
    }

    async fn relay(&self, tx: DatabaseTransaction, taken: TakenEvents, publisher: &Publisher) -> Result<usize, BatchError> {
        let (policy, pack_max) = (&self.settings.policy, self.settings.naming.pack_max);
        let span = tracing::Span::current();
        let open = self.detours.around(&self.topology);
        let plan = schedule::plan(&taken.events, taken.now, policy, &open, pack_max, &trace_context(&span));
        span.record("wakeups", plan.wakeups.len());
        // `outbox::take` sets aside what happened after the year 9999, and no span of a policy leads from there to chrono's last year.
        debug_assert!(plan.beyond.is_empty(), "{:?}", plan.beyond);
        publisher.publish_all(&plan.messages(&self.topology)).await?;
        let (events, set_aside) = (taken.events.len(), taken.set_aside);
        tx.commit().await?;
        self.portion().succeeded();
        self.done.count(events, plan.wakeups.len(), set_aside);
        Ok(events + set_aside)
    }

    fn portion(&self) -> MutexGuard<'_, Portion> {
        self.portion.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn close(publishers: [Publisher; 2]) {
    for publisher in publishers {
        publisher.close().await;
    }
}

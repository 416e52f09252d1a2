//! A worker: takes due wake-ups, rechecks their rows, applies what is due and settles. Workers are stateless.
//!
//! [`pipeline`] handles due wake-ups, `queues` handles the queues that belong to no kind, and `leader` does what one worker does for the
//! whole fleet. A worker that is killed at any instruction loses nothing and applies nothing twice: effects commit before the ack, and a
//! redelivered wake-up is found stale or already stored.

mod context;
mod leader;
mod paused;
pub mod pipeline;
mod queues;
mod tally;
mod watch;

use std::{sync::Arc, time::Duration};

use sea_orm::DatabaseConnection;
use shared::{
    broker::{Broker, BrokerError, Detours},
    database::{
        self, Client, DatabaseError,
        active_policy::{self, Governed},
        statements::Statements,
    },
    domain::{span::signed_ms, tasks},
    process::{
        backoff::backoff,
        health::{Health, HealthPart, UNREACHED},
        outage::Outage,
        redact::redacted,
    },
    settings::Settings,
};
use tokio::task::{JoinError, JoinSet};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub use tally::Totals;

use context::Context;
use leader::forecast::ForecastGauge;
use paused::PausedKinds;
use pipeline::consumer;
use tally::Tally;
use watch::DatabaseWatch;

/// Why a worker stopped without a shutdown signal.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("a consumer or the leader crashed: {0}; unsettled messages return to their queues")]
    Died(#[from] JoinError),
}

/// Consumes every queue until `shutdown`, then finishes the work in hand within `worker.grace_ms`. Reports the state of both servers to
/// `health`. Returns the counts of what was settled.
///
/// # Errors
/// [`WorkerError`] when waiting would not help: a database without the schema, or a topology that differs.
pub async fn run(settings: &Settings, health: &Health, shutdown: CancellationToken) -> Result<Totals, WorkerError> {
    let tally = Arc::new(Tally::new());
    let kept = KeptState {
        tally: Arc::clone(&tally),
        paused: Arc::new(PausedKinds::new()),
        forecast: ForecastGauge::new(settings.forecast),
    };
    let report_every = settings.telemetry.report_every;
    let _reporting = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&tally).report(report_every)));
    // The lanes restart when the policy changes, because statements and rungs depend on it.
    let mut served = Ok(());
    while served.is_ok() && !shutdown.is_cancelled() {
        served = Box::pin(serve(settings, health, &kept, &shutdown)).await;
    }
    tally.say();
    served.map(|()| tally.totals())
}

/// State that survives a restart of the lanes.
struct KeptState {
    tally: Arc<Tally>,
    paused: Arc<PausedKinds>,
    forecast: ForecastGauge,
}

/// Serves under the active policy until `shutdown` or until the policy changes.
async fn serve(settings: &Settings, health: &Health, kept: &KeptState, shutdown: &CancellationToken) -> Result<(), WorkerError> {
    let (postgresql, rabbitmq) = (health.part("postgresql"), health.part("rabbitmq"));
    let Some(governed) = active_policy::connect_until(settings, Client::Worker, &postgresql, shutdown).await? else {
        return Ok(());
    };
    let Governed { db, settings } = governed;
    let topology = settings.topology();
    rabbitmq.down(UNREACHED);
    let away = Outage::of("RabbitMQ");
    if !declare(&settings, &db, &away, &rabbitmq, shutdown).await? {
        return Ok(());
    }
    if let Err(error) = database::rungs::remember(&db, &topology).await {
        tracing::warn!(error = redacted(&error), "the rungs could not be recorded; `ops topology prune` will not find them");
    }
    let context = Arc::new(Context {
        topology,
        detours: Detours::default(),
        name: name(),
        db,
        statements: tasks::ALL
            .iter()
            .map(|task| (task.kind(), Statements::new(*task, &settings.policy, settings.arrears.wallet_floor)))
            .collect(),
        settings,
        tally: Arc::clone(&kept.tally),
        postgres: Outage::of("PostgreSQL"),
        rabbitmq: away,
        paused: Arc::clone(&kept.paused),
        large: tokio::sync::Mutex::default(),
        shutdown: shutdown.child_token(),
        abandon: CancellationToken::new(),
    });
    let settings = &context.settings;
    let mut running = JoinSet::new();
    let queues = consumer::all(&context.topology, settings.worker.consumers, health);
    // The consumers of one kind, plus seven: quarantine, canaries, two dead-letter queues, two for the leader, one for the forecast. Kinds
    // that are busy at the same time share these connections.
    let (consumers, max_connections) = (settings.worker.consumers, settings.database.max_connections);
    if max_connections < u32::from(consumers) + 7 {
        tracing::warn!(
            consumers,
            max_connections,
            "consumers may wait for PostgreSQL connections; raise database.max_connections"
        );
    }
    let mut watch = DatabaseWatch::new(Arc::clone(&context), postgresql);
    // Read the pauses before consuming, so that no wake-up of a paused kind is taken.
    context.shutdown.run_until_cancelled(watch.look()).await;
    for queue in queues {
        running.spawn(queue.run(Arc::clone(&context)));
    }
    // From now on each consumer reports the state of RabbitMQ.
    drop(rabbitmq);
    running.spawn(leader::run(Arc::clone(&context), kept.forecast.clone()));
    running.spawn(watch.run());
    let finished = finish(running, &context, settings.worker.grace).await;
    let _ = tokio::time::timeout(Duration::from_secs(5), context.db.clone().close()).await;
    finished
}

/// The name of this process in its dead letters: host and pid.
fn name() -> String {
    format!("{}/{}", whoami::hostname().unwrap_or_else(|_| "unknown host".to_owned()), std::process::id())
}

/// Declares the topology or checks that it exists, and waits until RabbitMQ is up and the queues are there. Returns `false` on shutdown,
/// or when another policy has become active, which has a different topology.
async fn declare(
    settings: &Settings,
    db: &DatabaseConnection,
    outage: &Outage,
    part: &HealthPart,
    shutdown: &CancellationToken,
) -> Result<bool, BrokerError> {
    let mut connected = Broker::connect_first(&settings.amqp, "kyhan worker", outage, shutdown).await?;
    let (mut pauses, mut before) = (backoff(), None);
    while let Some(broker) = connected {
        let declared = broker.guard(&settings.topology()).await;
        broker.close().await;
        match declared {
            Ok(()) => return Ok(true),
            Err(error) if error.is_final() => return Err(error),
            Err(error) => {
                if !error.repeats(before.as_ref()) {
                    tracing::warn!(%error, "waiting for the topology; nothing is consumed until it exists");
                }
                part.down(error.to_string());
                before = Some(error);
            }
        }
        if matches!(before, Some(BrokerError::Missing(_)))
            && active_policy::number(db).await.is_ok_and(|number| number != settings.policy.number())
        {
            return Ok(false);
        }
        shutdown.run_until_cancelled(tokio::time::sleep(pauses.next().unwrap_or_default())).await;
        connected = Broker::connect_until(&settings.amqp, "kyhan worker", outage, shutdown).await;
    }
    Ok(false)
}

/// Waits for the consumers to end. After shutdown they have `grace` to settle their work; what still waits for a server then stays
/// unacked and returns to its queue. A consumer that crashes ends the whole worker, so that its supervisor restarts it.
async fn finish(mut lanes: JoinSet<()>, context: &Context, grace: Duration) -> Result<(), WorkerError> {
    let out_of_patience = async {
        context.shutdown.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    let ended = tokio::select! {
        ended = all(&mut lanes) => ended,
        () = out_of_patience => {
            tracing::warn!(grace_ms = signed_ms(context.settings.worker.grace), "worker.grace_ms is over; unsettled messages return to their queues");
            Ok(())
        }
    };
    context.shutdown.cancel();
    context.abandon.cancel();
    let _ = tokio::time::timeout(FAREWELL, all(&mut lanes)).await;
    // Wait for all tasks: this process may go on under another policy.
    lanes.shutdown().await;
    Ok(ended?)
}

/// How long abandoned consumers may take to close their connections.
const FAREWELL: Duration = Duration::from_secs(2);

async fn all(lanes: &mut JoinSet<()>) -> Result<(), JoinError> {
    while let Some(ended) = lanes.join_next().await {
        ended?;
    }
    Ok(())
}

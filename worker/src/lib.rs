//! The fleet: stateless workers take due wake-ups, recheck the rows, apply what is due and settle.
//!
//! A due wake-up's way is [`pipeline`]; the queues that are not a kind's are in `queues`; what one worker does for the whole fleet is in
//! `leader`. Killed at any instruction a worker loses nothing and doubles nothing: effects commit before the ack, and what comes again is
//! found stale, or stored.

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
    broker::{Broker, BrokerError},
    database::{
        self, DatabaseError, Role,
        active_policy::{self, Governed},
        statements::Statements,
    },
    domain::tasks,
    process::{
        backoff::backoff,
        health::{Health, Part, UNREACHED},
        outage::Outage,
        redact::told,
    },
    settings::Settings,
};
use tokio::task::{JoinError, JoinSet};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub use tally::Totals;

use context::Context;
use leader::forecast::Forecast;
use paused::Paused;
use pipeline::consumer;
use tally::Tally;
use watch::Watch;

/// Why a worker ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("a consumer or the leader died: {0}; what was in hand returns to its lane")]
    Died(#[from] JoinError),
}

/// Serves every lane until told to shut down; then finishes what is in hand within the grace. What it settled. Reports to `health` how its
/// servers are.
///
/// # Errors
/// [`WorkerError`] when waiting would not help: a database without the schema, a topology that differs.
pub async fn run(settings: &Settings, health: &Health, shutdown: CancellationToken) -> Result<Totals, WorkerError> {
    let tally = Arc::new(Tally::new());
    let kept = Kept { tally: Arc::clone(&tally), paused: Arc::new(Paused::new()), forecast: Forecast::new(settings.forecast) };
    let report_every = settings.telemetry.report_every;
    let _reporting = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&tally).report(report_every)));
    // The lanes restart when the policy changes: statements and rungs follow from it.
    let mut served = Ok(());
    while served.is_ok() && !shutdown.is_cancelled() {
        served = Box::pin(serve(settings, health, &kept, &shutdown)).await;
    }
    tally.say();
    served.map(|()| tally.totals())
}

/// What outlasts a restart of the lanes.
struct Kept {
    tally: Arc<Tally>,
    paused: Arc<Paused>,
    forecast: Forecast,
}

/// Serves under the active policy, until told to shut down or until the policy changes.
async fn serve(settings: &Settings, health: &Health, kept: &Kept, shutdown: &CancellationToken) -> Result<(), WorkerError> {
    let (postgresql, rabbitmq) = (health.part("postgresql"), health.part("rabbitmq"));
    postgresql.down(UNREACHED);
    let Some(governed) = active_policy::connect_until(settings, Role::Worker, shutdown).await? else { return Ok(()) };
    let Governed { db, settings } = governed;
    let topology = settings.topology();
    postgresql.up();
    rabbitmq.down(UNREACHED);
    let away = Outage::of("RabbitMQ");
    if !declare(&settings, &db, &away, &rabbitmq, shutdown).await? {
        return Ok(());
    }
    if let Err(error) = database::rungs::remember(&db, &topology).await {
        tracing::warn!(error = told(&error), "the rungs were not written down; `ops topology prune` will not find them");
    }
    let context = Arc::new(Context {
        topology,
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
        shutdown: shutdown.child_token(),
        abandon: CancellationToken::new(),
    });
    let settings = &context.settings;
    let mut running = JoinSet::new();
    let queues = consumer::all(&context.topology, settings.worker.consumers, health);
    // Those of one kind, quarantine, the canaries, the dead letters' two, the leader's two and the forecast. Kinds that are busy at once wait
    // for each other.
    let (consumers, max_connections) = (settings.worker.consumers, settings.database.max_connections);
    if max_connections < u32::from(consumers) + 7 {
        tracing::warn!(consumers, max_connections, "a lane's consumers may wait for connections to PostgreSQL");
    }
    let mut watch = Watch::new(Arc::clone(&context), postgresql)?;
    // Before anything is taken, as nothing of a paused kind may be.
    context.shutdown.run_until_cancelled(watch.look()).await;
    for queue in queues {
        running.spawn(queue.run(Arc::clone(&context)));
    }
    // From now on each consumer reports how RabbitMQ is.
    drop(rabbitmq);
    running.spawn(leader::run(Arc::clone(&context), kept.forecast.clone()));
    running.spawn(watch.run());
    let finished = finish(running, &context, settings.worker.grace).await;
    let _ = tokio::time::timeout(Duration::from_secs(5), context.db.clone().close()).await;
    finished
}

/// This process, as its dead letters name it.
fn name() -> String {
    format!("{}/{}", whoami::hostname().unwrap_or_else(|_| "unknown host".to_owned()), std::process::id())
}

/// Declares the topology or finds it, waiting for the broker, and for whoever may declare; `false` when told to shut down before, or
/// when another policy is in force meanwhile, of which this topology is not.
async fn declare(
    settings: &Settings,
    db: &DatabaseConnection,
    outage: &Outage,
    part: &Part,
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
                    tracing::warn!(%error, "nothing is taken before the topology is there");
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

/// Waits for the lanes. Once told to shut down they have `grace` to settle what is in hand; then whatever still waits for a
/// server is abandoned unacked, and returns to its lane. A consumer that dies ends the whole worker, so that its supervisor
/// starts a sound one.
async fn finish(mut lanes: JoinSet<()>, context: &Context, grace: Duration) -> Result<(), WorkerError> {
    let out_of_patience = async {
        context.shutdown.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    let ended = tokio::select! {
        ended = all(&mut lanes) => ended,
        () = out_of_patience => {
            tracing::warn!(grace_ms = context.settings.worker.grace.as_millis(), "the grace is over; what is unsettled returns to its lane");
            Ok(())
        }
    };
    context.shutdown.cancel();
    context.abandon.cancel();
    let _ = tokio::time::timeout(FAREWELL, all(&mut lanes)).await;
    // To the end: this process may live on under another policy.
    lanes.shutdown().await;
    Ok(ended?)
}

/// How long abandoned lanes may take to close their connections.
const FAREWELL: Duration = Duration::from_secs(2);

async fn all(lanes: &mut JoinSet<()>) -> Result<(), JoinError> {
    while let Some(ended) = lanes.join_next().await {
        ended?;
    }
    Ok(())
}

//! The fleet: stateless workers take due wake-ups, recheck the rows, apply what is due and settle.
//!
//! A message's way through the rooms: `lane` → [`intake`] → [`batch`] → [`apply`] → [`settle`]; a dead letter's from `batch` into the
//! `store`, where the sweep's leader tends it. Killed at any instruction a worker loses nothing and doubles nothing: effects commit
//! before the ack, and what comes again is found stale, or stored.

pub mod apply;
pub mod batch;
mod canary;
mod forecast;
pub mod intake;
mod lane;
mod patience;
mod paused;
mod prefetch;
mod records;
pub mod settle;
mod store;
mod sweep;
mod tally;
mod tend;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sea_orm::DatabaseConnection;
use shared::{
    broker::{Broker, BrokerError},
    database::{
        self, DatabaseError, Role,
        active_policy::{self, Governed},
        statements::Statements,
    },
    domain::tasks,
    message::topology::{CANARY, Topology},
    process::{
        backoff::backoff,
        health::{Health, Part, UNREACHED},
        outage::Outage,
        redact::told,
    },
    settings::Settings,
};
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub use tally::Totals;

use forecast::Told;
use lane::{Context, Lane, Of};
use paused::Paused;
use tally::Tally;

/// Why a worker ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("a lane's consumer or the sweep died: {0}; what was in hand returns to its lane")]
    Died(#[from] JoinError),
}

/// Works on every lane until told to shut down; then finishes what is in hand within the grace. What it settled.
/// How its servers are, it says to `health`.
///
/// # Errors
/// [`WorkerError`] when waiting would not help: a database without the schema, a topology that differs.
pub async fn run(settings: &Settings, health: &Health, shutdown: CancellationToken) -> Result<Totals, WorkerError> {
    let tally = Arc::new(Tally::new());
    let known = Known { tally: Arc::clone(&tally), paused: Arc::new(Paused::new()), forecast: Told::new(settings.forecast) };
    let report_every = Duration::from_millis(settings.telemetry.report_every_ms);
    let _reporting = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&tally).report(report_every)));
    // One policy, one life: statements and rungs follow from it.
    let mut lived = Ok(());
    while lived.is_ok() && !shutdown.is_cancelled() {
        lived = Box::pin(live(settings, health, &known, &shutdown)).await;
    }
    tally.say();
    lived.map(|()| tally.totals())
}

/// What a worker knows all its lives long.
struct Known {
    tally: Arc<Tally>,
    paused: Arc<Paused>,
    forecast: Told,
}

/// Works under the policy that is in force, until told to shut down or until another one is.
async fn live(settings: &Settings, health: &Health, known: &Known, shutdown: &CancellationToken) -> Result<(), WorkerError> {
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
        tally: Arc::clone(&known.tally),
        postgres: Outage::of("PostgreSQL"),
        rabbitmq: away,
        paused: Arc::clone(&known.paused),
        shutdown: shutdown.child_token(),
        abandon: CancellationToken::new(),
    });
    let settings = &context.settings;
    let mut running = JoinSet::new();
    let lanes = lanes(&context.topology, settings.worker.consumers, health);
    // Those of one kind, quarantine, the canaries, the dead letters' two, the sweep's two and the forecast. Kinds that are busy at once wait for each other.
    let (consumers, max_connections) = (settings.worker.consumers, settings.database.max_connections);
    if max_connections < u32::from(consumers) + 7 {
        tracing::warn!(consumers, max_connections, "a lane's consumers may wait for connections to PostgreSQL");
    }
    let mut watch = Watch::new(Arc::clone(&context), postgresql)?;
    // Before anything is taken: of a kind that is paused already nothing shall be.
    context.shutdown.run_until_cancelled(watch.look()).await;
    for lane in lanes {
        running.spawn(lane.run(Arc::clone(&context)));
    }
    // From now on each consumer says how RabbitMQ is.
    drop(rabbitmq);
    let (leads, led) = watch::channel(false);
    running.spawn(sweep::run(Arc::clone(&context), leads));
    running.spawn(forecast::run(Arc::clone(&context), known.forecast.clone(), led));
    running.spawn(watch.run());
    let finished = finish(running, &context, Duration::from_millis(settings.worker.grace_ms)).await;
    let _ = tokio::time::timeout(Duration::from_secs(5), context.db.clone().close()).await;
    finished
}

/// This process, for whoever reads what it left behind.
fn name() -> String {
    format!("{}/{}", whoami::hostname().unwrap_or_else(|_| "unknown host".to_owned()), std::process::id())
}

/// Every lane that this process serves.
fn lanes(topology: &Topology, consumers: u16, health: &Health) -> Vec<Lane> {
    let lane = |of, queue: String, routing_key, consumers| {
        let part = |number| {
            let part = health.part(format!("{queue} #{number}"));
            part.down(UNREACHED);
            part
        };
        Lane { of, parts: (0..consumers).map(part).collect(), queue, routing_key }
    };
    let mut lanes = Vec::new();
    for shard in 0..topology.shards() {
        for task in tasks::ALL {
            let (kind, most) = (task.kind(), task.batches_at_once().unwrap_or(u16::MAX));
            let routing_key = Some(Topology::routing_key(kind, shard));
            lanes.push(lane(Of::Kind(kind), topology.lane(kind, shard), routing_key, consumers.min(most)));
        }
        lanes.push(lane(Of::Canaries, topology.lane(CANARY, shard), None, 1));
    }
    lanes.push(lane(Of::Quarantine, topology.quarantine(), None, 1));
    for queue in [topology.dead(), topology.unrouted()] {
        lanes.push(lane(Of::DeadLetters, queue, None, 1));
    }
    lanes
}

/// Asks the database how it is, as lanes without work would not notice, and would take the first wake-up in hand only to hold it.
/// What shows only in writing, a full disk, they notice by themselves. And it asks what operators have decided: which kinds are paused,
/// and which policy is in force.
struct Watch {
    context: Arc<Context>,
    database: database::probe::Probe,
    part: Part,
    /// Whether the outage that is known began here: what a batch in hand began, it ends.
    told: bool,
}

impl Watch {
    fn new(context: Arc<Context>, part: Part) -> Result<Self, DatabaseError> {
        let database = database::probe::Probe::new(&context.settings.database, Role::Worker)?;
        Ok(Self { context, database, part, told: false })
    }

    async fn run(mut self) {
        let shutdown = self.context.shutdown.clone();
        while shutdown.run_until_cancelled(tokio::time::sleep(WATCH_EVERY)).await.is_some() {
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let asked = Instant::now();
        match self.database.ask().await {
            Ok(()) => {
                self.part.up();
                if std::mem::take(&mut self.told) {
                    self.context.postgres.ends();
                }
                match self.database.decided().await {
                    Ok(decided) => {
                        self.context.paused.are(decided.pauses, asked);
                        if decided.policy != self.context.settings.policy.number() {
                            self.context.outdated();
                        }
                    }
                    // What is known stays so.
                    Err(error) => tracing::warn!(error = told(&error), "what operators have decided is not known"),
                }
            }
            Err(error) => {
                self.part.down(told(&error));
                self.told |= self.context.postgres.begins(&error);
            }
        }
    }
}

/// How often the database is asked how it is, and what operators have decided.
const WATCH_EVERY: Duration = active_policy::LOOK_EVERY;

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
            tracing::warn!(grace_ms = context.settings.worker.grace_ms, "the grace is over; what is unsettled returns to its lane");
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

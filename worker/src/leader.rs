//! The leader: of all workers one does what has to be done once for the whole fleet. It elects itself by an advisory lock of PostgreSQL, and
//! walks one list of duties, round after round; every worker process stands ready to be it.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use sea_orm::{
    DbErr, RuntimeErr,
    sqlx::{self, Postgres, pool::PoolConnection},
};
use shared::{
    broker::{Broker, BrokerError},
    database::{failure::trouble, unanswered},
    process::redact::told,
};
use tokio::sync::{OnceCell, watch};

use crate::context::Context;

mod canaries;
pub(crate) mod forecast;
mod letters;
mod retention;
mod seal;
mod statistics;
mod sweep;

use forecast::Forecast;

/// The advisory lock of the leader: "kyhan" in ASCII, then 1. Locks are per database, and so is the leader.
const LEADER: i64 = 0x6b_7968_616e_0001;

/// Longest round; then a server counts as cut off.
const ROUND_MAX: Duration = Duration::from_secs(600);

/// How long PostgreSQL may take for one statement of a duty, should it not give up by itself.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// What the leader does, in this order. The first ones need no broker, and keep nothing from being swept.
fn duties() -> Vec<Box<dyn Duty>> {
    vec![
        Box::new(letters::Letters::new()),
        Box::new(seal::Seal::new()),
        Box::new(statistics::Statistics::default()),
        Box::new(retention::Retention),
        Box::new(sweep::Sweep::new()),
        Box::new(canaries::Canaries::new()),
    ]
}

/// One thing that the leader does, round after round. Done twice, or by two leaders at once, it does no harm.
trait Duty: Send {
    /// The name in logs.
    fn name(&self) -> &'static str;

    /// Whether a process that fails at it must not lead: another one may succeed.
    fn decides_leadership(&self) -> bool {
        false
    }

    /// One round. A round that is cut short is gone on with by the next.
    fn round<'a>(&'a mut self, round: &'a Round<'a>) -> BoxFuture<'a, Result<(), DutyError>>;
}

/// What a round of all duties shares.
struct Round<'a> {
    context: &'a Context,
    broker: OnceCell<Broker>,
}

impl Round<'_> {
    /// The round's connection to RabbitMQ, made when it is first needed.
    async fn broker(&self) -> Result<&Broker, BrokerError> {
        self.broker.get_or_try_init(|| Broker::connect(&self.context.settings.amqp, "kyhan sweep")).await
    }
}

/// Why a duty's round was cut short.
#[derive(Debug, thiserror::Error)]
enum DutyError {
    #[error("PostgreSQL: {0}")]
    Database(#[from] DbErr),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl From<sqlx::Error> for DutyError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error))))
    }
}

impl DutyError {
    /// Logs it. The consumers log an outage already.
    fn log(&self, duty: &'static str, kind: Option<&'static str>) {
        const CUT_SHORT: &str = "a duty of the leader was cut short; the next round goes on";
        match self {
            Self::Database(error) if trouble(error).is_outage() => {
                tracing::debug!(duty, kind, error = told(error), CUT_SHORT);
            }
            Self::Broker(error @ BrokerError::Connect { .. }) => tracing::debug!(duty, kind, %error, CUT_SHORT),
            error => tracing::warn!(duty, kind, error = told(error), CUT_SHORT),
        }
    }
}

/// Leads for as long as this process holds the lock, round after round, until the worker shuts down; and forecasts meanwhile.
pub(crate) async fn run(context: Arc<Context>, forecast: Forecast) {
    let (leads, led) = watch::channel(false);
    let rounds = rounds(&context, leads);
    let ((), ()) = futures::join!(rounds, forecast::run(&context, forecast, led));
}

async fn rounds(context: &Context, leads: watch::Sender<bool>) {
    let every = context.settings.sweep.every;
    let (mut lock, mut list) = (None, duties());
    // The first round comes after a whole period: what is due at the start is what the lanes begin with.
    while context.shutdown.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        // Cut off by a shutdown, a round has woken some rows once more than it remembers, which is harmless.
        let round = tokio::time::timeout(ROUND_MAX, round(context, &mut lock, &mut list));
        let Some(done) = context.shutdown.run_until_cancelled(round).await else { break };
        if let Err((duty, error)) = done.unwrap_or_else(|_| Err(("all", unanswered().into()))) {
            // The connection closes, and the lock with it.
            lock = None;
            list = duties();
            error.log(duty, None);
        }
        leads.send_replace(lock.is_some());
    }
}

/// One round of all duties, where this process leads.
async fn round(
    context: &Context,
    lock: &mut Option<PoolConnection<Postgres>>,
    duties: &mut [Box<dyn Duty>],
) -> Result<(), (&'static str, DutyError)> {
    if !is_leader(context, lock).await.map_err(|error| ("the election", error))? {
        return Ok(());
    }
    let round = Round { context, broker: OnceCell::new() };
    let mut done = Ok(());
    for duty in duties {
        match duty.round(&round).await {
            Ok(()) => {}
            Err(error) if duty.decides_leadership() => done = done.and(Err((duty.name(), error))),
            Err(error) => error.log(duty.name(), None),
        }
    }
    if let Some(broker) = round.broker.into_inner() {
        broker.close().await;
    }
    done
}

/// Whether this process holds the lock. It is the session's: gone with the connection, whatever becomes of the process.
async fn is_leader(context: &Context, lock: &mut Option<PoolConnection<Postgres>>) -> Result<bool, DutyError> {
    if let Some(connection) = lock {
        sqlx::query("SELECT 1").execute(&mut **connection).await?;
        return Ok(true);
    }
    let mut connection = context.db.get_postgres_connection_pool().acquire().await?;
    // Never back into the pool: whatever took it from there would hold the lock.
    connection.close_on_drop();
    let locked: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(LEADER).fetch_one(&mut *connection).await?;
    if locked {
        *lock = Some(connection);
    }
    Ok(locked)
}

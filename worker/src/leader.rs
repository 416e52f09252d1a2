//! The leader: one worker runs the duties that have to run once for the whole fleet. Every worker is a candidate. The holder of an advisory
//! lock in PostgreSQL leads, and runs one list of duties in every round.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use sea_orm::{
    DbErr, RuntimeErr,
    sqlx::{self, Postgres, pool::PoolConnection},
};
use shared::{
    broker::{Broker, BrokerError},
    database::{
        self,
        clock::{self, Skewed},
        failure::trouble,
        leader, unanswered, within,
    },
    process::redact::redacted,
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

use forecast::ForecastGauge;

/// Longest round; after it a server counts as unreachable.
const ROUND_MAX: Duration = Duration::from_secs(600);

/// How long one statement of a duty may take, in case PostgreSQL does not cancel it.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// What follows a duty that was cut short.
const NEXT_ROUND: &str = "the next round continues";

/// The leader's duties, in this order. The first four need no broker, and a failure of theirs does not stop the sweep.
fn duties() -> Vec<Box<dyn Duty>> {
    vec![
        Box::new(letters::LettersDuty::new()),
        Box::new(seal::SealDuty::new()),
        Box::new(statistics::StatisticsDuty::default()),
        Box::new(retention::RetentionDuty),
        Box::new(sweep::SweepDuty::new()),
        Box::new(canaries::CanariesDuty::new()),
    ]
}

/// One duty of the leader. A round is idempotent, also when two leaders run it at once.
trait Duty: Send {
    /// The name in logs.
    fn name(&self) -> &'static str;

    /// Whether a process that fails gives up the lead, because another worker may succeed.
    fn decides_leadership(&self) -> bool {
        false
    }

    /// Drops what this process remembers of rounds as the leader, because another worker may lead next.
    fn forget(&mut self) {}

    /// Runs one round. The next round continues one that was cut short.
    fn round<'a>(&'a mut self, round: &'a DutyRound<'a>) -> BoxFuture<'a, Result<(), DutyError>>;
}

/// What the duties share during one round.
struct DutyRound<'a> {
    context: &'a Context,
    broker: OnceCell<Result<Broker, BrokerError>>,
}

impl DutyRound<'_> {
    /// The round's connection to RabbitMQ, opened on first use. A failed attempt counts for the whole round.
    async fn broker(&self) -> Result<&Broker, BrokerError> {
        let connected = self.broker.get_or_init(|| Broker::connect(&self.context.settings.amqp, "kyhan sweep")).await;
        connected.as_ref().map_err(Clone::clone)
    }
}

/// Why a duty's round was cut short.
#[derive(Debug, thiserror::Error)]
enum DutyError {
    #[error("PostgreSQL: {0}")]
    Database(#[from] DbErr),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Clock(#[from] Skewed),
}

impl From<sqlx::Error> for DutyError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error))))
    }
}

impl DutyError {
    /// Logs that a duty was cut short, and what follows. An outage is logged at debug level, because the consumers log it already.
    fn log(&self, duty: &'static str, kind: Option<&'static str>, then: &'static str) {
        match self {
            Self::Database(error) if trouble(error).is_outage() => {
                tracing::debug!(duty, kind, error = redacted(error), "a duty of the leader was cut short; {then}");
            }
            Self::Broker(error @ BrokerError::Connect { .. }) => {
                tracing::debug!(duty, kind, %error, "a duty of the leader was cut short; {then}");
            }
            error => tracing::warn!(duty, kind, error = redacted(error), "a duty of the leader was cut short; {then}"),
        }
    }
}

/// Runs rounds and the forecast while this process holds the lock, until the worker shuts down.
pub(crate) async fn run(context: Arc<Context>, forecast: ForecastGauge) {
    let (leads, led) = watch::channel(false);
    let rounds = rounds(&context, leads);
    let ((), ()) = futures::join!(rounds, forecast::run(&context, forecast, led));
}

async fn rounds(context: &Context, leads: watch::Sender<bool>) {
    let every = context.settings.sweep.every;
    let (mut lock, mut list) = (None, duties());
    // The first round comes after one period, so that the lanes can apply first what is due at the start.
    while context.shutdown.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        // A round that a shutdown cuts off may have woken rows that are not recorded in `swept`; waking them again is harmless.
        let round = tokio::time::timeout(ROUND_MAX, round(context, &mut lock, &mut list));
        let Some(done) = context.shutdown.run_until_cancelled(round).await else { break };
        if let Err((duty, error)) = done.unwrap_or_else(|_| Err(("all", unanswered().into()))) {
            // Dropping the connection releases the lock.
            lock = None;
            for duty in &mut list {
                duty.forget();
            }
            error.log(duty, None, "another worker may lead now");
        }
        leads.send_replace(lock.is_some());
    }
}

/// One round of all duties, if this process leads.
async fn round(
    context: &Context,
    lock: &mut Option<PoolConnection<Postgres>>,
    duties: &mut [Box<dyn Duty>],
) -> Result<(), (&'static str, DutyError)> {
    if !is_leader(context, lock).await.map_err(|error| ("the election", error))? {
        return Ok(());
    }
    let now = within(ANSWER_WITHIN, database::now(&context.db)).await.map_err(|error| ("the clock", error.into()))?;
    clock::agrees(now, context.settings.clock.max_skew).map_err(|error| ("the clock", error.into()))?;
    let round = DutyRound { context, broker: OnceCell::new() };
    let mut done = Ok(());
    for duty in duties {
        match duty.round(&round).await {
            Ok(()) => {}
            Err(error) if duty.decides_leadership() && done.is_ok() => done = Err((duty.name(), error)),
            Err(error) => error.log(duty.name(), None, NEXT_ROUND),
        }
    }
    if let Some(Ok(broker)) = round.broker.into_inner() {
        broker.close().await;
    }
    // At the end: a leader that hangs in a duty must not look alive.
    within(ANSWER_WITHIN, leader::beat(&context.db, &context.name)).await.map_err(|error| ("the heartbeat", error.into()))?;
    done
}

/// Whether this process holds the lock, which it tries to take. The lock belongs to the session, so PostgreSQL releases it when the
/// connection ends.
async fn is_leader(context: &Context, lock: &mut Option<PoolConnection<Postgres>>) -> Result<bool, DutyError> {
    if let Some(connection) = lock {
        sqlx::query("SELECT 1").execute(&mut **connection).await?;
        return Ok(true);
    }
    let mut connection = context.db.get_postgres_connection_pool().acquire().await?;
    // Never return it to the pool: another task would then hold the lock.
    connection.close_on_drop();
    let locked: bool =
        sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(leader::LOCK).fetch_one(&mut *connection).await?;
    if locked {
        *lock = Some(connection);
    }
    Ok(locked)
}

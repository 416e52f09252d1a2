//! The sweep: rows that are overdue and still unapplied are woken, so that a wake-up that was lost is made again. It reads the
//! same definition of *due* as the recheck. In a healthy system it finds nothing; what it finds is counted and warned of.
//!
//! One leader at a time, by an advisory lock of PostgreSQL; every worker process stands ready to be it. As an index on a moment holds
//! everything that ever happened, a round looks at the recent past first, and at the rest bit by bit for as long as it may.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use opentelemetry::{KeyValue, global, metrics::Counter};
use sea_orm::{
    ConnectionTrait, DbErr, RuntimeErr, TransactionTrait,
    sqlx::{self, Postgres, pool::PoolConnection},
};
use shared::{
    broker::{Broker, BrokerError},
    database::{failure::trouble, pause, statement, unanswered},
    domain::{task::Shown, tasks},
    message::{
        outgoing::Outgoing,
        pack::{Waiting, pack},
        wakeup::TraceContext,
    },
    process::redact::told,
};
use tokio::sync::watch;
use uuid::Uuid;

use crate::{canary::Keeper, lane::Context, records::Records, tend::Tender};

mod overdue;
mod view;

use overdue::{Which, has_index, horizon, overdue};
use view::{Step, View};

/// The advisory lock of the sweep's leader: "kyhan" in ASCII, then 1. Locks are per database, and so is the sweep.
const LEADER: i64 = 0x6b_7968_616e_0001;

/// Longest round; then nobody is there to answer.
const ROUND_MAX: Duration = Duration::from_secs(600);

/// How long a round goes on with a kind's deep look, and how long PostgreSQL may take for one of its queries.
const DEEP_MAX: Duration = Duration::from_secs(10);

/// What the leader does besides.
struct Duties {
    canaries: Keeper,
    letters: Tender,
    records: Records,
}

/// What the leader has looked at, kind by kind.
type Views = HashMap<&'static str, View>;

/// Why a round was cut short; the next one goes on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SweepError {
    #[error("PostgreSQL: {0}")]
    Database(#[from] DbErr),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl From<sqlx::Error> for SweepError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error))))
    }
}

/// Sweeps round after round until told to shut down. Whether it leads, it says to `leads`.
pub(crate) async fn run(context: Arc<Context>, leads: watch::Sender<bool>) {
    let woken = global::meter("kyhan")
        .u64_counter("kyhan.sweep.woken")
        .with_unit("{subject}")
        .with_description("Overdue subjects that had no effect and were woken again, by kind; zero in a healthy system")
        .build();
    let mut duties = Duties { canaries: Keeper::new(), letters: Tender::new(), records: Records::new() };
    let mut views = Views::default();
    let every = Duration::from_millis(context.settings.sweep.every_ms);
    let mut leadership = None;
    // The first round comes after a whole period: what is due at the start is what the lanes begin with.
    while context.shutdown.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        // Cut off by a shutdown, a round has woken some rows once more than it remembers, which is harmless.
        // A server that is cut off would never answer.
        let round = tokio::time::timeout(ROUND_MAX, round(&context, &mut leadership, &mut views, &woken, &mut duties));
        let Some(done) = context.shutdown.run_until_cancelled(round).await else { break };
        let done = done.unwrap_or_else(|_| Err(SweepError::Database(unanswered())));
        if let Err(error) = done {
            // Whoever cannot sweep must not lead: the connection closes, and the lock with it.
            leadership = None;
            views = Views::default();
            tell("the sweep was cut short; another worker may lead now", None, &error);
        }
        leads.send_replace(leadership.is_some());
    }
}

/// An outage is told of by the lanes already.
fn tell(what: &'static str, kind: Option<&'static str>, error: &SweepError) {
    match error {
        SweepError::Database(error) if trouble(error).is_outage() => {
            tracing::debug!(kind, error = told(error), what);
        }
        SweepError::Broker(error @ BrokerError::Connect { .. }) => tracing::debug!(kind, %error, what),
        error => tracing::warn!(kind, error = told(error), what),
    }
}

async fn round(
    context: &Context,
    leadership: &mut Option<PoolConnection<Postgres>>,
    views: &mut Views,
    woken: &Counter<u64>,
    duties: &mut Duties,
) -> Result<(), SweepError> {
    if !is_leader(context, leadership).await? {
        return Ok(());
    }
    // They need no broker, and keep nothing from being swept.
    if let Err(error) = duties.letters.round(context).await {
        tell("the tending of dead letters was cut short; the next round goes on", None, &error.into());
    }
    if let Err(error) = duties.records.round(context).await {
        tell("the keeping of the records was cut short; the next round goes on", None, &error.into());
    }
    // Of a paused kind all that is due is overdue, and waits in its lane.
    let paused = pause::all(&context.db).await?;
    let broker = Broker::connect(&context.settings.amqp, "kyhan sweep").await?;
    let mut done = Ok(());
    for task in tasks::ALL.iter().filter(|task| paused.iter().all(|pause| pause.kind != task.kind())) {
        let mut count = 0;
        let swept = sweep(context, &broker, *task, views.entry(task.kind()).or_default(), &mut count).await;
        if count > 0 {
            tracing::warn!(kind = task.kind(), count, "overdue subjects had no effect and were woken again");
            woken.add(count as u64, &[KeyValue::new("kind", task.kind())]);
        }
        match swept {
            Ok(()) => {}
            // The other kinds are swept all the same.
            Err(error @ SweepError::Database(_)) => tell("a kind's sweep was cut short", Some(task.kind()), &error),
            Err(error) => done = Err(error),
        }
    }
    done = done.and(duties.canaries.round(context, &broker).await.map_err(Into::into));
    broker.close().await;
    context.db.execute_unprepared(FORGET).await?;
    done
}

/// What was swept long ago has had its effect, or its dead letter.
const FORGET: &str = "DELETE FROM swept WHERE at < now() - interval '30 days'";

/// Whether this process holds the lock. It is the session's: gone with the connection, whatever becomes of the process.
async fn is_leader(context: &Context, leadership: &mut Option<PoolConnection<Postgres>>) -> Result<bool, SweepError> {
    if let Some(connection) = leadership {
        sqlx::query("SELECT 1").execute(&mut **connection).await?;
        return Ok(true);
    }
    let mut connection = context.db.get_postgres_connection_pool().acquire().await?;
    // Never back into the pool: whoever got it there would hold the lock.
    connection.close_on_drop();
    let locked: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(LEADER).fetch_one(&mut *connection).await?;
    if locked {
        *leadership = Some(connection);
    }
    Ok(locked)
}

/// Wakes one kind's overdue rows, and counts them in `woken`.
async fn sweep(
    context: &Context,
    broker: &Broker,
    task: &dyn Shown,
    view: &mut View,
    woken: &mut usize,
) -> Result<(), SweepError> {
    let sweep = &context.settings.sweep;
    let mut behind = 0;
    for lane in context.topology.lanes(task.kind()) {
        behind += broker.observe(&lane).await?.map_or(0, |seen| seen.messages);
    }
    if behind > sweep.lane_depth_max {
        // The lane is merely behind: its rows are on their way.
        return Ok(());
    }
    let (horizon, batch_max) = (horizon(context).await?, sweep.batch_max as usize);
    if !has_index(context, task) {
        if view.is_resting() {
            return Ok(());
        }
        let asked = Instant::now();
        if task.not_before().is_some() {
            view.descend(horizon, horizon, TimeDelta::zero());
            let done = dive(context, broker, task, view, Which::OfAge, horizon, woken).await;
            view.rests_after(asked.elapsed());
            return done;
        }
        let found = overdue(&context.db, context, task, horizon, Which::All, batch_max).await;
        // Also when it failed, as it does where PostgreSQL takes too long, and when it leaves some to the next.
        view.rests_after(asked.elapsed());
        let found = found?;
        return wake(context, broker, task, &found, woken).await;
    }
    let (after, pauses_after) = view.begins(horizon, millis(sweep.lookback_ms));
    let recent = overdue(&context.db, context, task, horizon, Which::Recent { after, pauses_after }, batch_max).await;
    // Of a past that was too long to ask about, a new view asks bit by bit.
    let recent = recent.inspect_err(|_| *view = View::default())?;
    wake(context, broker, task, &recent, woken).await?;
    // A full round leaves the rest to the next.
    if *woken < batch_max {
        view.saw(horizon);
        view.descend(after, horizon, millis(sweep.whole_every_ms));
        dive(context, broker, task, view, Which::Deep, horizon, woken).await?;
    }
    Ok(())
}

/// Goes on with the deep look, for so long. That it fails is told and no more: the recent past is looked at all the same.
async fn dive(
    context: &Context,
    broker: &Broker,
    task: &dyn Shown,
    view: &mut View,
    which: fn(Step) -> Which,
    horizon: DateTime<Utc>,
    woken: &mut usize,
) -> Result<(), SweepError> {
    let (began, batch_max) = (Instant::now(), context.settings.sweep.batch_max as usize);
    while let Some(step) = view.step() {
        let (asked, room) = (Instant::now(), batch_max - *woken);
        let found = match impatiently(context, task, horizon, which(step), room).await {
            Ok(found) => found,
            Err(error) => {
                view.stumbled();
                tell("a look at rows overdue for long was cut short; the next round goes on", Some(task.kind()), &error.into());
                break;
            }
        };
        let took = asked.elapsed();
        wake(context, broker, task, &found, woken).await?;
        // There may be more of them in this stretch.
        if found.len() == room {
            break;
        }
        view.stepped(step, took, horizon);
        if began.elapsed() > DEEP_MAX {
            break;
        }
    }
    Ok(())
}

/// [`overdue()`], given up by PostgreSQL after [`DEEP_MAX`].
async fn impatiently(
    context: &Context,
    task: &dyn Shown,
    horizon: DateTime<Utc>,
    which: Which,
    limit: usize,
) -> Result<Vec<(Uuid, DateTime<Utc>)>, DbErr> {
    let timeout_ms = DEEP_MAX.as_millis().min(context.settings.database.statement_timeout_ms.into());
    let tx = context.db.begin().await?;
    tx.execute_unprepared(&format!("SET LOCAL statement_timeout = {timeout_ms}")).await?;
    let found = overdue(&tx, context, task, horizon, which, limit).await?;
    tx.rollback().await?;
    Ok(found)
}

fn millis(ms: u64) -> TimeDelta {
    TimeDelta::milliseconds(i64::try_from(ms).unwrap_or(i64::MAX))
}

/// Publishes wake-ups of these rows straight into their lane.
async fn wake(
    context: &Context,
    broker: &Broker,
    task: &dyn Shown,
    overdue: &[(Uuid, DateTime<Utc>)],
    woken: &mut usize,
) -> Result<(), SweepError> {
    if overdue.is_empty() {
        return Ok(());
    }
    let waiting = overdue.iter().map(|(subject, due_at)| Waiting {
        kind: task.kind(),
        subject: *subject,
        due_at: *due_at,
        wait: TimeDelta::zero(),
        attempt: 0,
    });
    let topology = &context.topology;
    let packed = pack(waiting, topology.ladder(), topology.shards(), context.settings.naming.pack_max, &TraceContext::default());
    let publisher = broker.publisher().await?;
    let messages: Vec<Outgoing> = packed.iter().map(|packed| Outgoing::of(packed, topology)).collect();
    publisher.publish_all(&messages).await?;
    publisher.close().await;
    *woken += overdue.len();
    // After the confirms: a process that dies in between has woken them once too often, which is harmless.
    Ok(remember(context, task, overdue).await?)
}

async fn remember(context: &Context, task: &dyn Shown, woken: &[(Uuid, DateTime<Utc>)]) -> Result<(), DbErr> {
    let (subjects, dues): (Vec<Uuid>, Vec<DateTime<Utc>>) = woken.iter().copied().unzip();
    let sql = "INSERT INTO swept (kind, subject_id, due_at, at, times)
               SELECT $1, subject_id, due_at, now(), 1 FROM unnest($2::uuid[], $3::timestamptz[]) AS woken (subject_id, due_at)
               ON CONFLICT (kind, subject_id) DO UPDATE SET at = now(), due_at = EXCLUDED.due_at,
                   times = CASE WHEN swept.due_at = EXCLUDED.due_at THEN swept.times + 1 ELSE 1 END";
    context.db.execute_raw(statement(sql, [task.kind().into(), subjects.into(), dues.into()])).await.map(|_| ())
}

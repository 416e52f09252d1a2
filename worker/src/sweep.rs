//! The sweep: rows that are overdue and still unapplied are woken, so that a wake-up that was lost is made again. It reads the
//! same definition of *due* as the recheck. In a healthy system it finds nothing; what it finds is counted and warned of.
//!
//! One leader at a time, by an advisory lock of PostgreSQL; every worker process stands ready to be it. A round looks back only so
//! far, as an index on a moment holds everything that ever happened; the leader's first, and one a day, looks at everything.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use opentelemetry::{KeyValue, global, metrics::Counter};
use sea_orm::{
    ConnectionTrait, DbErr, RuntimeErr,
    sqlx::{self, Postgres, pool::PoolConnection},
};
use shared::{
    broker::{Broker, BrokerError, Outgoing},
    database::{statement, trouble, unanswered},
    due,
    pack::{Waiting, pack},
    task::Task,
    tasks,
    wakeup::TraceContext,
};
use tokio::sync::watch;
use uuid::Uuid;

use crate::{canary::Keeper, lane::Context};

/// The advisory lock of the sweep's leader: "kyhan" in ASCII, then 1. Locks are per database, and so is the sweep.
const LEADER: i64 = 0x6b_7968_616e_0001;

/// Longest round; then nobody is there to answer.
const ROUND_MAX: Duration = Duration::from_secs(600);

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
    let canaries = Keeper::new();
    let mut views = Views::default();
    let every = Duration::from_millis(context.settings.sweep.every_ms);
    let mut leadership = None;
    // The first round comes after a whole period: what is due at the start is what the lanes begin with.
    while context.shutdown.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        // Cut off by a shutdown, a round has woken some rows once more than it remembers, which is harmless.
        // A server that is cut off would never answer.
        let round = tokio::time::timeout(ROUND_MAX, round(&context, &mut leadership, &mut views, &woken, &canaries));
        let Some(done) = context.shutdown.run_until_cancelled(round).await else { break };
        let done = done.unwrap_or_else(|_| Err(SweepError::Database(unanswered())));
        if let Err(error) = done {
            // Whoever cannot sweep must not lead: the connection closes, and the lock with it.
            leadership = None;
            views = Views::default();
            tell("the sweep was cut short; another worker may lead now", &error);
        }
        leads.send_replace(leadership.is_some());
    }
}

/// An outage is told of by the lanes already.
fn tell(what: &'static str, error: &SweepError) {
    match error {
        SweepError::Database(error) if trouble(error).is_outage() => tracing::debug!(%error, what),
        SweepError::Broker(error @ BrokerError::Connect { .. }) => tracing::debug!(%error, what),
        error => tracing::warn!(%error, what),
    }
}

async fn round(
    context: &Context,
    leadership: &mut Option<PoolConnection<Postgres>>,
    views: &mut Views,
    woken: &Counter<u64>,
    canaries: &Keeper,
) -> Result<(), SweepError> {
    if !is_leader(context, leadership).await? {
        return Ok(());
    }
    let broker = Broker::connect(&context.settings.amqp, "kyhan sweep").await?;
    let mut done = Ok(());
    for task in tasks::ALL {
        match sweep(context, &broker, *task, views).await {
            Ok(0) => {}
            Ok(count) => {
                tracing::warn!(kind = task.kind(), count, "overdue subjects had no effect and were woken again");
                woken.add(count, &[KeyValue::new("kind", task.kind())]);
            }
            // The other kinds are swept all the same.
            Err(error @ SweepError::Database(_)) => tell(task.kind(), &error),
            Err(error) => done = Err(error),
        }
    }
    done = done.and(canaries.round(context, &broker).await.map_err(Into::into));
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

/// When the leader last looked at a kind's rows, and when at all of them.
#[derive(Default)]
struct Views(HashMap<&'static str, View>);

#[derive(Clone, Copy)]
struct View {
    any: Instant,
    whole: Instant,
}

impl Views {
    /// Whether the rows of this kind that fell due within `lookback` are all that need to be looked at: rounds of before have
    /// looked at the others. A row that was changed so that it was overdue at once, and whose event was lost, waits for a look at
    /// everything.
    fn suffices(&self, kind: &str, lookback: Duration, whole_every: Duration) -> bool {
        // The rounds overlap by a half, as what commits late was invisible to the one that should have seen it.
        self.0.get(kind).is_some_and(|view| view.any.elapsed() < lookback / 2 && view.whole.elapsed() < whole_every)
    }

    fn looked(&mut self, kind: &'static str, at: Instant, whole: bool) {
        let before = self.0.get(kind).filter(|_| !whole).map_or(at, |view| view.whole);
        self.0.insert(kind, View { any: at, whole: before });
    }
}

/// Wakes one kind's overdue rows, oldest first. How many.
async fn sweep(context: &Context, broker: &Broker, task: &dyn Task, views: &mut Views) -> Result<u64, SweepError> {
    let sweep = &context.settings.sweep;
    let mut behind = 0;
    for lane in context.topology.lanes(task.kind()) {
        behind += broker.observe(&lane).await?.map_or(0, |seen| seen.messages);
    }
    if behind > sweep.lane_depth_max {
        // The lane is merely behind: its rows are on their way.
        return Ok(0);
    }
    let (lookback, whole_every) = (Duration::from_millis(sweep.lookback_ms), Duration::from_millis(sweep.whole_every_ms));
    let (began, recent) = (Instant::now(), views.suffices(task.kind(), lookback, whole_every));
    let overdue = overdue(context, task, recent).await?;
    // A full round leaves the rest to the next.
    if overdue.len() < sweep.batch_max as usize {
        views.looked(task.kind(), began, !recent);
    }
    if overdue.is_empty() {
        return Ok(0);
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
    // After the confirms: a process that dies in between has woken them once too often, which is harmless.
    remember(context, task, &overdue).await?;
    Ok(overdue.len() as u64)
}

/// Overdue by more than the grace, and not woken by the sweep for this deadline lately: each time it waits twice as long, up to
/// a day, as a row that keeps failing has its attempts and its dead letter. Where only what is `recent` is to be looked at, a row
/// overdue for longer than the lookback is passed over.
async fn overdue(context: &Context, task: &dyn Task, recent: bool) -> Result<Vec<(Uuid, DateTime<Utc>)>, DbErr> {
    let sweep = &context.settings.sweep;
    let (policy, horizon) = (&context.settings.policy, "(now() - $2 * interval '1 ms')");
    let after = format!("({horizon} - interval '{}.{:03} seconds')", sweep.lookback_ms / 1000, sweep.lookback_ms % 1000);
    let bounded = if recent { due::query_between(task, policy, &after, horizon) } else { None };
    let sql = format!(
        "SELECT overdue.id, overdue.due_at
           FROM {due} AS overdue LEFT JOIN swept ON swept.kind = $1 AND swept.subject_id = overdue.id AND swept.due_at = overdue.due_at
          WHERE overdue.due_at < now() - $2 * interval '1 ms'
            AND (swept.times IS NULL
                 OR swept.at < now() - least($2 * power(2, least(swept.times, 30)), 86400000) * interval '1 ms')
          ORDER BY overdue.due_at, overdue.id LIMIT $3",
        due = bounded.unwrap_or_else(|| due::query_before(task, policy, horizon)),
    );
    let grace_ms = i64::try_from(sweep.grace_ms).unwrap_or(i64::MAX);
    let values = [task.kind().into(), grace_ms.into(), i64::from(sweep.batch_max).into()];
    let rows = context.db.query_all_raw(statement(&sql, values)).await?;
    rows.iter().map(|row| Ok((row.try_get("", "id")?, row.try_get("", "due_at")?))).collect()
}

async fn remember(context: &Context, task: &dyn Task, woken: &[(Uuid, DateTime<Utc>)]) -> Result<(), DbErr> {
    let (subjects, dues): (Vec<Uuid>, Vec<DateTime<Utc>>) = woken.iter().copied().unzip();
    let sql = "INSERT INTO swept (kind, subject_id, due_at, at, times)
               SELECT $1, subject_id, due_at, now(), 1 FROM unnest($2::uuid[], $3::timestamptz[]) AS woken (subject_id, due_at)
               ON CONFLICT (kind, subject_id) DO UPDATE SET at = now(), due_at = EXCLUDED.due_at,
                   times = CASE WHEN swept.due_at = EXCLUDED.due_at THEN swept.times + 1 ELSE 1 END";
    context.db.execute_raw(statement(sql, [task.kind().into(), subjects.into(), dues.into()])).await.map(|_| ())
}

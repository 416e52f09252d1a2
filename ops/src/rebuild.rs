//! Rebuild: every pending wake-up is made again from the rows, as after a broker was lost with its disk. On a healthy broker it
//! does no harm: what comes twice is found stale.
//!
//! It goes through the rows in id order and remembers how far it has come after each confirmed page, so that a rebuild that was
//! interrupted goes on where it stopped.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr};
use shared::{
    broker::{Broker, BrokerError, Outgoing},
    database::statement,
    due,
    pack::{Waiting, pack},
    settings::Settings,
    task::Task,
    wakeup::TraceContext,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Most rows that are read, published and remembered at a time.
const PAGE: i64 = 5_000;

/// Why a rebuild failed; running it again goes on where it stopped.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("PostgreSQL: {0}")]
    Database(#[from] DbErr),
}

/// What is pending of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// Rows that fall due some day or are overdue.
    pub all: u64,
    /// Those already gone through by a rebuild that was interrupted.
    pub done: u64,
}

/// Counts what is pending of a kind, and where an interrupted rebuild stands.
///
/// # Errors
/// The database's.
pub async fn pending(db: &DatabaseConnection, settings: &Settings, task: &dyn Task) -> Result<Pending, DbErr> {
    let due = due::query(task, &settings.policy);
    let sql = format!(
        "SELECT count(*) AS all, count(*) FILTER (WHERE due.id <= rebuild.cursor) AS done
           FROM {due} AS due LEFT JOIN rebuilds AS rebuild ON rebuild.kind = $1 WHERE due.due_at IS NOT NULL"
    );
    let row = db.query_one_raw(statement(&sql, [task.kind().into()])).await?;
    let row = row.ok_or_else(|| DbErr::RecordNotFound("a count".into()))?;
    let count = |name: &str| row.try_get::<i64>("", name).map(|count| u64::try_from(count).unwrap_or_default());
    Ok(Pending { all: count("all")?, done: count("done")? })
}

/// Makes every pending wake-up of a kind again, at most `rate` subjects a second, and tells `progress` of each page. `false` when
/// it was told to stop before the end.
///
/// # Errors
/// [`RebuildError`].
pub async fn rebuild(
    db: &DatabaseConnection,
    broker: &Broker,
    settings: &Settings,
    task: &dyn Task,
    rate: u32,
    stop: &CancellationToken,
    mut progress: impl FnMut(usize),
) -> Result<bool, RebuildError> {
    let publisher = broker.publisher().await?;
    let topology = settings.topology();
    while !stop.is_cancelled() {
        let began = Instant::now();
        let page = page(db, settings, task).await?;
        let Some(last) = page.last().map(|waiting| waiting.subject) else {
            db.execute_raw(statement("DELETE FROM rebuilds WHERE kind = $1", [task.kind().into()])).await?;
            publisher.close().await;
            return Ok(true);
        };
        let count = page.len();
        let packed = pack(page, topology.ladder(), topology.shards(), settings.naming.pack_max, &TraceContext::default());
        publisher.publish_all(packed.iter().map(|packed| Outgoing::of(packed, &topology)).collect()).await?;
        let remember = "INSERT INTO rebuilds (kind, cursor) VALUES ($1, $2)
                        ON CONFLICT (kind) DO UPDATE SET cursor = EXCLUDED.cursor, at = now()";
        db.execute_raw(statement(remember, [task.kind().into(), last.into()])).await?;
        progress(count);
        let pace = Duration::from_micros(count as u64 * 1_000_000 / u64::from(rate.max(1)));
        stop.run_until_cancelled(tokio::time::sleep_until(began + pace)).await;
    }
    publisher.close().await;
    Ok(false)
}

/// Forgets where interrupted rebuilds stand: the next one begins at the beginning.
///
/// # Errors
/// The database's.
pub async fn restart(db: &DatabaseConnection) -> Result<(), DbErr> {
    db.execute_unprepared("DELETE FROM rebuilds").await.map(|_| ())
}

/// The next rows in id order.
async fn page(db: &DatabaseConnection, settings: &Settings, task: &dyn Task) -> Result<Vec<Waiting>, DbErr> {
    let cursor = db.query_one_raw(statement("SELECT cursor FROM rebuilds WHERE kind = $1", [task.kind().into()])).await?;
    let cursor: Option<Uuid> = cursor.map(|row| row.try_get("", "cursor")).transpose()?;
    let beyond = cursor.map_or("true".to_owned(), |cursor| format!("due.id > '{cursor}'"));
    let due = due::query(task, &settings.policy);
    let sql = format!(
        "SELECT due.id, due.due_at, clock_timestamp() AS now FROM {due} AS due
          WHERE due.due_at IS NOT NULL AND {beyond} ORDER BY due.id LIMIT $1"
    );
    let rows = db.query_all_raw(statement(&sql, [PAGE.into()])).await?;
    rows.iter()
        .map(|row| {
            let (due_at, now): (DateTime<Utc>, DateTime<Utc>) = (row.try_get("", "due_at")?, row.try_get("", "now")?);
            let subject: Uuid = row.try_get("", "id")?;
            Ok(Waiting { kind: task.kind(), subject, due_at, wait: due_at - now, attempt: 0 })
        })
        .collect()
}

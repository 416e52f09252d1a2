//! Rebuild: every pending wake-up is made again from the rows, as after a broker was lost with its disk. On a healthy broker it
//! does no harm: what comes twice is found stale.
//!
//! It goes through the rows in id order and remembers how far it has come after each confirmed page, so that a rebuild that was
//! interrupted goes on where it stopped.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, Value};
use shared::{
    broker::{Broker, Outgoing},
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

use crate::OpsError;

/// Most rows that are read, published and remembered at a time.
const PAGE: i64 = 5_000;

/// Where a rebuild was interrupted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interrupted {
    /// Everything up to this id is confirmed.
    pub cursor: Uuid,
    /// When, as PostgreSQL writes it.
    pub at: String,
    /// Whether that was so lately that it is the same recovery.
    pub lately: bool,
}

/// Where an interrupted rebuild of a kind stands.
///
/// # Errors
/// The database's.
pub async fn interrupted(db: &DatabaseConnection, settings: &Settings, task: &dyn Task) -> Result<Option<Interrupted>, DbErr> {
    let sql =
        "SELECT cursor, at::text AS at, at > now() - interval '1 hour' AS lately FROM rebuilds WHERE prefix = $1 AND kind = $2";
    let row = db.query_one_raw(statement(sql, key(settings, task))).await?;
    row.map(|row| {
        Ok(Interrupted { cursor: row.try_get("", "cursor")?, at: row.try_get("", "at")?, lately: row.try_get("", "lately")? })
    })
    .transpose()
}

/// How many rows of a kind fall due some day or are overdue: all, or those beyond a cursor.
///
/// # Errors
/// The database's.
pub async fn pending(db: &DatabaseConnection, settings: &Settings, task: &dyn Task, beyond: Option<Uuid>) -> Result<u64, DbErr> {
    let due = due::query(task, &settings.policy);
    let sql = format!("SELECT count(*) AS pending FROM {due} AS due WHERE due.due_at IS NOT NULL AND {}", beyond_sql(beyond));
    let row = db.query_one_raw(statement(&sql, [])).await?;
    let row = row.ok_or_else(|| DbErr::RecordNotFound("a count".into()))?;
    Ok(u64::try_from(row.try_get::<i64>("", "pending")?).unwrap_or_default())
}

fn key(settings: &Settings, task: &dyn Task) -> [Value; 2] {
    [settings.naming.prefix.clone().into(), task.kind().into()]
}

fn beyond_sql(cursor: Option<Uuid>) -> String {
    cursor.map_or("true".to_owned(), |cursor| format!("due.id > '{cursor}'"))
}

/// Makes every pending wake-up of a kind again, at most `rate` subjects a second, and tells `progress` of each page. `false` when
/// it was told to stop before the end.
///
/// # Errors
/// [`OpsError`]; running it again goes on where it stopped.
pub async fn rebuild(
    db: &DatabaseConnection,
    broker: &Broker,
    settings: &Settings,
    task: &dyn Task,
    rate: u32,
    stop: &CancellationToken,
    mut progress: impl FnMut(usize),
) -> Result<bool, OpsError> {
    let publisher = broker.publisher().await?;
    let topology = settings.topology();
    let mut cursor = interrupted(db, settings, task).await?.map(|stands| stands.cursor);
    while !stop.is_cancelled() {
        let began = Instant::now();
        let page = page(db, settings, task, cursor).await?;
        let Some(last) = page.last().map(|waiting| waiting.subject) else {
            forget(db, settings, task).await?;
            publisher.close().await;
            return Ok(true);
        };
        let count = page.len();
        let packed = pack(page, topology.ladder(), topology.shards(), settings.naming.pack_max, &TraceContext::default());
        let messages: Vec<Outgoing> = packed.iter().map(|packed| Outgoing::of(packed, &topology)).collect();
        publisher.publish_all(&messages).await?;
        let remember = "INSERT INTO rebuilds (prefix, kind, cursor) VALUES ($1, $2, $3)
                        ON CONFLICT (prefix, kind) DO UPDATE SET cursor = EXCLUDED.cursor, at = now()";
        let [prefix, kind] = key(settings, task);
        db.execute_raw(statement(remember, [prefix, kind, last.into()])).await?;
        cursor = Some(last);
        progress(count);
        let pace = Duration::from_micros(count as u64 * 1_000_000 / u64::from(rate.max(1)));
        stop.run_until_cancelled(tokio::time::sleep_until(began + pace)).await;
    }
    publisher.close().await;
    Ok(false)
}

/// Forgets where an interrupted rebuild stands: the next one begins at the beginning.
///
/// # Errors
/// The database's.
pub async fn forget(db: &DatabaseConnection, settings: &Settings, task: &dyn Task) -> Result<(), DbErr> {
    let sql = "DELETE FROM rebuilds WHERE prefix = $1 AND kind = $2";
    db.execute_raw(statement(sql, key(settings, task))).await.map(|_| ())
}

/// The next rows in id order.
async fn page(
    db: &DatabaseConnection,
    settings: &Settings,
    task: &dyn Task,
    cursor: Option<Uuid>,
) -> Result<Vec<Waiting>, DbErr> {
    let due = due::query(task, &settings.policy);
    let beyond = beyond_sql(cursor);
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

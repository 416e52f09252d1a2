//! Rebuild: every pending wake-up is made again from the rows, as after a broker was lost with its disk. On a healthy broker it
//! does no harm: what comes twice is found stale.
//!
//! It goes through the rows in id order and remembers how far it has come after each confirmed page, so that a rebuild that was
//! interrupted goes on where it stopped.

use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, EntityTrait, FromQueryResult, Value};
use shared::{
    broker::Broker,
    database::{entity::rebuilds, scalar, statement},
    domain::{due, task::Shown},
    settings::Settings,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    OpsError,
    walk::{self, Walk},
};

/// Where a rebuild was interrupted.
#[derive(Debug, Clone, PartialEq, Eq, FromQueryResult)]
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
/// Database errors.
pub async fn interrupted(db: &DatabaseConnection, settings: &Settings, task: &dyn Shown) -> Result<Option<Interrupted>, DbErr> {
    let sql =
        "SELECT cursor, at::text AS at, at > now() - interval '1 hour' AS lately FROM rebuilds WHERE prefix = $1 AND kind = $2";
    Interrupted::find_by_statement(statement(sql, key(settings, task))).one(db).await
}

/// How many rows of a kind fall due some day or are overdue: all, or those beyond a cursor.
///
/// # Errors
/// Database errors.
pub async fn pending(db: &DatabaseConnection, settings: &Settings, task: &dyn Shown, beyond: Option<Uuid>) -> Result<u64, DbErr> {
    let due = due::query(task, &settings.policy);
    let sql = format!(
        "SELECT count(*) FROM {due} AS due WHERE due.due_at IS NOT NULL AND {} AND {}",
        which(task),
        walk::beyond(beyond)
    );
    let pending: i64 = scalar(db, statement(&sql, [])).await?;
    Ok(u64::try_from(pending).unwrap_or_default())
}

/// SQL: what operators have decided about, or are to decide about, is theirs.
fn which(task: &dyn Shown) -> String {
    format!("NOT {}", shared::database::sql_decided(task, "due"))
}

fn key(settings: &Settings, task: &dyn Shown) -> [Value; 2] {
    [settings.naming.prefix.clone().into(), task.kind().into()]
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
    task: &dyn Shown,
    rate: u32,
    stop: &CancellationToken,
    progress: impl FnMut(usize),
) -> Result<bool, OpsError> {
    let cursor = interrupted(db, settings, task).await?.map(|stands| stands.cursor);
    let remember = async |last: Uuid| {
        let sql = "INSERT INTO rebuilds (prefix, kind, cursor) VALUES ($1, $2, $3)
                   ON CONFLICT (prefix, kind) DO UPDATE SET cursor = EXCLUDED.cursor, at = now()";
        let [prefix, kind] = key(settings, task);
        db.execute_raw(statement(sql, [prefix, kind, last.into()])).await.map(|_| ())
    };
    let due = due::query(task, &settings.policy);
    let walk = Walk { db, broker, settings, task, due: &due, which: &which(task), rate, stop };
    let whole = walk.run(cursor, remember, progress).await?;
    if whole {
        forget(db, settings, task).await?;
    }
    Ok(whole)
}

/// Forgets where an interrupted rebuild stands: the next one begins at the beginning.
///
/// # Errors
/// Database errors.
pub async fn forget(db: &DatabaseConnection, settings: &Settings, task: &dyn Shown) -> Result<(), DbErr> {
    let key = (settings.naming.prefix.clone(), task.kind().to_owned());
    rebuilds::Entity::delete_by_id(key).exec(db).await.map(|_| ())
}

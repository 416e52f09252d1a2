//! Rebuild: publishes every pending wake-up again from the rows, for example after a broker lost its disk. It is harmless on a healthy
//! broker, because the recheck finds a duplicate stale.
//!
//! It walks the rows in id order and stores its position after each confirmed page, so that an interrupted rebuild can continue.

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

/// The position of an interrupted rebuild.
#[derive(Debug, Clone, PartialEq, Eq, FromQueryResult)]
pub struct Interrupted {
    /// The wake-ups of all rows up to this id are confirmed.
    pub cursor: Uuid,
    /// When the position was stored, as PostgreSQL formats it.
    pub at: String,
    /// Whether that was so recent that it is probably the same recovery.
    pub lately: bool,
}

/// The position of an interrupted rebuild of a kind.
///
/// # Errors
/// Database errors.
pub async fn interrupted(db: &DatabaseConnection, settings: &Settings, task: &dyn Shown) -> Result<Option<Interrupted>, DbErr> {
    let sql =
        "SELECT cursor, at::text AS at, at > now() - interval '1 hour' AS lately FROM rebuilds WHERE prefix = $1 AND kind = $2";
    Interrupted::find_by_statement(statement(sql, key(settings, task))).one(db).await
}

/// How many rows of a kind are due now or later: all, or those after a cursor.
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

/// SQL: excludes rows that operators have decided, or have yet to decide, about.
fn which(task: &dyn Shown) -> String {
    format!("NOT {}", shared::database::sql_decided(task, "due"))
}

fn key(settings: &Settings, task: &dyn Shown) -> [Value; 2] {
    [settings.naming.prefix.clone().into(), task.kind().into()]
}

/// Publishes every pending wake-up of a kind again, at most `rate` subjects per second. `progress` receives the size of each page.
/// Returns `false` if `stop` was cancelled before the end.
///
/// # Errors
/// [`OpsError`]; the next call continues from the stored position.
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

/// Deletes the position of an interrupted rebuild, so that the next one starts from the first row.
///
/// # Errors
/// Database errors.
pub async fn forget(db: &DatabaseConnection, settings: &Settings, task: &dyn Shown) -> Result<(), DbErr> {
    let key = (settings.naming.prefix.clone(), task.kind().to_owned());
    rebuilds::Entity::delete_by_id(key).exec(db).await.map(|_| ())
}

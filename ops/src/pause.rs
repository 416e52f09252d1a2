//! Pausing and resuming a kind across the fleet. Once a kind is paused and [`until_idle`] leaves nobody over, nothing more of
//! it is applied before it is resumed.
//!
//! Whoever applies looks for the pause in the statement that locks its rows ([`shared::database::statements::Statements`]). So only those go on that had
//! looked before the pause was committed, and they are found by the locks on tables that this statement has taken: PostgreSQL
//! takes them before the snapshot by which the statement sees, and keeps them to the transaction's end. By their ids they would not be
//! found (`pg_snapshot_xmin`): a transaction that waits for its first row has none yet.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveValue::Set, DatabaseConnection, DatabaseTransaction, DbErr, EntityTrait, FromQueryResult, TransactionTrait,
    sea_query::OnConflict,
};
use serde_json::json;
use shared::{
    database::{column, entity::pauses, pause::Pause, statement},
    domain::task::Shown,
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::actor::{Actor, id_of};

/// Between two looks at who still applies.
const POLL: Duration = Duration::from_millis(200);

/// What came of [`pause`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Paused {
    Now(Pause),
    /// It was paused already, so; nothing was changed.
    Before(Pause),
}

/// What came of [`resume`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resumed {
    /// It was paused so until now.
    Now(Pause),
    /// It was not paused; when and by whom it was resumed last, if ever.
    Before(Option<(DateTime<Utc>, String)>),
}

/// Pauses a kind, and records who did it and why in the same transaction.
///
/// # Errors
/// Database errors.
pub async fn pause(db: &DatabaseConnection, actor: &Actor, task: &dyn Shown, why: &str) -> Result<Paused, DbErr> {
    let kind = task.kind();
    let wanted = pauses::ActiveModel {
        kind: Set(kind.to_owned()),
        paused_by: Set(actor.name().to_owned()),
        why: Set(why.to_owned()),
        ..Default::default()
    };
    loop {
        let tx = db.begin().await?;
        let wanted = pauses::Entity::insert(wanted.clone()).on_conflict(OnConflict::new().do_nothing().to_owned());
        let inserted = wanted.exec_without_returning(&tx).await? > 0;
        let Some(pause) = pauses::Entity::find_by_id(kind).one(&tx).await? else {
            // Somebody resumed it between the two statements.
            tx.rollback().await?;
            continue;
        };
        if !inserted {
            tx.rollback().await?;
            return Ok(Paused::Before(pause.into()));
        }
        actor.record(&tx, "kind.paused", ("kind", id_of(kind)), Some(why), json!({ "kind": kind })).await?;
        tx.commit().await?;
        return Ok(Paused::Now(pause.into()));
    }
}

/// Resumes a kind, and records who did it and why in the same transaction.
///
/// # Errors
/// Database errors.
pub async fn resume(db: &DatabaseConnection, actor: &Actor, task: &dyn Shown, why: &str) -> Result<Resumed, DbErr> {
    let kind = task.kind();
    let tx = db.begin().await?;
    let Some(pause) = pauses::Entity::delete_by_id(kind).exec_with_returning(&tx).await? else {
        let last = last_resumed(&tx, kind).await?;
        tx.rollback().await?;
        return Ok(Resumed::Before(last));
    };
    let pause = Pause::from(pause);
    let changed = json!({ "kind": kind, "paused_at": pause.since, "paused_by": pause.by });
    actor.record(&tx, "kind.resumed", ("kind", id_of(kind)), Some(why), changed).await?;
    tx.commit().await?;
    Ok(Resumed::Now(pause))
}

/// Waits until every transaction that applies this kind, and may not have seen its pause, has ended: `within` so long, or until told
/// to `stop`. How many go on. While it waits, `progress` is told how many there are.
///
/// # Errors
/// Database errors.
pub async fn until_idle(
    db: &DatabaseConnection,
    task: &dyn Shown,
    within: Duration,
    stop: &CancellationToken,
    mut progress: impl FnMut(usize),
) -> Result<usize, DbErr> {
    let deadline = Instant::now() + within;
    let mut applying = applying(db, task, None).await?;
    while !applying.is_empty() && Instant::now() < deadline && !stop.is_cancelled() {
        progress(applying.len());
        stop.run_until_cancelled(sleep(POLL)).await;
        applying = self::applying(db, task, Some(applying)).await?;
    }
    Ok(applying.len())
}

/// The transactions that have looked for a pause and hold rows of the task's table, by their virtual ids, which they have from their
/// beginning; all, or those `among` others. Kinds of one table are not told apart, and neither are those that see the pause and
/// are about to roll back.
async fn applying(db: &DatabaseConnection, task: &dyn Shown, among: Option<Vec<String>>) -> Result<Vec<String>, DbErr> {
    let sql = "SELECT virtualtransaction FROM pg_locks
                WHERE locktype = 'relation' AND granted
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                  AND relation IN ('pauses'::regclass, $1::text::regclass)
                  AND ($2::text[] IS NULL OR virtualtransaction = ANY ($2))
                GROUP BY virtualtransaction
               HAVING bool_or(relation = 'pauses'::regclass)
                  AND bool_or(relation = $1::text::regclass AND mode = 'RowShareLock')";
    column(db, statement(sql, [task.table().into(), among.into()])).await
}

async fn last_resumed(tx: &DatabaseTransaction, kind: &str) -> Result<Option<(DateTime<Utc>, String)>, DbErr> {
    #[derive(FromQueryResult)]
    struct Resumption {
        at: DateTime<Utc>,
        by: String,
    }
    let sql = "SELECT at, detail ->> 'by' AS by FROM activity_operations
                WHERE subject_id = $1 AND subject_kind = 'kind' AND action = 'kind.resumed' ORDER BY id DESC LIMIT 1";
    let last = Resumption::find_by_statement(statement(sql, [id_of(kind).into()])).one(tx).await?;
    Ok(last.map(|Resumption { at, by }| (at, by)))
}

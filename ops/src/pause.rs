//! Pauses and resumes a kind across the fleet. Once a kind is paused and [`until_idle`] returns 0, no process applies it until it is
//! resumed.
//!
//! The statement that locks the rows also checks for a pause ([`shared::database::statements::Statements`]). So only transactions that
//! checked before the pause was committed continue. Their table locks identify them: PostgreSQL takes table locks before the
//! statement's snapshot, and keeps them until the transaction ends. Transaction ids (`pg_snapshot_xmin`) would not work, because a
//! transaction that waits for its first row has no id yet.

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

use crate::actor::{Operator, id_of};

/// Time between two checks for transactions that still apply the kind.
const POLL: Duration = Duration::from_millis(200);

/// The result of [`pause`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PauseOutcome {
    Now(Pause),
    /// It was already paused, by this pause; nothing was changed.
    Before(Pause),
}

/// The result of [`resume`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResumeOutcome {
    /// The pause that was removed.
    Now(Pause),
    /// It was not paused. When and by whom it was last resumed, if ever.
    Before(Option<(DateTime<Utc>, String)>),
}

/// Pauses a kind, and records who did it and why in the same transaction.
///
/// # Errors
/// Database errors.
pub async fn pause(db: &DatabaseConnection, actor: &Operator, task: &dyn Shown, why: &str) -> Result<PauseOutcome, DbErr> {
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
            // Another operator resumed it between the two statements.
            tx.rollback().await?;
            continue;
        };
        if !inserted {
            tx.rollback().await?;
            return Ok(PauseOutcome::Before(pause.into()));
        }
        actor.record(&tx, "kind.paused", ("kind", id_of(kind)), Some(why), json!({ "kind": kind })).await?;
        tx.commit().await?;
        return Ok(PauseOutcome::Now(pause.into()));
    }
}

/// Resumes a kind, and records who did it and why in the same transaction.
///
/// # Errors
/// Database errors.
pub async fn resume(db: &DatabaseConnection, actor: &Operator, task: &dyn Shown, why: &str) -> Result<ResumeOutcome, DbErr> {
    let kind = task.kind();
    let tx = db.begin().await?;
    let Some(pause) = pauses::Entity::delete_by_id(kind).exec_with_returning(&tx).await? else {
        let last = last_resumed(&tx, kind).await?;
        tx.rollback().await?;
        return Ok(ResumeOutcome::Before(last));
    };
    let pause = Pause::from(pause);
    let changed = json!({ "kind": kind, "paused_at": pause.since, "paused_by": pause.by });
    actor.record(&tx, "kind.resumed", ("kind", id_of(kind)), Some(why), changed).await?;
    tx.commit().await?;
    Ok(ResumeOutcome::Now(pause))
}

/// Waits until every transaction that applies this kind, and may have missed its pause, has ended. Gives up after `within`, or when
/// `stop` is cancelled. Returns how many are still open. While it waits, `progress` receives their number.
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

/// The virtual ids of transactions that have checked for a pause and hold row locks in the task's table; all, or only those in
/// `among`. A transaction has a virtual id from its start. The result includes transactions of other kinds with the same table, and
/// those that see the pause and are about to roll back.
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

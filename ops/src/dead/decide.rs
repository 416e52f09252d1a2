//! Decisions of an operator about dead letters: discard them, or repair the kind or subject of one. Each is one transaction with its
//! record in `activity`. A decided letter does not change any more.

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, DerivePartialModel, EntityTrait, QueryFilter,
    QueryOrder, QuerySelect, TransactionTrait,
    sea_query::{Expr, LockType},
};
use serde_json::json;
use shared::{
    database::{
        entity::{
            dead_letters::{self, Column},
            replay_plan_letters, replay_plans,
        },
        statement,
    },
    domain::tasks,
};
use uuid::Uuid;

use crate::{actor::Operator, shown};

/// The subject kind of dead letters in `activity`.
const LETTER: &str = "dead_letter";

/// Why a decision was refused.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    #[error("there is no dead letter {0}")]
    NoLetter(Uuid),
    #[error("dead letter {id} is already {state}, by {by} at {at}: {why}")]
    Decided { id: Uuid, state: String, by: String, at: String, why: String },
    #[error("dead letter {id} is already repaired, as {repaired_as}")]
    Repaired { id: Uuid, repaired_as: Uuid },
    #[error("running plan {plan} contains dead letter {letter}; wait until the plan is done, or stop it")]
    Running { plan: Uuid, letter: Uuid },
    #[error("dead letter {0} lacks a kind or a subject; pass both --kind and --subject")]
    Incomplete(Uuid),
    #[error("unknown task {0:?}; pass its current name with --kind")]
    UnknownKind(String),
    #[error("dead letter {0} already has this kind and subject; nothing to repair")]
    Same(Uuid),
    #[error("{kind} is about rows of {table}, and there is no row {subject}")]
    NoSubject { kind: String, table: &'static str, subject: Uuid },
    #[error("PostgreSQL: {0}")]
    Database(#[from] DbErr),
}

/// The result of discarding letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discarded {
    pub discarded: u64,
    /// Already decided when this transaction locked them, so left unchanged.
    pub decided: u64,
}

/// Discards for good those of these letters that are open.
///
/// # Errors
/// [`DecideError::Running`] if a running plan contains one of them; database errors. Nothing is discarded then.
pub async fn discard(db: &DatabaseConnection, actor: &Operator, ids: &[Uuid], why: &str) -> Result<Discarded, DecideError> {
    let tx = db.begin().await?;
    let open = open(&tx, ids).await?;
    refuse_running(&tx, &open).await?;
    let discarded = close(&tx, &open, "discarded", actor, why).await?;
    actor
        .record_each(&tx, "dead_letter.discarded", (LETTER, &open), Some(why), json!({ "state": ["open", "discarded"] }))
        .await?;
    tx.commit().await?;
    Ok(Discarded { discarded, decided: (ids.len() as u64).saturating_sub(discarded) })
}

/// A corrected kind or subject of a letter. There is no other field: a letter holds no amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Correction {
    /// The correct kind, one of [`tasks::ALL`]; `None`: unchanged.
    pub kind: Option<&'static str>,
    /// The correct subject; `None`: unchanged.
    pub subject: Option<Uuid>,
}

/// Inserts a corrected, open copy of a letter, and resolves the old one, which keeps its content. Returns the new letter's id.
///
/// # Errors
/// [`DecideError`]; nothing is changed then. Repeating a repair is an error and inserts no second copy.
pub async fn repair(
    db: &DatabaseConnection,
    actor: &Operator,
    id: Uuid,
    correction: Correction,
    why: &str,
) -> Result<Uuid, DecideError> {
    let tx = db.begin().await?;
    let letter =
        dead_letters::Entity::find_by_id(id).lock(LockType::NoKeyUpdate).into_partial_model::<Repairable>().one(&tx).await?;
    let letter = letter.ok_or(DecideError::NoLetter(id))?;
    refuse_decided(&tx, id, &letter).await?;
    refuse_running(&tx, &[id]).await?;

    let (old_kind, old_subject) = (letter.kind, letter.subject_id);
    let kind = correction.kind.map(ToOwned::to_owned).or_else(|| old_kind.clone());
    let subject = correction.subject.or(old_subject);
    let (Some(kind), Some(subject)) = (kind, subject) else { return Err(DecideError::Incomplete(id)) };
    if (Some(&kind), Some(subject)) == (old_kind.as_ref(), old_subject) {
        return Err(DecideError::Same(id));
    }
    let Some(task) = tasks::find(&kind) else { return Err(DecideError::UnknownKind(kind)) };
    let there = format!("SELECT FROM {} WHERE id = $1", task.table());
    if tx.query_one_raw(statement(&there, [subject.into()])).await?.is_none() {
        return Err(DecideError::NoSubject { kind, table: task.table(), subject });
    }

    let repaired_as = Uuid::new_v4();
    let copy = "INSERT INTO dead_letters (id, kind, subject_id, repaired_from, wakeup_id, reason, cause, cause_group, attempts,
                                          first_failed_at, last_failed_at, worker, trace_id, queue, routing_key, body_hash)
                SELECT $2, $3, $4, id, wakeup_id, reason, cause, cause_group, attempts,
                       first_failed_at, last_failed_at, worker, trace_id, queue, routing_key, body_hash
                  FROM dead_letters WHERE id = $1";
    tx.execute_raw(statement(copy, [id.into(), repaired_as.into(), kind.clone().into(), subject.into()])).await?;
    close(&tx, &[id], "resolved", actor, &format!("repaired as {repaired_as}: {why}")).await?;
    let changed = json!({
        "state": ["open", "resolved"], "repaired_as": repaired_as, "kind": [old_kind, kind], "subject_id": [old_subject, subject],
    });
    actor.record(&tx, "dead_letter.repaired", (LETTER, id), Some(why), changed).await?;
    tx.commit().await?;
    Ok(repaired_as)
}

/// Sets the state of these letters and who decided it, without a record in `activity`. Returns how many.
pub(super) async fn close(
    tx: &DatabaseTransaction,
    ids: &[Uuid],
    state: &str,
    actor: &Operator,
    why: &str,
) -> Result<u64, DbErr> {
    let closed = dead_letters::Entity::update_many()
        .col_expr(Column::State, Expr::value(state))
        .col_expr(Column::DecidedAt, Expr::current_timestamp())
        .col_expr(Column::DecidedBy, Expr::value(actor.name()))
        .col_expr(Column::DecidedWhy, Expr::value(why))
        .filter(Column::Id.eq_any(ids.iter().copied()));
    Ok(closed.exec(tx).await?.rows_affected)
}

/// Locks letters in id order, like every transaction that decides several of them. Returns those that are open.
async fn open(tx: &DatabaseTransaction, ids: &[Uuid]) -> Result<Vec<Uuid>, DbErr> {
    let letters = dead_letters::Entity::find().select_only().columns([Column::Id, Column::State]);
    let locked = letters.filter(Column::Id.eq_any(ids.iter().copied())).order_by_asc(Column::Id).lock(LockType::NoKeyUpdate);
    let locked: Vec<(Uuid, String)> = locked.into_tuple().all(tx).await?;
    // The state as read under the lock, so a decision committed while this waited for it counts.
    Ok(locked.into_iter().filter(|(_, state)| state == "open").map(|(id, _)| id).collect())
}

/// A plan that starts just after this check finds its letter decided and leaves it, because a run checks each letter again.
async fn refuse_running(tx: &DatabaseTransaction, ids: &[Uuid]) -> Result<(), DecideError> {
    use replay_plan_letters::Column::{LetterId, PlanId};
    let lines = replay_plan_letters::Entity::find().inner_join(replay_plans::Entity);
    let running = lines.filter(replay_plans::Column::State.eq("running")).filter(LetterId.eq_any(ids.iter().copied()));
    match running.order_by_asc(PlanId).order_by_asc(LetterId).one(tx).await? {
        Some(line) => Err(DecideError::Running { plan: line.plan_id, letter: line.letter_id }),
        None => Ok(()),
    }
}

/// A letter's kind, subject and decision.
#[derive(DerivePartialModel)]
#[sea_orm(entity = "dead_letters::Entity")]
struct Repairable {
    state: String,
    kind: Option<String>,
    subject_id: Option<Uuid>,
    decided_at: Option<DateTime<Utc>>,
    decided_by: Option<String>,
    decided_why: Option<String>,
}

async fn refuse_decided(tx: &DatabaseTransaction, id: Uuid, letter: &Repairable) -> Result<(), DecideError> {
    if letter.state == "open" {
        return Ok(());
    }
    let repaired = dead_letters::Entity::find().select_only().column(Column::Id).filter(Column::RepairedFrom.eq(id));
    if let Some(repaired_as) = repaired.into_tuple().one(tx).await? {
        return Err(DecideError::Repaired { id, repaired_as });
    }
    Err(DecideError::Decided {
        id,
        state: letter.state.clone(),
        by: letter.decided_by.clone().unwrap_or_default(),
        at: shown::moment_or_dash(letter.decided_at),
        why: letter.decided_why.clone().unwrap_or_default(),
    })
}

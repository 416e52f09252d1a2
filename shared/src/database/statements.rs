//! The statements of one task under one policy: they lock, recheck and write in the caller's transaction, and return an
//! outcome for each subject.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ConnectionTrait, DatabaseTransaction, DbErr, QueryResult, RuntimeErr, Statement,
    sqlx::{self, Row as _},
};
use uuid::Uuid;

use super::{
    active_policy, one_row,
    pause::{self, Pause},
    statement,
};
use crate::domain::{due, outcome::Outcome, policy::Policy, task::Task};

/// Why nothing was applied; the caller must roll the transaction back.
#[derive(Debug, thiserror::Error)]
pub enum NotApplied {
    /// An operator has paused the kind. This is not a failure, and spends no attempt.
    #[error("{0}")]
    Paused(Pause),
    /// The active policy is not the one of these statements. This is not a failure either.
    #[error("the active policy has changed")]
    Outdated,
    #[error(transparent)]
    Database(#[from] DbErr),
}

/// What to do about rows that another transaction has locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLocked {
    /// Leave their subjects out, so that no other subject waits for them.
    Skip,
    /// Wait, at most for the session's `lock_timeout`.
    Wait,
}

/// What was done with some subjects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rechecked {
    pub outcomes: Vec<(Uuid, Outcome)>,
    /// The subjects that were left out, because another transaction has locked one of their rows.
    pub busy: Vec<Uuid>,
    /// PostgreSQL's clock.
    pub now: DateTime<Utc>,
}

/// The statements of one task under one policy, written once and prepared by the server once per connection.
pub struct Statements {
    /// The number of their policy.
    policy: Option<i64>,
    skip: Locks,
    wait: Locks,
    /// Which subjects exist and could not be locked.
    busy: String,
    effect: String,
}

/// The statements before the effect.
struct Locks {
    subjects: String,
    further: Vec<String>,
}

impl Statements {
    #[must_use]
    pub fn new(task: &dyn Task, policy: &Policy, wallet_floor: Option<i64>) -> Self {
        Self {
            policy: policy.number(),
            skip: Locks::new(task, "SKIP LOCKED"),
            wait: Locks::new(task, ""),
            busy: format!(
                "WITH held AS MATERIALIZED (SELECT id FROM {table} WHERE id = ANY($1) ORDER BY id {how} SKIP LOCKED)
                 SELECT array_agg(id) AS busy FROM {table} WHERE id = ANY($1) AND id NOT IN (SELECT id FROM held)",
                how = task.lock(),
                table = task.table(),
            ),
            // The answer is one row of arrays: a row for each subject would cost both sides several times as much.
            effect: format!(
                "WITH asked AS (
                    SELECT * FROM unnest($1::uuid[], $2::uuid[]) AS asked (id, wakeup_id)
                ), due AS MATERIALIZED (
                    SELECT asked.id, asked.wakeup_id, due.due_at FROM asked JOIN {due} AS due ON due.id = asked.id
                ), {effect}
                SELECT array_agg(id) AS ids, array_agg(applied) AS applied, array_agg(due_at) AS due_at,
                       now() AS checked_at, clock_timestamp() AS now
                  FROM outcome",
                due = due::query(task, policy),
                effect = task.effect(&policy.terms(task, wallet_floor)),
            ),
        }
    }

    /// Their SQL, in the order in which [`Statements::apply`] runs it: `$1` is the ids; the last statement, which returns the
    /// outcomes, takes the ids of their wake-ups as `$2`.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let Locks { subjects, further } = &self.wait;
        [subjects].into_iter().chain(further).chain([&self.effect]).map(String::as_str)
    }

    /// How many statements [`Statements::apply`] runs at most.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.wait.further.len()).unwrap_or(u32::MAX).saturating_add(3)
    }

    /// Rechecks and applies `asked`, pairs of a subject and its wake-up's id, each subject once. Returns one outcome per subject,
    /// except for those that are busy.
    ///
    /// The transaction must be READ COMMITTED, as all of ours are: what it sees of pauses must be newer than its locks.
    ///
    /// # Errors
    /// [`NotApplied`]: the kind is paused, another policy is active, or a database error. Nothing is written then, as the
    /// caller rolls the transaction back.
    pub async fn apply(
        &self,
        tx: &DatabaseTransaction,
        asked: &[(Uuid, Uuid)],
        on_locked: OnLocked,
    ) -> Result<Rechecked, NotApplied> {
        let (mut ids, mut wakeups): (Vec<Uuid>, Vec<Uuid>) = asked.iter().copied().unzip();
        let locks = if on_locked == OnLocked::Skip { &self.skip } else { &self.wait };
        let locked = one_row(tx, statement(&locks.subjects, [ids.clone().into()])).await?;
        if let Some(pause) = locked.try_get::<Option<String>>("", "paused")? {
            return Err(NotApplied::Paused(pause::read(&pause)?));
        }
        if locked.try_get::<Option<i64>>("", "policy")? != self.policy {
            return Err(NotApplied::Outdated);
        }
        let mut busy = Vec::new();
        let mut leave_out = |out: Option<Vec<Uuid>>, ids: &mut Vec<Uuid>, wakeups: &mut Vec<Uuid>| {
            if let Some(out) = out {
                (*ids, *wakeups) = ids.iter().zip(&*wakeups).filter(|(id, _)| !out.contains(id)).unzip();
                busy.extend(out);
            }
        };
        // Fewer where a row is locked by others, or does not exist, which the effect finds.
        if on_locked == OnLocked::Skip && locked.try_get::<i64>("", "count")? < signed(ids.len()) {
            let out = one_row(tx, statement(&self.busy, [ids.clone().into()])).await?.try_get("", "busy")?;
            leave_out(out, &mut ids, &mut wakeups);
        }
        for further in &locks.further {
            if let Some(row) = tx.query_one_raw(statement(further, [ids.clone().into()])).await? {
                leave_out(row.try_get("", "busy")?, &mut ids, &mut wakeups);
            }
        }
        let effect: Statement = statement(&self.effect, [ids.into(), wakeups.into()]);
        let answer = one_row(tx, effect).await?;
        let now = answer.try_get("", "now")?;
        Ok(Rechecked { outcomes: outcomes(&answer, now)?, busy, now })
    }
}

impl Locks {
    fn new(task: &dyn Task, skip: &str) -> Self {
        Self {
            // In id order, so that two batches over the same rows wait for each other instead of deadlocking. The effect is a
            // later statement, so that its snapshot includes what the locks waited for. This first statement also reads what
            // operators have decided: a pause, another policy. PostgreSQL takes a statement's locks on tables before its
            // snapshot, and keeps them to the end: a transaction that does not see a committed pause still holds them, and
            // `ops pause` waits for it.
            subjects: format!(
                "SELECT count(*), {paused} AS paused, {policy} AS policy
                   FROM (SELECT id FROM {table} WHERE id = ANY($1) ORDER BY id {how} {skip}) AS locked",
                how = task.lock(),
                paused = pause::scalar(task.kind()),
                policy = active_policy::NUMBER,
                table = task.table(),
            ),
            further: task.locks(skip),
        }
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The effect's answer: three arrays of one length, in any order.
fn outcomes(answer: &QueryResult, now: DateTime<Utc>) -> Result<Vec<(Uuid, Outcome)>, DbErr> {
    let row = answer.try_as_pg_row().ok_or_else(|| DbErr::Type("not a row of PostgreSQL".into()))?;
    // Null if every subject is busy.
    let Some(ids) = row.try_get::<Option<Vec<Uuid>>, _>("ids").map_err(unread)? else { return Ok(Vec::new()) };
    let (applied, due_at): (Vec<bool>, Vec<Option<DateTime<Utc>>>) =
        (row.try_get("applied").map_err(unread)?, row.try_get("due_at").map_err(unread)?);
    let checked_at: DateTime<Utc> = answer.try_get("", "checked_at")?;
    let outcome = |applied, due_at: Option<DateTime<Utc>>| match due_at {
        _ if applied => Outcome::Applied { late: due_at.map_or(TimeDelta::zero(), |due_at| now - due_at) },
        // By the moment of the recheck, not by the current time: a row that fell due in between was not due when it was
        // rechecked.
        Some(until) if until > checked_at => Outcome::Postpone { until, wait: until - now },
        Some(_) | None => Outcome::Stale,
    };
    Ok(ids
        .into_iter()
        .zip(applied.into_iter().zip(due_at))
        .map(|(id, (applied, due_at))| (id, outcome(applied, due_at)))
        .collect())
}

fn unread(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(Arc::new(error)))
}

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

/// The statements of one task under one policy, written once and prepared by the server once per connection.
pub struct Statements {
    /// The number of their policy.
    policy: Option<i64>,
    lock: String,
    locks: Vec<String>,
    effect: String,
}

impl Statements {
    #[must_use]
    pub fn new(task: &dyn Task, policy: &Policy, wallet_floor: Option<i64>) -> Self {
        Self {
            policy: policy.number(),
            // In id order, so that two batches over the same rows wait for each other instead of deadlocking. The effect is a
            // later statement, so that its snapshot includes what the locks waited for. This first statement also reads what
            // operators have decided: a pause, another policy. PostgreSQL takes a statement's locks on tables before its
            // snapshot, and keeps them to the end: a transaction that does not see a committed pause still holds them, and
            // `ops pause` waits for it.
            lock: format!(
                "SELECT count(*), {paused} AS paused, {policy} AS policy
                   FROM (SELECT id FROM {table} WHERE id = ANY($1) ORDER BY id {how}) AS locked",
                how = task.lock(),
                paused = pause::scalar(task.kind()),
                policy = active_policy::NUMBER,
                table = task.table(),
            ),
            locks: task.locks(),
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
        [&self.lock].into_iter().chain(&self.locks).chain([&self.effect]).map(String::as_str)
    }

    /// How many statements [`Statements::apply`] runs.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.locks.len()).unwrap_or(u32::MAX).saturating_add(2)
    }

    /// Rechecks and applies `asked`, pairs of a subject and its wake-up's id, each subject once. Returns one outcome per
    /// subject.
    ///
    /// The transaction must be READ COMMITTED, as all of ours are: what it sees of pauses must be newer than its locks.
    ///
    /// # Errors
    /// [`NotApplied`]: the kind is paused, another policy is active, or a database error. Nothing is written then, as the
    /// caller rolls the transaction back.
    pub async fn apply(&self, tx: &DatabaseTransaction, asked: &[(Uuid, Uuid)]) -> Result<Vec<(Uuid, Outcome)>, NotApplied> {
        let (ids, wakeups): (Vec<Uuid>, Vec<Uuid>) = asked.iter().copied().unzip();
        let locked = one_row(tx, statement(&self.lock, [ids.clone().into()])).await?;
        if let Some(pause) = locked.try_get::<Option<String>>("", "paused")? {
            return Err(NotApplied::Paused(pause::read(&pause)?));
        }
        if locked.try_get::<Option<i64>>("", "policy")? != self.policy {
            return Err(NotApplied::Outdated);
        }
        for lock in &self.locks {
            tx.execute_raw(statement(lock, [ids.clone().into()])).await?;
        }
        let effect: Statement = statement(&self.effect, [ids.into(), wakeups.into()]);
        Ok(outcomes(&one_row(tx, effect).await?)?)
    }
}

/// The effect's answer: three arrays of one length, in any order.
fn outcomes(answer: &QueryResult) -> Result<Vec<(Uuid, Outcome)>, DbErr> {
    let row = answer.try_as_pg_row().ok_or_else(|| DbErr::Type("not a row of PostgreSQL".into()))?;
    let (ids, applied, due_at): (Vec<Uuid>, Vec<bool>, Vec<Option<DateTime<Utc>>>) =
        (row.try_get("ids").map_err(unread)?, row.try_get("applied").map_err(unread)?, row.try_get("due_at").map_err(unread)?);
    let checked_at: DateTime<Utc> = answer.try_get("", "checked_at")?;
    let now: DateTime<Utc> = answer.try_get("", "now")?;
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

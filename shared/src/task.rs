//! What a task is: who its candidates are, from which moments it counts, and the statement that rechecks and writes at once.
//! A task answers for every subject asked, in one transaction; only `settle` acts on the answers.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ConnectionTrait, DatabaseTransaction, DbErr, QueryResult, RuntimeErr, Statement,
    sqlx::{self, Row as _},
};
use uuid::Uuid;

use crate::{
    database::statement,
    due,
    event::EventType,
    pause::{self, Pause},
    policy::{Policy, in_force},
    span::Span,
};

/// A kind of work, one file in `tasks/` each.
pub trait Task: Send + Sync {
    /// The name on the wire: part of queue names, messages and `kyhan.toml`. It never changes.
    fn kind(&self) -> &'static str;

    /// The table whose `id` is the task's subject.
    fn table(&self) -> &'static str;

    /// The column of the table by which people name a subject, unique in it; `None` where only its id does.
    fn known_by(&self) -> Option<&'static str> {
        None
    }

    /// In words, which rows are candidates: what `ops explain` says about one that is none.
    fn applies_to(&self) -> &'static str;

    /// The events from whose moments the task counts.
    fn counts_from(&self) -> &'static [EventType];

    /// SQL for every row that the task could apply to: `id`, and per event of [`Task::counts_from`] the moment it counts
    /// from, as a column of the event's name (null where there is none). *Due* follows from it and the policy: see [`due`].
    fn candidates(&self) -> &'static str;

    /// The shortest span that a policy may give it, where something promises one.
    fn shortest(&self) -> Option<Span> {
        None
    }

    /// A column of the candidates, with an index of its own, that none of their moments precedes: by it the sweep passes over rows that
    /// cannot be due. `None` where there is none, or where the task counts from one such column anyhow.
    fn not_before(&self) -> Option<&'static str> {
        None
    }

    /// SQL for the money that the effect would move, were it applied now: `id` and `amount` in đồng, one row for each candidate that
    /// costs somebody something, and perhaps for other rows. `None`: the effect moves no money.
    fn stake(&self) -> Option<&'static str> {
        None
    }

    /// How many batches one worker applies at a time, however many consumers a lane has. `None`: as many as that. Where subjects share
    /// rows that the effect locks, as orders their customer's wallet, batches wait for each other, and more of them wait longer.
    fn batches_at_once(&self) -> Option<u16> {
        None
    }

    /// How the subjects' rows are locked: as whoever changes them would.
    fn lock(&self) -> &'static str {
        "FOR NO KEY UPDATE"
    }

    /// Statements (`$1`: ids) run after the subjects' rows are locked and before the effect, for what else must be locked.
    fn locks(&self) -> Vec<String> {
        Vec::new()
    }

    /// Common table expressions that write the effect and its record, to follow `asked` (`id`, `wakeup_id`: everything that is asked
    /// about) and `due` (`id`, `wakeup_id`, `due_at`: the candidates among it, rechecked). The last one is `outcome`, one row for
    /// each of `asked`: `id`, `applied`, and `due_at` (null: no candidate).
    fn effect(&self, terms: &Terms<'_>) -> String;

    /// SQL (`$1`: the subject's id) for what operators may see of a subject: one `jsonb`, or no row where there is no subject. It is
    /// an object of three objects: `values`, `moments` and `money`, in đồng. Who the customer is, the product and where it is bought
    /// are not in it (policy points 6 and 7).
    fn shown(&self) -> &'static str;

    /// Where its effects are recorded, one row each, so that what happens now can be counted.
    fn recorded(&self) -> Recorded;

    /// What `ops audit` counts to compare this kind's effects with their records, both ways.
    fn checks(&self) -> &'static [Check];

    /// SQL by which the conformance suite makes, spoils and counts subjects of this kind.
    fn examples(&self) -> Examples;
}

/// One comparison of effects and records. It counts only what can have no honest cause: whoever is told that something is off
/// has to be able to rely on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is counted, in a few words; a stable name in `ops audit --json`.
    pub name: &'static str,
    /// One statement without parameters that only reads and returns one `bigint`: 0 when all is well.
    pub sql: &'static str,
}

/// Rows of a table whose `id` grows with each: the newest are found from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    pub table: &'static str,
    /// An SQL condition on its columns: which of its rows are this kind's.
    pub rows: &'static str,
}

/// What an effect is written from.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    pub policy: &'a Policy,
    /// How far below zero a charge may take a wallet, as the lowest balance in đồng; `None`: no floor.
    pub wallet_floor: Option<i64>,
}

impl Terms<'_> {
    /// SQL literal: whether an effect that causes `event` has to raise it.
    #[must_use]
    pub fn wants(&self, event: EventType) -> &'static str {
        if self.policy.wants(event) { "true" } else { "false" }
    }
}

/// See [`Task::examples`]. Each is one statement with `$1`: the subject's id. The customer of all examples is
/// [`EXAMPLE_CUSTOMER`].
pub struct Examples {
    /// Makes a subject for which the effect is long due.
    pub due: &'static str,
    /// Changes it so that the effect must not happen any more.
    pub moot: &'static str,
    /// Counts the effect and each of its records: all 0 before, all 1 after.
    pub effects: &'static str,
}

/// The customer whom [`Examples`] belong to; it must exist.
pub const EXAMPLE_CUSTOMER: Uuid = Uuid::from_u128(0x0000_0000_0000_4000_8000_0000_0000_0001);

/// What became of one subject of one wake-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The effect and its record are committed, so long after it was due.
    Applied { late: TimeDelta },
    /// Nothing to do any more: a success.
    Stale,
    /// Not due yet, or due again: wake it in `wait`.
    Postpone { until: DateTime<Utc>, wait: TimeDelta },
    /// It failed for now: try again later, with one attempt more.
    Retry { cause: String },
    /// It can never succeed: a dead letter.
    Reject { reason: Reason, cause: String },
}

impl Outcome {
    /// The name in metrics and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Applied { .. } => "applied",
            Self::Stale => "stale",
            Self::Postpone { .. } => "postponed",
            Self::Retry { .. } => "retried",
            Self::Reject { .. } => "rejected",
        }
    }
}

/// Why something became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The message could not be understood.
    Malformed,
    /// Every attempt failed.
    AttemptsExhausted,
    /// The broker delivered it too often without an answer: something in it stops its worker.
    DeliveryLimit,
}

impl Reason {
    /// The name in a dead letter's headers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::AttemptsExhausted => "attempts-exhausted",
            Self::DeliveryLimit => "delivery-limit",
        }
    }
}

/// Why nothing was applied; the transaction is to be rolled back.
#[derive(Debug, thiserror::Error)]
pub enum NotApplied {
    /// An operator has paused the kind. Nothing has failed, and no attempt is spent by it.
    #[error("{0}")]
    Paused(Pause),
    /// Another policy is in force than the one by which it was to be applied. Nothing has failed here either.
    #[error("another policy is in force by now")]
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
    pub fn new(task: &dyn Task, terms: &Terms<'_>) -> Self {
        Self {
            policy: terms.policy.number(),
            // In id order, so that two batches over the same rows wait for each other instead of deadlocking.
            // The effect is a statement of its own after it: its snapshot sees what the locks waited for.
            // It is the first one, and so the one that looks for what operators have decided: a pause, another policy. PostgreSQL takes a statement's locks on tables before the
            // snapshot by which it sees, and keeps them to the end: who does not see a pause that is committed holds them still,
            // and `ops pause` waits for it.
            lock: format!(
                "SELECT count(*), {paused} AS paused, {policy} AS policy
                   FROM (SELECT id FROM {table} WHERE id = ANY($1) ORDER BY id {how}) AS locked",
                how = task.lock(),
                paused = pause::scalar(task.kind()),
                policy = in_force::NUMBER,
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
                due = due::query(task, terms.policy),
                effect = task.effect(terms),
            ),
        }
    }

    /// Their SQL in the order in which [`Statements::apply`] runs them: `$1` the ids; the last one, which answers, has the ids of
    /// their wake-ups as `$2`.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        [&self.lock].into_iter().chain(&self.locks).chain([&self.effect]).map(String::as_str)
    }

    /// How many statements [`Statements::apply`] runs.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.locks.len()).unwrap_or(u32::MAX).saturating_add(2)
    }

    /// Rechecks and applies `asked`, pairs of a subject and its wake-up's id, each subject once. One outcome per subject.
    ///
    /// In a transaction that is READ COMMITTED, as all of ours are: what it sees of pauses has to be younger than its locks.
    ///
    /// # Errors
    /// [`NotApplied`]: the kind is paused, another policy is in force, or the database's. Nothing is written then, as the transaction is the caller's to roll back.
    pub async fn apply(&self, tx: &DatabaseTransaction, asked: &[(Uuid, Uuid)]) -> Result<Vec<(Uuid, Outcome)>, NotApplied> {
        let (ids, wakeups): (Vec<Uuid>, Vec<Uuid>) = asked.iter().copied().unzip();
        let locked = tx.query_one_raw(statement(&self.lock, [ids.clone().into()])).await?;
        let locked = locked.ok_or_else(|| DbErr::RecordNotFound("an aggregate".into()))?;
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
        let answer = tx.query_one_raw(effect).await?;
        Ok(outcomes(&answer.ok_or_else(|| DbErr::RecordNotFound("an aggregate".into()))?)?)
    }
}

/// A statement that takes locks and returns nothing worth sending.
#[must_use]
pub(crate) fn locked(select: &str) -> String {
    format!("SELECT count(*) FROM ({select}) AS locked")
}

/// What the effect answered: three arrays of one length, in any order.
fn outcomes(answer: &QueryResult) -> Result<Vec<(Uuid, Outcome)>, DbErr> {
    let row = answer.try_as_pg_row().ok_or_else(|| DbErr::Type("not a row of PostgreSQL".into()))?;
    let (ids, applied, due_at): (Vec<Uuid>, Vec<bool>, Vec<Option<DateTime<Utc>>>) =
        (row.try_get("ids").map_err(unread)?, row.try_get("applied").map_err(unread)?, row.try_get("due_at").map_err(unread)?);
    let checked_at: DateTime<Utc> = answer.try_get("", "checked_at")?;
    let now: DateTime<Utc> = answer.try_get("", "now")?;
    let outcome = |applied, due_at: Option<DateTime<Utc>>| match due_at {
        _ if applied => Outcome::Applied { late: due_at.map_or(TimeDelta::zero(), |due_at| now - due_at) },
        // By the moment of the recheck, not by the clock of now: what fell due in between was not due when it was judged.
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

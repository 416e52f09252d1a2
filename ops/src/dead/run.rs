//! Runs a plan letter by letter. One transaction holds the effect, the letter's state and the plan's line. A letter is applied once, even
//! if a run is killed, repeated or started twice, because each transaction locks the line and checks that it has no result.
//!
//! A run owns its plan. An advisory lock shows that it is alive. A token in the plan, checked in every transaction, shows that no other
//! process has taken the plan over. Transactions run one at a time, so that a limit in đồng is exact.

use std::{num::NonZeroU32, time::Duration};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, TransactionTrait,
    sqlx::{self, Postgres, pool::PoolConnection},
};
use serde::Serialize;
use serde_json::json;
use shared::{
    database::{probe::judge, scalar, statement},
    domain::money::Dong,
};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    decide::close,
    plan::{self, PlanError, PlannedLetter, ReplayPlan, Tolerance, check, drift, lines_left, unaltered},
    trial::{Replays, Trial, TrialVerdict, failed},
};
use crate::actor::Operator;

/// The first key of the advisory locks of runs: "kyha" in ASCII.
const RUNNING: i32 = 0x6b79_6861;
/// Most differences that an error lists.
const NAMED_MAX: usize = 10;

/// The limits at which a run stops. The rest of the plan can be run later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunLimits {
    /// Stop after this many letters that failed or differed from the plan.
    pub failures: Option<u32>,
    /// Stop after this many letters, whatever their results.
    pub letters: Option<u32>,
    /// Stop before more than this many đồng are moved.
    pub amount: Option<i64>,
}

/// The result of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RunReport {
    pub applied: u32,
    pub moot: u32,
    pub failed: u32,
    /// Letters whose result would differ from the plan, so left unchanged.
    pub changed: u32,
    /// Letters left unchanged because the plan does not replay them, or because they are already decided.
    pub left: u32,
    /// Đồng that this run moved.
    pub amount: i64,
    /// Why the run stopped early; `None`: the plan is done.
    pub stopped: Option<String>,
}

impl RunReport {
    /// The letters that the run has finished.
    #[must_use]
    pub const fn done(&self) -> u32 {
        self.applied + self.moot + self.failed + self.changed
    }
}

/// Why a run was refused or ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("this plan moves {amount}; an operator other than {made_by} must approve it: ops dead approve {plan}")]
    NotApproved { amount: Dong, made_by: String, plan: Uuid },
    #[error("another policy is active than when this was planned; make a new plan")]
    OtherPolicy,
    #[error("another process is running this plan")]
    Running,
    #[error("another process has taken over this plan; the plan records what this one did")]
    TakenOver,
    #[error("{0}")]
    Drifted(Box<Drift>),
    #[error("PostgreSQL: {0}; the plan records what was done; run it again for the rest")]
    Database(#[from] DbErr),
}

/// How far the current rows deviate from a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    pub letters: usize,
    pub amount: i64,
    /// Descriptions of the first few.
    pub named: Vec<String>,
    tolerance: Tolerance,
}

impl std::fmt::Display for Drift {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (letters, amount) = (self.letters, Dong(self.amount));
        write!(f, "{letters} letters would now differ from the plan, by {amount} in all")?;
        let Tolerance { letters, amount } = self.tolerance;
        write!(f, "; the plan tolerates {letters} and {}. Nothing was done; make a new plan", Dong(amount))?;
        self.named.iter().try_for_each(|named| write!(f, "\n  {named}"))
    }
}

/// The parameters of a run.
pub struct Run<'a> {
    /// An operator's login: the effects raise their events themselves, as a worker's do.
    pub db: &'a DatabaseConnection,
    pub replays: &'a Replays,
    pub actor: &'a Operator,
    /// Most letters per second.
    pub rate: NonZeroU32,
    pub limits: RunLimits,
    /// Cancelled: stop after the current letter.
    pub shutdown: &'a CancellationToken,
}

impl Run<'_> {
    /// Runs the rest of a plan. `checked` receives the number of rechecked letters and the total, `done` the report after each letter.
    ///
    /// # Errors
    /// [`RunError`].
    pub async fn run(
        &self,
        id: Uuid,
        checked: impl Fn(usize, usize),
        mut done: impl FnMut(&RunReport),
    ) -> Result<RunReport, RunError> {
        let plan = plan::find(self.db, id).await?;
        allowed(&plan)?;
        if plan.policy.is_none() || plan.policy != self.replays.policy() {
            return Err(RunError::OtherPolicy);
        }
        unaltered(self.db, &plan).await?;
        let lock = Lock::take(self.db, id).await?.ok_or(RunError::Running)?;
        let ran = self.locked(&plan, checked, &mut done).await;
        lock.release().await;
        ran
    }

    async fn locked(
        &self,
        plan: &ReplayPlan,
        checked: impl Fn(usize, usize),
        done: &mut impl FnMut(&RunReport),
    ) -> Result<RunReport, RunError> {
        let lines = lines_left(self.db, plan.id).await?;
        self.preflight(plan, &lines, &checked).await?;
        let (run, left) = self.begin(plan.id).await?;
        let mut report = RunReport { left, ..RunReport::default() };
        // Differences found during the run are counted from zero.
        let mut drifted = Drifted { letters: 0, amount: 0 };
        let mut pace = interval(Duration::from_secs(1) / self.rate.get());
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for line in &lines {
            report.stopped = self.stops(&report);
            if report.stopped.is_some() || self.shutdown.run_until_cancelled(pace.tick()).await.is_none() {
                report.stopped.get_or_insert_with(|| format!("{} stopped it", self.actor.name()));
                break;
            }
            if let Some(why) = self.line(plan, run, line, &mut report, &mut drifted).await? {
                report.stopped = Some(why);
                break;
            }
            done(&report);
        }
        self.end(plan.id, run, &report).await?;
        Ok(report)
    }

    /// Checks the remaining letters again, and refuses if they deviate from the plan beyond its tolerance.
    async fn preflight(
        &self,
        plan: &ReplayPlan,
        lines: &[PlannedLetter],
        checked: &impl Fn(usize, usize),
    ) -> Result<(), RunError> {
        let abouts: Vec<_> = lines.iter().map(|line| line.about.clone()).collect();
        let now = check(self.db, self.replays, &abouts, checked).await?;
        let (changed, amount) = drift(lines, &now);
        let tolerance = plan.tolerance();
        if changed.len() > tolerance.letters as usize || amount > tolerance.amount {
            let name = |at: &usize| format!("{}: {}", lines[*at].about.letter, difference(&lines[*at], &now[*at]));
            let named = changed.iter().take(NAMED_MAX).map(name).collect();
            return Err(RunError::Drifted(Box::new(Drift { letters: changed.len(), amount, named, tolerance })));
        }
        Ok(())
    }

    /// Takes over the plan and marks the letters that it does not replay as left. Returns the run's token and how many these are.
    async fn begin(&self, id: Uuid) -> Result<(Uuid, u32), RunError> {
        let run = Uuid::new_v4();
        let tx = self.db.begin().await?;
        // Another run may have finished it since it was read.
        allowed(&plan::find(&tx, id).await?)?;
        let values = [id.into(), run.into(), self.actor.name().into()];
        let left: i64 = scalar(&tx, statement("SELECT kyhan_plan_begin($1, $2, $3)", values)).await?;
        let changed = json!({ "run": run });
        self.actor.record(&tx, "replay.started", ("replay_plan", id), None, changed).await?;
        tx.commit().await?;
        Ok((run, u32::try_from(left).unwrap_or(u32::MAX)))
    }

    /// Why the run must not start another letter, if a limit is reached.
    fn stops(&self, report: &RunReport) -> Option<String> {
        let failures = report.failed + report.changed;
        if self.limits.failures.is_some_and(|most| failures >= most) {
            return Some(format!("the limit of {failures} failed or changed letters is reached"));
        }
        let letters = report.done();
        (self.limits.letters == Some(letters)).then(|| format!("the limit of {letters} letters is reached"))
    }

    /// Replays one letter. Returns why the run stops before it, if it does.
    async fn line(
        &self,
        plan: &ReplayPlan,
        run: Uuid,
        line: &PlannedLetter,
        report: &mut RunReport,
        drifted: &mut Drifted,
    ) -> Result<Option<String>, RunError> {
        let mut tries = 0;
        loop {
            let tx = self.db.begin().await?;
            if !self.holds(&tx, plan.id, run, line).await? {
                tx.rollback().await?;
                return Ok(None);
            }
            if let Some(by) = decided(&tx, line.about.letter).await? {
                report.left += 1;
                self.note(&tx, (plan.id, run), line, "left", Some(&by), 0).await?;
                tx.commit().await?;
                return Ok(None);
            }
            let trial = match self.replays.replay(&tx, &line.about).await {
                Ok(trial) => trial,
                Err(error) => {
                    tx.rollback().await?;
                    tries += 1;
                    if self.failed(plan.id, run, line, report, error, tries).await? {
                        return Ok(None);
                    }
                    continue;
                }
            };
            let differs = trial.verdict != line.verdict || trial.amount != line.amount;
            if differs && !drifted.within(plan, line, &trial) {
                tx.rollback().await?;
                report.changed += 1;
                self.note_alone(plan.id, run, line, "changed", Some(&difference(line, &trial))).await?;
                return Ok(None);
            }
            if let Some(most) = self.limits.amount
                && trial.amount > 0
                && report.amount.saturating_add(trial.amount) > most
            {
                tx.rollback().await?;
                return Ok(Some(format!("{} were moved, and the next letter would exceed {}", Dong(report.amount), Dong(most))));
            }
            if let Err(error) = self.settle(tx, (plan, run), line, &trial).await {
                tries += 1;
                if self.failed(plan.id, run, line, report, error, tries).await? {
                    return Ok(None);
                }
                continue;
            }
            drifted.add(differs, line, &trial);
            match trial.verdict {
                TrialVerdict::Applies => report.applied += 1,
                TrialVerdict::Moot => report.moot += 1,
                TrialVerdict::Waits | TrialVerdict::Fails | TrialVerdict::Unreadable => report.left += 1,
            }
            report.amount += trial.amount;
            return Ok(None);
        }
    }

    /// Records a failure. `false`: a conflict with another transaction, so try again.
    async fn failed(
        &self,
        plan: Uuid,
        run: Uuid,
        line: &PlannedLetter,
        report: &mut RunReport,
        error: DbErr,
        tries: u32,
    ) -> Result<bool, RunError> {
        let trouble = judge(self.db, &error).await;
        let Some(Trial { why, .. }) = failed(error, trouble, tries)? else { return Ok(false) };
        report.failed += 1;
        self.note_alone(plan, run, line, "failed", why.as_deref()).await?;
        Ok(true)
    }

    /// Whether this letter is still to be done. Locks the plan and its line.
    ///
    /// # Errors
    /// [`RunError::TakenOver`], or database errors.
    async fn holds(&self, tx: &DatabaseTransaction, plan: Uuid, run: Uuid, line: &PlannedLetter) -> Result<bool, RunError> {
        let values = [plan.into(), run.into(), line.about.letter.into()];
        let holds: Option<bool> = scalar(tx, statement("SELECT kyhan_plan_hold($1, $2, $3)", values)).await?;
        holds.ok_or(RunError::TakenOver)
    }

    /// Commits a replay together with its records.
    async fn settle(
        &self,
        tx: DatabaseTransaction,
        (plan, run): (&ReplayPlan, Uuid),
        line: &PlannedLetter,
        trial: &Trial,
    ) -> Result<(), DbErr> {
        let letter = line.about.letter;
        let (result, state) = match trial.verdict {
            TrialVerdict::Applies => ("applied", Some("replayed")),
            TrialVerdict::Moot => ("moot", Some("resolved")),
            TrialVerdict::Waits | TrialVerdict::Fails | TrialVerdict::Unreadable => ("left", None),
        };
        if let Some(state) = state {
            let why = match trial.verdict {
                TrialVerdict::Moot => format!("moot: {} (plan {})", trial.why.as_deref().unwrap_or("nothing to do"), plan.id),
                _ => format!("{} (plan {})", plan.why, plan.id),
            };
            close(&tx, &[letter], state, self.actor, &why).await?;
            let changed = json!({ "state": state, "plan": plan.id, "amount": trial.amount });
            let action = format!("dead_letter.{state}");
            self.actor.record(&tx, &action, ("dead_letter", letter), Some(&why), changed).await?;
        }
        self.note(&tx, (plan.id, run), line, result, trial.why.as_deref(), trial.amount).await?;
        tx.commit().await
    }

    async fn note(
        &self,
        tx: &DatabaseTransaction,
        (plan, run): (Uuid, Uuid),
        line: &PlannedLetter,
        result: &str,
        why: Option<&str>,
        amount: i64,
    ) -> Result<(), DbErr> {
        let sql = "SELECT kyhan_plan_note($1, $2, $3, $4, $5, $6)";
        let why = why.map(ToOwned::to_owned);
        let values = [plan.into(), run.into(), line.about.letter.into(), result.into(), why.into(), amount.into()];
        tx.execute_raw(statement(sql, values)).await.map(|_| ())
    }

    /// Records the result of a letter whose transaction was rolled back.
    async fn note_alone(
        &self,
        plan: Uuid,
        run: Uuid,
        line: &PlannedLetter,
        result: &str,
        why: Option<&str>,
    ) -> Result<(), RunError> {
        let tx = self.db.begin().await?;
        if self.holds(&tx, plan, run, line).await? {
            self.note(&tx, (plan, run), line, result, why, 0).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Ends the run: marks the plan as done, or as stopped and why.
    async fn end(&self, id: Uuid, run: Uuid, report: &RunReport) -> Result<(), RunError> {
        let tx = self.db.begin().await?;
        let values = [id.into(), run.into(), report.stopped.clone().into()];
        if !scalar::<bool>(&tx, statement("SELECT kyhan_plan_end($1, $2, $3)", values)).await? {
            return Err(RunError::TakenOver);
        }
        let action = if report.stopped.is_none() { "replay.finished" } else { "replay.stopped" };
        let changed = serde_json::to_value(report).unwrap_or_default();
        self.actor.record(&tx, action, ("replay_plan", id), report.stopped.as_deref(), changed).await?;
        Ok(tx.commit().await?)
    }
}

/// Refuses a plan that is done or not approved.
fn allowed(plan: &ReplayPlan) -> Result<(), RunError> {
    if plan.state == "done" {
        return Err(PlanError::Done.into());
    }
    if plan.waits_for_approval() {
        return Err(RunError::NotApproved { amount: Dong(plan.amount), made_by: plan.made_by.clone(), plan: plan.id });
    }
    Ok(())
}

/// Locks a letter. Returns the decision if it is no longer open.
async fn decided(tx: &DatabaseTransaction, letter: Uuid) -> Result<Option<String>, DbErr> {
    let sql = "SELECT CASE WHEN state <> 'open' THEN state || ' by ' || decided_by || ': ' || decided_why END AS decided
                 FROM dead_letters WHERE id = $1 FOR UPDATE";
    match tx.query_one_raw(statement(sql, [letter.into()])).await? {
        Some(row) => row.try_get_by_index(0),
        None => Ok(Some("the dead letter no longer exists".to_owned())),
    }
}

fn difference(line: &PlannedLetter, now: &Trial) -> String {
    let said = |verdict: TrialVerdict, amount: i64, why: Option<&str>| {
        let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
        if amount > 0 { format!("{}, {}{why}", verdict.name(), Dong(amount)) } else { format!("{}{why}", verdict.name()) }
    };
    let (planned, found) = (said(line.verdict, line.amount, None), said(now.verdict, now.amount, now.why.as_deref()));
    format!("planned {planned}; now {found}")
}

/// The tolerated differences so far.
struct Drifted {
    letters: u32,
    amount: i64,
}

impl Drifted {
    /// Whether one more difference is within the tolerance.
    fn within(&self, plan: &ReplayPlan, line: &PlannedLetter, trial: &Trial) -> bool {
        let tolerance = plan.tolerance();
        let amount = self.amount.saturating_add((trial.amount - line.amount).abs());
        self.letters < tolerance.letters && amount <= tolerance.amount
    }

    fn add(&mut self, differs: bool, line: &PlannedLetter, trial: &Trial) {
        if differs {
            self.letters += 1;
            self.amount = self.amount.saturating_add((trial.amount - line.amount).abs());
        }
    }
}

/// A run's advisory lock. PostgreSQL releases it when the session ends.
struct Lock {
    connection: PoolConnection<Postgres>,
}

impl Lock {
    /// `None`: another session holds it.
    async fn take(db: &DatabaseConnection, plan: Uuid) -> Result<Option<Self>, DbErr> {
        let failed = |error: sqlx::Error| DbErr::Query(sea_orm::RuntimeErr::SqlxError(error.into()));
        let mut connection = db.get_postgres_connection_pool().acquire().await.map_err(failed)?;
        let sql = "SELECT pg_try_advisory_lock($1, hashtext($2))";
        let taken = sqlx::query_scalar::<_, bool>(sql).bind(RUNNING).bind(plan.to_string()).fetch_one(&mut *connection).await;
        Ok(taken.map_err(failed)?.then_some(Self { connection }))
    }

    /// Closes the session, because in the pool it would keep the lock.
    async fn release(self) {
        use sea_orm::sqlx::Connection as _;
        let _ = tokio::time::timeout(Duration::from_secs(5), self.connection.detach().close()).await;
    }
}

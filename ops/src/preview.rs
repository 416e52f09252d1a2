//! Preview: what another policy would do to the current rows. It compares both policies in one snapshot, by the shared definition of
//! *due*, and changes nothing.

use chrono::{DateTime, NaiveDate, Utc};
use sea_orm::{AccessMode, DatabaseConnection, DatabaseTransaction, DbErr, FromQueryResult, IsolationLevel, TransactionTrait};
use serde::Serialize;
use shared::{
    database::{one, statement, transaction_began},
    domain::{
        due,
        event::EventType,
        money::sql_sum,
        policy::Policy,
        span::{Span, sql_day},
        task::Shown,
        tasks,
    },
    message::topology::{QueueRole, Topology},
    settings::Settings,
};

/// What a policy would change. The fields are those of `ops policy preview --json`, so their names must not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyPreview {
    /// The time of the snapshot.
    pub at: DateTime<Utc>,
    pub kinds: Vec<KindChange>,
    /// Rungs that the workers would declare.
    pub rungs_new: Vec<String>,
    /// Rungs that the new policy would not use. They drain; then `ops topology prune` removes them.
    pub rungs_forgotten: Vec<String>,
}

/// What would change for one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KindChange {
    pub kind: &'static str,
    /// The lines of the policy that differ.
    pub lines: Vec<LineChange>,
    /// Every row that the kind could apply to. Each is counted in one of the next six fields.
    pub candidates: i64,
    pub earlier: i64,
    pub later: i64,
    pub same: i64,
    /// Never due so far, but due under the new policy.
    pub appear: i64,
    /// Due so far, but never under the new policy.
    pub vanish: i64,
    /// Never due under either policy.
    pub never: i64,
    /// Due now under the active policy.
    pub due_before: i64,
    /// Due now under the new policy.
    pub due_after: i64,
    /// Due now under the new policy only.
    pub at_once: i64,
    /// The money at stake in the rows of `at_once`, in đồng; `None`: the kind moves no money.
    pub at_once_amount: Option<i64>,
    /// The coming day on which most fall due, in Asia/Ho_Chi_Minh.
    pub busiest_before: Option<Busy>,
    pub busiest_after: Option<Busy>,
}

/// A changed line of the policy: its duration before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LineChange {
    pub on: &'static str,
    pub before: Option<String>,
    pub after: Option<String>,
}

/// A day, and how many rows fall due on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Busy {
    pub day: NaiveDate,
    pub subjects: i64,
}

/// Compares the policy of these settings with another one. A release continues for kinds whose lines do not change.
///
/// # Errors
/// Database errors.
pub async fn preview(db: &DatabaseConnection, settings: &Settings, new: &Policy) -> Result<PolicyPreview, DbErr> {
    let new = &new.clone().carrying_over(&settings.policy);
    let snapshot = db.begin_with_config(Some(IsolationLevel::RepeatableRead), Some(AccessMode::ReadOnly)).await?;
    let at = transaction_began(&snapshot).await?;
    let mut kinds = Vec::new();
    for task in tasks::ALL {
        kinds.push(change(&snapshot, *task, &settings.policy, new).await?);
    }
    snapshot.rollback().await?;
    let naming = &settings.naming;
    let (before, after) =
        (rungs(&settings.topology()), rungs(&Topology::new(&naming.prefix, naming.shards, &naming.ladder, new)));
    let without = |some: &[String], others: &[String]| some.iter().filter(|rung| !others.contains(rung)).cloned().collect();
    Ok(PolicyPreview { at, kinds, rungs_new: without(&after, &before), rungs_forgotten: without(&before, &after) })
}

async fn change(snapshot: &DatabaseTransaction, task: &dyn Shown, old: &Policy, new: &Policy) -> Result<KindChange, DbErr> {
    let counted: CandidateCounts = one(snapshot, statement(&question(task, old, new), [])).await?;
    let busy = |day: Option<NaiveDate>, subjects: Option<i64>| day.zip(subjects).map(|(day, subjects)| Busy { day, subjects });
    Ok(KindChange {
        kind: task.kind(),
        lines: lines(task, old, new),
        candidates: counted.candidates,
        earlier: counted.earlier,
        later: counted.later,
        same: counted.same,
        appear: counted.appear,
        vanish: counted.vanish,
        never: counted.never,
        due_before: counted.due_before,
        due_after: counted.due_after,
        at_once: counted.at_once,
        at_once_amount: counted.at_once_amount,
        busiest_before: busy(counted.before_day, counted.before_subjects),
        busiest_after: busy(counted.after_day, counted.after_subjects),
    })
}

/// The result of [`question`].
#[derive(FromQueryResult)]
struct CandidateCounts {
    candidates: i64,
    earlier: i64,
    later: i64,
    same: i64,
    appear: i64,
    vanish: i64,
    never: i64,
    due_before: i64,
    due_after: i64,
    at_once: i64,
    at_once_amount: Option<i64>,
    before_day: Option<NaiveDate>,
    before_subjects: Option<i64>,
    after_day: Option<NaiveDate>,
    after_subjects: Option<i64>,
}

/// SQL for one row of counts. The candidates are materialized, so that they are read once for all counts.
fn question(task: &dyn Shown, old: &Policy, new: &Policy) -> String {
    const AT_ONCE: &str = "after <= now() AND (before > now() OR before IS NULL)";
    let amount = task.stake().map_or("NULL::bigint".to_owned(), |stake| {
        format!("(SELECT {} FROM moved JOIN ({stake}) AS stake ON stake.id = moved.id WHERE {AT_ONCE})", sql_sum("stake.amount"))
    });
    let busiest = |moment: &str| {
        let day = sql_day(moment);
        format!(
            "SELECT {day} AS day, count(*) AS subjects FROM moved WHERE {moment} > now() GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1"
        )
    };
    format!(
        "WITH moved AS MATERIALIZED (
            SELECT id, due_at AS before, due_at_other AS after FROM {compared} AS compared
         ), busiest_before AS ({busiest_before}), busiest_after AS ({busiest_after})
         SELECT count(*) AS candidates,
                count(*) FILTER (WHERE after < before) AS earlier,
                count(*) FILTER (WHERE after > before) AS later,
                count(*) FILTER (WHERE after = before) AS same,
                count(*) FILTER (WHERE before IS NULL AND after IS NOT NULL) AS appear,
                count(*) FILTER (WHERE before IS NOT NULL AND after IS NULL) AS vanish,
                count(*) FILTER (WHERE before IS NULL AND after IS NULL) AS never,
                count(*) FILTER (WHERE before <= now()) AS due_before,
                count(*) FILTER (WHERE after <= now()) AS due_after,
                count(*) FILTER (WHERE {AT_ONCE}) AS at_once,
                {amount} AS at_once_amount,
                (SELECT day FROM busiest_before) AS before_day, (SELECT subjects FROM busiest_before) AS before_subjects,
                (SELECT day FROM busiest_after) AS after_day, (SELECT subjects FROM busiest_after) AS after_subjects
           FROM moved",
        compared = due::query_compared(task, old, new),
        busiest_before = busiest("before"),
        busiest_after = busiest("after")
    )
}

fn lines(task: &dyn Shown, old: &Policy, new: &Policy) -> Vec<LineChange> {
    let span = |policy: &Policy, on: EventType| -> Option<Span> {
        policy.lines_on(on).find(|line| line.task == task.kind()).map(|line| line.after)
    };
    let changed = task.counts_from().iter().map(|on| (on, span(old, *on), span(new, *on))).filter(|(_, old, new)| old != new);
    let shown = |span: Option<Span>| span.map(|span| span.to_string());
    changed.map(|(on, old, new)| LineChange { on: on.name(), before: shown(old), after: shown(new) }).collect()
}

fn rungs(topology: &Topology) -> Vec<String> {
    topology.queues().into_iter().filter(|queue| queue.role == QueueRole::Rung).map(|queue| queue.name).collect()
}

//! The database's part of the status. Each query uses an index or reads few rows, so that it can run every second.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sea_orm::{DatabaseConnection, DbErr, FromQueryResult};
use serde::Serialize;
use shared::{
    database::{one, scalar, statement},
    domain::{
        due,
        task::{RecordedRows, Shown},
        tasks,
    },
    settings::Settings,
};
use uuid::Uuid;

use crate::{
    actor::id_of,
    audit::{AUDIT, FINISHED},
};

/// Most groups of letters, and most plans, in a status.
const SHOWN_MAX: i64 = 10;
/// SQL: how far back to look for due rows that are not applied. The index on the time also contains all applied rows, so the range must
/// be short. `ops audit` counts rows that have been overdue for longer.
const LOOKBACK: &str = "interval '1 hour'";

/// The events in the outbox, which no relay has processed yet.
#[derive(Debug, Clone, PartialEq, Serialize, FromQueryResult)]
pub struct Outbox {
    pub events: i64,
    /// How long the oldest has waited; 0: there are none.
    pub oldest_s: f64,
}

/// One kind's subjects.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KindStatus {
    pub kind: &'static str,
    /// The longest time that a subject has been due and not applied, among those that fell due within the last hour. 0: there are
    /// none. `None`: no index supports the query for this kind.
    pub due_for_s: Option<f64>,
    /// Approximate number of effects recorded per second since the previous look.
    pub effects_per_s: Option<f64>,
}

/// Open dead letters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OpenLetters {
    pub open: i64,
    pub groups: i64,
    /// The largest groups.
    pub largest: Vec<OpenLetterGroup>,
}

/// Open letters with the same kind, reason and cause, ignoring ids and numbers in the cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromQueryResult)]
pub struct OpenLetterGroup {
    pub kind: Option<String>,
    pub reason: String,
    pub cause: String,
    pub letters: i64,
    /// When the first of them failed for the last time.
    pub oldest: DateTime<Utc>,
}

/// Replay plans that are running or stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnfinishedPlans {
    pub count: i64,
    /// The newest plans.
    pub newest: Vec<PlanStatus>,
}

/// A replay plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromQueryResult)]
pub struct PlanStatus {
    pub id: Uuid,
    /// `running` or `stopped`.
    pub state: String,
    pub by: String,
    pub why: String,
    pub started_at: Option<DateTime<Utc>>,
    pub stopped_why: Option<String>,
    pub letters: i64,
    /// How many of them are done.
    pub done: i64,
}

/// The subjects that the sweep has woken in the last 30 days. In a healthy system there are none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromQueryResult)]
pub struct SweptCounts {
    /// Subjects woken within the last hour.
    pub last_hour: i64,
    pub last_at: Option<DateTime<Utc>>,
}

/// A recorded audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromQueryResult)]
pub struct Audited {
    pub at: DateTime<Utc>,
    pub by: String,
    /// The number of checks that were off.
    pub off: i64,
}

/// The database's time, the outbox, and the number of events set aside.
pub(super) async fn waiting(db: &DatabaseConnection) -> Result<(DateTime<Utc>, Outbox, i64), DbErr> {
    #[derive(FromQueryResult)]
    struct WaitingEvents {
        at: DateTime<Utc>,
        #[sea_orm(nested)]
        outbox: Outbox,
        set_aside: i64,
    }
    let sql = "SELECT now() AS at, (SELECT count(*) FROM outbox) AS events,
                      coalesce((SELECT extract(epoch FROM now() - waiting_since) FROM outbox ORDER BY id LIMIT 1), 0)::float8 AS oldest_s,
                      (SELECT count(*) FROM set_aside) AS set_aside";
    let WaitingEvents { at, outbox, set_aside } = one(db, statement(sql, [])).await?;
    Ok((at, outbox, set_aside))
}

/// Every kind. `before` holds the last row ids of the previous look, and how many seconds ago it was. `last` receives those of this one.
pub(super) async fn kinds(
    db: &DatabaseConnection,
    settings: &Settings,
    before: Option<(&HashMap<&'static str, i64>, f64)>,
    last: &mut HashMap<&'static str, i64>,
) -> Result<Vec<KindStatus>, DbErr> {
    #[derive(FromQueryResult)]
    struct Effects {
        last: i64,
        effects: i64,
    }
    let mut kinds = Vec::new();
    for task in tasks::ALL {
        let kind = task.kind();
        let RecordedRows { table, rows } = task.recorded();
        let known = before.and_then(|(last, over_s)| Some((*last.get(kind)?, over_s)));
        let sql = format!(
            "SELECT coalesce((SELECT max(id) FROM {table}), 0) AS last,
                    (SELECT count(*) FROM {table} WHERE id > $1 AND {rows}) AS effects"
        );
        let counted: Effects = one(db, statement(&sql, [known.map(|(last, _)| last).into()])).await?;
        last.insert(kind, counted.last);
        let effects = u32::try_from(counted.effects).unwrap_or(u32::MAX);
        let effects_per_s = known.map(|(_, over_s)| f64::from(effects) / over_s);
        kinds.push(KindStatus { kind, due_for_s: due_for_s(db, settings, *task).await?, effects_per_s });
    }
    Ok(kinds)
}

async fn due_for_s(db: &DatabaseConnection, settings: &Settings, task: &dyn Shown) -> Result<Option<f64>, DbErr> {
    let after = format!("(now() - {LOOKBACK})");
    let Some(due) = due::query_between(task, &settings.policy, &after, "now()") else { return Ok(None) };
    let sql = format!(
        "SELECT coalesce(extract(epoch FROM now() - min(due_at)), 0)::float8
           FROM {due} AS due WHERE due_at > {after} AND due_at <= now()"
    );
    scalar(db, statement(&sql, [])).await
}

/// The open letters.
pub(super) async fn letters(db: &DatabaseConnection) -> Result<OpenLetters, DbErr> {
    #[derive(FromQueryResult)]
    struct GroupAndOpenLetters {
        #[sea_orm(nested)]
        group: OpenLetterGroup,
        open: i64,
        groups: i64,
    }
    let sql = "SELECT kind, reason, cause_group AS cause, count(*) AS letters, min(last_failed_at) AS oldest,
                      (sum(count(*)) OVER ())::bigint AS open, count(*) OVER () AS groups
                 FROM dead_letters WHERE state = 'open'
                GROUP BY kind, reason, cause_group ORDER BY letters DESC, oldest LIMIT $1";
    let rows = GroupAndOpenLetters::find_by_statement(statement(sql, [SHOWN_MAX.into()])).all(db).await?;
    let (open, groups) = rows.first().map_or((0, 0), |first| (first.open, first.groups));
    Ok(OpenLetters { open, groups, largest: rows.into_iter().map(|counted| counted.group).collect() })
}

/// The plans that are running or stopped, newest first.
pub(super) async fn plans(db: &DatabaseConnection) -> Result<UnfinishedPlans, DbErr> {
    #[derive(FromQueryResult)]
    struct PlanWithCount {
        #[sea_orm(nested)]
        plan: PlanStatus,
        count: i64,
    }
    let sql = "SELECT id, state, made_by AS by, why, started_at, stopped_why, count(*) OVER () AS count,
                      (SELECT count(*) FROM replay_plan_letters WHERE plan_id = replay_plans.id) AS letters,
                      (SELECT count(*) FROM replay_plan_letters WHERE plan_id = replay_plans.id AND result IS NOT NULL) AS done
                 FROM replay_plans WHERE state IN ('running', 'stopped') ORDER BY made_at DESC LIMIT $1";
    let rows = PlanWithCount::find_by_statement(statement(sql, [SHOWN_MAX.into()])).all(db).await?;
    let count = rows.first().map_or(0, |first| first.count);
    Ok(UnfinishedPlans { count, newest: rows.into_iter().map(|counted| counted.plan).collect() })
}

/// The counts of the sweep.
pub(super) async fn swept(db: &DatabaseConnection) -> Result<SweptCounts, DbErr> {
    let sql = "SELECT count(*) FILTER (WHERE at > now() - interval '1 hour') AS last_hour, max(at) AS last_at FROM swept";
    one(db, statement(sql, [])).await
}

/// The last audit that was recorded.
pub(super) async fn audited(db: &DatabaseConnection) -> Result<Option<Audited>, DbErr> {
    let sql = "SELECT at, detail ->> 'by' AS by, (detail -> 'changed' ->> 'off')::bigint AS off
                 FROM activity_operations WHERE subject_id = $1 AND action = $2 ORDER BY id DESC LIMIT 1";
    Audited::find_by_statement(statement(sql, [id_of(AUDIT).into(), FINISHED.into()])).one(db).await
}

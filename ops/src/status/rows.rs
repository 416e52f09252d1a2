//! What the database tells of the fleet. Each question follows an index or reads what is few, so that it may be asked every second.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sea_orm::{DatabaseConnection, DbErr, FromQueryResult};
use serde::Serialize;
use shared::{
    database::{one, scalar, statement},
    domain::{
        due,
        task::{Recorded, Shown},
        tasks,
    },
    settings::Settings,
};
use uuid::Uuid;

use crate::{
    actor::id_of,
    audit::{AUDIT, FINISHED},
};

/// How many groups of letters, and how many plans, are told.
const TOLD: i64 = 10;
/// How far back what is due and not applied is looked for, in SQL: an index on a moment holds all that ever happened, also what was
/// applied long ago. `ops audit` counts what is overdue for longer.
const LOOKBACK: &str = "interval '1 hour'";

/// The events that the relay has not taken yet.
#[derive(Debug, Clone, PartialEq, Serialize, FromQueryResult)]
pub struct Outbox {
    pub events: i64,
    /// For how long the oldest has waited; 0 when there is none.
    pub oldest_s: f64,
}

/// One kind's subjects.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kind {
    pub kind: &'static str,
    /// For how long the subject is due that is due for the longest, of those that fell due within the last hour and are not
    /// applied; 0 when there is none, `None` of a kind of which no index tells it.
    pub due_for_s: Option<f64>,
    /// About how many effects a second were recorded since the look before.
    pub effects_per_s: Option<f64>,
}

/// Dead letters that are open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Letters {
    pub open: i64,
    pub groups: i64,
    /// The largest groups.
    pub largest: Vec<Group>,
}

/// Open letters of one kind that died for one reason, of one cause but for its ids and numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromQueryResult)]
pub struct Group {
    pub kind: Option<String>,
    pub reason: String,
    pub cause: String,
    pub letters: i64,
    /// When the one died that died first.
    pub oldest: DateTime<Utc>,
}

/// Replay plans that run, or were stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plans {
    pub count: i64,
    /// Those that were made last.
    pub newest: Vec<Plan>,
}

/// A replay plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromQueryResult)]
pub struct Plan {
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

/// What the sweep has woken in the last 30 days; nothing in a healthy system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromQueryResult)]
pub struct Swept {
    /// Subjects woken within the last hour.
    pub last_hour: i64,
    pub last_at: Option<DateTime<Utc>>,
}

/// An audit that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromQueryResult)]
pub struct Audited {
    pub at: DateTime<Utc>,
    pub by: String,
    /// How many checks it found off.
    pub off: i64,
}

/// The database's clock, the outbox, and how many events are set aside.
pub(super) async fn waiting(db: &DatabaseConnection) -> Result<(DateTime<Utc>, Outbox, i64), DbErr> {
    #[derive(FromQueryResult)]
    struct Waiting {
        at: DateTime<Utc>,
        #[sea_orm(nested)]
        outbox: Outbox,
        set_aside: i64,
    }
    let sql = "SELECT now() AS at, (SELECT count(*) FROM outbox) AS events,
                      coalesce((SELECT extract(epoch FROM now() - waiting_since) FROM outbox ORDER BY id LIMIT 1), 0)::float8 AS oldest_s,
                      (SELECT count(*) FROM set_aside) AS set_aside";
    let Waiting { at, outbox, set_aside } = one(db, statement(sql, [])).await?;
    Ok((at, outbox, set_aside))
}

/// Every kind. `before` are the last rows that the look before knew, and how many seconds ago that was; `last` becomes those of this one.
pub(super) async fn kinds(
    db: &DatabaseConnection,
    settings: &Settings,
    before: Option<(&HashMap<&'static str, i64>, f64)>,
    last: &mut HashMap<&'static str, i64>,
) -> Result<Vec<Kind>, DbErr> {
    #[derive(FromQueryResult)]
    struct Effects {
        last: i64,
        effects: i64,
    }
    let mut kinds = Vec::new();
    for task in tasks::ALL {
        let kind = task.kind();
        let Recorded { table, rows } = task.recorded();
        let known = before.and_then(|(last, over_s)| Some((*last.get(kind)?, over_s)));
        let sql = format!(
            "SELECT coalesce((SELECT max(id) FROM {table}), 0) AS last,
                    (SELECT count(*) FROM {table} WHERE id > $1 AND {rows}) AS effects"
        );
        let counted: Effects = one(db, statement(&sql, [known.map(|(last, _)| last).into()])).await?;
        last.insert(kind, counted.last);
        let effects = u32::try_from(counted.effects).unwrap_or(u32::MAX);
        let effects_per_s = known.map(|(_, over_s)| f64::from(effects) / over_s);
        kinds.push(Kind { kind, due_for_s: due_for_s(db, settings, *task).await?, effects_per_s });
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
pub(super) async fn letters(db: &DatabaseConnection) -> Result<Letters, DbErr> {
    #[derive(FromQueryResult)]
    struct Counted {
        #[sea_orm(nested)]
        group: Group,
        open: i64,
        groups: i64,
    }
    let sql = "SELECT kind, reason, cause_group AS cause, count(*) AS letters, min(last_failed_at) AS oldest,
                      (sum(count(*)) OVER ())::bigint AS open, count(*) OVER () AS groups
                 FROM dead_letters WHERE state = 'open'
                GROUP BY kind, reason, cause_group ORDER BY letters DESC, oldest LIMIT $1";
    let rows = Counted::find_by_statement(statement(sql, [TOLD.into()])).all(db).await?;
    let (open, groups) = rows.first().map_or((0, 0), |first| (first.open, first.groups));
    Ok(Letters { open, groups, largest: rows.into_iter().map(|counted| counted.group).collect() })
}

/// The plans that run or were stopped, the newest first.
pub(super) async fn plans(db: &DatabaseConnection) -> Result<Plans, DbErr> {
    #[derive(FromQueryResult)]
    struct Counted {
        #[sea_orm(nested)]
        plan: Plan,
        count: i64,
    }
    let sql = "SELECT id, state, made_by AS by, why, started_at, stopped_why, count(*) OVER () AS count,
                      (SELECT count(*) FROM replay_plan_letters WHERE plan_id = replay_plans.id) AS letters,
                      (SELECT count(*) FROM replay_plan_letters WHERE plan_id = replay_plans.id AND result IS NOT NULL) AS done
                 FROM replay_plans WHERE state IN ('running', 'stopped') ORDER BY made_at DESC LIMIT $1";
    let rows = Counted::find_by_statement(statement(sql, [TOLD.into()])).all(db).await?;
    let count = rows.first().map_or(0, |first| first.count);
    Ok(Plans { count, newest: rows.into_iter().map(|counted| counted.plan).collect() })
}

/// What the sweep has woken.
pub(super) async fn swept(db: &DatabaseConnection) -> Result<Swept, DbErr> {
    let sql = "SELECT count(*) FILTER (WHERE at > now() - interval '1 hour') AS last_hour, max(at) AS last_at FROM swept";
    one(db, statement(sql, [])).await
}

/// The last audit that was recorded.
pub(super) async fn audited(db: &DatabaseConnection) -> Result<Option<Audited>, DbErr> {
    let sql = "SELECT at, detail ->> 'by' AS by, (detail -> 'changed' ->> 'off')::bigint AS off
                 FROM activity_operations WHERE subject_id = $1 AND action = $2 ORDER BY id DESC LIMIT 1";
    Audited::find_by_statement(statement(sql, [id_of(AUDIT).into(), FINISHED.into()])).one(db).await
}

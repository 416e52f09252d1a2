//! The dead letters about a subject: how they were decided and why, the letters that correct them, and the plans that replayed them,
//! with who planned, approved and ran them.

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbErr, DerivePartialModel, EntityTrait, QueryFilter, QueryOrder,
};
use shared::{
    database::{
        column,
        entity::{dead_letters, replay_plan_letters, replay_plans},
        statement,
    },
    domain::due::bounded,
};
use uuid::Uuid;

use super::{Fact, Facts, TimelineEntry, records};

/// Letters about the subject, and all letters linked to them by repairs, which may name another subject.
const LETTERS: &str = "
    WITH RECURSIVE related AS (
        SELECT id, repaired_from FROM dead_letters WHERE subject_id = $1
        UNION
        SELECT other.id, other.repaired_from
          FROM related JOIN dead_letters AS other ON other.id = related.repaired_from OR other.repaired_from = related.id
    )
    SELECT id FROM related";

/// A letter without its message.
#[derive(DerivePartialModel)]
#[sea_orm(entity = "dead_letters::Entity")]
struct Died {
    id: Uuid,
    state: String,
    kind: Option<String>,
    subject_id: Option<Uuid>,
    wakeup_id: Option<Uuid>,
    reason: String,
    cause: String,
    attempts: i32,
    first_failed_at: Option<DateTime<Utc>>,
    last_failed_at: DateTime<Utc>,
    worker: Option<String>,
    trace_id: Option<String>,
    repaired_from: Option<Uuid>,
    stored_at: DateTime<Utc>,
    decided_at: Option<DateTime<Utc>>,
    decided_by: Option<String>,
    decided_why: Option<String>,
}

/// A line of a plan, with its plan.
#[derive(DerivePartialModel)]
struct Planned {
    #[sea_orm(nested)]
    line: replay_plan_letters::Model,
    #[sea_orm(nested)]
    plan: replay_plans::Model,
}

/// All entries about a subject's letters.
pub(super) async fn of_subject(snapshot: &DatabaseTransaction, id: Uuid) -> Result<Vec<TimelineEntry>, DbErr> {
    let related: Vec<Uuid> = column(snapshot, statement(LETTERS, [id.into()])).await?;
    let letters = dead_letters::Entity::find()
        .filter(dead_letters::Column::Id.eq_any(related))
        .order_by_asc(dead_letters::Column::LastFailedAt)
        .order_by_asc(dead_letters::Column::Id)
        .into_partial_model::<Died>()
        .all(snapshot)
        .await?;
    let planned = replay_plan_letters::Entity::find()
        .inner_join(replay_plans::Entity)
        .filter(replay_plan_letters::Column::LetterId.eq_any(letters.iter().map(|letter| letter.id)))
        .order_by_asc(replay_plans::Column::MadeAt)
        .order_by_asc(replay_plan_letters::Column::Position)
        .into_partial_model::<Planned>()
        .all(snapshot)
        .await?;
    let plans: Vec<Uuid> = planned.iter().map(|planned| planned.plan.id).collect();
    let mut entries: Vec<TimelineEntry> = letters.into_iter().flat_map(|died| letter(died, id)).collect();
    entries.extend(planned.into_iter().flat_map(replay));
    let sql = format!(
        "SELECT {} AS at, actor_kind, action, detail FROM activity_operations WHERE subject_id = ANY($1) ORDER BY at, id",
        bounded("at")
    );
    for row in snapshot.query_all_raw(statement(&sql, [plans.into()])).await? {
        entries.push(records::activity(&row)?);
    }
    Ok(entries)
}

/// The entries of a letter: its first failure, its last, its repair from another letter, and its decision.
fn letter(letter: Died, subject: Uuid) -> Vec<TimelineEntry> {
    let id = Fact::Id(letter.id);
    let kind = letter.kind.map(|kind| Fact::word(&kind));
    let named = || Facts::new([("letter", id.clone())]);
    let mut entries = Vec::new();
    if let Some(at) = letter.first_failed_at.filter(|at| *at < letter.last_failed_at) {
        entries.push(TimelineEntry { at, what: "first failure".into(), detail: named().with("kind", kind.clone()) });
    }
    let detail = named()
        .with("kind", kind)
        .with("reason", Some(Fact::Text(letter.reason)))
        .with("cause", Some(Fact::Text(letter.cause)))
        .with("attempts", Some(Fact::Count(letter.attempts.into())))
        .with("about_another", letter.subject_id.filter(|other| *other != subject).map(Fact::Id))
        .with("wakeup", letter.wakeup_id.map(Fact::Id))
        .with("worker", letter.worker.map(Fact::Text))
        .with("trace", letter.trace_id.map(Fact::Text))
        .with("state", Some(Fact::Text(letter.state.clone())));
    entries.push(TimelineEntry { at: letter.last_failed_at, what: "dead letter".into(), detail });
    if let Some(original) = letter.repaired_from {
        let detail = named().with("corrects", Some(Fact::Id(original)));
        entries.push(TimelineEntry { at: letter.stored_at, what: "dead letter repaired".into(), detail });
    }
    if let Some(at) = letter.decided_at {
        let detail = named().with("by", letter.decided_by.map(Fact::Text)).with("why", letter.decided_why.map(Fact::Text));
        entries.push(TimelineEntry { at, what: format!("dead letter {}", letter.state), detail });
    }
    entries
}

/// The entries of a letter in a plan: planned, approved, started, done.
fn replay(Planned { line, plan }: Planned) -> Vec<TimelineEntry> {
    let (id, letter) = (Fact::Id(plan.id), Fact::Id(line.letter_id));
    let money = |amount: i64| (amount > 0).then_some(Fact::Money(amount));
    let named = || Facts::new([("plan", id.clone())]);
    let planned = named()
        .with("letter", Some(letter.clone()))
        .with("by", Some(Fact::Text(plan.made_by)))
        .with("why", Some(Fact::Text(plan.why)))
        .with("verdict", Some(Fact::Text(line.verdict)))
        .with("because", line.why.map(Fact::Text))
        .with("amount", money(line.amount));
    let mut entries = vec![TimelineEntry { at: plan.made_at, what: "replay planned".into(), detail: planned }];
    if let Some(at) = plan.approved_at {
        entries.push(TimelineEntry {
            at,
            what: "replay approved".into(),
            detail: named().with("by", plan.approved_by.map(Fact::Text)),
        });
    }
    if let Some(at) = plan.started_at {
        let detail = named()
            .with("by", plan.run_by.map(Fact::Text))
            .with("state", Some(Fact::Text(plan.state)))
            .with("stopped_because", plan.stopped_why.map(Fact::Text));
        entries.push(TimelineEntry { at, what: "replay started".into(), detail });
    }
    if let (Some(at), Some(result)) = (line.at, line.result) {
        let detail = named()
            .with("letter", Some(letter))
            .with("because", line.result_why.map(Fact::Text))
            .with("amount", money(line.result_amount));
        entries.push(TimelineEntry { at, what: format!("replay: {result}"), detail });
    }
    entries
}

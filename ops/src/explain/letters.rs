//! What failed for good: dead letters about a subject, what became of them and why, the letters that correct them, and the plans by
//! which they were replayed, down to who planned, approved and ran them.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, QueryResult};
use shared::{database::statement, domain::due::bounded};
use uuid::Uuid;

use super::{Entry, Fact, Facts, records};

/// Letters about the subject, and those that they correct or are corrected by, which may name another.
const LETTERS: &str = "
    WITH RECURSIVE related AS (
        SELECT id, repaired_from FROM dead_letters WHERE subject_id = $1
        UNION
        SELECT other.id, other.repaired_from
          FROM related JOIN dead_letters AS other ON other.id = related.repaired_from OR other.repaired_from = related.id
    )
    SELECT letter.id, kind, nullif(subject_id, $1) AS other_subject, wakeup_id, state, reason, cause, attempts, first_failed_at,
           last_failed_at, worker, trace_id, letter.repaired_from, stored_at, decided_at, decided_by, decided_why
      FROM dead_letters AS letter JOIN related ON related.id = letter.id
     ORDER BY last_failed_at, letter.id";

/// The plans that these letters (`$1`) were or are in.
const PLANS: &str = "
    SELECT line.letter_id, line.plan_id, line.verdict, line.why AS verdict_why, line.amount, line.result, line.result_why,
           line.result_amount, line.at, plan.state, plan.made_at, plan.made_by, plan.why, plan.approved_at, plan.approved_by,
           plan.run_by, plan.started_at, plan.stopped_why
      FROM replay_plan_letters AS line JOIN replay_plans AS plan ON plan.id = line.plan_id
     WHERE line.letter_id = ANY($1) ORDER BY plan.made_at, line.position";

/// Everything about a subject's letters.
pub(super) async fn of_subject(snapshot: &DatabaseTransaction, id: Uuid) -> Result<Vec<Entry>, DbErr> {
    let (mut entries, mut letters, mut plans) = (Vec::new(), Vec::<Uuid>::new(), Vec::<Uuid>::new());
    for row in snapshot.query_all_raw(statement(LETTERS, [id.into()])).await? {
        letters.push(row.try_get("", "id")?);
        entries.extend(letter(&row)?);
    }
    for row in snapshot.query_all_raw(statement(PLANS, [letters.into()])).await? {
        plans.push(row.try_get("", "plan_id")?);
        entries.extend(replay(&row)?);
    }
    let sql = format!(
        "SELECT {} AS at, actor_kind, action, detail FROM activity_operations WHERE subject_id = ANY($1) ORDER BY at, id",
        bounded("at")
    );
    for row in snapshot.query_all_raw(statement(&sql, [plans.into()])).await? {
        entries.push(records::activity(&row)?);
    }
    Ok(entries)
}

/// A letter's moments: when it first failed, died, was stored as the correction of another, and was decided about.
fn letter(row: &QueryResult) -> Result<Vec<Entry>, DbErr> {
    let id = Fact::Id(row.try_get("", "id")?);
    let moment = |column: &str| row.try_get::<Option<DateTime<Utc>>>("", column);
    let text = |column: &str| row.try_get::<Option<String>>("", column).map(|text| text.map(Fact::Text));
    let uuid = |column: &str| row.try_get::<Option<Uuid>>("", column).map(|id| id.map(Fact::Id));
    let kind = row.try_get::<Option<String>>("", "kind")?.map(|kind| Fact::word(&kind));
    let (state, died_at): (String, DateTime<Utc>) = (row.try_get("", "state")?, row.try_get("", "last_failed_at")?);
    let named = || Facts::new([("letter", id.clone())]);
    let mut entries = Vec::new();
    if let Some(at) = moment("first_failed_at")?.filter(|at| *at < died_at) {
        entries.push(Entry { at, what: "first failure".into(), detail: named().with("kind", kind.clone()) });
    }
    let detail = named()
        .with("kind", kind)
        .with("reason", text("reason")?)
        .with("cause", text("cause")?)
        .with("attempts", Some(Fact::Count(row.try_get::<i32>("", "attempts")?.into())))
        .with("about_another", uuid("other_subject")?)
        .with("wakeup", uuid("wakeup_id")?)
        .with("worker", text("worker")?)
        .with("trace", text("trace_id")?)
        .with("state", Some(Fact::Text(state.clone())));
    entries.push(Entry { at: died_at, what: "dead letter".into(), detail });
    if let Some(original) = uuid("repaired_from")? {
        let detail = named().with("corrects", Some(original));
        entries.push(Entry { at: row.try_get("", "stored_at")?, what: "dead letter repaired".into(), detail });
    }
    if let Some(at) = moment("decided_at")? {
        let detail = named().with("by", text("decided_by")?).with("why", text("decided_why")?);
        entries.push(Entry { at, what: format!("dead letter {state}"), detail });
    }
    Ok(entries)
}

/// A letter's place in a plan: planned, approved, begun, done.
fn replay(row: &QueryResult) -> Result<Vec<Entry>, DbErr> {
    let plan = Fact::Id(row.try_get("", "plan_id")?);
    let letter = Fact::Id(row.try_get("", "letter_id")?);
    let moment = |column: &str| row.try_get::<Option<DateTime<Utc>>>("", column);
    let text = |column: &str| row.try_get::<Option<String>>("", column).map(|text| text.map(Fact::Text));
    let money = |column: &str| row.try_get::<i64>("", column).map(|amount| (amount > 0).then_some(Fact::Money(amount)));
    let named = || Facts::new([("plan", plan.clone())]);
    let planned = named()
        .with("letter", Some(letter.clone()))
        .with("by", text("made_by")?)
        .with("why", text("why")?)
        .with("verdict", text("verdict")?)
        .with("because", text("verdict_why")?)
        .with("amount", money("amount")?);
    let mut entries = vec![Entry { at: row.try_get("", "made_at")?, what: "replay planned".into(), detail: planned }];
    if let Some(at) = moment("approved_at")? {
        entries.push(Entry { at, what: "replay approved".into(), detail: named().with("by", text("approved_by")?) });
    }
    if let Some(at) = moment("started_at")? {
        let detail =
            named().with("by", text("run_by")?).with("state", text("state")?).with("stopped_because", text("stopped_why")?);
        entries.push(Entry { at, what: "replay begun".into(), detail });
    }
    if let (Some(at), Some(result)) = (moment("at")?, row.try_get::<Option<String>>("", "result")?) {
        let detail =
            named().with("letter", Some(letter)).with("because", text("result_why")?).with("amount", money("result_amount")?);
        entries.push(Entry { at, what: format!("replay: {result}"), detail });
    }
    Ok(entries)
}

//! The outlook of one kind for one row: which lines of the policy count, when the row is due by the shared definition of *due*, and where
//! its wake-up waits in the ladder. The broker cannot be searched for one message, so the place is computed from the row. It is right
//! for a wake-up that was published on time, at its event or when a policy made the row due earlier.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait, QueryFilter, QueryOrder, QueryResult, QuerySelect,
};
use serde::Serialize;
use shared::{
    database::{
        entity::{dead_letters, outbox, pauses},
        statement,
    },
    domain::{due, event::EventType, span::signed_ms, task::Shown},
    message::{
        ladder::{Hop, Rung},
        topology::{Topology, shard_of},
    },
    settings::Settings,
};
use uuid::Uuid;

/// What one kind will do with a subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outlook {
    pub kind: &'static str,
    /// Whether the kind could apply to the row as it is.
    pub candidate: bool,
    pub counts: Vec<CountedEvent>,
    pub due_at: Option<DateTime<Utc>>,
    /// Set if a release decides when the row is due, not only the lines: when the policy changed that releases it gradually.
    pub released_since: Option<DateTime<Utc>>,
    pub wakeup: WakeupPlace,
    /// Its open dead letters.
    pub open_letters: Vec<Uuid>,
    pub paused: Option<PauseOfKind>,
}

/// An event that the kind counts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CountedEvent {
    pub event: &'static str,
    /// The time from the event until the row is due; `None`: the policy does not use the kind.
    pub after: Option<String>,
    /// Whether the policy has a line for it. If not, the longest span of the kind's lines counts.
    pub own_line: bool,
    /// When it happened, while the row is a candidate.
    pub moment: Option<DateTime<Utc>>,
    /// Whether this event decides when the row is due.
    pub decides: bool,
}

/// Where a wake-up waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "waits", rename_all = "lowercase")]
pub enum WakeupPlace {
    /// There is no wake-up, because it would find nothing to do.
    None { why: String },
    /// It is not published yet, because its event waits in the outbox.
    Outbox { event: String },
    /// In a rung until it expires, then in other rungs.
    Rung { queue: String, until: DateTime<Utc>, then: Vec<Hops> },
    /// It is due: in the lane, with a worker, or in a rung between two attempts. From `swept_from` on the sweep publishes it again.
    Lane { queue: String, swept_from: DateTime<Utc> },
}

/// Consecutive hops through the same rung.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hops {
    pub queue: String,
    pub times: u64,
}

/// A pause. The kind is not applied until an operator resumes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PauseOfKind {
    pub at: DateTime<Utc>,
    pub by: String,
    pub why: String,
}

/// The outlook of one kind.
pub(super) async fn of(
    snapshot: &DatabaseTransaction,
    settings: &Settings,
    task: &dyn Shown,
    id: Uuid,
    now: DateTime<Utc>,
) -> Result<Outlook, DbErr> {
    let sql = format!("SELECT due.* FROM {} AS due WHERE due.id = $1", due::query_explained(task, &settings.policy));
    let candidate = snapshot.query_one_raw(statement(&sql, [id.into()])).await?;
    let due_at: Option<DateTime<Utc>> = candidate.as_ref().map_or(Ok(None), |row| row.try_get("", "due_at"))?;
    let counts = counts(settings, task, candidate.as_ref(), due_at)?;
    let event = in_outbox(snapshot, settings, task, id).await?;
    let wakeup = match (due_at, event) {
        (None, _) => WakeupPlace::None { why: why_none(snapshot, settings, task, id, candidate.is_some()).await? },
        (Some(due_at), Some(event)) if due_at > now => WakeupPlace::Outbox { event },
        (Some(due_at), _) => {
            // The latest of several events decides. Its wake-up arrives at the right time.
            let moment = counts.iter().filter(|counted| counted.decides).find_map(|counted| counted.moment);
            place(
                settings,
                task,
                id,
                (moment.max(made_anew(settings, task, candidate.as_ref(), due_at, now)?).unwrap_or(now), due_at),
                now,
            )
        }
    };
    let letters = dead_letters::Entity::find().select_only().column(dead_letters::Column::Id);
    let open_letters = letters
        .filter(dead_letters::Column::SubjectId.eq(id))
        .filter(dead_letters::Column::Kind.eq(task.kind()))
        .filter(dead_letters::Column::State.eq("open"))
        .order_by_asc(dead_letters::Column::LastFailedAt)
        .order_by_asc(dead_letters::Column::Id)
        .into_tuple()
        .all(snapshot)
        .await?;
    let paused = pauses::Entity::find_by_id(task.kind()).one(snapshot).await?;
    let paused = paused.map(|pause| PauseOfKind { at: pause.paused_at, by: pause.paused_by, why: pause.why });
    Ok(Outlook {
        kind: task.kind(),
        candidate: candidate.is_some(),
        released_since: released_since(settings, task, &counts, due_at),
        counts,
        due_at,
        wakeup,
        open_letters,
        paused,
    })
}

fn counts(
    settings: &Settings,
    task: &dyn Shown,
    candidate: Option<&QueryResult>,
    due_at: Option<DateTime<Utc>>,
) -> Result<Vec<CountedEvent>, DbErr> {
    let own_line = |event: EventType| settings.policy.lines_on(event).any(|line| line.task == task.kind());
    let counted = |event: &EventType| {
        let moment = |column: &str| candidate.map_or(Ok(None), |row| row.try_get::<Option<DateTime<Utc>>>("", column));
        let alone = moment(&format!("{event} due"))?;
        Ok(CountedEvent {
            event: event.name(),
            after: settings.policy.span(task, *event).map(|span| span.to_string()),
            own_line: own_line(*event),
            moment: moment(event.name())?,
            decides: due_at.is_some() && alone == due_at,
        })
    };
    task.counts_from().iter().map(counted).collect()
}

/// When its wake-up was published again, if a policy made the row due earlier.
fn made_anew(
    settings: &Settings,
    task: &dyn Shown,
    candidate: Option<&QueryResult>,
    due_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Option<DateTime<Utc>>, DbErr> {
    let (Some(release), Some(row)) = (settings.policy.release(task), candidate) else { return Ok(None) };
    let before: Option<DateTime<Utc>> = row.try_get("", "due before")?;
    Ok(before.is_none_or(|before| due_at < before).then_some(release.from.min(now)))
}

fn released_since(
    settings: &Settings,
    task: &dyn Shown,
    counts: &[CountedEvent],
    due_at: Option<DateTime<Utc>>,
) -> Option<DateTime<Utc>> {
    let release = settings.policy.release(task)?;
    (due_at.is_some() && counts.iter().all(|counted| !counted.decides)).then_some(release.from)
}

/// The newest event in the outbox that wakes this kind.
async fn in_outbox(
    snapshot: &DatabaseTransaction,
    settings: &Settings,
    task: &dyn Shown,
    id: Uuid,
) -> Result<Option<String>, DbErr> {
    let lines = settings.policy.lines().iter().filter(|line| line.task == task.kind());
    let events = outbox::Entity::find().select_only().column(outbox::Column::EventType);
    let waking = events.filter(outbox::Column::EventType.eq_any(lines.map(|line| line.on.name().to_owned())));
    waking.filter(outbox::Column::SubjectId.eq(id)).order_by_desc(outbox::Column::Id).into_tuple().one(snapshot).await
}

async fn why_none(
    snapshot: &DatabaseTransaction,
    settings: &Settings,
    task: &dyn Shown,
    id: Uuid,
    is_candidate: bool,
) -> Result<String, DbErr> {
    if !settings.policy.lines().iter().any(|line| line.task == task.kind()) {
        return Ok("no line of the policy names this kind".to_owned());
    }
    if is_candidate {
        return Ok("none of the events that it counts from has happened".to_owned());
    }
    let sql = format!("SELECT FROM {} WHERE id = $1", task.table());
    let row = snapshot.query_one_raw(statement(&sql, [id.into()])).await?;
    Ok(match row {
        None => format!("not a candidate: {} has no row with this id", task.table()),
        Some(_) => format!("not a candidate: it applies to {}", task.applies_to()),
    })
}

/// Where a wake-up waits that was published at `moment` for a row due at `due_at`.
fn place(
    settings: &Settings,
    task: &dyn Shown,
    id: Uuid,
    (moment, due_at): (DateTime<Utc>, DateTime<Utc>),
    now: DateTime<Utc>,
) -> WakeupPlace {
    let topology = settings.topology();
    let shard = shard_of(id, topology.shards());
    let wait = (due_at - moment).to_std().unwrap_or_default();
    let waited = (now - moment).to_std().unwrap_or_default();
    let queue = |rung| queue_of(&topology, rung, shard);
    match hop(&topology.ladder().way(wait), waited) {
        Some(OnItsWay { rung, left, then }) if due_at > now => WakeupPlace::Rung {
            queue: queue(rung),
            until: now.max(moment) + TimeDelta::from_std(left).unwrap_or_default(),
            then: then.into_iter().map(|(rung, times)| Hops { queue: queue(rung), times }).collect(),
        },
        _ => WakeupPlace::Lane {
            queue: topology.lane(task.kind(), shard),
            swept_from: due_at + TimeDelta::milliseconds(signed_ms(settings.sweep.grace)),
        },
    }
}

/// The position of a wake-up in the ladder.
struct OnItsWay {
    rung: Rung,
    /// How long the rung still holds it.
    left: Duration,
    /// The hops after it.
    then: Vec<(Rung, u64)>,
}

/// The position of a wake-up that has already `waited`; `None`: it has passed the last rung.
fn hop(way: &[(Rung, u64)], waited: Duration) -> Option<OnItsWay> {
    let mut waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
    for (at, (rung, times)) in way.iter().enumerate() {
        let rung_ms = rung.duration_ms();
        let run_ms = rung_ms.saturating_mul(*times);
        if waited_ms < run_ms {
            let taken = waited_ms / rung_ms + 1;
            let left = Duration::from_millis(rung_ms - waited_ms % rung_ms);
            let same = (taken < *times).then_some((*rung, times - taken));
            let then = same.into_iter().chain(way[at + 1..].iter().copied()).collect();
            return Some(OnItsWay { rung: *rung, left, then });
        }
        waited_ms -= run_ms;
    }
    None
}

fn queue_of(topology: &Topology, rung: Rung, shard: u16) -> String {
    let found = topology.rungs().find(|(of, _)| *of == (rung, shard));
    found.map_or_else(|| topology.exchange_of(Hop::Rung(rung)), |(_, queue)| queue)
}

#[cfg(test)]
mod tests {
    use shared::message::ladder::Ladder;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_wakeup_is_in_the_rung_that_its_way_has_come_to() {
        let ladder = Ladder::new([DAY, 7 * DAY, 30 * DAY]);
        let way = ladder.way(68 * DAY);
        let at = |waited| {
            let OnItsWay { rung, left, then } = hop(&way, waited)?;
            let then = then.iter().map(|(rung, times)| format!("{} {times}", rung.label())).collect::<Vec<_>>().join(", ");
            Some((rung.label(), left, then))
        };
        let hour = Duration::from_secs(3_600);
        assert_eq!(at(Duration::ZERO), Some(("30d".into(), 30 * DAY, "30d 1, 7d 1, 1d 1".into())));
        assert_eq!(at(30 * DAY + hour), Some(("30d".into(), 30 * DAY - hour, "7d 1, 1d 1".into())));
        assert_eq!(at(60 * DAY), Some(("7d".into(), 7 * DAY, "1d 1".into())));
        assert_eq!(at(67 * DAY + hour), Some(("1d".into(), DAY - hour, String::new())));
        assert_eq!(at(68 * DAY), None);
    }
}

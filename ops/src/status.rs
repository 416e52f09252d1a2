//! Status: how the fleet is at this moment, by looking alone: nothing is taken from a queue and nothing is written.

use chrono::TimeDelta;
use sea_orm::{ConnectionTrait, DatabaseConnection};
use serde::Serialize;
use shared::{
    broker::{Broker, Observed},
    canary::{self, RungAge},
    database::statement,
    settings::Settings,
    span::compact,
    topology::{Queue, Role, Topology},
};

use crate::OpsError;

/// How the fleet is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// Due wake-ups, and the canaries that have come.
    pub lanes: Vec<Lane>,
    pub rungs: Vec<Rung>,
    /// Dead letters, messages that no lane takes, and quarantine.
    pub kept: Vec<Kept>,
    pub outbox: Outbox,
    /// Events that made no sense.
    pub set_aside: i64,
    /// What is wrong, in words; empty when nothing is.
    pub troubles: Vec<String>,
}

/// A queue that workers consume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lane {
    pub queue: String,
    /// `None`: the queue does not exist.
    pub messages: Option<u32>,
    pub consumers: Option<u32>,
}

/// A rung's queue.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rung {
    pub queue: String,
    /// How long it holds a message, like `14d`.
    pub duration: String,
    pub messages: Option<u32>,
    /// Age of the oldest canary that waits in it.
    pub head_age_s: f64,
    /// How long that canary should have left it.
    pub overdue_s: f64,
    /// How late the newest canary came; `None` before the first.
    pub late_s: Option<f64>,
}

/// A queue that people or the quarantine empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    pub queue: String,
    pub messages: Option<u32>,
}

/// The events that the relay has not taken yet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outbox {
    pub events: i64,
    /// Age of the oldest; 0 when there is none.
    pub oldest_s: f64,
}

/// Looks.
///
/// # Errors
/// [`OpsError`] when a server is away.
pub async fn status(db: &DatabaseConnection, broker: &Broker, settings: &Settings) -> Result<Status, OpsError> {
    let topology = settings.topology();
    let ages = canary::ages(db, &topology).await?;
    let (mut lanes, mut rungs, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    for queue in topology.queues() {
        let seen = broker.observe(&queue.name).await?;
        let messages = seen.map(|seen| seen.messages);
        match queue.role {
            Role::Lane | Role::Canaries => lanes.push(lane(&queue, seen)),
            Role::Rung => rungs.extend(rung(&queue, messages, &topology, &ages)),
            Role::Dead | Role::Unrouted | Role::Quarantine => kept.push(Kept { queue: queue.name, messages }),
        }
    }
    let sql = "SELECT (SELECT count(*) FROM outbox) AS events,
                      coalesce((SELECT extract(epoch FROM now() - min(occurred_at)) FROM outbox), 0)::float8 AS oldest_s,
                      (SELECT count(*) FROM set_aside) AS set_aside";
    let row = db.query_one_raw(statement(sql, [])).await?;
    let row = row.ok_or_else(|| sea_orm::DbErr::RecordNotFound("counts".into()))?;
    let outbox = Outbox { events: row.try_get("", "events")?, oldest_s: row.try_get("", "oldest_s")? };
    let mut status = Status { lanes, rungs, kept, outbox, set_aside: row.try_get("", "set_aside")?, troubles: Vec::new() };
    status.troubles = troubles(&status, settings);
    Ok(status)
}

fn lane(queue: &Queue, seen: Option<Observed>) -> Lane {
    Lane { queue: queue.name.clone(), messages: seen.map(|seen| seen.messages), consumers: seen.map(|seen| seen.consumers) }
}

fn rung(queue: &Queue, messages: Option<u32>, topology: &Topology, ages: &[RungAge]) -> Option<Rung> {
    let ((rung, _), _) = topology.rungs().find(|(_, name)| *name == queue.name)?;
    let age = ages.iter().find(|age| age.queue == queue.name)?;
    Some(Rung {
        queue: queue.name.clone(),
        duration: compact(rung.duration_ms()),
        messages,
        head_age_s: age.head_age.as_seconds_f64(),
        overdue_s: age.overdue.as_seconds_f64(),
        late_s: age.late.map(TimeDelta::as_seconds_f64),
    })
}

/// What an operator has to do something about.
fn troubles(status: &Status, settings: &Settings) -> Vec<String> {
    let mut troubles = Vec::new();
    let queues = status.lanes.iter().map(|lane| (&lane.queue, lane.messages));
    let queues = queues.chain(status.rungs.iter().map(|rung| (&rung.queue, rung.messages)));
    for (queue, _) in queues.chain(status.kept.iter().map(|kept| (&kept.queue, kept.messages))).filter(|(_, seen)| seen.is_none())
    {
        troubles.push(format!("{queue} is missing; run `ops topology declare`, then `ops rebuild`"));
    }
    for lane in status.lanes.iter().filter(|lane| lane.messages > Some(0) && lane.consumers == Some(0)) {
        troubles.push(format!("{} has due messages and nobody consumes it; is a worker running?", lane.queue));
    }
    let grace = std::time::Duration::from_millis(settings.sweep.grace_ms).as_secs_f64();
    let overdue = || status.rungs.iter().filter(|rung| rung.overdue_s > grace);
    // Canaries that nobody has taken from their lane have left their rungs.
    let kept = status.lanes.iter().find(|lane| lane.queue.contains(".due.canary.") && lane.messages > Some(0));
    match kept {
        Some(lane) if overdue().next().is_some() => {
            troubles.push(format!("{} holds canaries that no worker has noted; whether the rungs move is not known", lane.queue));
        }
        Some(_) => {}
        None => {
            troubles.extend(
                overdue().map(|rung| format!("{} does not move: its canary is overdue by {:.0} s", rung.queue, rung.overdue_s)),
            );
        }
    }
    troubles
}

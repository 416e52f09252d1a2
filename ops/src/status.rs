//! Status: the current state of the fleet. It only reads: it gets no message from a queue and writes nothing.
//!
//! Two consecutive looks give rates: how fast queues fill or drain, and how many effects are recorded per second.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::DatabaseConnection;
use serde::Serialize;
use shared::{
    broker::{Broker, Observed},
    database::{
        canaries::{self, RungAge},
        leader::{self, Leader},
        pause::{self, Pause},
    },
    domain::span::compact,
    message::topology::{Queue, QueueRole, Topology},
    settings::Settings,
};
use tokio::time::Instant;

use crate::OpsError;

mod active_policy;
mod rows;
mod troubles;

pub use active_policy::{ActivePolicy, KindRelease};

pub use rows::{Audited, KindStatus, OpenLetterGroup, OpenLetters, Outbox, PlanStatus, SweptCounts, UnfinishedPlans};

/// The state of the fleet. The fields are those of `ops status --json`, so their names must not change.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// By the database's clock.
    pub at: DateTime<Utc>,
    /// What is wrong, one sentence each; empty: nothing is wrong.
    pub troubles: Vec<String>,
    /// Paused kinds. They are paused on purpose, so they do not count as wrong.
    pub pauses: Vec<Pause>,
    /// The policy that was applied last; `None`: none was, so nothing is applied.
    pub policy: Option<ActivePolicy>,
    /// The queues of due wake-ups and of arrived canaries.
    pub lanes: Vec<Lane>,
    pub kinds: Vec<KindStatus>,
    pub rungs: Vec<RungStatus>,
    /// The queues of dead letters, of unrouted messages and of quarantine.
    pub kept: Vec<KeptQueue>,
    pub outbox: Outbox,
    /// The number of events that the relay could not schedule.
    pub set_aside: i64,
    /// Open dead letters.
    pub letters: OpenLetters,
    /// Replay plans that are running or stopped.
    pub plans: UnfinishedPlans,
    /// The subjects that the sweep has woken.
    pub swept: SweptCounts,
    /// The last audit that was recorded.
    pub audited: Option<Audited>,
    /// The worker that runs the duties of the whole fleet.
    pub leader: Leader,
}

/// A queue that workers consume.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lane {
    pub queue: String,
    /// `None`: the queue does not exist.
    pub messages: Option<u32>,
    pub consumers: Option<u32>,
    /// Growth since the previous look, in messages per second; negative: it drains.
    pub growth_per_s: Option<f64>,
}

/// A rung's queue.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RungStatus {
    pub queue: String,
    /// How long it holds a message, like `14d`.
    pub duration: String,
    pub messages: Option<u32>,
    /// Growth since the previous look, in messages per second; negative: it drains.
    pub growth_per_s: Option<f64>,
    /// Age of the oldest canary that waits in it.
    pub head_age_s: f64,
    /// How long ago that canary should have left it.
    pub overdue_s: f64,
    /// How late the newest canary arrived; `None`: none has arrived yet.
    pub late_s: Option<f64>,
}

/// A queue of wake-ups or messages that their kind's lane cannot handle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeptQueue {
    pub queue: String,
    /// `None`: the queue does not exist.
    pub messages: Option<u32>,
    pub consumers: Option<u32>,
}

/// Takes repeated looks, and keeps the previous one for the rates.
#[derive(Default)]
pub struct StatusWatch {
    before: Option<Before>,
}

struct Before {
    at: Instant,
    depths: HashMap<String, u32>,
    /// For each kind, the last row's id in the table that records its effects.
    last: HashMap<&'static str, i64>,
}

impl StatusWatch {
    /// Reads the current status.
    ///
    /// # Errors
    /// [`OpsError`] if a server is away.
    pub async fn look(&mut self, db: &DatabaseConnection, broker: &Broker, settings: &Settings) -> Result<Status, OpsError> {
        let applied = shared::database::active_policy::read(db).await?;
        let (own, settings) = (settings, &shared::database::active_policy::under(settings, applied.as_ref()));
        let topology = settings.topology();
        let ages = canaries::ages(db, &topology).await?;
        let mut now = Before { at: Instant::now(), depths: HashMap::new(), last: HashMap::new() };
        let before = self.before.as_ref();
        let over_s = before.map(|before| (now.at - before.at).as_secs_f64()).filter(|over_s| *over_s > 0.0);
        let (mut lanes, mut rungs, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for queue in topology.queues() {
            let seen = broker.observe(&queue.name).await?;
            let messages = seen.map(|seen| seen.messages);
            let growth_per_s = || {
                let (depth, were) = (messages?, before?.depths.get(&queue.name)?);
                Some((f64::from(depth) - f64::from(*were)) / over_s?)
            };
            match queue.role {
                QueueRole::Lane | QueueRole::Canaries => lanes.push(lane(&queue, seen, growth_per_s())),
                QueueRole::Rung => rungs.extend(rung(&queue, messages, growth_per_s(), &topology, &ages)),
                QueueRole::Dead | QueueRole::Unrouted | QueueRole::Quarantine => {
                    kept.push(KeptQueue { queue: queue.name.clone(), messages, consumers: seen.map(|seen| seen.consumers) });
                }
            }
            now.depths.extend(messages.map(|messages| (queue.name, messages)));
        }
        let (at, outbox, set_aside) = rows::waiting(db).await?;
        let mut status = Status {
            at,
            troubles: Vec::new(),
            pauses: pause::all(db).await?,
            policy: applied.map(|applied| active_policy::summary(applied, own, at)),
            lanes,
            kinds: rows::kinds(db, settings, before.map(|before| &before.last).zip(over_s), &mut now.last).await?,
            rungs,
            kept,
            outbox,
            set_aside,
            letters: rows::letters(db).await?,
            plans: rows::plans(db).await?,
            swept: rows::swept(db).await?,
            audited: rows::audited(db).await?,
            leader: leader::read(db).await?,
        };
        status.troubles = troubles::troubles(&status, settings);
        self.before = Some(now);
        Ok(status)
    }
}

fn lane(queue: &Queue, seen: Option<Observed>, growth_per_s: Option<f64>) -> Lane {
    let (messages, consumers) = (seen.map(|seen| seen.messages), seen.map(|seen| seen.consumers));
    Lane { queue: queue.name.clone(), messages, consumers, growth_per_s }
}

fn rung(
    queue: &Queue,
    messages: Option<u32>,
    growth_per_s: Option<f64>,
    topology: &Topology,
    ages: &[RungAge],
) -> Option<RungStatus> {
    let ((rung, _), _) = topology.rungs().find(|(_, name)| *name == queue.name)?;
    let age = ages.iter().find(|age| age.queue == queue.name)?;
    Some(RungStatus {
        queue: queue.name.clone(),
        duration: compact(rung.duration_ms()),
        messages,
        growth_per_s,
        head_age_s: age.head_age.as_seconds_f64(),
        overdue_s: age.overdue.as_seconds_f64(),
        late_s: age.late.map(TimeDelta::as_seconds_f64),
    })
}

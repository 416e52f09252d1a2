//! The health of a process: the parts that it depends on, each up or down, since when and why.
//!
//! A process is ready only while every part is up and it was not asked to stop. A part that rests on purpose is up. The code
//! that runs a part reports its state, with reasons that anyone may read: no secrets, no personal data.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use serde::Serialize;

/// The reason for a server that was not reached since the start.
pub const UNREACHED: &str = "not reached yet; see the log";
/// The reason for a part that has not reported yet.
const STARTING: &str = "starting";

/// The health of one process; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<KnownParts>);

#[derive(Debug, Default)]
struct KnownParts {
    stopping: AtomicBool,
    parts: Mutex<Vec<Weak<NamedPart>>>,
}

/// One thing that the process depends on; clones are the same part. It leaves the report with its last clone.
#[derive(Clone, Debug)]
pub struct HealthPart(Arc<NamedPart>);

#[derive(Debug)]
struct NamedPart {
    name: String,
    condition: Mutex<Condition>,
}

#[derive(Debug)]
struct Condition {
    state: PartState,
    since: Instant,
}

#[derive(Debug)]
enum PartState {
    Up,
    /// Up; the reason why it does nothing.
    Rests(String),
    /// Down; the reason.
    Down(String),
}

/// The health of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HealthReport {
    /// Every part is up, there is at least one, and the process was not asked to stop.
    pub ready: bool,
    pub stopping: bool,
    /// By name.
    pub parts: Vec<PartReport>,
}

/// The health of a part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PartReport {
    pub name: String,
    pub up: bool,
    /// Why it is down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Why it does nothing although it is up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rests: Option<String>,
    /// For how many seconds it has been in this state: up, resting or down.
    pub for_s: u64,
}

impl Health {
    /// A process without parts, and so not ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A new part, down until it reports another state.
    #[must_use]
    pub fn part(&self, name: impl Into<String>) -> HealthPart {
        let condition = Condition { state: PartState::Down(STARTING.into()), since: Instant::now() };
        let kept = Arc::new(NamedPart { name: name.into(), condition: Mutex::new(condition) });
        let mut parts = lock(&self.0.parts);
        parts.retain(|part| part.strong_count() > 0);
        parts.push(Arc::downgrade(&kept));
        HealthPart(kept)
    }

    /// Records that the process was asked to stop; it is never ready again.
    pub fn stopping(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
    }

    /// The current health.
    #[must_use]
    pub fn report(&self) -> HealthReport {
        let mut parts: Vec<_> = lock(&self.0.parts).iter().filter_map(Weak::upgrade).map(|part| part.report()).collect();
        parts.sort();
        let stopping = self.0.stopping.load(Ordering::Relaxed);
        HealthReport { ready: !stopping && !parts.is_empty() && parts.iter().all(|part| part.up), stopping, parts }
    }
}

impl HealthPart {
    /// Reports that it works. Repeated calls are cheap.
    pub fn up(&self) {
        let mut condition = lock(&self.0.condition);
        if !matches!(condition.state, PartState::Up) {
            *condition = Condition { state: PartState::Up, since: Instant::now() };
        }
    }

    /// Reports that it does not work. The latest reason counts, and the time since it first did not work.
    pub fn down(&self, why: impl Into<String>) {
        let mut condition = lock(&self.0.condition);
        if !matches!(condition.state, PartState::Down(_)) {
            condition.since = Instant::now();
        }
        condition.state = PartState::Down(why.into());
    }

    /// Reports that it works and does nothing for now. The latest reason counts, and the time since it first rested.
    pub fn rests(&self, why: impl Into<String>) {
        let mut condition = lock(&self.0.condition);
        if !matches!(condition.state, PartState::Rests(_)) {
            condition.since = Instant::now();
        }
        condition.state = PartState::Rests(why.into());
    }
}

impl NamedPart {
    fn report(&self) -> PartReport {
        let condition = lock(&self.condition);
        let (up, why, rests) = match &condition.state {
            PartState::Up => (true, None, None),
            PartState::Rests(why) => (true, None, Some(why.clone())),
            PartState::Down(why) => (false, Some(why.clone()), None),
        };
        PartReport { name: self.name.clone(), up, why, rests, for_s: condition.since.elapsed().as_secs() }
    }
}

/// No code that holds these locks can panic halfway, so a poisoned lock is still valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts' names, each with why it is down.
    fn parts(health: &Health) -> Vec<(String, Option<String>)> {
        health.report().parts.into_iter().map(|part| (part.name, part.why)).collect()
    }

    fn down(name: &str, why: &str) -> (String, Option<String>) {
        (name.into(), Some(why.into()))
    }

    #[test]
    fn a_process_is_ready_while_every_part_is_up_and_it_is_not_stopping() {
        let health = Health::new();
        assert!(!health.report().ready, "nothing is known yet");
        let (rabbitmq, postgresql) = (health.part("rabbitmq"), health.part("postgresql"));
        assert_eq!(parts(&health), [down("postgresql", "starting"), down("rabbitmq", "starting")]);
        postgresql.up();
        assert!(!health.report().ready);
        rabbitmq.up();
        assert!(health.report().ready);
        postgresql.down("it went away");
        assert!(!health.report().ready);
        assert_eq!(parts(&health), [down("postgresql", "it went away"), ("rabbitmq".into(), None)]);
        postgresql.up();
        assert!(health.report().ready);
        health.stopping();
        let report = health.report();
        assert!(report.stopping && !report.ready);
    }

    #[test]
    fn the_newest_reason_counts_and_the_time_of_the_first() {
        let health = Health::new();
        let part = health.part("rabbitmq");
        let since = |part: &HealthPart| lock(&part.0.condition).since;
        part.up();
        let up = since(&part);
        part.up();
        assert_eq!(since(&part), up);
        part.down("it hung up");
        let fell = since(&part);
        part.down("it does not answer");
        assert_eq!((since(&part), parts(&health)), (fell, vec![down("rabbitmq", "it does not answer")]));
    }

    #[test]
    fn a_part_that_rests_is_up_and_says_why() {
        let health = Health::new();
        let part = health.part("a lane");
        part.rests("paused");
        let report = health.report();
        assert!(report.ready && report.parts[0].up && report.parts[0].why.is_none());
        assert_eq!(report.parts[0].rests.as_deref(), Some("paused"));
        part.down("RabbitMQ is gone");
        assert!(!health.report().ready && health.report().parts[0].rests.is_none());
        part.rests("paused");
        part.up();
        assert!(health.report().parts[0].rests.is_none());
    }

    #[test]
    fn a_part_is_gone_from_the_report_with_its_last_clone() {
        let health = Health::new();
        let (kept, dropped) = (health.part("kept"), health.part("dropped"));
        let clone = dropped.clone();
        kept.up();
        drop(dropped);
        assert_eq!(health.report().parts.len(), 2);
        drop(clone);
        assert!(health.report().ready);
        assert_eq!(parts(&health), [("kept".into(), None)]);
    }
}

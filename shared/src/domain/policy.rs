//! The policy: which event wakes which task, and after how long. It is one table that operators edit, and is checked as a
//! whole.

use std::{collections::BTreeMap, fmt, time::Duration};

use chrono::{DateTime, Utc};

use super::{
    event::EventType,
    span::Span,
    task::{EffectTerms, Task},
    tasks,
};

mod release;
mod safeguards;
mod written;

use written::Written;

pub use release::Release;
pub use safeguards::Safeguards;

/// One line of the policy's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyLine {
    pub on: EventType,
    /// The kind of a task in [`tasks::ALL`].
    pub task: &'static str,
    pub after: Span,
}

/// The whole table, and how the rows that it makes due earlier are released, if the release is staged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    lines: Vec<PolicyLine>,
    releases: BTreeMap<&'static str, Release>,
    safeguards: Option<Safeguards>,
    number: Option<i64>,
}

/// An invalid line, by its place in the table and its field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineMistake {
    pub line: usize,
    pub field: &'static str,
    pub why: String,
}

impl Policy {
    /// A policy of these lines.
    ///
    /// # Errors
    /// Every mistake at once: a task that cannot count from the line's event, a span shorter than promised, a pair listed
    /// twice.
    pub fn new(lines: Vec<PolicyLine>) -> Result<Self, Vec<LineMistake>> {
        let mut mistakes = Vec::new();
        for (at, line) in lines.iter().enumerate() {
            let Some(task) = tasks::find(line.task) else {
                mistakes.push(LineMistake { line: at, field: "task", why: format!("unknown task {:?}", line.task) });
                continue;
            };
            if !task.counts_from().contains(&line.on) {
                let known = task.counts_from().iter().map(|e| e.name()).collect::<Vec<_>>().join(", ");
                let why = format!("{} cannot count from {}; it counts from {known}", line.task, line.on);
                mistakes.push(LineMistake { line: at, field: "on", why });
            }
            if let Some(shortest) = task.shortest().filter(|shortest| !line.after.covers(*shortest)) {
                let why = format!("{} must not fall due before {shortest}", line.task);
                mistakes.push(LineMistake { line: at, field: "after", why });
            }
            if lines[..at].iter().any(|other| (other.on, other.task) == (line.on, line.task)) {
                let why = format!("{} → {} is already set in an earlier line", line.on, line.task);
                mistakes.push(LineMistake { line: at, field: "on", why });
            }
        }
        if mistakes.is_empty() { Ok(Self { lines, ..Self::default() }) } else { Err(mistakes) }
    }

    /// The same policy, with a release of a kind.
    #[must_use]
    pub fn releasing(mut self, kind: &'static str, release: Release) -> Self {
        self.releases.insert(kind, release);
        self
    }

    /// How the rows of one kind that it makes due earlier are released; `None`: all of them fall due by its lines alone.
    #[must_use]
    pub fn release(&self, task: &dyn Task) -> Option<&Release> {
        self.releases.get(task.kind())
    }

    /// Every release, by kind.
    pub fn releases(&self) -> impl Iterator<Item = (&'static str, &Release)> {
        self.releases.iter().map(|(kind, release)| (*kind, release))
    }

    /// The part of the policy about one kind, with its release unless that is over at `at`.
    #[must_use]
    pub fn of_kind(&self, kind: &'static str, at: DateTime<Utc>) -> Self {
        let lines = self.lines.iter().filter(|line| line.task == kind).copied().collect();
        let release = self.releases.get(kind).filter(|release| release.until() > at);
        let releases = release.map(|release| (kind, release.clone())).into_iter().collect();
        Self { lines, releases, safeguards: None, number: None }
    }

    /// The same policy, with the releases of the policy `before` for each kind whose lines did not change: those releases
    /// continue.
    #[must_use]
    pub fn carrying_over(mut self, before: &Self) -> Self {
        for (kind, release) in before.releases() {
            let of_kind = |policy: &Self| policy.of_kind(kind, DateTime::<Utc>::MAX_UTC);
            if of_kind(&self).is_equivalent(&of_kind(before)) {
                self.releases.insert(kind, release.clone());
            }
        }
        self
    }

    /// What it says about money and deletion; `None`: nothing, for a part of a policy or one stored before safeguards were.
    #[must_use]
    pub const fn safeguards(&self) -> Option<Safeguards> {
        self.safeguards
    }

    /// The same policy, with these safeguards.
    #[must_use]
    pub const fn guarded(mut self, safeguards: Safeguards) -> Self {
        self.safeguards = Some(safeguards);
        self
    }

    /// Its number among the policies that were applied to the database; `None`: it comes from a process's settings.
    #[must_use]
    pub const fn number(&self) -> Option<i64> {
        self.number
    }

    /// The same policy, with the number under which it was applied to the database.
    #[must_use]
    pub const fn numbered(mut self, number: i64) -> Self {
        self.number = Some(number);
        self
    }

    /// The policy as the database stores it.
    ///
    /// # Errors
    /// None in practice: every policy can be serialized.
    pub fn to_json(&self) -> serde_json::Result<serde_json::Value> {
        serde_json::to_value(Written::of(self))
    }

    /// Reads the JSON that [`Policy::to_json`] wrote.
    ///
    /// # Errors
    /// What is wrong with it; a policy of a later version may have unknown fields.
    pub fn of_json(written: serde_json::Value) -> Result<Self, String> {
        serde_json::from_value::<Written>(written).map_err(|error| error.to_string())?.read()
    }

    /// The values that the SQL of a task's effect depends on.
    #[must_use]
    pub fn terms(&self, task: &dyn Task, wallet_floor: Option<i64>) -> EffectTerms {
        let spans = task.counts_from().iter().filter_map(|event| Some((*event, self.span(task, *event)?)));
        let wanted = EventType::ALL.into_iter().filter(|event| self.wants(*event));
        EffectTerms { wallet_floor, wanted: wanted.collect(), spans: spans.collect() }
    }

    #[must_use]
    pub fn lines(&self) -> &[PolicyLine] {
        &self.lines
    }

    /// Whether both have the same lines, in any order, and the same safeguards.
    #[must_use]
    pub fn is_equivalent(&self, other: &Self) -> bool {
        let within = |one: &Self, other: &Self| one.lines.iter().all(|line| other.lines.contains(line));
        within(self, other) && within(other, self) && self.safeguards == other.safeguards
    }

    /// The lines that an event triggers.
    pub fn lines_on(&self, event: EventType) -> impl Iterator<Item = &PolicyLine> {
        self.lines.iter().filter(move |line| line.on == event)
    }

    /// Whether an event wakes any task, so that an effect which causes the event has to raise it.
    #[must_use]
    pub fn wants(&self, event: EventType) -> bool {
        self.lines_on(event).next().is_some()
    }

    /// How long after `event`'s moment a task falls due. A moment without a line counts with the longest span of the task's
    /// lines, so a change always gives staff their time to correct it. `None`: the policy does not use the task.
    #[must_use]
    pub fn span(&self, task: &dyn Task, event: EventType) -> Option<Span> {
        let of_task = || self.lines.iter().filter(|line| line.task == task.kind());
        of_task()
            .find(|line| line.on == event)
            .or_else(|| of_task().max_by_key(|line| line.after.longest_ms()))
            .map(|line| line.after)
    }

    /// The exact durations in the table: each gets a rung of its own. Calendar months climb the ladder instead.
    pub fn durations(&self) -> impl Iterator<Item = Duration> {
        self.lines.iter().filter_map(|line| line.after.exact())
    }
}

impl fmt::Display for Policy {
    /// Its lines as in a `kyhan.toml`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|PolicyLine { on, task, after }| {
            writeln!(f, "[[policy]]\non = \"{on}\"\ntask = \"{task}\"\nafter = \"{after}\"\n")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(on: EventType, task: &'static str, after: &str) -> PolicyLine {
        PolicyLine { on, task, after: after.parse().unwrap() }
    }

    #[test]
    fn every_mistake_of_a_table_is_reported() {
        let mistakes = Policy::new(vec![
            line(EventType::OrderShipped, "confirm-receipt", "14d"),
            line(EventType::OrderShipped, "confirm-receipt", "10d"),
            line(EventType::CartItemAdded, "confirm-receipt", "1d"),
            line(EventType::OrderShipped, "make-coffee", "1d"),
        ])
        .unwrap_err();
        assert_eq!(mistakes.iter().map(|m| (m.line, m.field)).collect::<Vec<_>>(), [(1, "on"), (2, "on"), (3, "task")]);
        assert!(mistakes[1].why.contains("it counts from order.shipped"), "{}", mistakes[1].why);
    }

    #[test]
    fn a_moment_without_a_line_counts_with_the_tasks_longest_span() {
        let task = tasks::find("collect-arrears").unwrap();
        let policy = Policy::new(vec![
            line(EventType::OrderShipped, "collect-arrears", "24h"),
            line(EventType::OrderReceived, "collect-arrears", "48h"),
        ])
        .unwrap();
        assert_eq!(policy.span(task, EventType::OrderShipped), "24h".parse().ok());
        assert_eq!(policy.span(task, EventType::OrderFeesChanged), "48h".parse().ok());
        assert_eq!(Policy::default().span(task, EventType::OrderShipped), None);
    }
}

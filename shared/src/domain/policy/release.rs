//! A release: a policy that makes rows of one kind due earlier takes effect gradually. The rows that its lines alone would
//! make due at once fall due evenly over a period, each at a moment that follows from its id, and never later than by the
//! policy before.
//!
//! It is part of the policy, and so of the one definition of *due*: no row is written for it, and no list is kept.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use super::Policy;
use crate::domain::task::Task;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The policy that was replaced, limited to this kind; it may be in the middle of its own release.
    pub before: Policy,
    /// When the policy became active: rows that were due by then are due.
    pub since: DateTime<Utc>,
    /// When the first row is released.
    pub from: DateTime<Utc>,
    /// The length of the release in milliseconds, from [`Release::from`] on.
    pub over_ms: u64,
}

impl Release {
    /// When everything is released.
    #[must_use]
    pub fn until(&self) -> DateTime<Utc> {
        let over = i64::try_from(self.over_ms).ok().and_then(TimeDelta::try_milliseconds);
        over.and_then(|over| self.from.checked_add_signed(over)).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }

    /// How many releases of `task` are nested.
    #[must_use]
    pub fn depth(&self, task: &dyn Task) -> usize {
        1 + self.before.release(task).map_or(0, |before| before.depth(task))
    }

    /// SQL: [`Release::since`].
    #[must_use]
    pub fn sql_since(&self) -> String {
        literal(self.since)
    }

    /// SQL: [`Release::from`].
    #[must_use]
    pub fn sql_from(&self) -> String {
        literal(self.from)
    }

    /// SQL: [`Release::until`].
    #[must_use]
    pub fn sql_until(&self) -> String {
        format!("({} + {})", self.sql_from(), self.sql_over())
    }

    /// SQL: when the row with this `id` is released. The hash is the one with which PostgreSQL partitions tables, so it is
    /// the same in every version; 31 of its bits are used. Each release has a seed of its own, so that rows left over from
    /// another release are spread evenly too.
    #[must_use]
    pub fn sql_moment(&self, id: &str) -> String {
        let (from, over, seed) = (self.sql_from(), self.sql_over(), self.from.timestamp_micros());
        format!("({from} + (uuid_hash_extended({id}, {seed}) & 2147483647) / 2147483648::float8 * {over})")
    }

    fn sql_over(&self) -> String {
        format!("interval '{}.{:03} seconds'", self.over_ms / 1000, self.over_ms % 1000)
    }
}

/// To the microsecond, as PostgreSQL stores it.
fn literal(moment: DateTime<Utc>) -> String {
    format!("timestamptz '{}'", moment.to_rfc3339_opts(SecondsFormat::Micros, true))
}

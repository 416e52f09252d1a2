//! A stage: a policy that makes rows due earlier takes hold little by little. What its lines alone would make due at once is released
//! evenly over a while, each row at a moment of its own that follows from its id; never later than by the policy before.
//!
//! It is part of the policy, and so of the one definition of *due*: no row is written for it, and nobody keeps a list.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};

use super::Policy;
use crate::task::Task;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The policy that was replaced, perhaps in the middle of a stage of its own.
    pub before: Policy,
    /// When the release begins. Until then nothing is due that was not due by the policy before.
    pub from: DateTime<Utc>,
    /// Over how many milliseconds, kind by kind; kinds of which nothing becomes due earlier are not in it.
    pub over_ms: BTreeMap<&'static str, u64>,
}

/// One kind's part of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release<'a> {
    pub before: &'a Policy,
    pub from: DateTime<Utc>,
    pub over_ms: u64,
}

impl Stage {
    /// How many stages lie in each other.
    #[must_use]
    pub fn depth(&self) -> usize {
        1 + self.before.stage().map_or(0, Self::depth)
    }

    pub(super) fn release(&self, task: &dyn Task) -> Option<Release<'_>> {
        let over_ms = *self.over_ms.get(task.kind())?;
        Some(Release { before: &self.before, from: self.from, over_ms })
    }

    /// When everything is released.
    #[must_use]
    pub fn until(&self) -> DateTime<Utc> {
        self.over_ms.values().map(|over_ms| later(self.from, *over_ms)).max().unwrap_or(self.from)
    }
}

impl Release<'_> {
    /// When everything is released.
    #[must_use]
    pub fn until(&self) -> DateTime<Utc> {
        later(self.from, self.over_ms)
    }

    /// SQL: when the release begins.
    #[must_use]
    pub fn sql_from(&self) -> String {
        literal(self.from)
    }

    /// SQL: when it ends.
    #[must_use]
    pub fn sql_until(&self) -> String {
        literal(self.until())
    }

    /// SQL: when the row of this `id` is released. The hash is the one that PostgreSQL partitions tables by, and so the same in every
    /// version; of it 31 bits are taken.
    #[must_use]
    pub fn sql_moment(&self, id: &str) -> String {
        let from = self.sql_from();
        let over = format!("interval '{}.{:03} seconds'", self.over_ms / 1000, self.over_ms % 1000);
        format!("({from} + (uuid_hash_extended({id}, 0) & 2147483647) / 2147483648::float8 * {over})")
    }
}

fn later(from: DateTime<Utc>, over_ms: u64) -> DateTime<Utc> {
    let over = i64::try_from(over_ms).ok().and_then(chrono::TimeDelta::try_milliseconds);
    over.and_then(|over| from.checked_add_signed(over)).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// To the microsecond, as PostgreSQL keeps it.
fn literal(moment: DateTime<Utc>) -> String {
    format!("timestamptz '{}'", moment.to_rfc3339_opts(SecondsFormat::Micros, true))
}

//! The active policy, as shown by `ops status`.

use chrono::{DateTime, Utc};
use serde::Serialize;
use shared::{database::active_policy::Applied, settings::Settings};

/// A policy that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ActivePolicy {
    pub number: i64,
    pub at: DateTime<Utc>,
    pub by: String,
    pub why: String,
    /// Whether the wake-ups of all rows that it made due earlier are published.
    pub scheduled: bool,
    /// When some of these wake-ups were last published.
    pub went_on_at: DateTime<Utc>,
    /// The releases of rows due at once that have not ended.
    pub releases: Vec<KindRelease>,
    /// Whether the settings of this process contain a different policy.
    pub settings_differ: bool,
}

/// One kind's release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KindRelease {
    pub kind: &'static str,
    pub from: DateTime<Utc>,
    pub until: DateTime<Utc>,
}

pub(super) fn summary(applied: Applied, own: &Settings, now: DateTime<Utc>) -> ActivePolicy {
    let Applied { number, policy, at, by, why, went_on_at, scheduled_at } = applied;
    let releases = policy.releases().filter(|(_, release)| release.until() > now);
    ActivePolicy {
        number,
        at,
        by,
        why,
        scheduled: scheduled_at.is_some(),
        went_on_at,
        releases: releases.map(|(kind, release)| KindRelease { kind, from: release.from, until: release.until() }).collect(),
        settings_differ: !policy.is_equivalent(&own.policy),
    }
}

//! The policy in force, as `ops status` tells of it.

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
    /// Whether every wake-up is made of what it made due earlier.
    pub scheduled: bool,
    /// When some of them were made last.
    pub went_on_at: DateTime<Utc>,
    /// What it made due at once and is not released altogether yet.
    pub releases: Vec<Release>,
    /// Whether the settings of the process that looked say something else.
    pub settings_differ: bool,
}

/// One kind's release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Release {
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
        releases: releases.map(|(kind, release)| Release { kind, from: release.from, until: release.until() }).collect(),
        settings_differ: !policy.is_equivalent(&own.policy),
    }
}

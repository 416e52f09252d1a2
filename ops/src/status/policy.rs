//! The policy in force, as `ops status` tells of it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use shared::{policy::in_force, settings::Settings, tasks};

/// A policy that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Applied {
    pub number: i64,
    pub at: DateTime<Utc>,
    pub by: String,
    pub why: String,
    /// Whether every wake-up is made of what it made due earlier.
    pub scheduled: bool,
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

pub(super) fn told(applied: in_force::Applied, own: &Settings, now: DateTime<Utc>) -> Applied {
    let in_force::Applied { number, policy, at, by, why, scheduled_at } = applied;
    let releases = tasks::ALL.iter().filter_map(|task| {
        let release = policy.release(*task).filter(|release| release.until() > now)?;
        Some(Release { kind: task.kind(), from: release.from, until: release.until() })
    });
    Applied {
        number,
        at,
        by,
        why,
        scheduled: scheduled_at.is_some(),
        releases: releases.collect(),
        settings_differ: !policy.says_the_same(&own.policy),
    }
}

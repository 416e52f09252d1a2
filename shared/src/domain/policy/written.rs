//! How `policies` stores a policy: its lines, and its releases with the policy before, as JSON. Stored policies stay readable
//! forever; an unknown field is an error, because it could change what is due.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Policy, PolicyLine, Release, Safeguards};
use crate::domain::{task::Task, tasks};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    lines: Vec<WrittenLine>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    releases: BTreeMap<String, WrittenRelease>,
    // The ledger's trigger reads wallet_floor, and the approvals approval_above (m0205_fleet, m0206_approvals).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    safeguards: Option<WrittenSafeguards>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSafeguards {
    wallet_floor: Option<i64>,
    approval_above: Option<i64>,
    delete_after: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLine {
    on: String,
    task: String,
    after: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRelease {
    before: Written,
    since: DateTime<Utc>,
    from: DateTime<Utc>,
    over_ms: u64,
}

impl Written {
    pub(super) fn of(policy: &Policy) -> Self {
        let line = |line: &PolicyLine| WrittenLine {
            on: line.on.name().to_owned(),
            task: line.task.to_owned(),
            after: line.after.to_string(),
        };
        let release = |release: &Release| WrittenRelease {
            before: Self::of(&release.before),
            since: release.since,
            from: release.from,
            over_ms: release.over_ms,
        };
        Self {
            lines: policy.lines().iter().map(line).collect(),
            releases: policy.releases().map(|(kind, it)| (kind.to_owned(), release(it))).collect(),
            safeguards: policy.safeguards().map(|it| WrittenSafeguards {
                wallet_floor: it.wallet_floor,
                approval_above: it.approval_above,
                delete_after: it.delete_after.map(|span| span.to_string()),
            }),
        }
    }

    /// Decodes the policy, or returns why this build cannot, as for a policy of a later version.
    pub(super) fn read(self) -> Result<Policy, String> {
        let lines = self.lines.into_iter().map(WrittenLine::read).collect::<Result<_, _>>()?;
        let policy = Policy::new(lines).map_err(|mistakes| {
            let said = mistakes.iter().map(|mistake| format!("line {}: {}: {}", mistake.line + 1, mistake.field, mistake.why));
            said.collect::<Vec<_>>().join("; ")
        })?;
        let policy = match self.safeguards {
            Some(safeguards) => policy.guarded(safeguards.read()?),
            None => policy,
        };
        self.releases.into_iter().try_fold(policy, |policy, (name, release)| Ok(policy.releasing(kind(&name)?, release.read()?)))
    }
}

impl WrittenSafeguards {
    fn read(self) -> Result<Safeguards, String> {
        let Self { wallet_floor, approval_above, delete_after } = self;
        let delete_after = delete_after.map(|span| span.parse()).transpose().map_err(|error| format!("delete_after: {error}"))?;
        Ok(Safeguards { wallet_floor, approval_above, delete_after })
    }
}

impl WrittenLine {
    fn read(self) -> Result<PolicyLine, String> {
        Ok(PolicyLine {
            on: self.on.parse().map_err(|error| format!("{error}"))?,
            task: kind(&self.task)?,
            after: self.after.parse().map_err(|error| format!("{error}"))?,
        })
    }
}

impl WrittenRelease {
    fn read(self) -> Result<Release, String> {
        let Self { before, since, from, over_ms } = self;
        Ok(Release { before: before.read()?, since, from, over_ms })
    }
}

fn kind(name: &str) -> Result<&'static str, String> {
    tasks::find(name).map(Task::kind).ok_or_else(|| format!("this version has no task {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::EventType;

    fn policy(after: &str) -> Policy {
        let line = |on, task| PolicyLine { on, task, after: after.parse().unwrap() };
        Policy::new(vec![line(EventType::OrderShipped, "confirm-receipt"), line(EventType::OrderReceived, "collect-arrears")])
            .unwrap()
    }

    #[test]
    fn a_policy_in_the_middle_of_two_releases_is_read_as_it_was_written() {
        let since = "2026-11-24T08:00:00.123456Z".parse().unwrap();
        let release = |before, over_ms| Release { before, since, from: since, over_ms };
        let once = policy("10d").releasing("confirm-receipt", release(policy("6 months"), 1));
        let safeguards = Safeguards { wallet_floor: Some(-5), approval_above: None, delete_after: "7 months".parse().ok() };
        let twice = policy("7d").releasing("confirm-receipt", release(once, u64::MAX)).guarded(safeguards);
        let text = serde_json::to_string(&Written::of(&twice)).unwrap();
        assert_eq!(serde_json::from_str::<Written>(&text).unwrap().read().unwrap(), twice);
    }

    #[test]
    fn what_this_version_does_not_know_is_named() {
        let read = |text: &str| serde_json::from_str::<Written>(text).map_err(|error| error.to_string())?.read();
        for (text, named) in [
            (r#"{"lines":[{"on":"order.shipped","task":"make-coffee","after":"1d"}]}"#, "make-coffee"),
            (r#"{"lines":[{"on":"order.lost","task":"confirm-receipt","after":"1d"}]}"#, "order.lost"),
            (r#"{"lines":[{"on":"order.shipped","task":"confirm-receipt","after":"soon"}]}"#, "soon"),
            (r#"{"lines":[{"on":"cart.item_added","task":"confirm-receipt","after":"1d"}]}"#, "line 1: on"),
            (r#"{"lines":[],"only_on":"weekdays"}"#, "only_on"),
        ] {
            let why = read(text).unwrap_err();
            assert!(why.contains(named), "{named}: {why}");
        }
    }
}

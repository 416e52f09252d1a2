//! How a policy is written in `policies`: its lines, and its stage with the policy before, as JSON. What was written once is read for
//! ever; a field that is not known is a mistake, as it could change what is due.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Line, Policy, Stage};
use crate::{task::Task, tasks};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    lines: Vec<WrittenLine>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stage: Option<Box<WrittenStage>>,
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
struct WrittenStage {
    before: Written,
    from: DateTime<Utc>,
    over_ms: BTreeMap<String, u64>,
}

impl Written {
    pub(super) fn of(policy: &Policy) -> Self {
        let line = |line: &Line| WrittenLine {
            on: line.on.name().to_owned(),
            task: line.task.to_owned(),
            after: line.after.to_string(),
        };
        let stage = |stage: &Stage| WrittenStage {
            before: Self::of(&stage.before),
            from: stage.from,
            over_ms: stage.over_ms.iter().map(|(kind, over_ms)| ((*kind).to_owned(), *over_ms)).collect(),
        };
        Self { lines: policy.lines.iter().map(line).collect(), stage: policy.stage().map(|it| Box::new(stage(it))) }
    }

    /// What it says; or why this build cannot tell, as that of a later version.
    pub(super) fn read(self) -> Result<Policy, String> {
        let lines = self.lines.into_iter().map(WrittenLine::read).collect::<Result<_, _>>()?;
        let policy = Policy::new(lines).map_err(|mistakes| {
            let said = mistakes.iter().map(|mistake| format!("line {}: {}: {}", mistake.line + 1, mistake.field, mistake.why));
            said.collect::<Vec<_>>().join("; ")
        })?;
        let stage = self.stage.map(|stage| stage.read()).transpose()?;
        Ok(policy.staged(stage))
    }
}

impl WrittenLine {
    fn read(self) -> Result<Line, String> {
        Ok(Line {
            on: self.on.parse().map_err(|error| format!("{error}"))?,
            task: kind(&self.task)?,
            after: self.after.parse().map_err(|error| format!("{error}"))?,
        })
    }
}

impl WrittenStage {
    fn read(self) -> Result<Stage, String> {
        let over_ms =
            self.over_ms.into_iter().map(|(name, over_ms)| Ok((kind(&name)?, over_ms))).collect::<Result<_, String>>()?;
        Ok(Stage { before: self.before.read()?, from: self.from, over_ms })
    }
}

fn kind(name: &str) -> Result<&'static str, String> {
    tasks::find(name).map(Task::kind).ok_or_else(|| format!("there is no task {name:?} in this version"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventType;

    fn policy(after: &str) -> Policy {
        let line = |on, task| Line { on, task, after: after.parse().unwrap() };
        Policy::new(vec![line(EventType::OrderShipped, "confirm-receipt"), line(EventType::OrderReceived, "collect-arrears")])
            .unwrap()
    }

    #[test]
    fn a_policy_in_the_middle_of_two_stages_is_read_as_it_was_written() {
        let from = "2026-11-24T08:00:00.123456Z".parse().unwrap();
        let stage = |before, over_ms| Some(Stage { before, from, over_ms: [("confirm-receipt", over_ms)].into() });
        let twice = policy("7d").staged(stage(policy("10d").staged(stage(policy("6 months"), 1)), u64::MAX));
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

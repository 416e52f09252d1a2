//! The policy's table in `kyhan.toml`: its lines, read field by field; each mistake names its place.

use config::{Map, Value, ValueKind};

use super::reader::SettingsReader;
use crate::domain::{
    event::EventType,
    policy::{Policy, PolicyLine},
    span::Span,
    tasks,
};

/// The lines of the policy; a line `on` several events counts as several lines.
pub(super) fn policy(r: &mut SettingsReader) -> Policy {
    let mut lines = Vec::new();
    // The place of each line in the file, because a line on several events becomes several.
    let mut places = Vec::new();
    for (at, table) in r.tables("policy").into_iter().enumerate() {
        let key = |field: &str| format!("policy[{at}].{field}");
        for unknown in table.keys().filter(|name| !["on", "task", "after"].contains(&name.as_str())) {
            r.mistake(&key(unknown), "unknown field; a policy line has `on`, `task` and `after`");
        }
        let on = events(r, &key("on"), table.get("on"));
        let task = field(r, &key("task"), &table, "task").and_then(|name| {
            let found = tasks::find(&name).map(crate::domain::task::Task::kind);
            if found.is_none() {
                let known = tasks::kinds().collect::<Vec<_>>().join(", ");
                r.mistake(&key("task"), format!("unknown task {name:?}; valid tasks are {known}"));
            }
            found
        });
        let after = field(r, &key("after"), &table, "after").and_then(|text| match text.parse::<Span>() {
            Ok(span) => Some(span),
            Err(error) => {
                r.mistake(&key("after"), error.to_string());
                None
            }
        });
        // The other fields of a line with a mistake are checked as well; the line itself is not used.
        if let Some(task) = task {
            let after = after.or_else(|| tasks::find(task)?.shortest()).unwrap_or(Span::Exact(1));
            places.extend(std::iter::repeat_n(at, on.len()));
            lines.extend(on.into_iter().map(|on| PolicyLine { on, task, after }));
        }
    }
    if lines.is_empty() && r.mistakes.is_empty() {
        r.mistake("policy", "must have at least one line, or no task would ever fall due");
    }
    Policy::new(lines).unwrap_or_else(|mistakes| {
        for mistake in mistakes {
            r.mistake(&format!("policy[{}].{}", places[mistake.line], mistake.field), mistake.why);
        }
        Policy::default()
    })
}

fn field(r: &mut SettingsReader, key: &str, table: &Map<String, Value>, name: &str) -> Option<String> {
    match table.get(name).map(|value| value.kind.clone()) {
        Some(ValueKind::String(text)) => Some(text),
        Some(other) => {
            r.mistake(key, format!("must be a string (got {other})"));
            None
        }
        None => {
            r.mistake(key, "missing");
            None
        }
    }
}

fn events(r: &mut SettingsReader, key: &str, on: Option<&Value>) -> Vec<EventType> {
    let names = match on.map(|value| (value, &value.kind)) {
        None => {
            r.mistake(key, "missing");
            return Vec::new();
        }
        Some((value, ValueKind::Array(_))) => value.clone().into_array().unwrap_or_default(),
        Some((value, _)) => vec![value.clone()],
    };
    if names.is_empty() {
        r.mistake(key, "must name at least one event");
    }
    let mut events = Vec::new();
    for name in names {
        match name.to_string().parse() {
            Ok(event) => events.push(event),
            Err(error) => r.mistake(key, format!("{error}")),
        }
    }
    events
}

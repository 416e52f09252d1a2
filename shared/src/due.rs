//! The one definition of *due*: a task's candidates, each moment plus the policy's span for it, the latest of them.
//! Recheck, sweep, forecast, explain and rebuild all read this query; nothing else says when something falls due.

use crate::{policy::Policy, task::Task};

/// Moments outside these years are cut to them: `infinity` and years that no calendar library holds never leave the
/// database, and stay as far in the past or the future as they mean to be.
const EARLIEST: &str = "timestamptz '1970-01-01 00:00:00+00'";
const LATEST: &str = "timestamptz '9999-12-31 00:00:00+00'";

/// A subquery of `id` and `due_at`, one row per candidate. `due_at` is null, and nothing is due, when the policy does not use
/// the task or none of the moments has happened.
#[must_use]
pub fn query(task: &dyn Task, policy: &Policy) -> String {
    select(task, policy, "true")
}

/// The same, of rows due before the SQL moment `before` and perhaps some others, in a form for which an index on the moment
/// helps. The caller compares `due_at` all the same.
#[must_use]
pub fn query_before(task: &dyn Task, policy: &Policy, before: &str) -> String {
    // Of several moments the latest decides, and of calendar months the length depends on it: no bound follows from either.
    let bound = match task.counts_from() {
        [only] => policy.span(task, *only).and_then(crate::span::Span::exact).map(|exact| {
            format!("candidate.\"{only}\" < {before} - interval '{}.{:03} seconds'", exact.as_secs(), exact.subsec_millis())
        }),
        _ => None,
    };
    select(task, policy, bound.as_deref().unwrap_or("true"))
}

fn select(task: &dyn Task, policy: &Policy, bound: &str) -> String {
    let moments: Vec<String> = task
        .counts_from()
        .iter()
        .filter_map(|event| {
            let moment = format!("candidate.\"{event}\"");
            // A null stays one: greatest() and least() alone would make it a moment.
            let bounded = format!("CASE WHEN {moment} IS NOT NULL THEN least(greatest({moment}, {EARLIEST}), {LATEST}) END");
            Some(policy.span(task, *event)?.sql_after(&format!("({bounded})")))
        })
        .collect();
    let due_at = match moments.as_slice() {
        [] => "NULL::timestamptz".to_owned(),
        // It passes over nulls: a moment that has not happened does not count.
        moments => format!("greatest({})", moments.join(", ")),
    };
    format!("(SELECT candidate.id, {due_at} AS due_at FROM ({}) AS candidate WHERE {bound})", task.candidates())
}

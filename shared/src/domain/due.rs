//! The one definition of *due*: each of a candidate's moments plus the policy's span for it, and the latest of these. If the
//! policy makes a row due earlier than the one before and its release is staged, the release decides
//! ([`crate::domain::policy::Release`]). Recheck, sweep, forecast, explain and rebuild all read this query; no other code
//! computes when a row falls due.

use crate::domain::{event::EventType, policy::Policy, task::Task};

/// Moments outside these years are clamped to them, so `infinity` and years that no calendar library supports never leave the
/// database. They stay as far in the past or the future as they were meant to be.
const EARLIEST: &str = "timestamptz '1970-01-01 00:00:00+00'";
const LATEST: &str = "timestamptz '9999-12-31 00:00:00+00'";
const NEVER: &str = "NULL::timestamptz";

/// A subquery of `id` and `due_at`, one row per candidate. `due_at` is null, and nothing is due, if the policy does not use
/// the task or none of the moments has happened.
#[must_use]
pub fn query(task: &dyn Task, policy: &Policy) -> String {
    select(task, policy, "", "true")
}

/// The same with its inputs: for each event of the task, in columns named `<event>` and `<event> due`, the moment and when
/// the row would be due by it alone. If the policy releases the kind, `due before` is when the row was due by the policy
/// before.
#[must_use]
pub fn query_explained(task: &dyn Task, policy: &Policy) -> String {
    let parts = task.counts_from().iter().map(|event| {
        let alone = alone(policy, task, *event).unwrap_or(NEVER.to_owned());
        format!(r#", {moment} AS "{event}", {alone} AS "{event} due""#, moment = bounded(&moment(*event)))
    });
    let before = policy.release(task).map(|release| format!(r#", {} AS "due before""#, due_at(task, &release.before)));
    select(task, policy, &parts.chain(before).collect::<String>(), "true")
}

/// The same by two policies: `due_at` by `policy` and `due_at_other` by `other`, for the candidates as they are now.
#[must_use]
pub fn query_compared(task: &dyn Task, policy: &Policy, other: &Policy) -> String {
    select(task, policy, &format!(", {} AS due_at_other", due_at(task, other)), "true")
}

/// The same, limited to rows due before the SQL moment `before` and perhaps some others, in a form that can use an index on
/// the moment. The caller still compares `due_at`.
#[must_use]
pub fn query_before(task: &dyn Task, policy: &Policy, before: &str) -> String {
    let bound = only_moment(task, policy).map(|(moment, span)| format!("{moment} < {before} - {span}"));
    let bound = bound.or_else(|| floor(task, policy, before));
    select(task, policy, "", bound.as_deref().unwrap_or("true"))
}

/// The same, limited to rows due after the SQL moment `after` and no later than `until`, and perhaps some that the policy
/// releases at another moment. `None` for a task for which no index on the moment helps, as in [`query_before`].
#[must_use]
pub fn query_between(task: &dyn Task, policy: &Policy, after: &str, until: &str) -> Option<String> {
    let (moment, span) = only_moment(task, policy)?;
    // The moments need no clamping here: none outside the supported years falls between two moments of today.
    let mut bound = format!("{moment} > {after} - {span} AND {moment} <= {until} - {span}");
    if let Some(release) = policy.release(task) {
        let (from, end) = (release.sql_from(), release.sql_until());
        // A released row was due by the lines alone before the release began, and by the policy before only after this one
        // was applied. If the interval and the release do not overlap, the bound is `-infinity`, so an index reads next to
        // nothing.
        let mut released = format!(
            "{moment} <= CASE WHEN {until} >= {from} AND {after} <= {end} THEN {from} - {span} ELSE '-infinity'::timestamptz END"
        );
        if release.before.release(task).is_none()
            && let Some((_, span)) = only_moment(task, &release.before)
        {
            released = format!("{released} AND {moment} > {since} - {span}", since = release.sql_since());
        }
        bound = format!("({bound}) OR ({released})");
    }
    Some(select(task, policy, "", &bound))
}

/// The same, limited to rows that may be due before the SQL moment `before` and whose column of [`Task::not_before`] lies
/// after `after` and no later than `until`. `None` for a task without such a column. It divides the rows of kinds without an
/// index on the due moment into ranges that an index does cover.
#[must_use]
pub fn query_of_age(task: &dyn Task, policy: &Policy, before: &str, after: &str, until: &str) -> Option<String> {
    let column = task.not_before()?;
    let floor = floor(task, policy, before)?;
    Some(select(task, policy, "", &format!("{floor} AND candidate.{column} > {after} AND candidate.{column} <= {until}")))
}

/// A moment that another system wrote, clamped to the supported years. Null stays null: `greatest()` and `least()` alone
/// would turn it into a moment.
#[must_use]
pub fn bounded(moment: &str) -> String {
    format!("CASE WHEN {moment} IS NOT NULL THEN least(greatest({moment}, {EARLIEST}), {LATEST}) END")
}

/// The column of the only moment that decides, and the interval after it: the terms of an index condition.
fn only_moment(task: &dyn Task, policy: &Policy) -> Option<(String, String)> {
    // Of several moments the latest decides, and the length of calendar months depends on the moment: neither gives a bound.
    let [only] = task.counts_from() else { return None };
    let exact = policy.span(task, *only)?.exact()?;
    Some((moment(*only), format!("interval '{}.{:03} seconds'", exact.as_secs(), exact.subsec_millis())))
}

/// A condition that every row due before a moment meets, on the column that no moment of the task precedes.
fn floor(task: &dyn Task, policy: &Policy, before: &str) -> Option<String> {
    let column = task.not_before()?;
    // A row is due by its latest moment, so no earlier than one span after any of its moments.
    let span = task.counts_from().iter().find_map(|event| policy.span(task, *event))?;
    Some(format!("candidate.{column} <= {}", span.sql_before_at_the_latest(before)))
}

fn select(task: &dyn Task, policy: &Policy, more: &str, bound: &str) -> String {
    let due_at = due_at(task, policy);
    format!("(SELECT candidate.id, {due_at} AS due_at{more} FROM ({}) AS candidate WHERE {bound})", task.candidates())
}

/// When a candidate is due, including its release.
fn due_at(task: &dyn Task, policy: &Policy) -> String {
    let moments: Vec<String> = task.counts_from().iter().filter_map(|event| alone(policy, task, *event)).collect();
    let by_lines = match moments.as_slice() {
        [] => NEVER.to_owned(),
        // `greatest()` ignores nulls: a moment that has not happened does not count.
        moments => format!("greatest({})", moments.join(", ")),
    };
    let Some(release) = policy.release(task) else { return by_lines };
    // OFFSET makes the planner compute each value once instead of repeating it wherever it is used. `least()` ignores nulls:
    // a row that was never due before is released as well.
    format!(
        "(SELECT CASE WHEN by_lines <= {from} AND (before > {since} OR before IS NULL) THEN least(before, {released}) ELSE by_lines END
            FROM (SELECT {by_lines} AS by_lines, {before} AS before OFFSET 0) AS due)",
        since = release.sql_since(),
        from = release.sql_from(),
        released = release.sql_moment("candidate.id"),
        before = due_at(task, &release.before),
    )
}

/// When a candidate is due by one event's moment alone; `None` if the policy does not use the task.
fn alone(policy: &Policy, task: &dyn Task, event: EventType) -> Option<String> {
    Some(policy.span(task, event)?.sql_after(&format!("({})", bounded(&moment(event)))))
}

fn moment(event: EventType) -> String {
    format!("candidate.\"{event}\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{event::EventType, policy::PolicyLine, tasks};

    fn between(kind: &str, on: EventType, after: &str) -> Option<String> {
        let task = tasks::find(kind).unwrap();
        let policy = Policy::new(vec![PolicyLine { on, task: task.kind(), after: after.parse().unwrap() }]).unwrap();
        query_between(task, &policy, "a", "b")
    }

    #[test]
    fn only_one_exact_moment_bounds_what_is_due_between_two_others() {
        let bounded = between("purge-cart-item", EventType::CartItemAdded, "1500ms").unwrap();
        let bound = r#"WHERE candidate."cart.item_added" > a - interval '1.500 seconds' AND candidate."cart.item_added" <= b - interval '1.500 seconds'"#;
        assert!(bounded.contains(bound), "{bounded}");
        assert_eq!(between("purge-cart-item", EventType::CartItemAdded, "6 months"), None, "months differ in length");
        assert_eq!(between("collect-arrears", EventType::OrderShipped, "1d"), None, "the latest of several moments decides");
        assert_eq!(query_between(tasks::find("purge-cart-item").unwrap(), &Policy::default(), "a", "b"), None, "never due");
        let policy = |kind: &str| {
            let task = tasks::find(kind).unwrap();
            Policy::new(vec![PolicyLine { on: task.counts_from()[0], task: task.kind(), after: "6 months".parse().unwrap() }])
                .unwrap()
        };
        let of_age = |kind: &'static str| query_of_age(tasks::find(kind).unwrap(), &policy(kind), "now()", "a", "b");
        let parted = of_age("hide-order").unwrap();
        assert!(parted.contains("AND candidate.since > a AND candidate.since <= b"), "{parted}");
        assert_eq!(of_age("collect-arrears"), None, "no column that no moment precedes");
    }
}

//! What the sweep asks PostgreSQL: which rows are overdue by more than the grace, were not woken by the sweep for this deadline
//! lately, and are not the operators'. Each time it waits twice as long, up to a day, as a row that keeps failing has its attempts and
//! its dead letter.

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DbErr, FromQueryResult, Value};
use shared::{
    database::{sql_decided, statement, transaction_began},
    domain::{due, policy::Policy, task::Shown},
};
use uuid::Uuid;

use super::view::Step;
use crate::lane::Context;

/// When a row of `swept` may be woken again.
const PAUSE_ENDS: &str = "(swept.at + least($3 * power(2, least(swept.times, 30)), 86400000) * interval '1 ms')";

/// The end of the deep look, a day late, as nothing must lie between it and the last stretch.
const FIRST_YEARS: &str = "timestamptz '1970-01-02 00:00:00+00'";

/// Which rows are asked about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which {
    /// All.
    All,
    /// What fell due after the one moment, and what was woken before and may be woken again since the other.
    Recent { after: DateTime<Utc>, pauses_after: DateTime<Utc> },
    /// A part of what fell due earlier.
    Deep(Step),
    /// Those that were there, by the column of [`Task::not_before`], since this part of the past.
    OfAge(Step),
}

/// The moment of the database before which a row has to have fallen due.
pub(super) async fn horizon(context: &Context) -> Result<DateTime<Utc>, DbErr> {
    Ok(transaction_began(&context.db).await? - TimeDelta::milliseconds(grace_ms(context)))
}

/// Whether an index can tell what of this kind fell due lately.
pub(super) fn has_index(context: &Context, task: &dyn Shown) -> bool {
    due::query_between(task, &context.settings.policy, "now()", "now()").is_some()
}

/// At most `limit` of those rows, oldest first.
pub(super) async fn overdue(
    db: &impl ConnectionTrait,
    context: &Context,
    task: &dyn Shown,
    horizon: DateTime<Utc>,
    which: Which,
    limit: usize,
) -> Result<Vec<(Uuid, DateTime<Utc>)>, DbErr> {
    #[derive(FromQueryResult)]
    struct Overdue {
        id: Uuid,
        due_at: DateTime<Utc>,
    }
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut values: Vec<Value> = vec![task.kind().into(), horizon.into(), grace_ms(context).into(), limit.into()];
    match which {
        Which::All | Which::Deep(Step::Rest) | Which::OfAge(Step::Rest) => {}
        Which::Recent { after, pauses_after } => {
            values.extend([after.into(), (pauses_after + TimeDelta::milliseconds(grace_ms(context))).into()]);
        }
        Which::Deep(Step::Stretch(after, until)) | Which::OfAge(Step::Stretch(after, until)) => {
            values.extend([after.into(), until.into()]);
        }
    }
    let sql = question(task, &context.settings.policy, which);
    let rows = Overdue::find_by_statement(statement(&sql, values)).all(db).await?;
    Ok(rows.into_iter().map(|Overdue { id, due_at }| (id, due_at)).collect())
}

fn grace_ms(context: &Context) -> i64 {
    i64::try_from(context.settings.sweep.grace_ms).unwrap_or(i64::MAX)
}

/// `$1` the kind, `$2` the horizon, `$3` the grace in ms, `$4` the limit, `$5` and `$6` the two moments, where there are some.
fn question(task: &dyn Shown, policy: &Policy, which: Which) -> String {
    const HORIZON: &str = "$2::timestamptz";
    let between = |until| due::query_between(task, policy, "$5::timestamptz", until);
    let all = || due::query_before(task, policy, HORIZON);
    let of_age = |after, until| due::query_of_age(task, policy, HORIZON, after, until).unwrap_or_else(all);
    let due = match which {
        Which::All => all(),
        Which::Deep(Step::Rest) => due::query_before(task, policy, FIRST_YEARS),
        Which::Deep(Step::Stretch(..)) => between("$6::timestamptz").unwrap_or_else(all),
        Which::OfAge(Step::Rest) => of_age("'-infinity'::timestamptz", FIRST_YEARS),
        Which::OfAge(Step::Stretch(..)) => of_age("$5::timestamptz", "$6::timestamptz"),
        // An array is found once, and each row by its id, however many have been woken.
        Which::Recent { .. } => between(HORIZON).map_or_else(all, |recent| {
            format!(
                "(SELECT id, due_at FROM {recent} AS recent
                  UNION
                  SELECT id, due_at FROM {again} AS again
                   WHERE id = ANY (ARRAY(SELECT subject_id FROM swept
                                          WHERE kind = $1 AND {PAUSE_ENDS} > $6::timestamptz AND {PAUSE_ENDS} < now())))",
                again = due::query(task, policy)
            )
        }),
    };
    format!(
        "SELECT overdue.id, overdue.due_at
           FROM {due} AS overdue
                LEFT JOIN swept ON swept.kind = $1 AND swept.subject_id = overdue.id AND swept.due_at = overdue.due_at
          WHERE overdue.due_at <= {HORIZON} AND (swept.times IS NULL OR {PAUSE_ENDS} < now()) AND NOT {decided}
          ORDER BY overdue.due_at, overdue.id LIMIT $4",
        decided = sql_decided(task, "overdue")
    )
}

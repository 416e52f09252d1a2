//! The sweep's query: rows that are overdue by more than the grace, that the sweep has not woken recently for this deadline, and that are
//! not left to operators ([`sql_decided`]). The pause before a row is woken again doubles each time, up to a day, because a row that keeps
//! failing has its attempts and its dead letter.

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DbErr, FromQueryResult, Value};
use shared::{
    database::{sql_decided, statement, transaction_began},
    domain::{due, policy::Policy, span::signed_ms, task::Shown},
};
use uuid::Uuid;

use super::view::Step;
use crate::context::Context;

/// When a row of `swept` may be woken again.
const PAUSE_ENDS: &str = "(swept.at + least($3 * power(2, least(swept.times, 30)), 86400000) * interval '1 ms')";

/// The bound of the deep look's last step. It is a day later than 1970 begins, so that no gap remains before the last stretch.
const FIRST_YEARS: &str = "timestamptz '1970-01-02 00:00:00+00'";

/// Which rows to look at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which {
    /// All rows.
    All,
    /// Rows that fell due after `after`, and woken rows whose pause has ended since `pauses_after`.
    Recent { after: DateTime<Utc>, pauses_after: DateTime<Utc> },
    /// Rows that fell due within one step of the past.
    Deep(Step),
    /// Rows whose column of [`shared::domain::task::Task::not_before`] lies within one step of the past.
    OfAge(Step),
}

/// The database time up to which rows must have fallen due: now minus the grace.
pub(super) async fn horizon(context: &Context) -> Result<DateTime<Utc>, DbErr> {
    Ok(transaction_began(&context.db).await? - TimeDelta::milliseconds(grace_ms(context)))
}

/// Whether an index finds the rows of this kind that fell due in a period.
pub(super) fn has_index(context: &Context, task: &dyn Shown) -> bool {
    due::query_between(task, &context.settings.policy, "now()", "now()").is_some()
}

/// At most `limit` overdue rows with their due times, oldest first.
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
    signed_ms(context.settings.sweep.grace)
}

/// `$1` the kind, `$2` the horizon, `$3` the grace in ms, `$4` the limit, `$5` and `$6` the two times of `which`, if it has any.
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
        // The array is computed once, and each row is then found by its id, however many rows have been woken.
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

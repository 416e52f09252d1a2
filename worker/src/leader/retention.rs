//! Retention (policy point 4): finance and activity records leave the views of what is on line once they are old enough; where a
//! deployment wants that, hidden orders are deleted after a second period, and so is activity, range by sealed range. The ledger stays.

use std::time::{Duration, Instant};

use futures::{FutureExt, future::BoxFuture};
use sea_orm::{ConnectionTrait, DbErr};
use shared::database::{statement, within};

use super::{ANSWER_WITHIN, Duty, DutyError, Round};
use crate::context::Context;

/// Orders that one transaction deletes, and ranges of activity that one removes.
const ORDERS: i32 = 200;
const RANGES: i32 = 5;
/// How long a round goes on deleting; the next one goes on.
const DELETING_MAX: Duration = Duration::from_secs(10);

/// See above.
pub(super) struct Retention;

impl Duty for Retention {
    fn name(&self) -> &'static str {
        "retention"
    }

    fn round<'a>(&'a mut self, round: &'a Round<'a>) -> BoxFuture<'a, Result<(), DutyError>> {
        async { Ok(retain(round.context).await?) }.boxed()
    }
}

async fn retain(context: &Context) -> Result<(), DbErr> {
    let retention = context.settings.retention;
    let ago = retention.records.sql_ago("now()");
    // An hour late at the most, and never early: a longer period holds at once.
    let sql = format!(
        "UPDATE records_retention SET hidden_before = {ago} WHERE hidden_before NOT BETWEEN {ago} - interval '1 hour' AND {ago}"
    );
    within(ANSWER_WITHIN, context.db.execute_raw(statement(&sql, []))).await?;
    let Some(delete_after) = retention.delete_after else { return Ok(()) };
    let orders = format!("SELECT kyhan_delete_hidden_orders({}, $1) AS gone", delete_after.sql_ago("now()"));
    let gone = delete(context, &orders, ORDERS).await?;
    if gone > 0 {
        tracing::info!(gone, %delete_after, "orders hidden long ago were deleted");
    }
    let activity = format!("SELECT kyhan_remove_activity({}, $1) AS gone", delete_after.sql_ago(&ago));
    let gone = delete(context, &activity, RANGES).await?;
    if gone > 0 {
        tracing::info!(gone, %delete_after, "ranges of activity sealed long ago were removed");
    }
    Ok(())
}

/// Deletes, `most` at a time, until nothing is left or the round has taken its time; how many.
async fn delete(context: &Context, sql: &str, most: i32) -> Result<i64, DbErr> {
    let (began, mut all) = (Instant::now(), 0);
    while began.elapsed() < DELETING_MAX {
        let row = within(ANSWER_WITHIN, context.db.query_one_raw(statement(sql, [most.into()]))).await?;
        let gone: i64 = row.ok_or_else(|| DbErr::RecordNotFound("a count".into()))?.try_get("", "gone")?;
        if gone == 0 {
            break;
        }
        all += gone;
    }
    Ok(all)
}

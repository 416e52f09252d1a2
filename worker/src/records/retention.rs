//! Retention (policy point 4): finance and activity records leave the views of what is on line once they are old enough; where a
//! deployment wants that, hidden orders are deleted after a second period, and so is activity, range by sealed range. The ledger stays.

use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, DbErr};
use shared::database::{scalar, statement, within};

use crate::lane::Context;

/// Orders that one transaction deletes, and ranges of activity that one removes.
const ORDERS: i32 = 200;
const RANGES: i32 = 5;
/// How long a round goes on deleting; the next one goes on.
const DELETING_MAX: Duration = Duration::from_secs(10);
/// How long PostgreSQL may take for one statement, should it not give up by itself.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

pub(super) async fn round(context: &Context) -> Result<(), DbErr> {
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
        let gone: i64 = within(ANSWER_WITHIN, scalar(&context.db, statement(sql, [most.into()]))).await?;
        if gone == 0 {
            break;
        }
        all += gone;
    }
    Ok(all)
}

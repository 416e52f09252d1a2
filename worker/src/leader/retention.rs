//! Retention (policy point 4): hides finance and activity records from the active views once they are old enough. In the mode `delete` it
//! also deletes hidden orders and sealed ranges of activity after a second period. The ledger is never deleted.

use std::time::{Duration, Instant};

use futures::{FutureExt, future::BoxFuture};
use sea_orm::{ConnectionTrait, DbErr};
use shared::{
    database::{probe::judge, scalar, statement, within},
    process::redact::redacted,
};

use super::{ANSWER_WITHIN, Duty, DutyError, DutyRound};
use crate::context::Context;

/// How many events, how many orders, and how many ranges of activity, one transaction deletes.
const EVENTS: i32 = 1_000;
const ORDERS: i32 = 200;
const RANGES: i32 = 5;
/// How long a round deletes; the next round continues.
const DELETING_MAX: Duration = Duration::from_secs(10);

/// The duty of retention.
pub(super) struct RetentionDuty;

impl Duty for RetentionDuty {
    fn name(&self) -> &'static str {
        "retention"
    }

    fn round<'a>(&'a mut self, round: &'a DutyRound<'a>) -> BoxFuture<'a, Result<(), DutyError>> {
        async { Ok(retain(round.context).await?) }.boxed()
    }
}

async fn retain(context: &Context) -> Result<(), DbErr> {
    let retention = context.settings.retention;
    let ago = retention.records.sql_ago("now()");
    // Records are hidden at most an hour late and never early. A longer period takes effect at once.
    let sql = format!(
        "UPDATE records_retention SET hidden_before = {ago} WHERE hidden_before NOT BETWEEN {ago} - interval '1 hour' AND {ago}"
    );
    within(ANSWER_WITHIN, context.db.execute_raw(statement(&sql, []))).await?;
    let events = format!("SELECT kyhan_forget_set_aside({}, $1) AS gone", retention.set_aside.sql_ago("now()"));
    let gone = delete(context, &events, EVENTS).await?;
    if gone > 0 {
        tracing::warn!(gone, after = %retention.set_aside, "discarded events that were set aside longer ago than retention.set_aside");
    }
    let Some(delete_after) = retention.delete_after else { return Ok(()) };
    let gone = delete_orders(context, &delete_after.sql_ago("now()")).await?;
    if gone > 0 {
        tracing::info!(gone, %delete_after, "deleted orders that were hidden longer ago than retention.delete_after");
    }
    let activity = format!("SELECT kyhan_remove_activity({}, $1) AS gone", delete_after.sql_ago(&ago));
    let gone = delete(context, &activity, RANGES).await?;
    if gone > 0 {
        tracing::info!(gone, %delete_after, "deleted ranges of activity that were sealed longer ago than retention.delete_after");
    }
    Ok(())
}

/// Deletes orders that were hidden before `moment` (SQL), until none is left or [`DELETING_MAX`] is over; returns how many. One that cannot be
/// deleted, because another program's table refers to it, stays, and holds up no other.
async fn delete_orders(context: &Context, moment: &str) -> Result<i64, DbErr> {
    let sql = format!("SELECT kyhan_delete_hidden_orders({moment}, $1, $2) AS gone");
    let (began, mut all, mut most, mut skip) = (Instant::now(), 0, ORDERS, 0);
    while began.elapsed() < DELETING_MAX {
        let gone = within(ANSWER_WITHIN, scalar::<i64>(&context.db, statement(&sql, [most.into(), skip.into()]))).await;
        match gone {
            Ok(0) => break,
            Ok(gone) => all += gone,
            Err(error) if judge(&context.db, &error).await.is_outage() => return Err(error),
            Err(_) if most > 1 => most /= 2,
            Err(error) => {
                tracing::warn!(error = redacted(&error), "a hidden order cannot be deleted; the others are");
                (most, skip) = (ORDERS, skip + 1);
            }
        }
    }
    Ok(all)
}

/// Deletes `most` at a time, until nothing is left or [`DELETING_MAX`] is over; returns how many.
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

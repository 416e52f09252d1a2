//! Publishes the market's statistics, month by month: each once, when it has been over for a month. The database judges what may be
//! shown; this says by which rule (policy point 6).

use std::time::{Duration, Instant};

use futures::{FutureExt, future::BoxFuture};
use sea_orm::{ConnectionTrait, DbErr};
use shared::database::{statement, within};

use super::{ANSWER_WITHIN, Duty, DutyError, Round};
use crate::context::Context;

/// How often it is looked whether a month is to be published.
const EVERY: Duration = Duration::from_secs(3_600);
/// Months that one round publishes; a database that is new to it has many.
const MONTHS_MAX: u32 = 12;

#[derive(Default)]
pub(super) struct Statistics {
    /// When it was looked last and there was nothing left to publish, or it failed.
    looked: Option<Instant>,
}

impl Statistics {
    async fn publish(&mut self, context: &Context) -> Result<(), DbErr> {
        if self.looked.is_some_and(|looked| looked.elapsed() < EVERY) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let rule = context.settings.statistics;
        let sql = "SELECT kyhan_publish_statistics($1, $2::integer / 100.0)::text AS month";
        for _ in 0..MONTHS_MAX {
            let values = [i32::from(rule.min_customers).into(), i32::from(rule.max_share_percent).into()];
            let row = within(ANSWER_WITHIN, context.db.query_one_raw(statement(sql, values))).await?;
            let row = row.ok_or_else(|| DbErr::RecordNotFound("a scalar".into()))?;
            let Some(month) = row.try_get::<Option<String>>("", "month")? else { return Ok(()) };
            tracing::info!(month, "a month of market statistics is published");
        }
        // There may be more.
        self.looked = None;
        Ok(())
    }
}

impl Duty for Statistics {
    fn name(&self) -> &'static str {
        "publishing market statistics"
    }

    fn round<'a>(&'a mut self, round: &'a Round<'a>) -> BoxFuture<'a, Result<(), DutyError>> {
        async { Ok(self.publish(round.context).await?) }.boxed()
    }
}

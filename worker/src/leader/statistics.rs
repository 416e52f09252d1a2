//! Publishes the market's statistics: each month once, a month after its end (policy point 6). The database decides what may be shown, by
//! the limits of the settings.

use std::time::{Duration, Instant};

use futures::{FutureExt, future::BoxFuture};
use sea_orm::{ConnectionTrait, DbErr};
use shared::database::{statement, within};

use super::{ANSWER_WITHIN, Duty, DutyError, Round};
use crate::context::Context;

/// How often to check whether a month is to be published.
const EVERY: Duration = Duration::from_secs(3_600);
/// Most months that one round publishes; the first rounds on an old database have many.
const MONTHS_MAX: u32 = 12;

/// The duty that publishes statistics.
#[derive(Default)]
pub(super) struct Statistics {
    /// The time of the last check; `None` while more months may be waiting.
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
            tracing::info!(month, "published a month of market statistics");
        }
        // More months may be waiting.
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

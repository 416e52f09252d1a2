//! Publishes the market's statistics: each month once, a month after its end (policy point 6). The database decides what may be shown, by
//! the limits of the settings.

use std::time::{Duration, Instant};

use futures::{FutureExt, future::BoxFuture};
use sea_orm::DbErr;
use shared::database::{scalar, statement, within};

use super::{ANSWER_WITHIN, Duty, DutyError, DutyRound};
use crate::context::Context;

/// How often to check whether a month is to be published.
const EVERY: Duration = Duration::from_secs(3_600);
/// Most months that one round publishes; the first rounds on an old database have many.
const MONTHS_MAX: u32 = 12;

/// The duty that publishes statistics.
#[derive(Default)]
pub(super) struct StatisticsDuty {
    /// The time of the last check; `None` while more months may be waiting.
    looked: Option<Instant>,
}

impl StatisticsDuty {
    async fn publish(&mut self, context: &Context) -> Result<(), DbErr> {
        if self.looked.is_some_and(|looked| looked.elapsed() < EVERY) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let rule = context.settings.statistics;
        let sql = "SELECT kyhan_publish_statistics($1, $2::integer / 100.0)::text AS month";
        for _ in 0..MONTHS_MAX {
            let values = [i32::from(rule.min_customers).into(), i32::from(rule.max_share_percent).into()];
            let month: Option<String> = within(ANSWER_WITHIN, scalar(&context.db, statement(sql, values))).await?;
            let Some(month) = month else { return Ok(()) };
            tracing::info!(month, "published a month of market statistics");
        }
        // More months may be waiting.
        self.looked = None;
        Ok(())
    }
}

impl Duty for StatisticsDuty {
    fn name(&self) -> &'static str {
        "publishing market statistics"
    }

    fn round<'a>(&'a mut self, round: &'a DutyRound<'a>) -> BoxFuture<'a, Result<(), DutyError>> {
        async { Ok(self.publish(round.context).await?) }.boxed()
    }
}

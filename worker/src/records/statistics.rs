//! Publishes the market's statistics, month by month: each once, when it has been over for a month. The database judges what may be
//! shown; this says by which rule (policy point 6).

use std::time::{Duration, Instant};

use sea_orm::DbErr;
use shared::database::{scalar, statement, within};

use crate::lane::Context;

/// How often it is looked whether a month is to be published.
const EVERY: Duration = Duration::from_secs(3_600);
/// Months that one round publishes; a database that is new to it has many.
const MONTHS_MAX: u32 = 12;
/// How long PostgreSQL may take for a month, should it not give up by itself.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Publisher {
    /// When it was looked last and there was nothing left to publish, or it failed.
    looked: Option<Instant>,
}

impl Publisher {
    pub(super) async fn round(&mut self, context: &Context) -> Result<(), DbErr> {
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
            tracing::info!(month, "a month of market statistics is published");
        }
        // There may be more.
        self.looked = None;
        Ok(())
    }
}

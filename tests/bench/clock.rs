//! Converts this process's monotonic clock to PostgreSQL's time, so that a time here can be compared with a commit there. Both run on one
//! machine; the error is at most half of the shortest round trip.

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::DatabaseConnection;
use shared::database;
use tokio::time::Instant;

/// How many queries to send; the fastest one counts.
const TRIES: u32 = 9;

#[derive(Clone, Copy, Debug)]
pub struct Clock {
    instant: Instant,
    at: DateTime<Utc>,
}

impl Clock {
    pub async fn set(db: &DatabaseConnection) -> Result<Self> {
        let mut best = None;
        for _ in 0..TRIES {
            let asked = Instant::now();
            let at = database::now(db).await?;
            let took = asked.elapsed();
            if best.is_none_or(|(shortest, _)| took < shortest) {
                best = Some((took, Self { instant: asked + took / 2, at }));
            }
        }
        best.map(|(_, clock)| clock).context("no try")
    }

    /// PostgreSQL's time at a time of our clock.
    pub fn at(&self, moment: Instant) -> DateTime<Utc> {
        let since = |from: Instant, to: Instant| TimeDelta::from_std(to.saturating_duration_since(from)).unwrap_or_default();
        self.at + since(self.instant, moment) - since(moment, self.instant)
    }
}

/// A duration in milliseconds.
#[expect(clippy::cast_precision_loss, reason = "spans of minutes stay far below 2^52 microseconds")]
pub fn millis(span: TimeDelta) -> f64 {
    span.num_microseconds().unwrap_or(i64::MAX) as f64 / 1_000.0
}

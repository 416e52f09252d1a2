//! PostgreSQL's clock decides what is due. A clock that is wrong by weeks makes everything due at once, so nothing is applied while it
//! differs much from this machine's. This machine's clock decides nothing else. RabbitMQ's does not matter: its delays are measured, not
//! dated.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// Two clocks that differ by more than `clock.max_skew_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skewed {
    /// By how much PostgreSQL's clock is ahead; negative: behind.
    by: TimeDelta,
    most: Duration,
}

impl std::fmt::Display for Skewed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (by, most) = (self.by.abs(), self.most.as_millis());
        let by = match (by + TimeDelta::hours(12)).num_days() {
            0 | 1 => format!("{} s", by.num_seconds()),
            days => format!("{days} days"),
        };
        let how = if self.by > TimeDelta::zero() { "ahead of" } else { "behind" };
        write!(
            f,
            "PostgreSQL's clock is {by} {how} this machine's, and clock.max_skew_ms is {most}: correct the one that is wrong"
        )
    }
}

impl std::error::Error for Skewed {}

/// Compares PostgreSQL's clock, just read, with this machine's.
///
/// # Errors
/// [`Skewed`].
pub fn agrees(postgresql: DateTime<Utc>, most: Duration) -> Result<(), Skewed> {
    #[expect(clippy::disallowed_methods, reason = "the clock that PostgreSQL's is compared with")]
    let by = postgresql - Utc::now();
    if by.abs().to_std().is_ok_and(|by| by > most) { Err(Skewed { by, most }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "as above")]
    fn clocks_may_differ_by_no_more_than_the_setting() {
        let (now, minute) = (Utc::now(), Duration::from_secs(60));
        assert_eq!(agrees(now + TimeDelta::seconds(50), minute), Ok(()));
        assert_eq!(agrees(now - TimeDelta::seconds(50), minute), Ok(()));
        let ahead = agrees(now + TimeDelta::days(40) + TimeDelta::seconds(30), minute).unwrap_err().to_string();
        assert!(ahead.starts_with("PostgreSQL's clock is 40 days") && ahead.contains("ahead of this machine's"), "{ahead}");
        let behind = agrees(now - TimeDelta::seconds(90), minute).unwrap_err().to_string();
        assert!(behind.contains("90 s behind this machine's, and clock.max_skew_ms is 60000"), "{behind}");
    }
}

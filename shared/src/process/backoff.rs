//! Pauses between attempts to reach a server.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// The longest pause.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Pauses between attempts to reach a server: from 100 ms, doubling, with jitter, up to 10 s, without end.
pub fn backoff() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(BACKOFF_MAX)
        .with_jitter()
        .without_max_times()
        .build()
}

//! What became of one subject of one wake-up. Only `settle` acts on it.

use chrono::{DateTime, TimeDelta, Utc};

/// What became of one subject of one wake-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The effect and its record are committed, so long after it was due.
    Applied { late: TimeDelta },
    /// Nothing to do any more: a success.
    Stale,
    /// Not due yet, or due again: wake it in `wait`.
    Postpone { until: DateTime<Utc>, wait: TimeDelta },
    /// It failed for now: try again later, with one attempt more.
    Retry { cause: String },
    /// It can never succeed: a dead letter.
    Reject { reason: Reason, cause: String },
}

impl Outcome {
    /// The name in metrics and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Applied { .. } => "applied",
            Self::Stale => "stale",
            Self::Postpone { .. } => "postponed",
            Self::Retry { .. } => "retried",
            Self::Reject { .. } => "rejected",
        }
    }
}

/// Why something became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The message could not be understood.
    Malformed,
    /// Every attempt failed.
    AttemptsExhausted,
    /// The broker delivered it too often without an answer: something in it stops its worker.
    DeliveryLimit,
}

impl Reason {
    /// The name in a dead letter's headers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::AttemptsExhausted => "attempts-exhausted",
            Self::DeliveryLimit => "delivery-limit",
        }
    }
}

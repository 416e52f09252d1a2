//! The outcome of one subject of one wake-up. Only `settle` acts on it.

use chrono::{DateTime, TimeDelta, Utc};

/// The outcome of one subject of one wake-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The effect and its record are committed, `late` after the due moment.
    Applied { late: TimeDelta },
    /// Nothing is left to do: a success.
    Stale,
    /// Not due yet, due once more, or locked by another transaction: deliver it again after `wait`.
    Postpone { until: DateTime<Utc>, wait: TimeDelta },
    /// It failed for now: retry it later, with one more attempt counted.
    Retry { cause: String },
    /// It can never succeed: it becomes a dead letter.
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

/// Why a message became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The message could not be decoded.
    Malformed,
    /// Every attempt failed.
    AttemptsExhausted,
    /// The broker delivered it too often without an ack: something in it may stop the worker.
    DeliveryLimit,
}

impl Reason {
    /// The reasons for which a subject itself failed. Any other letter only states what some message named.
    pub const FAILED: [Self; 2] = [Self::AttemptsExhausted, Self::DeliveryLimit];

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

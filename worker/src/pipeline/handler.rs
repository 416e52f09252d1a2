//! The handlers of the queues that a worker consumes: one for each queue role.

use shared::{broker::BrokerError, settings};

use super::{
    batch::{Batch, BatchLimits},
    lane,
    patience::Patience,
    prefetch::Prefetch,
    settle::Settle,
};
use crate::{
    context::Context,
    queues::{canary, dead_letters, quarantine},
};

/// The role of a queue, which selects its handler.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handler {
    /// Due wake-ups of one kind.
    Lane(&'static str),
    /// Wake-ups of any kind that reached the delivery limit.
    Quarantine,
    /// Canaries that have passed their rung.
    Canaries,
    /// Dead letters and unrouted messages, which are stored.
    DeadLetters,
}

/// Why a consumer stops.
pub(crate) enum StopReason {
    /// The worker shuts down, or restarts its lanes.
    Shutdown,
    /// PostgreSQL is away.
    Outage,
    /// The lane's kind is paused. The consumer may hold deliveries.
    Paused { holds_messages: bool },
}

/// What a handler needs besides the batch.
pub(crate) struct Hand<'a> {
    pub queue: &'a str,
    pub settle: &'a Settle<'a>,
    pub context: &'a Context,
    pub patience: &'a Patience<'a>,
}

impl Handler {
    /// The kind whose pause stops the queue.
    pub(crate) const fn kind(self) -> Option<&'static str> {
        match self {
            Self::Lane(kind) => Some(kind),
            Self::Quarantine | Self::Canaries | Self::DeadLetters => None,
        }
    }

    /// The prefetch of a consumer and the limits of its batches.
    pub(crate) fn limits(self, worker: &settings::WorkerSettings) -> (Prefetch, BatchLimits) {
        match self {
            Self::Lane(_) => (Prefetch::of(worker), BatchLimits::from(worker)),
            Self::Canaries => (Prefetch::up_to(worker.prefetch), BatchLimits::from(worker)),
            // One at a time, so that a wake-up that crashes its worker affects no other.
            Self::Quarantine => (Prefetch::up_to(1), BatchLimits::ALONE),
            Self::DeadLetters => {
                (Prefetch::up_to(dead_letters::MESSAGES_MAX), BatchLimits::of_letters(dead_letters::MESSAGES_MAX))
            }
        }
    }

    /// Processes a batch and settles it. If the batch stays unsettled, returns why the consumer has to stop.
    ///
    /// # Errors
    /// [`BrokerError`]: the batch stays unacked and is redelivered.
    pub(crate) async fn handle(self, batch: Batch, hand: &Hand<'_>) -> Result<Option<StopReason>, BrokerError> {
        let _turn = if batch.is_large() { Some(hand.context.large.lock().await) } else { None };
        match self {
            Self::Lane(kind) => lane::handle(kind, batch, hand).await,
            Self::Quarantine => quarantine::handle(batch, hand).await,
            Self::Canaries => canary::handle(&batch, hand).await,
            Self::DeadLetters => dead_letters::handle(batch, hand).await,
        }
    }
}

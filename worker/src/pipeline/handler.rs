//! What is done with the messages of each queue that a worker consumes: one handler for each role that a queue has.

use shared::{broker::BrokerError, settings};

use super::{
    batch::{Batch, Limits},
    lane,
    patience::Patience,
    prefetch::Prefetch,
    settle::Settle,
};
use crate::{
    context::Context,
    queues::{canary, dead_letters, quarantine},
};

/// The handler of a queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handler {
    /// Due wake-ups of a kind.
    Lane(&'static str),
    /// Wake-ups of any kind that were delivered too often.
    Quarantine,
    /// The rungs' canaries.
    Canaries,
    /// Dead letters, or messages that no lane took: they are stored.
    DeadLetters,
}

/// Why a consumer stops.
pub(crate) enum Stop {
    /// The worker shuts down, or restarts its lanes.
    Shutdown,
    /// PostgreSQL is away.
    Outage,
    /// The lane's kind is paused.
    Paused,
}

/// A batch's surroundings while it is in hand.
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

    /// How many messages a consumer holds, and how large its batches grow.
    pub(crate) fn limits(self, worker: &settings::Worker) -> (Prefetch, Limits) {
        match self {
            Self::Lane(_) => (Prefetch::of(worker), Limits::from(worker)),
            Self::Canaries => (Prefetch::fixed(worker.prefetch), Limits::from(worker)),
            // One at a time, so that one that stops its worker takes no other down with it.
            Self::Quarantine => (Prefetch::fixed(1), Limits::ALONE),
            Self::DeadLetters => (Prefetch::fixed(dead_letters::MESSAGES_MAX), Limits::of_letters(dead_letters::MESSAGES_MAX)),
        }
    }

    /// Processes a batch and settles it; why the consumer has to stop, when the batch was left unsettled.
    ///
    /// # Errors
    /// [`BrokerError`]: the batch is unacked then and comes again.
    pub(crate) async fn handle(self, batch: Batch, hand: &Hand<'_>) -> Result<Option<Stop>, BrokerError> {
        match self {
            Self::Lane(kind) => lane::handle(kind, batch, hand).await,
            Self::Quarantine => quarantine::handle(batch, hand).await,
            Self::Canaries => canary::handle(&batch, hand).await,
            Self::DeadLetters => dead_letters::handle(batch, hand).await,
        }
    }
}

//! The handler of a kind's lane: applies and settles a batch of due wake-ups.

use shared::{broker::BrokerError, process::telemetry};
use tracing::Instrument;

use super::{
    apply::{Unanswered, apply},
    batch::Batch,
    handler::{Hand, StopReason},
};

/// A batch's span links to the spans of at most this many producers, to keep the span small.
const LINKS_MAX: usize = 32;

/// Applies and settles a batch of one kind.
///
/// # Errors
/// [`BrokerError`]: the batch stays unacked and is redelivered.
pub(crate) async fn handle(kind: &'static str, batch: Batch, hand: &Hand<'_>) -> Result<Option<StopReason>, BrokerError> {
    match apply_and_settle(Some(kind), batch, hand).await? {
        None => Ok(None),
        Some(Unanswered::Paused(_)) => Ok(Some(StopReason::Paused { holds_messages: true })),
        Some(Unanswered::Abandoned | Unanswered::Outdated) => Ok(Some(StopReason::Shutdown)),
    }
}

/// Applies and settles a batch. Returns why it has no outcomes, if so, after it has reported the reason to the context.
///
/// # Errors
/// As [`handle`].
pub(crate) async fn apply_and_settle(
    kind: Option<&'static str>,
    batch: Batch,
    Hand { settle, context, patience, .. }: &Hand<'_>,
) -> Result<Option<Unanswered>, BrokerError> {
    let span = tracing::info_span!("batch", otel.kind = "consumer", kind, messages = batch.len());
    for wakeup in batch.wakeups().take(LINKS_MAX) {
        telemetry::link(&span, &wakeup.trace);
    }
    async {
        let statements = kind.and_then(|kind| context.statements.get(kind));
        let answered = match apply(batch, statements, &context.db, &context.settings, patience).await {
            Ok(answered) => answered,
            Err(unanswered) => {
                match &unanswered {
                    Unanswered::Outdated => context.outdated(),
                    Unanswered::Paused(pause) => context.paused.met(pause.clone()),
                    Unanswered::Abandoned => {}
                }
                return Ok(Some(unanswered));
            }
        };
        settle.settle(&answered, patience).await?;
        context.tally.count(kind.unwrap_or("unknown"), &answered);
        Ok(None)
    }
    .instrument(span)
    .await
}

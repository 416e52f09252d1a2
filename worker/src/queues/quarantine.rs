//! The handler of quarantine: splits wake-ups that were delivered too often and applies each subject alone, so that only the row that
//! crashes its worker becomes a dead letter.

use shared::broker::BrokerError;

use crate::pipeline::{
    apply::Unanswered,
    batch::Batch,
    handler::{Hand, StopReason},
    lane::apply_and_settle,
};

/// Splits a packed wake-up, applies one with a single subject, and returns one of a paused kind to its lane.
///
/// # Errors
/// [`BrokerError`]: the message stays unacked and is redelivered.
pub(crate) async fn handle(batch: Batch, hand: &Hand<'_>) -> Result<Option<StopReason>, BrokerError> {
    let Hand { settle, context, patience, .. } = hand;
    let Some((message, wakeup)) = batch.alone() else {
        // Settling turns a message that is not a wake-up into a dead letter.
        return stop(apply_and_settle(None, batch, hand).await?);
    };
    let (kind, home) = (wakeup.kind, settle.home(message, wakeup));
    if context.paused.of(kind).is_some() {
        return settle.send_home(home, patience).await.map(|()| None);
    }
    if wakeup.subjects.len() > 1 {
        tracing::warn!(kind, subjects = wakeup.subjects.len(), "a wake-up was delivered too often; splitting it");
        return settle.take_apart(message, wakeup, patience).await.map(|()| None);
    }
    match apply_and_settle(Some(kind), batch, hand).await? {
        // Do not keep it here: other kinds wait behind it, and each delivery counts towards the limit.
        Some(Unanswered::Paused(_)) => settle.send_home(home, patience).await.map(|()| None),
        unanswered => stop(unanswered),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the return type of a handler")]
fn stop(unanswered: Option<Unanswered>) -> Result<Option<StopReason>, BrokerError> {
    Ok(unanswered.map(|_| StopReason::Shutdown))
}

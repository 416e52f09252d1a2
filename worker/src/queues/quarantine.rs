//! The handler of quarantine: wake-ups that were delivered too often are taken apart and applied one by one, so that only the row that stops
//! its worker ends as a dead letter.

use shared::broker::BrokerError;

use crate::pipeline::{
    apply::Unanswered,
    batch::Batch,
    handler::{Hand, Stop},
    lane::apply_and_settle,
};

/// Takes a packed wake-up apart, applies one with a single subject, and sends one of a paused kind back to its lane.
///
/// # Errors
/// [`BrokerError`]: the message is unacked then and comes again.
pub(crate) async fn handle(batch: Batch, hand: &Hand<'_>) -> Result<Option<Stop>, BrokerError> {
    let Hand { settle, context, patience, .. } = hand;
    let Some((message, wakeup)) = batch.alone() else {
        // What is not a wake-up becomes a dead letter.
        return stop(apply_and_settle(None, batch, hand).await?);
    };
    let (kind, home) = (wakeup.kind, settle.home(message, wakeup));
    if context.paused.of(kind).is_some() {
        return settle.send_home(home, patience).await.map(|()| None);
    }
    if wakeup.subjects.len() > 1 {
        tracing::warn!(kind, subjects = wakeup.subjects.len(), "delivered too often; it is taken apart");
        return settle.take_apart(message, wakeup, patience).await.map(|()| None);
    }
    match apply_and_settle(Some(kind), batch, hand).await? {
        // Here other kinds wait behind it, and it was delivered often enough.
        Some(Unanswered::Paused(_)) => settle.send_home(home, patience).await.map(|()| None),
        unanswered => stop(unanswered),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "what a handler returns")]
fn stop(unanswered: Option<Unanswered>) -> Result<Option<Stop>, BrokerError> {
    Ok(unanswered.map(|_| Stop::Shutdown))
}

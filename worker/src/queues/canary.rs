//! The handler of the canaries' lane: records that canaries have arrived.

use shared::{
    broker::BrokerError,
    database::{canaries, failure::Trouble},
    message::canary::Canary,
    process::redact::redacted,
};

use crate::pipeline::{
    attempt::{After, Attempt, transaction},
    batch::Batch,
    handler::{Hand, StopReason},
};

/// Records the arrival of a batch's canaries and acks them.
///
/// # Errors
/// [`BrokerError`]: the batch stays unacked and is redelivered.
pub(crate) async fn handle(batch: &Batch, hand: &Hand<'_>) -> Result<Option<StopReason>, BrokerError> {
    let Some(last) = batch.last_tag() else { return Ok(None) };
    let Hand { settle, context, patience, .. } = hand;
    let mut arrived = Vec::with_capacity(batch.len());
    for message in batch.messages() {
        match Canary::decode(&message.body) {
            Ok(canary) => arrived.push(canary),
            // Drop it: the next canary reports on the rung.
            Err(why) => {
                tracing::warn!(why, bytes = message.body.len(), "dropped a message in the canaries' lane that is not a canary");
            }
        }
    }
    let mut attempt = Attempt::first();
    loop {
        let noted = transaction(&context.db, &context.settings.database, 1, async |tx| {
            canaries::arrived(&tx, &arrived).await?;
            tx.commit().await
        });
        let Err(failed) = noted.await else { break };
        match attempt.after(&failed, patience).await {
            After::Again => {}
            After::Abandoned => return Ok(Some(StopReason::Shutdown)),
            // No row is at fault: it is the connection, or a missing right. Noting an arrival late is better than not at all.
            After::Blame if failed.1 == Trouble::Cut => {
                if patience.for_postgres(&failed.0).await.is_none() {
                    return Ok(Some(StopReason::Shutdown));
                }
                attempt = Attempt::first();
            }
            After::Blame => {
                tracing::error!(
                    error = redacted(&failed.0),
                    "the arrival of canaries could not be recorded; they will be reported as lost"
                );
                break;
            }
        }
    }
    patience.postgres_is_back();
    settle.ack_up_to(last).await.map(|()| None)
}

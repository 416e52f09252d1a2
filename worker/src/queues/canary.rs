//! The handler of the canaries' lane: notes that they have arrived.

use shared::{broker::BrokerError, database::canaries, message::canary::Canary, process::redact::told};

use crate::pipeline::{
    attempt::{After, Attempt, transaction},
    batch::Batch,
    handler::{Hand, Stop},
};

/// Notes the canaries of a batch and acks them.
///
/// # Errors
/// [`BrokerError`]: the batch is unacked then and comes again.
pub(crate) async fn handle(batch: &Batch, hand: &Hand<'_>) -> Result<Option<Stop>, BrokerError> {
    let Some(last) = batch.last_tag() else { return Ok(None) };
    let Hand { settle, context, patience, .. } = hand;
    let mut arrived = Vec::with_capacity(batch.len());
    for message in batch.messages() {
        match Canary::decode(&message.body) {
            Ok(canary) => arrived.push(canary),
            // Nothing is lost with it: the next canary shows what it would have shown of its rung.
            Err(why) => tracing::warn!(why, bytes = message.body.len(), "a message in the canaries' lane that is not a canary"),
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
            After::Abandoned => return Ok(Some(Stop::Shutdown)),
            After::Blame => {
                tracing::error!(error = told(&failed.0), "arrived canaries cannot be noted, and will be missed");
                break;
            }
        }
    }
    patience.postgres_is_back();
    settle.ack_up_to(last).await.map(|()| None)
}

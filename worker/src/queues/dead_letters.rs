//! The handler of dead letters and unrouted messages: stores each as rows of `dead_letters` and acks it after the commit. Storing is
//! idempotent. While PostgreSQL is away the messages stay in the broker.

use std::collections::BTreeMap;

use shared::{
    broker::BrokerError,
    database::failure::Trouble,
    message::dead_letter::{self, DeadLetter},
    process::{backoff::backoff, redact::redacted},
};
use tokio::time::sleep;
use uuid::Uuid;

use crate::{
    context::Context,
    pipeline::{
        attempt::{After, Attempt, transaction},
        batch::Batch,
        handler::{Hand, StopReason},
    },
};

mod rows;

use rows::Stored;

/// Most messages that one statement stores. Few, because each may be as large as the broker allows.
pub(crate) const MESSAGES_MAX: u16 = 32;
/// How often a single letter that other transactions hold locked is retried, before it is stored in reduced form.
const CONFLICTS_MAX_ALONE: u32 = 20;
/// How much of the body a reduced letter keeps, in bytes.
const BODY_REDUCED: usize = 64 * 1024;

/// A letter to store, and the id and subject of each row that it becomes.
struct LetterEntry {
    letter: DeadLetter,
    /// In the form in which they are stored.
    headers: Vec<u8>,
    rows: Vec<(Uuid, Option<Uuid>)>,
    reduced: bool,
}

/// Letters that are stored in one transaction.
struct LetterPart {
    letters: Vec<LetterEntry>,
    attempt: Attempt,
}

/// Stores a batch of dead letters and acks it.
///
/// # Errors
/// [`BrokerError`]: the batch stays unacked and is redelivered.
pub(crate) async fn handle(batch: Batch, hand: &Hand<'_>) -> Result<Option<StopReason>, BrokerError> {
    let Some(last) = batch.last_tag() else { return Ok(None) };
    let unrouted = hand.queue == hand.context.topology.unrouted();
    let letters: Vec<LetterEntry> = batch
        .into_messages()
        .into_iter()
        .map(|message| LetterEntry::of(DeadLetter::read(unrouted, &message.routing_key, &message.properties, message.body)))
        .collect();
    if store(letters, hand).await.is_none() {
        return Ok(Some(StopReason::Shutdown));
    }
    hand.settle.ack_up_to(last).await.map(|()| None)
}

/// Stores letters, and retries until all are stored; `None` on shutdown before that. Letters stored by then are redelivered, which is
/// harmless.
async fn store(letters: Vec<LetterEntry>, hand: &Hand<'_>) -> Option<()> {
    let Hand { queue, context, patience, .. } = *hand;
    let mut parts = vec![LetterPart::of(letters)];
    let mut pauses = backoff();
    while let Some(mut part) = parts.pop() {
        let stored = transaction(&context.db, &context.settings.database, 2, async |tx| {
            let stored = rows::insert(&tx, &part.letters, queue).await?;
            // On an error the transaction rolls back when it is dropped.
            tx.commit().await.map(|()| stored)
        });
        let failed = match stored.await {
            Ok(stored) => {
                patience.postgres_is_back();
                count(&part.letters, &stored, context);
                continue;
            }
            Err(failed) => failed,
        };
        // A reported outage, even one that is over when the server is asked, is no reason to cut a letter.
        let letters_may_be_at_fault = failed.1 != Trouble::Unconfirmed;
        match part.attempt.after(&failed, patience).await {
            After::Again => {}
            After::Abandoned => return None,
            // One by one, so that a letter that cannot be stored does not block the others.
            After::Blame if letters_may_be_at_fault && part.letters.len() > 1 => {
                let (error, letters) = (redacted(&failed.0), part.letters.len());
                tracing::warn!(error, letters, "dead letters could not be stored together; storing them one by one");
                parts.extend(part.letters.into_iter().map(|letter| LetterPart::of(vec![letter])));
                continue;
            }
            After::Blame if letters_may_be_at_fault && part.letters.iter().any(|letter| !letter.reduced) => {
                let cause = redacted(&failed.0);
                part = LetterPart::of(part.letters.into_iter().map(|letter| letter.reduced(&cause)).collect());
            }
            // The table is at fault: a reduced letter holds nothing unusual. Keep the letters unacked until an operator repairs it.
            After::Blame => {
                tracing::error!(queue, error = redacted(&failed.0), "dead letters could not be stored; retrying");
                context.shutdown.run_until_cancelled(sleep(pauses.next().unwrap_or_default())).await?;
            }
        }
        parts.push(part);
    }
    Some(())
}

impl LetterPart {
    fn of(letters: Vec<LetterEntry>) -> Self {
        let attempt = if letters.len() == 1 { Attempt::with_conflicts(CONFLICTS_MAX_ALONE) } else { Attempt::first() };
        Self { letters, attempt }
    }
}

fn count(letters: &[LetterEntry], stored: &Stored, context: &Context) {
    let reasons: BTreeMap<Uuid, &str> =
        letters.iter().flat_map(|letter| letter.rows.iter().map(|(id, _)| (*id, letter.letter.reason.as_str()))).collect();
    context.tally.stored(stored.fresh.iter().filter_map(|id| reasons.get(id).copied()));
    if stored.reopened > 0 {
        tracing::warn!(count = stored.reopened, "decided dead letters failed again and were reopened");
    }
}

impl LetterEntry {
    fn of(mut letter: DeadLetter) -> Self {
        let rows = letter.subjects();
        let (headers, dropped) = dead_letter::headers_to_json(&letter.headers);
        if dropped > 0 {
            letter.cause = format!("{}; header values dropped: {dropped}", letter.cause);
        }
        Self { letter, headers, rows, reduced: false }
    }

    /// Drops everything that its publisher chose and that may keep it out of the table, and adds to the cause what was dropped.
    fn reduced(self, why: &str) -> Self {
        let Self { mut letter, headers, rows, .. } = self;
        let bytes = letter.body.len();
        letter.body.truncate(BODY_REDUCED);
        let lost = bytes - letter.body.len();
        let said = format!(
            "dropped {lost} of its {bytes} bytes and {} bytes of headers, because it could not be stored: {why}",
            headers.len()
        );
        tracing::error!(id = %letter.id, why, lost, "a dead letter could not be stored as it is; storing it in reduced form");
        letter.cause = format!("{}; {said}", letter.cause);
        letter.kind = letter.kind.filter(|kind| shared::domain::tasks::find(kind).is_some());
        letter.routing_key = String::new();
        letter.worker = None;
        Self { letter, headers: b"{}".to_vec(), rows, reduced: true }
    }
}

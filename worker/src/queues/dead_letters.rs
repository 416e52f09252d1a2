//! The handler of dead letters, and of messages that no lane took: each becomes a row of `dead_letters` and is acked after the commit; one
//! that comes twice is one row. While the database is away they stay with the broker.

use std::collections::BTreeMap;

use shared::{
    broker::BrokerError,
    message::dead_letter::{self, DeadLetter},
    process::{backoff::backoff, redact::told},
};
use tokio::time::sleep;
use uuid::Uuid;

use crate::{
    context::Context,
    pipeline::{
        attempt::{After, Attempt, transaction},
        batch::Batch,
        handler::{Hand, Stop},
    },
};

mod rows;

use rows::Stored;

/// Most messages in hand, stored by one statement. Few, as each may be as large as the broker allows.
pub(crate) const MESSAGES_MAX: u16 = 32;
/// How often a letter alone is tried again that others hold locked, before it is tried in a reduced form.
const CONFLICTS_MAX_ALONE: u32 = 20;
/// So much of the body a reduced letter keeps, in bytes.
const BODY_REDUCED: usize = 64 * 1024;

/// One letter on its way into the store, and the rows that it becomes: each row's id and subject.
struct Entry {
    letter: DeadLetter,
    /// As they are stored.
    headers: Vec<u8>,
    rows: Vec<(Uuid, Option<Uuid>)>,
    reduced: bool,
}

/// Letters that are tried together.
struct Part {
    letters: Vec<Entry>,
    attempt: Attempt,
}

/// Stores a batch of dead letters and acks it.
///
/// # Errors
/// [`BrokerError`]: the batch is unacked then and comes again.
pub(crate) async fn handle(batch: Batch, hand: &Hand<'_>) -> Result<Option<Stop>, BrokerError> {
    let Some(last) = batch.last_tag() else { return Ok(None) };
    let unrouted = hand.queue == hand.context.topology.unrouted();
    let letters: Vec<Entry> = batch
        .into_messages()
        .into_iter()
        .map(|message| Entry::of(DeadLetter::read(unrouted, &message.routing_key, &message.properties, message.body)))
        .collect();
    if store(letters, hand).await.is_none() {
        return Ok(Some(Stop::Shutdown));
    }
    hand.settle.ack_up_to(last).await.map(|()| None)
}

/// Stores letters, whatever it takes; `None` when told to stop before all of them were. Those that were stay stored, and come again.
async fn store(letters: Vec<Entry>, hand: &Hand<'_>) -> Option<()> {
    let Hand { queue, context, patience, .. } = *hand;
    let mut parts = vec![Part::of(letters)];
    let mut pauses = backoff();
    while let Some(mut part) = parts.pop() {
        let stored = transaction(&context.db, &context.settings.database, 2, async |tx| {
            let stored = rows::insert(&tx, &part.letters, queue).await?;
            // On an error the transaction rolls back as it is dropped.
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
        match part.attempt.after(&failed, patience).await {
            After::Again => {}
            After::Abandoned => return None,
            // One by one, so that the one that cannot be stored keeps none of its neighbours out.
            After::Blame if part.letters.len() > 1 => {
                let (error, letters) = (told(&failed.0), part.letters.len());
                tracing::warn!(error, letters, "dead letters cannot be stored together; one by one");
                parts.extend(part.letters.into_iter().map(|letter| Part::of(vec![letter])));
                continue;
            }
            After::Blame if part.letters.iter().any(|letter| !letter.reduced) => {
                let cause = told(&failed.0);
                part = Part::of(part.letters.into_iter().map(|letter| letter.reduced(&cause)).collect());
            }
            // Nothing in it is strange any more: the table is. It is not acked before that is mended.
            After::Blame => {
                tracing::error!(queue, error = told(&failed.0), "a dead letter cannot be stored, and is tried again");
                context.shutdown.run_until_cancelled(sleep(pauses.next().unwrap_or_default())).await?;
            }
        }
        parts.push(part);
    }
    Some(())
}

impl Part {
    fn of(letters: Vec<Entry>) -> Self {
        let attempt = if letters.len() == 1 { Attempt::with_conflicts(CONFLICTS_MAX_ALONE) } else { Attempt::first() };
        Self { letters, attempt }
    }
}

fn count(letters: &[Entry], stored: &Stored, context: &Context) {
    let reasons: BTreeMap<Uuid, &str> =
        letters.iter().flat_map(|letter| letter.rows.iter().map(|(id, _)| (*id, letter.letter.reason.as_str()))).collect();
    context.tally.stored(stored.fresh.iter().filter_map(|id| reasons.get(id).copied()));
    if stored.reopened > 0 {
        tracing::warn!(count = stored.reopened, "dead letters that had been decided about failed again, and are open again");
    }
}

impl Entry {
    fn of(mut letter: DeadLetter) -> Self {
        let rows = letter.subjects();
        let (headers, dropped) = dead_letter::headers_to_json(&letter.headers);
        if dropped > 0 {
            letter.cause = format!("{}; {dropped} of its headers' values could not be kept", letter.cause);
        }
        Self { letter, headers, rows, reduced: false }
    }

    /// Without whatever of a stranger's may keep it out of the table, and with what that was.
    fn reduced(self, why: &str) -> Self {
        let Self { mut letter, headers, rows, .. } = self;
        let bytes = letter.body.len();
        letter.body.truncate(BODY_REDUCED);
        let lost = bytes - letter.body.len();
        let said = format!(
            "{lost} of its {bytes} bytes and {} bytes of headers were dropped, as it could not be stored: {why}",
            headers.len()
        );
        tracing::error!(id = %letter.id, why, lost, "a dead letter could not be stored as it is, and is reduced");
        letter.cause = format!("{}; {said}", letter.cause);
        letter.kind = letter.kind.filter(|kind| shared::domain::tasks::find(kind).is_some());
        letter.routing_key = String::new();
        letter.worker = None;
        Self { letter, headers: b"{}".to_vec(), rows, reduced: true }
    }
}

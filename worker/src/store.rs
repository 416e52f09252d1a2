//! The store: dead letters, and messages that no lane took, become rows of `dead_letters`. Whatever comes becomes a row, and is acked
//! after the commit; what comes twice is one row. While the database is away they stay with the broker.

use std::{collections::BTreeMap, time::Duration};

use sea_orm::DbErr;
use shared::{
    broker::BrokerError,
    database::{
        failure::{Trouble, trouble},
        unanswered,
    },
    message::dead_letter::{self, DeadLetter},
    process::{backoff::backoff, redact::told},
};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::{
    apply::{ANSWER_MARGIN, CONFLICT_PAUSE_MAX_MS, CONFLICT_TRIES, CUT_PAUSE, CUT_PAUSE_MAX, CUTS_MAX, begin},
    batch::Batch,
    lane::Context,
    patience::Patience,
    settle::Settle,
};

mod rows;

use rows::Stored;

/// Most messages in hand, stored by one statement. Few, as each may be as large as the broker allows.
pub(crate) const MESSAGES_MAX: u16 = 32;
/// How often a letter alone is tried again that others hold locked, before it is tried in a reduced form.
const CONFLICT_TRIES_ALONE: u32 = 20;
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
    conflicts: u32,
    cuts: u32,
}

/// Stores a batch of `queue` and acks it; `false` when that was given up because the worker was told to leave.
pub(crate) async fn process(
    batch: Batch,
    queue: &str,
    settle: &Settle<'_>,
    context: &Context,
    patience: &Patience<'_>,
) -> Result<bool, BrokerError> {
    let Some(last) = batch.last_tag() else { return Ok(true) };
    let unrouted = queue == context.topology.unrouted();
    let letters: Vec<Entry> = batch
        .into_messages()
        .into_iter()
        .map(|message| Entry::of(DeadLetter::read(unrouted, &message.routing_key, &message.properties, message.body)))
        .collect();
    if store(letters, queue, context, patience).await.is_none() {
        return Ok(false);
    }
    settle.ack_up_to(last).await.map(|()| true)
}

/// Stores letters, whatever it takes; `None` when told to leave before all of them were. Those that were stay stored, and come again.
async fn store(letters: Vec<Entry>, queue: &str, context: &Context, patience: &Patience<'_>) -> Option<()> {
    let mut parts = vec![Part { letters, conflicts: 0, cuts: 0 }];
    let mut pauses = backoff();
    while let Some(mut part) = parts.pop() {
        let (error, trouble) = match transaction(&part.letters, queue, context).await {
            Ok(stored) => {
                patience.postgres_is_back();
                tell(&part.letters, &stored, context);
                continue;
            }
            Err(failed) => failed,
        };
        if trouble != Trouble::Away {
            patience.postgres_is_back();
        }
        let alone = part.letters.len() == 1;
        match trouble {
            Trouble::Away => patience.for_postgres(&error).await?,
            Trouble::Cut if part.cuts < CUTS_MAX => {
                tracing::warn!(error = told(&error), cuts = part.cuts, "the connection to PostgreSQL broke; trying again");
                sleep(CUT_PAUSE.saturating_mul(1 << part.cuts).min(CUT_PAUSE_MAX)).await;
                part.cuts += 1;
            }
            Trouble::Conflict if part.conflicts < if alone { CONFLICT_TRIES_ALONE } else { CONFLICT_TRIES } => {
                sleep(Duration::from_millis(rand::random_range(1..=CONFLICT_PAUSE_MAX_MS))).await;
                part.conflicts += 1;
            }
            // One by one, so that the one that cannot be stored keeps none of its neighbours out.
            Trouble::Conflict | Trouble::Cut | Trouble::Failure if !alone => {
                tracing::warn!(
                    error = told(&error),
                    letters = part.letters.len(),
                    "dead letters cannot be stored together; one by one"
                );
                let one = |letter| Part { letters: vec![letter], conflicts: 0, cuts: 0 };
                parts.extend(part.letters.into_iter().map(one));
                continue;
            }
            Trouble::Conflict | Trouble::Cut | Trouble::Failure if part.letters.iter().any(|letter| !letter.reduced) => {
                let cause = told(&error);
                part = Part {
                    letters: part.letters.into_iter().map(|letter| letter.reduced(&cause)).collect(),
                    conflicts: 0,
                    cuts: 0,
                };
            }
            // Nothing in it is strange any more: the table is. It is not acked before somebody has mended that.
            Trouble::Conflict | Trouble::Cut | Trouble::Failure => {
                tracing::error!(queue, error = told(&error), "a dead letter cannot be stored, and is tried again");
                context.shutdown.run_until_cancelled(sleep(pauses.next().unwrap_or_default())).await?;
            }
        }
        parts.push(part);
    }
    Some(())
}

fn tell(letters: &[Entry], stored: &Stored, context: &Context) {
    let reasons: BTreeMap<Uuid, &str> =
        letters.iter().flat_map(|letter| letter.rows.iter().map(|(id, _)| (*id, letter.letter.reason.as_str()))).collect();
    context.tally.stored(stored.fresh.iter().filter_map(|id| reasons.get(id).copied()));
    if stored.reopened > 0 {
        tracing::warn!(count = stored.reopened, "dead letters that had been decided about failed again, and are open again");
    }
}

/// One try. What fails before the first statement is no letter's fault, whatever the server says: it is away.
async fn transaction(letters: &[Entry], queue: &str, context: &Context) -> Result<Stored, (DbErr, Trouble)> {
    let known = |error: DbErr| {
        let trouble = trouble(&error);
        (error, trouble)
    };
    let database = &context.settings.database;
    let tx = begin(&context.db, database).await.map_err(|error| (error, Trouble::Away))?;
    let insert = async {
        let stored = rows::insert(&tx, letters, queue).await?;
        // On an error the transaction rolls back as it is dropped.
        tx.commit().await?;
        Ok(stored)
    };
    let answer_within = Duration::from_millis(database.statement_timeout_ms) * 3 + ANSWER_MARGIN;
    let answer = timeout(answer_within, insert).await;
    answer.map_or_else(|_| Err((unanswered(), Trouble::Cut)), |answer| answer.map_err(known))
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

//! Batch: wake-ups of one kind that are rechecked by one statement. Small when idle, large under load, bounded always.
//! A subject is asked about once, however many messages name it.

use std::{collections::HashMap, time::Duration};

use futures::StreamExt;
use lapin::Consumer;
use shared::{broker::BrokerError, domain::outcome::Outcome, message::wakeup::Wakeup, settings};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::intake::{self, Taken};

/// Most subjects of dead letters in a batch, each of which becomes a row.
const LETTERS_MAX: usize = 4_096;
/// Most bytes of dead letters in a batch.
const LETTER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How large a batch grows and how long it waits to grow.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most subjects, but for the last message's.
    subjects: usize,
    /// Most messages, as a flood of malformed ones has no subjects to count.
    messages: usize,
    /// Most bytes of bodies, but for the last message's.
    bytes: usize,
    /// How long a batch waits to grow while there is traffic.
    linger: Duration,
}

impl Limits {
    /// One message, whatever it holds.
    pub const ALONE: Self = Self { subjects: 1, messages: 1, bytes: usize::MAX, linger: Duration::ZERO };
    /// So many messages of dead letters, each of which may be as large as the broker allows.
    #[must_use]
    pub const fn of_letters(messages: u16) -> Self {
        Self { subjects: LETTERS_MAX, messages: messages as usize, bytes: LETTER_BYTES_MAX, linger: Duration::ZERO }
    }
}

impl From<&settings::Worker> for Limits {
    fn from(worker: &settings::Worker) -> Self {
        Self {
            subjects: worker.batch_max,
            messages: usize::from(worker.prefetch),
            // A wake-up has few.
            bytes: usize::MAX,
            linger: worker.linger,
        }
    }
}

impl Limits {
    /// The limits of the batch after `before`: one that follows a lone message does not wait for company, as none may come.
    #[must_use]
    pub fn after(self, before: &Batch) -> Self {
        if before.len() > 1 { self } else { Self { linger: Duration::ZERO, ..self } }
    }
}

/// Messages in hand, in the order in which they came.
#[derive(Debug, Default)]
pub struct Batch {
    messages: Vec<Taken>,
}

/// Why a batch is filled no further.
#[derive(Debug)]
pub enum End {
    /// Large enough, or waited long enough.
    Full,
    Shutdown,
    /// The database is away: what was taken is not even tried.
    Outage,
    /// The kind is paused: as in an outage.
    Paused,
    /// The connection, the channel or the consumer is gone.
    Lost(BrokerError),
}

/// Fills a batch: waits for a first message, takes what is there already, and then as many as come within the linger; no more once
/// `barred` says why.
pub async fn fill(
    consumer: &mut Consumer,
    kind: Option<&'static str>,
    limits: Limits,
    barred: impl Future<Output = End>,
    shutdown: &CancellationToken,
) -> (Batch, End) {
    let mut batch = Batch::default();
    let (mut subjects, mut bytes) = (0, 0);
    let mut until = None;
    let mut barred = std::pin::pin!(barred);
    loop {
        let next = async {
            match until {
                None => Some(consumer.next().await),
                Some(until) => timeout_at(until, consumer.next()).await.ok(),
            }
        };
        let delivery = tokio::select! {
            biased;
            () = shutdown.cancelled() => return (batch, End::Shutdown),
            why = &mut barred => return (batch, why),
            next = next => match next {
                None => return (batch, End::Full),
                Some(Some(Ok(delivery))) => delivery,
                Some(Some(Err(error))) => return (batch, End::Lost(error.into())),
                Some(None) => return (batch, End::Lost(BrokerError::Cancelled)),
            },
        };
        let taken = intake::take(delivery, kind);
        subjects += taken.content.as_ref().map_or(0, |wakeup| wakeup.subjects.len());
        bytes += taken.body.len();
        batch.messages.push(taken);
        if subjects >= limits.subjects || bytes >= limits.bytes || batch.messages.len() >= limits.messages {
            return (batch, End::Full);
        }
        until.get_or_insert_with(|| Instant::now() + limits.linger);
    }
}

/// A message with one outcome per subject, or none at all when it was malformed.
#[derive(Debug)]
pub struct Answered {
    pub message: Taken,
    pub outcomes: Vec<(Uuid, Outcome)>,
}

impl Batch {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    #[must_use]
    pub fn messages(&self) -> &[Taken] {
        &self.messages
    }

    #[must_use]
    pub fn into_messages(self) -> Vec<Taken> {
        self.messages
    }

    /// The tag of the last message, up to which a multiple ack settles them all.
    #[must_use]
    pub fn last_tag(&self) -> Option<u64> {
        self.messages.last().map(|message| message.delivery_tag)
    }

    /// The one message of a batch of one, where it is a wake-up.
    #[must_use]
    pub fn alone(&self) -> Option<(&Taken, &Wakeup)> {
        let [message] = self.messages.as_slice() else { return None };
        message.content.as_ref().ok().map(|wakeup| (message, wakeup))
    }

    /// The wake-ups in it.
    pub fn wakeups(&self) -> impl Iterator<Item = &Wakeup> {
        self.messages.iter().filter_map(|message| message.content.as_ref().ok())
    }

    /// Every subject to be rechecked now once, in id order, with the id of the first wake-up that names it.
    #[must_use]
    pub fn asked(&self) -> Vec<(Uuid, Uuid)> {
        let named = |wakeup: &Wakeup| {
            let id = wakeup.id;
            wakeup.subjects.iter().map(move |subject| (*subject, id)).collect::<Vec<_>>()
        };
        let mut asked: Vec<(Uuid, Uuid)> = self.messages.iter().filter_map(Taken::asks).flat_map(named).collect();
        // Stable, so that of several wake-ups the first one stays.
        asked.sort_by_key(|(subject, _)| *subject);
        asked.dedup_by_key(|(subject, _)| *subject);
        asked
    }

    /// Gives each message its outcomes. The first message that names a subject gets what became of it; the later ones are
    /// stale, as are subjects of which nothing was heard. Whose pause is not over waits for the rest of it.
    #[must_use]
    pub fn answer(self, mut outcomes: HashMap<Uuid, Outcome>) -> Vec<Answered> {
        let mut answer = |message: Taken| {
            let outcomes = message.content.as_ref().map_or_else(
                |_| Vec::new(),
                |wakeup| {
                    let mut of = |subject: &Uuid| match wakeup.rest {
                        rest if rest.is_zero() => outcomes.remove(subject).unwrap_or(Outcome::Stale),
                        wait => Outcome::Postpone { until: wakeup.due_at, wait },
                    };
                    wakeup.subjects.iter().map(|subject| (*subject, of(subject))).collect()
                },
            );
            Answered { message, outcomes }
        };
        self.messages.into_iter().map(&mut answer).collect()
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use shared::message::wakeup::{Malformed, TraceContext};

    use super::*;

    fn taken(delivery_tag: u64, subjects: &[u128]) -> Taken {
        let wakeup = Wakeup {
            id: Uuid::from_u128(delivery_tag.into()),
            kind: "confirm-receipt",
            subjects: subjects.iter().copied().map(Uuid::from_u128).collect(),
            due_at: "2026-11-24T00:00:00Z".parse().unwrap(),
            attempt: 0,
            rest: TimeDelta::zero(),
            failed_at: None,
            trace: TraceContext::default(),
        };
        let content = if subjects.is_empty() { Err(Malformed::NoSubjects) } else { Ok(wakeup) };
        let properties = lapin::BasicProperties::default();
        Taken { delivery_tag, routing_key: String::new(), properties, body: vec![], content }
    }

    #[test]
    fn whose_pause_is_not_over_is_not_asked_about_and_waits_for_the_rest() {
        let mut paused = taken(1, &[5]);
        let rest = TimeDelta::milliseconds(1_500);
        paused.content = paused.content.map(|wakeup| Wakeup { rest, attempt: 1, ..wakeup });
        let batch = Batch { messages: vec![paused, taken(2, &[5, 6])] };
        let asked = batch.asked();
        assert_eq!(asked, [(5, 2), (6, 2)].map(|(subject, wakeup)| (Uuid::from_u128(subject), Uuid::from_u128(wakeup))));
        let answered = batch.answer(asked.into_iter().map(|(subject, _)| (subject, Outcome::Stale)).collect());
        assert!(matches!(answered[0].outcomes[..], [(_, Outcome::Postpone { wait, .. })] if wait == rest));
    }

    #[test]
    fn a_subject_is_asked_about_once_and_answered_once() {
        let batch = Batch { messages: vec![taken(1, &[5, 3]), taken(2, &[]), taken(3, &[3, 4])] };
        let asked = batch.asked();
        assert_eq!(asked, [(3, 1), (4, 3), (5, 1)].map(|(subject, wakeup)| (Uuid::from_u128(subject), Uuid::from_u128(wakeup))));
        let retry = Outcome::Retry { cause: "x".into() };
        let answered = batch.answer(asked.into_iter().map(|(subject, _)| (subject, retry.clone())).collect());
        let outcomes: Vec<Vec<&str>> =
            answered.iter().map(|a| a.outcomes.iter().map(|(_, outcome)| outcome.name()).collect()).collect();
        assert_eq!(outcomes, [vec!["retried", "retried"], vec![], vec!["stale", "retried"]]);
    }
}

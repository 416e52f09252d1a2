//! Batch: collects wake-ups of one kind that one transaction rechecks. A batch is small when the lane is idle, large under load, and
//! always bounded. Each subject is rechecked once, however many messages name it.

use std::{collections::HashMap, time::Duration};

use shared::{broker::BrokerError, domain::outcome::Outcome, message::wakeup::Wakeup, settings};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    inbox::Inbox,
    intake::{self, Taken},
};

/// Most subjects of dead letters in a batch. Each becomes a row.
const LETTERS_MAX: usize = 4_096;
/// Most bytes of messages in a batch, which are copied on their way: a batch of the largest wake-ups has less, and a larger message is alone
/// in its batch or its last.
const BYTES_MAX: usize = 1024 * 1024;

/// How large a batch grows and how long it waits to grow.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most subjects; the last message may exceed it.
    subjects: usize,
    /// Most messages: malformed messages have no subjects to count.
    messages: usize,
    /// Most bytes in memory; the last message may exceed it.
    bytes: usize,
    /// How long a batch waits for more messages while there is traffic.
    linger: Duration,
}

impl Limits {
    /// One message of any size.
    pub const ALONE: Self = Self { subjects: 1, messages: 1, bytes: BYTES_MAX, linger: Duration::ZERO };
    /// At most `messages` dead letters, each of which may be as large as the broker allows.
    #[must_use]
    pub const fn of_letters(messages: u16) -> Self {
        Self { subjects: LETTERS_MAX, messages: messages as usize, bytes: BYTES_MAX, linger: Duration::ZERO }
    }
}

impl From<&settings::Worker> for Limits {
    fn from(worker: &settings::Worker) -> Self {
        Self { subjects: worker.batch_max, messages: usize::from(worker.prefetch), bytes: BYTES_MAX, linger: worker.linger }
    }
}

impl Limits {
    /// The limits of the batch after `before`: after a single message the next batch does not linger, because traffic is low.
    #[must_use]
    pub fn after(self, before: &Batch) -> Self {
        if before.len() > 1 { self } else { Self { linger: Duration::ZERO, ..self } }
    }
}

/// Unacked messages, in delivery order.
#[derive(Debug, Default)]
pub struct Batch {
    messages: Vec<Taken>,
}

/// Why a batch stopped growing.
#[derive(Debug)]
pub enum End {
    /// A limit is reached, or the linger is over.
    Full,
    Shutdown,
    /// PostgreSQL is away: the batch is not tried.
    Outage,
    /// The kind is paused: the batch is not tried.
    Paused,
    /// The connection, the channel or the consumer is gone.
    Lost(BrokerError),
}

/// Fills a batch: waits for a first message, then takes what arrives until a limit is reached or the linger is over. Stops at once when
/// `barred` returns a reason.
pub async fn fill(
    inbox: &mut Inbox,
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
                None => Some(inbox.next().await),
                Some(until) => timeout_at(until, inbox.next()).await.ok(),
            }
        };
        let delivery = tokio::select! {
            biased;
            () = shutdown.cancelled() => return (batch, End::Shutdown),
            why = &mut barred => return (batch, why),
            next = next => match next {
                None => return (batch, End::Full),
                Some(Ok(delivery)) => delivery,
                Some(Err(error)) => return (batch, End::Lost(error)),
            },
        };
        let taken = intake::take(delivery, kind);
        subjects += taken.content.as_ref().map_or(0, |wakeup| wakeup.subjects.len());
        bytes += taken.weight;
        batch.messages.push(taken);
        if subjects >= limits.subjects || bytes >= limits.bytes || batch.messages.len() >= limits.messages {
            return (batch, End::Full);
        }
        until.get_or_insert_with(|| Instant::now() + limits.linger);
    }
}

/// A message with one outcome per subject; without outcomes if it was malformed.
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

    /// Whether one of its messages is so large that batches like it are processed one at a time.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.messages.iter().any(|message| message.weight >= BYTES_MAX)
    }

    #[must_use]
    pub fn messages(&self) -> &[Taken] {
        &self.messages
    }

    #[must_use]
    pub fn into_messages(self) -> Vec<Taken> {
        self.messages
    }

    /// The delivery tag of the last message. A multiple ack up to it settles the whole batch.
    #[must_use]
    pub fn last_tag(&self) -> Option<u64> {
        self.messages.last().map(|message| message.delivery_tag)
    }

    /// The message of a batch of one, if it is a wake-up.
    #[must_use]
    pub fn alone(&self) -> Option<(&Taken, &Wakeup)> {
        let [message] = self.messages.as_slice() else { return None };
        message.content.as_ref().ok().map(|wakeup| (message, wakeup))
    }

    /// The wake-ups of the batch, without malformed messages.
    pub fn wakeups(&self) -> impl Iterator<Item = &Wakeup> {
        self.messages.iter().filter_map(|message| message.content.as_ref().ok())
    }

    /// Every subject to recheck now, once, in id order, with the id of the first wake-up that names it.
    #[must_use]
    pub fn asked(&self) -> Vec<(Uuid, Uuid)> {
        let named = |wakeup: &Wakeup| {
            let id = wakeup.id;
            wakeup.subjects.iter().map(move |subject| (*subject, id)).collect::<Vec<_>>()
        };
        let mut asked: Vec<(Uuid, Uuid)> = self.messages.iter().filter_map(Taken::asks).flat_map(named).collect();
        // The sort is stable, so deduplication keeps the first wake-up of a subject.
        asked.sort_by_key(|(subject, _)| *subject);
        asked.dedup_by_key(|(subject, _)| *subject);
        asked
    }

    /// Pairs each message with its outcomes. The first message that names a subject gets the subject's outcome. Later ones are stale, and
    /// so are subjects without an outcome. A wake-up whose retry pause is not over is postponed for the rest of the pause.
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
        Taken { delivery_tag, routing_key: String::new(), properties, weight: 0, body: vec![], content }
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

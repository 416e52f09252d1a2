//! Settle: the one place that acts on outcomes. Follow-ups and dead letters are confirmed by the broker before the ack; nothing
//! else in the fleet acks.

use chrono::{DateTime, TimeDelta, Utc};
use lapin::{Channel, options::BasicAckOptions};
use shared::{
    broker::{BrokerError, Outgoing, Publisher},
    dead_letter::{DeadLetter, Death},
    pack::{Waiting, pack},
    settings,
    task::{Outcome, Reason},
    telemetry::trace_context,
    topology::Topology,
    wakeup::Wakeup,
};
use uuid::Uuid;

use crate::{batch::Answered, intake::Taken};

/// What a lane settles with.
pub struct Settle<'a> {
    /// The consumer's channel.
    pub channel: Channel,
    pub publisher: Publisher,
    pub topology: &'a Topology,
    pub worker: &'a settings::Worker,
    pub pack_max: usize,
}

impl Settle<'_> {
    /// Settles a batch, whose messages are all that this channel delivered since the last one: what must come again is
    /// published, what died is published to the dead letters, and only then everything is acked with one multiple ack.
    ///
    /// # Errors
    /// [`BrokerError`]: the batch is unacked then and comes again; what it did is found stale.
    pub async fn settle(&self, batch: &[Answered]) -> Result<(), BrokerError> {
        let Some(last) = batch.last() else { return Ok(()) };
        let mut follow_ups = FollowUps::default();
        for Answered { message, outcomes } in batch {
            match &message.content {
                Err(malformed) => follow_ups.refuse(message, &malformed.to_string()),
                Ok(wakeup) => {
                    for (subject, outcome) in outcomes {
                        follow_ups.sort(message, wakeup, *subject, outcome, self.worker);
                    }
                }
            }
        }
        let trace = trace_context(&tracing::Span::current());
        let wakeups = pack(follow_ups.waiting, self.topology.ladder(), self.topology.shards(), self.pack_max, &trace);
        let mut messages: Vec<Outgoing> = follow_ups.letters.into_iter().map(|letter| letter.message(self.topology)).collect();
        messages.extend(wakeups.iter().map(|packed| Outgoing::of(packed, self.topology)));
        self.publisher.publish_all(messages).await?;
        self.ack_up_to(last.message.delivery_tag).await
    }

    #[expect(clippy::disallowed_methods, reason = "the one owner of acks: everything up to this tag is settled")]
    async fn ack_up_to(&self, delivery_tag: u64) -> Result<(), BrokerError> {
        Ok(self.channel.basic_ack(delivery_tag, BasicAckOptions { multiple: true }).await?)
    }
}

/// What has to be published before a batch may be acked.
#[derive(Default)]
struct FollowUps {
    waiting: Vec<Waiting>,
    letters: Vec<DeadLetter>,
}

impl FollowUps {
    fn sort(&mut self, message: &Taken, wakeup: &Wakeup, subject: Uuid, outcome: &Outcome, worker: &settings::Worker) {
        match outcome {
            Outcome::Applied { late } => {
                tracing::debug!(kind = wakeup.kind, %subject, late_ms = late.num_milliseconds(), "applied");
            }
            Outcome::Stale => tracing::debug!(kind = wakeup.kind, %subject, "stale"),
            // A recheck that went well: failures of before are forgotten.
            Outcome::Postpone { until, wait } => self.wake(wakeup, subject, *until, *wait, 0),
            Outcome::Retry { cause } => self.retry(message, wakeup, subject, cause, worker),
            Outcome::Reject { reason, cause } => self.bury(message, wakeup, subject, *reason, cause, wakeup.attempt),
        }
    }

    fn wake(&mut self, wakeup: &Wakeup, subject: Uuid, due_at: DateTime<Utc>, wait: TimeDelta, attempt: u32) {
        self.waiting.push(Waiting { kind: wakeup.kind, subject, due_at, wait, attempt });
    }

    fn retry(&mut self, message: &Taken, wakeup: &Wakeup, subject: Uuid, cause: &str, worker: &settings::Worker) {
        let attempts = wakeup.attempt.saturating_add(1);
        if attempts >= worker.attempts_max {
            self.bury(message, wakeup, subject, Reason::AttemptsExhausted, cause, attempts);
            return;
        }
        tracing::warn!(kind = wakeup.kind, %subject, attempts, cause, "failed; it is tried again later");
        let at = usize::try_from(wakeup.attempt).unwrap_or(usize::MAX).min(worker.retry.len().saturating_sub(1));
        let pause = worker.retry.get(at).and_then(|pause| TimeDelta::from_std(*pause).ok()).unwrap_or_default();
        self.wake(wakeup, subject, wakeup.due_at, pause, attempts);
    }

    fn bury(&mut self, message: &Taken, wakeup: &Wakeup, subject: Uuid, reason: Reason, cause: &str, attempts: u32) {
        tracing::error!(kind = wakeup.kind, %subject, attempts, reason = reason.name(), cause, "a dead letter");
        let death = Death { reason, cause, attempts, kind: Some(wakeup.kind), subject: Some(subject), wakeup: Some(wakeup.id) };
        self.letters.push(DeadLetter::new(&death, &message.routing_key, message.headers.as_ref(), &message.body));
    }

    fn refuse(&mut self, message: &Taken, why: &str) {
        tracing::error!(
            routing_key = message.routing_key,
            bytes = message.body.len(),
            why,
            "a message that is no wake-up: a dead letter"
        );
        let death = Death { reason: Reason::Malformed, cause: why, attempts: 0, kind: None, subject: None, wakeup: None };
        self.letters.push(DeadLetter::new(&death, &message.routing_key, message.headers.as_ref(), &message.body));
    }
}

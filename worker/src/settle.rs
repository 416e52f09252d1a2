//! Settle: the one place that acts on outcomes. Follow-ups and dead letters are confirmed by the broker before the ack; nothing
//! else in the fleet acks.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lapin::{BasicProperties, Channel, options::BasicAckOptions, types::AMQPValue};
use shared::{
    broker::{BrokerError, Outgoing, Publisher},
    dead_letter::{DeadLetter, Death, fit_to_publish, without_deaths},
    pack::{Waiting, pack},
    settings,
    task::{Outcome, Reason},
    telemetry::trace_context,
    topology::Topology,
    wakeup::{Malformed, PERSISTENT, Wakeup},
};
use uuid::Uuid;

use crate::{batch::Answered, intake::Taken};

/// What a lane settles with.
pub struct Settle<'a> {
    /// The consumer's channel.
    pub channel: Channel,
    /// Over another connection: see [`shared::broker`].
    pub publisher: Publisher,
    pub topology: &'a Topology,
    pub worker: &'a settings::Worker,
    pub pack_max: usize,
}

/// A later format's message is looked at again after about so long: an upgrade of the fleet takes minutes.
const PARK_PAUSE: Duration = Duration::from_secs(60);
/// So often at most, a week or more: then no upgrade is on its way.
const PARKED_MAX: i64 = 20_000;
/// How often a message was parked.
const PARKED: &str = "kyhan-parked";
/// A retry's pause is longer by up to this part of it, at random for a batch, so that those that failed together part.
const JITTER_MAX: f64 = 0.5;

impl Settle<'_> {
    /// Settles a batch, whose messages are all that this channel delivered since the last one: what must come again is
    /// published, what died is published to the dead letters, and only then everything is acked with one multiple ack.
    ///
    /// # Errors
    /// [`BrokerError`]: the batch is unacked then and comes again; what it did is found stale.
    pub async fn settle(&self, batch: &[Answered]) -> Result<(), BrokerError> {
        let Some(last) = batch.last() else { return Ok(()) };
        let mut follow_ups = FollowUps::new(self.worker);
        for Answered { message, outcomes } in batch {
            match &message.content {
                Err(Malformed::Future(version)) => follow_ups.park(message, *version, self.topology),
                Err(malformed) => follow_ups.refuse(message, &malformed.to_string()),
                Ok(wakeup) => {
                    for (subject, outcome) in outcomes {
                        follow_ups.sort(message, wakeup, *subject, outcome);
                    }
                }
            }
        }
        let trace = trace_context(&tracing::Span::current());
        let wakeups = pack(follow_ups.waiting, self.topology.ladder(), self.topology.shards(), self.pack_max, &trace);
        let mut messages = follow_ups.parked;
        messages.extend(follow_ups.letters.into_iter().map(|letter| letter.message(self.topology)));
        messages.extend(wakeups.iter().map(|packed| Outgoing::of(packed, self.topology)));
        self.publish(&messages).await?;
        self.ack_up_to(last.message.delivery_tag).await
    }

    /// Takes a packed wake-up apart: each of its subjects goes into quarantine alone, so that only the one that stops workers
    /// does so again.
    ///
    /// # Errors
    /// As [`Settle::settle`].
    pub async fn take_apart(&self, message: &Taken, wakeup: &Wakeup) -> Result<(), BrokerError> {
        let alone = wakeup.subjects.iter().map(|subject| {
            let alone = Wakeup { subjects: vec![*subject], trace: wakeup.trace.clone(), ..*wakeup };
            Outgoing {
                exchange: self.topology.quarantine(),
                routing_key: message.routing_key.clone(),
                properties: alone.properties(),
                body: alone.body(),
            }
        });
        self.publish(&alone.collect::<Vec<_>>()).await?;
        self.ack_up_to(message.delivery_tag).await
    }

    /// Publishes, waiting out alarms of the broker: what is in hand would only come again and wait again.
    async fn publish(&self, messages: &[Outgoing]) -> Result<(), BrokerError> {
        loop {
            match self.publisher.publish_all(messages).await {
                Err(error @ BrokerError::Blocked) => {
                    tracing::warn!(%error, "the lane waits until it may publish again");
                    self.publisher.unblocked().await;
                    tracing::info!("RabbitMQ lets publish again");
                }
                done => return done,
            }
        }
    }

    /// Acks everything that this channel delivered up to and with this message.
    ///
    /// # Errors
    /// When the channel is gone: everything comes again.
    #[expect(clippy::disallowed_methods, reason = "the one owner of acks: everything up to this tag is settled")]
    pub async fn ack_up_to(&self, delivery_tag: u64) -> Result<(), BrokerError> {
        Ok(self.channel.basic_ack(delivery_tag, BasicAckOptions { multiple: true }).await?)
    }
}

/// What has to be published before a batch may be acked.
struct FollowUps<'a> {
    worker: &'a settings::Worker,
    /// By how much the pauses of this batch's retries are longer.
    jitter: f64,
    waiting: Vec<Waiting>,
    letters: Vec<DeadLetter>,
    parked: Vec<Outgoing>,
}

impl<'a> FollowUps<'a> {
    fn new(worker: &'a settings::Worker) -> Self {
        let jitter = rand::random_range(0.0..=JITTER_MAX);
        Self { worker, jitter, waiting: Vec::new(), letters: Vec::new(), parked: Vec::new() }
    }

    fn sort(&mut self, message: &Taken, wakeup: &Wakeup, subject: Uuid, outcome: &Outcome) {
        match outcome {
            Outcome::Applied { late } => {
                tracing::debug!(kind = wakeup.kind, %subject, late_ms = late.num_milliseconds(), "applied");
            }
            Outcome::Stale => tracing::debug!(kind = wakeup.kind, %subject, "stale"),
            Outcome::Postpone { until, wait } => {
                // A recheck that went well: failures of before are forgotten. A pause that is not over is no recheck.
                let attempt = if wakeup.rest.is_zero() { 0 } else { wakeup.attempt };
                self.wake(wakeup, subject, *until, *wait, attempt);
            }
            Outcome::Retry { cause } => self.retry(message, wakeup, subject, cause),
            Outcome::Reject { reason, cause } => self.bury(message, wakeup, subject, *reason, cause, wakeup.attempt),
        }
    }

    fn wake(&mut self, wakeup: &Wakeup, subject: Uuid, due_at: DateTime<Utc>, wait: TimeDelta, attempt: u32) {
        self.waiting.push(Waiting { kind: wakeup.kind, subject, due_at, wait, attempt });
    }

    fn retry(&mut self, message: &Taken, wakeup: &Wakeup, subject: Uuid, cause: &str) {
        let attempts = wakeup.attempt.saturating_add(1);
        if attempts >= self.worker.attempts_max {
            self.bury(message, wakeup, subject, Reason::AttemptsExhausted, cause, attempts);
            return;
        }
        tracing::warn!(kind = wakeup.kind, %subject, attempts, cause, "failed; it is tried again later");
        let retry = &self.worker.retry;
        let at = usize::try_from(wakeup.attempt).unwrap_or(usize::MAX).min(retry.len().saturating_sub(1));
        let pause = retry.get(at).map(|pause| pause.mul_f64(1.0 + self.jitter));
        let pause = pause.and_then(|pause| TimeDelta::from_std(pause).ok()).unwrap_or_default();
        self.wake(wakeup, subject, wakeup.due_at, pause, attempts);
    }

    fn bury(&mut self, message: &Taken, wakeup: &Wakeup, subject: Uuid, reason: Reason, cause: &str, attempts: u32) {
        tracing::error!(kind = wakeup.kind, %subject, attempts, reason = reason.name(), cause, "a dead letter");
        let death = Death { reason, cause, attempts, kind: Some(wakeup.kind), subject: Some(subject), wakeup: Some(wakeup.id) };
        self.letters.push(DeadLetter::new(&death, &message.routing_key, message.headers(), &message.body));
    }

    /// A message of a later format waits, as it is, for a worker that knows it: producers and workers are upgraded in any order.
    fn park(&mut self, message: &Taken, version: u32, topology: &Topology) {
        let mut headers = without_deaths(message.headers());
        if !fit_to_publish(&headers) {
            self.refuse(message, &format!("{}; its headers are too long to be sent again", Malformed::Future(version)));
            return;
        }
        let times = match headers.inner().get(PARKED) {
            Some(AMQPValue::LongLongInt(times)) => *times,
            _ => 0,
        };
        if times >= PARKED_MAX {
            self.refuse(message, &format!("{}; no worker has known it for {times} rounds", Malformed::Future(version)));
            return;
        }
        tracing::warn!(routing_key = message.routing_key, version, times, "a wake-up of a later format waits for a newer worker");
        headers.insert(PARKED.into(), AMQPValue::LongLongInt(times.saturating_add(1)));
        // Not all that it came with: an expiration would end the pause at once, another's user id would be refused.
        let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT).with_headers(headers);
        let came_with = &message.properties;
        properties = came_with.content_type().iter().fold(properties, |own, text| own.with_content_type(text.clone()));
        properties = came_with.kind().iter().fold(properties, |own, text| own.with_type(text.clone()));
        properties = came_with.message_id().iter().fold(properties, |own, text| own.with_message_id(text.clone()));
        self.parked.push(Outgoing {
            exchange: topology.exchange_of(topology.ladder().next(PARK_PAUSE)),
            routing_key: message.routing_key.clone(),
            properties,
            body: message.body.clone(),
        });
    }

    fn refuse(&mut self, message: &Taken, why: &str) {
        tracing::error!(
            routing_key = message.routing_key,
            bytes = message.body.len(),
            why,
            "a message that is no wake-up: a dead letter"
        );
        let death = Death { reason: Reason::Malformed, cause: why, attempts: 0, kind: None, subject: None, wakeup: None };
        self.letters.push(DeadLetter::new(&death, &message.routing_key, message.headers(), &message.body));
    }
}

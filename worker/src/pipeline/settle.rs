//! Settle: the only place that acts on outcomes and acks. The broker confirms follow-ups and dead letters before the ack.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lapin::{
    BasicProperties, Channel,
    options::{BasicAckOptions, BasicNackOptions},
    types::AMQPValue,
};
use shared::{
    broker::{BrokerError, Detours, Publisher},
    domain::outcome::{Outcome, Reason},
    message::{
        dead_letter::{self, DeadLetter, Death, fit_to_publish, without_deaths},
        ladder::Hop,
        outgoing::Outgoing,
        pack::{WaitingSubject, pack_failed},
        topology::{Topology, shard_of},
        wakeup::{Malformed, PERSISTENT, Wakeup},
    },
    process::telemetry::trace_context,
    settings,
};
use uuid::Uuid;

use super::{batch::Answered, intake::TakenMessage, patience::Patience};

/// The channel, publisher and settings with which a consumer settles.
pub struct Settle<'a> {
    /// The consumer's channel.
    pub channel: Channel,
    /// On another connection: see [`shared::broker`].
    pub publisher: Publisher,
    pub topology: &'a Topology,
    pub detours: &'a Detours,
    /// The lane's own key; `None` in quarantine, which holds messages of all lanes.
    pub routing_key: Option<String>,
    pub worker: &'a settings::WorkerSettings,
    /// The name of this process, recorded in dead letters.
    pub name: &'a str,
    pub pack_max: usize,
}

/// A quarantined wake-up on its way back: see [`Settle::home`].
pub struct Home {
    kind: &'static str,
    delivery_tag: u64,
    message: Outgoing,
}

/// How long a message of a later format is parked: an upgrade of the fleet takes minutes.
const PARK_PAUSE: Duration = Duration::from_secs(60);
/// How often a message is parked at most: after a week or more no upgrade is to be expected.
const PARKED_MAX: i64 = 20_000;
/// The header that counts how often a message was parked.
const PARKED: &str = "kyhan-parked";
/// A retry's pause is longer by up to this fraction, at random per batch, so that wake-ups that failed together are spread out.
const JITTER_MAX: f64 = 0.5;

impl Settle<'_> {
    /// Settles a batch, which holds every message that this channel delivered since the last one. Publishes follow-up wake-ups and dead
    /// letters, waits for their confirms, and then acks everything with one multiple ack.
    ///
    /// # Errors
    /// [`BrokerError`]: the batch stays unacked and is redelivered; what it applied is then found stale.
    pub async fn settle(&self, batch: &[Answered], patience: &Patience<'_>) -> Result<(), BrokerError> {
        let Some(last) = batch.last() else { return Ok(()) };
        let mut follow_ups = FollowUps::new(self.worker, self.name);
        for Answered { message, outcomes } in batch {
            match &message.content {
                Err(why) if self.is_for_a_newer_worker(why) => {
                    follow_ups.park(message, why, self.way_back(message), self.topology);
                }
                Err(malformed) => follow_ups.refuse(message, &malformed.to_string()),
                Ok(wakeup) => {
                    for (subject, outcome) in outcomes {
                        follow_ups.sort(message, wakeup, *subject, outcome);
                    }
                }
            }
        }
        let trace = trace_context(&tracing::Span::current());
        let open = self.detours.around(self.topology);
        let wakeups = pack_failed(follow_ups.waiting, open.ladder(), open.shards(), self.pack_max, &trace);
        let mut messages = follow_ups.parked;
        messages.extend(follow_ups.letters.into_iter().map(|letter| letter.message(self.topology)));
        messages.extend(wakeups.iter().map(|packed| Outgoing::of(packed, self.topology)));
        self.publish(&messages, patience).await?;
        self.ack_up_to(last.message.delivery_tag).await
    }

    /// Whether a newer worker may understand the message. In quarantine this includes unknown kinds, because newer workers' lanes
    /// dead-letter into it, too.
    const fn is_for_a_newer_worker(&self, why: &Malformed) -> bool {
        match why {
            Malformed::Future(_) => true,
            Malformed::Kind(_) => self.routing_key.is_none(),
            _ => false,
        }
    }

    /// The routing key that leads a message from any rung back to its lane. The message's own key is checked, because a message published
    /// by hand may have any.
    fn way_back(&self, message: &TakenMessage) -> Option<String> {
        self.routing_key.clone().or_else(|| {
            let (kind, shard) = message.routing_key.split_once('.')?;
            let shard: u16 = shard.parse().ok().filter(|shard| *shard < self.topology.shards())?;
            (!kind.is_empty()).then(|| Topology::routing_key(kind, shard))
        })
    }

    /// Splits a packed wake-up: each of its subjects goes into quarantine alone, so that only the one that crashes workers does so again.
    ///
    /// # Errors
    /// As [`Settle::settle`].
    pub async fn take_apart(&self, message: &TakenMessage, wakeup: &Wakeup, patience: &Patience<'_>) -> Result<(), BrokerError> {
        let alone = wakeup.subjects.iter().map(|subject| {
            let alone = Wakeup { subjects: vec![*subject], trace: wakeup.trace.clone(), ..*wakeup };
            Outgoing {
                exchange: self.topology.quarantine(),
                routing_key: message.routing_key.clone(),
                properties: alone.properties(),
                body: alone.body(),
            }
        });
        self.publish(&alone.collect::<Vec<_>>(), patience).await?;
        self.ack_up_to(message.delivery_tag).await
    }

    /// The message that returns a quarantined wake-up to its own lane.
    #[must_use]
    pub fn home(&self, message: &TakenMessage, wakeup: &Wakeup) -> Home {
        let shard = wakeup.subjects.first().map_or(0, |subject| shard_of(*subject, self.topology.shards()));
        Home {
            kind: wakeup.kind,
            delivery_tag: message.delivery_tag,
            message: Outgoing {
                exchange: self.topology.exchange_of(Hop::Lane),
                routing_key: Topology::routing_key(wakeup.kind, shard),
                properties: wakeup.properties(),
                body: wakeup.body(),
            },
        }
    }

    /// Returns a quarantined wake-up of a paused kind to its own lane, which has no consumer until the kind is resumed.
    ///
    /// # Errors
    /// As [`Settle::settle`].
    pub async fn send_home(&self, home: Home, patience: &Patience<'_>) -> Result<(), BrokerError> {
        let Home { kind, delivery_tag, message } = home;
        tracing::info!(kind, "returned a quarantined wake-up of a paused kind to its lane");
        self.publish(&[message], patience).await?;
        self.ack_up_to(delivery_tag).await
    }

    /// Publishes. During an alarm of the broker it waits and keeps the batch, because a redelivered batch would have to wait as well.
    async fn publish(&self, messages: &[Outgoing], patience: &Patience<'_>) -> Result<(), BrokerError> {
        match self.publisher.publish_all(messages).await {
            Err(BrokerError::Blocked) => patience.for_rabbitmq(&self.publisher).await,
            done => done.inspect_err(|error| self.detours.note(error)),
        }
    }

    /// Acks everything that this channel delivered up to and including this message.
    ///
    /// # Errors
    /// When the channel is gone: everything is redelivered.
    #[expect(clippy::disallowed_methods, reason = "the one owner of acks: everything up to this tag is settled")]
    pub async fn ack_up_to(&self, delivery_tag: u64) -> Result<(), BrokerError> {
        Ok(self.channel.basic_ack(delivery_tag, BasicAckOptions { multiple: true }).await?)
    }
}

/// Returns a message to its queue without having looked at it, as if it had not been delivered; where RabbitMQ counts deliveries, this was
/// one. The answer is not awaited: if the channel is gone, the message returns by itself.
#[expect(clippy::disallowed_methods, reason = "the one owner of acks: nothing was done with the message")]
pub(super) fn return_unread(channel: &Channel, delivery_tag: u64) {
    let channel = channel.clone();
    tokio::spawn(async move {
        let options = BasicNackOptions { multiple: false, requeue: true };
        channel.basic_nack(delivery_tag, options).await
    });
}

/// The messages that must be published before a batch may be acked.
struct FollowUps<'a> {
    worker: &'a settings::WorkerSettings,
    name: &'a str,
    /// The fraction by which this batch's retry pauses are longer.
    jitter: f64,
    /// The failure time of everything that fails in this batch.
    now: DateTime<Utc>,
    /// Each with the time of its first failure.
    waiting: Vec<(WaitingSubject, Option<DateTime<Utc>>)>,
    letters: Vec<DeadLetter>,
    parked: Vec<Outgoing>,
}

impl<'a> FollowUps<'a> {
    fn new(worker: &'a settings::WorkerSettings, name: &'a str) -> Self {
        let (jitter, now) = (rand::random_range(0.0..=JITTER_MAX), dead_letter::clock());
        Self { worker, name, jitter, now, waiting: Vec::new(), letters: Vec::new(), parked: Vec::new() }
    }

    fn sort(&mut self, message: &TakenMessage, wakeup: &Wakeup, subject: Uuid, outcome: &Outcome) {
        match outcome {
            Outcome::Applied { late } => {
                tracing::debug!(kind = wakeup.kind, %subject, late_ms = late.num_milliseconds(), "applied");
            }
            Outcome::Stale => tracing::debug!(kind = wakeup.kind, %subject, "stale"),
            Outcome::Postpone { until, wait } => {
                // A successful recheck resets the failures. A retry pause that is not over was not a recheck.
                let (attempt, failed_at) = if wakeup.rest.is_zero() { (0, None) } else { (wakeup.attempt, wakeup.failed_at) };
                self.wake(wakeup, subject, *until, *wait, attempt, failed_at);
            }
            Outcome::Retry { cause } => self.retry(message, wakeup, subject, cause),
            Outcome::Reject { reason, cause } => self.bury(message, wakeup, subject, *reason, cause, wakeup.attempt),
        }
    }

    fn wake(
        &mut self,
        wakeup: &Wakeup,
        subject: Uuid,
        due_at: DateTime<Utc>,
        wait: TimeDelta,
        attempt: u32,
        failed_at: Option<DateTime<Utc>>,
    ) {
        self.waiting.push((WaitingSubject { kind: wakeup.kind, subject, due_at, wait, attempt }, failed_at));
    }

    /// When a wake-up that fails now failed first; `None` if an older worker retried it, which did not record the time.
    const fn failed_at(&self, wakeup: &Wakeup) -> Option<DateTime<Utc>> {
        if wakeup.attempt == 0 { Some(self.now) } else { wakeup.failed_at }
    }

    fn retry(&mut self, message: &TakenMessage, wakeup: &Wakeup, subject: Uuid, cause: &str) {
        let attempts = wakeup.attempt.saturating_add(1);
        if attempts >= self.worker.attempts_max {
            self.bury(message, wakeup, subject, Reason::AttemptsExhausted, cause, attempts);
            return;
        }
        tracing::warn!(kind = wakeup.kind, %subject, attempts, cause, "failed; will be retried");
        let retry = &self.worker.retry;
        let at = usize::try_from(wakeup.attempt).unwrap_or(usize::MAX).min(retry.len().saturating_sub(1));
        let pause = retry.get(at).map(|pause| pause.mul_f64(1.0 + self.jitter));
        let pause = pause.and_then(|pause| TimeDelta::from_std(pause).ok()).unwrap_or_default();
        self.wake(wakeup, subject, wakeup.due_at, pause, attempts, self.failed_at(wakeup));
    }

    fn bury(&mut self, message: &TakenMessage, wakeup: &Wakeup, subject: Uuid, reason: Reason, cause: &str, attempts: u32) {
        tracing::error!(kind = wakeup.kind, %subject, attempts, reason = reason.name(), cause, "failed for good; now a dead letter");
        let death = Death {
            reason,
            cause,
            attempts,
            kind: Some(wakeup.kind),
            subject: Some(subject),
            wakeup: Some(wakeup.id),
            worker: Some(self.name),
            first_failed_at: self.failed_at(wakeup),
        };
        self.letters.push(DeadLetter::new(&death, &message.routing_key, message.headers(), &message.body));
    }

    /// Parks an unchanged message of a later format for a newer worker, because producers and workers are upgraded in any order.
    fn park(&mut self, message: &TakenMessage, why: &Malformed, way_back: Option<String>, topology: &Topology) {
        let mut headers = without_deaths(message.headers());
        let times = match headers.inner().get(PARKED) {
            Some(AMQPValue::LongLongInt(times)) => (*times).max(0),
            _ => 0,
        };
        let Some(routing_key) = way_back.filter(|_| times < PARKED_MAX && fit_to_publish(&headers)) else {
            self.refuse(message, &format!("{why}; parked {times} times and cannot be parked again"));
            return;
        };
        tracing::warn!(routing_key, %why, times, "parked a message for a newer worker");
        headers.insert(PARKED.into(), AMQPValue::LongLongInt(times + 1));
        // Only these properties are kept: an expiration would end the pause at once, and the broker refuses another user's id.
        let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT).with_headers(headers);
        let came_with = &message.properties;
        properties = came_with.content_type().iter().fold(properties, |own, text| own.with_content_type(text.clone()));
        properties = came_with.kind().iter().fold(properties, |own, text| own.with_type(text.clone()));
        properties = came_with.message_id().iter().fold(properties, |own, text| own.with_message_id(text.clone()));
        let exchange = topology.exchange_of(topology.ladder().next(PARK_PAUSE));
        self.parked.push(Outgoing { exchange, routing_key, properties, body: message.body.clone() });
    }

    fn refuse(&mut self, message: &TakenMessage, why: &str) {
        tracing::error!(
            routing_key = message.routing_key,
            bytes = message.body.len(),
            why,
            "a message could not be decoded; now a dead letter"
        );
        let death = Death {
            reason: Reason::Malformed,
            cause: why,
            attempts: 0,
            kind: None,
            subject: None,
            wakeup: None,
            worker: Some(self.name),
            first_failed_at: Some(self.now),
        };
        self.letters.push(DeadLetter::new(&death, &message.routing_key, message.headers(), &message.body));
    }
}

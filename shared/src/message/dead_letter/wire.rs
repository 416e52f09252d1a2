//! A letter on the wire: the message that carries it to the dead-letter queue, and how a message of that queue, or of the
//! queue of unrouted messages, is read. Every message can be read as a letter.

use chrono::{DateTime, Datelike, Utc};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};

use super::{
    CAUSE_MAX, DeadLetter, NAME_MAX, body, cut,
    headers::{fit_to_publish, size_of_table, without_deaths},
    id_of,
};
use crate::{
    domain::outcome::Reason,
    message::{
        outgoing::Outgoing,
        topology::Topology,
        wakeup::{PERSISTENT, Wakeup},
    },
};

const REASON: &str = "kyhan-reason";
const CAUSE: &str = "kyhan-cause";
const ATTEMPTS: &str = "kyhan-attempts";
const KIND: &str = "kyhan-kind";
const SUBJECT: &str = "kyhan-subject";
const WAKEUP: &str = "kyhan-wakeup";
const WORKER: &str = "kyhan-worker";
const FIRST_FAILED_AT: &str = "kyhan-first-failed-at";
const ROUTING_KEY: &str = "kyhan-routing-key";
const HEADERS: &str = "kyhan-headers";
const HEADERS_DROPPED: &str = "kyhan-headers-dropped";
const BODY_CUT: &str = "kyhan-body-cut";

impl DeadLetter {
    /// The message that carries it to the dead-letter queue.
    #[must_use]
    pub fn message(self, topology: &Topology) -> Outgoing {
        let mut headers = FieldTable::default();
        let mut put = |name: &str, value: String| {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        };
        put(REASON, self.reason);
        put(CAUSE, self.cause);
        put(ROUTING_KEY, self.routing_key.clone());
        for (name, value) in [
            (KIND, self.kind),
            (SUBJECT, self.subject.map(|id| id.to_string())),
            (WAKEUP, self.wakeup.map(|id| id.to_string())),
            (WORKER, self.worker),
            (FIRST_FAILED_AT, self.first_failed_at.map(|at| at.to_rfc3339())),
            (BODY_CUT, self.cut),
        ] {
            if let Some(value) = value {
                put(name, value);
            }
        }
        headers.insert(ATTEMPTS.into(), AMQPValue::LongLongInt(self.attempts.into()));
        if fit_to_publish(&self.headers) {
            if !self.headers.inner().is_empty() {
                headers.insert(HEADERS.into(), AMQPValue::FieldTable(self.headers));
            }
        } else {
            let size = i64::try_from(size_of_table(&self.headers)).unwrap_or(i64::MAX);
            headers.insert(HEADERS_DROPPED.into(), AMQPValue::LongLongInt(size));
        }
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_message_id(self.id.to_string().into())
            .with_type("kyhan.dead-letter".into())
            .with_timestamp(self.died_at.and_then(|at| u64::try_from(at.timestamp()).ok()).unwrap_or_default())
            .with_headers(headers);
        Outgoing { exchange: topology.dead(), routing_key: self.routing_key, properties, body: self.body }
    }

    /// Reads a message of the dead-letter queue, or of the queue of `unrouted` messages. Every message can be read as a
    /// letter.
    ///
    /// Only the fleet may publish to the dead-letter exchange (`deploy/rabbitmq/users`), so only there its headers are believed.
    /// A producer chooses everything about an unrouted message.
    #[must_use]
    pub fn read(unrouted: bool, routing_key: &str, properties: &BasicProperties, body: Vec<u8>) -> Self {
        let empty = FieldTable::default();
        let headers = properties.headers().as_ref().unwrap_or(&empty);
        let text = |name: &str| match headers.inner().get(name) {
            Some(AMQPValue::LongString(text)) => Some(text.to_string()),
            _ => None,
        };
        let number = |name: &str| match headers.inner().get(name) {
            Some(AMQPValue::LongLongInt(number)) => Some(*number),
            _ => None,
        };
        // An operator may have written more than a name, or more than AMQP can send again.
        let name = |header: &str| text(header).map(|text| cut(&text, NAME_MAX));
        // The broker marks the messages that it dead-letters with `x-death`; their sender may have written any other header.
        let Some(reason) = name(REASON).filter(|_| !unrouted && !headers.contains_key("x-death")) else {
            return Self::of_broker(unrouted, routing_key, headers, body);
        };
        let subject = text(SUBJECT).and_then(|id| id.parse().ok());
        let attempts = number(ATTEMPTS).and_then(|attempts| u32::try_from(attempts).ok()).unwrap_or_default();
        let routing_key = name(ROUTING_KEY).unwrap_or_default();
        let mut cause = cut(&text(CAUSE).unwrap_or_default(), CAUSE_MAX);
        if let Some(size) = number(HEADERS_DROPPED) {
            cause = format!("{cause}; its {size} bytes of headers were too many to be kept");
        }
        let died_at = properties.timestamp().as_ref().and_then(|at| moment(*at));
        let (body, cut_now) = body::kept(body);
        let cut = cut_now.or_else(|| name(BODY_CUT));
        Self {
            id: id_of(&body, cut.as_deref(), &routing_key, Some((subject, attempts))),
            reason,
            cause: body::with_cut(cause, cut.as_deref()),
            attempts,
            first_failed_at: text(FIRST_FAILED_AT).and_then(|at| at.parse().ok()).and_then(shown),
            died_at,
            worker: name(WORKER),
            kind: name(KIND),
            subject,
            wakeup: text(WAKEUP).and_then(|id| id.parse().ok()),
            routing_key,
            headers: match headers.inner().get(HEADERS) {
                Some(AMQPValue::FieldTable(table)) => table.clone(),
                _ => empty,
            },
            body,
            cut,
        }
    }

    /// A message that the broker itself put here: delivered too often, or sent with a routing key that no lane takes.
    fn of_broker(unrouted: bool, routing_key: &str, headers: &FieldTable, body: Vec<u8>) -> Self {
        let death = match headers.inner().get("x-death") {
            Some(AMQPValue::FieldArray(deaths)) => match deaths.as_slice().first() {
                Some(AMQPValue::FieldTable(death)) => Some(death.clone()),
                _ => None,
            },
            _ => None,
        };
        let header = |name: &str| match death.as_ref()?.inner().get(name) {
            Some(AMQPValue::LongString(text)) => Some(text.to_string()),
            _ => None,
        };
        let queue = cut(&header("queue").unwrap_or_default(), NAME_MAX);
        let (reason, cause) = if unrouted {
            ("unrouted".to_owned(), format!("no lane takes the routing key {routing_key:?}"))
        } else if header("reason").as_deref() == Some("delivery_limit") {
            (
                Reason::DeliveryLimit.name().to_owned(),
                format!("delivered too often from {queue} without an answer: it may stop its worker"),
            )
        } else if let Some(reason) = header("reason") {
            (cut(&reason, NAME_MAX), format!("RabbitMQ took it out of {queue}"))
        } else {
            ("unknown".to_owned(), "published here without a reason".to_owned())
        };
        // In the queue of unrouted messages, even `x-death` may be the sender's.
        let died_at = match death.as_ref().and_then(|death| death.inner().get("time")) {
            Some(AMQPValue::Timestamp(at)) if !unrouted => moment(*at),
            _ => None,
        };
        let wakeup = Wakeup::decode(&body, None).ok();
        let (body, cut) = body::kept(body);
        Self {
            id: id_of(&body, cut.as_deref(), routing_key, None),
            reason,
            cause: body::with_cut(cause, cut.as_deref()),
            attempts: 0,
            first_failed_at: died_at,
            died_at,
            worker: None,
            kind: wakeup.as_ref().map(|wakeup| wakeup.kind.to_owned()),
            subject: wakeup.as_ref().filter(|w| w.subjects.len() == 1).map(|w| w.subjects[0]),
            wakeup: wakeup.map(|wakeup| wakeup.id),
            routing_key: routing_key.to_owned(),
            headers: without_deaths(Some(headers)),
            body,
            cut,
        }
    }
}

/// An AMQP timestamp: whole seconds since 1970.
fn moment(seconds: u64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0).and_then(shown)
}

/// A moment in a year that every calendar library supports.
fn shown(at: DateTime<Utc>) -> Option<DateTime<Utc>> {
    (1..=9_999).contains(&at.year()).then_some(at)
}

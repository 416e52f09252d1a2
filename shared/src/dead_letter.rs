//! A dead letter: the original bytes and headers, with why it died. Written by the worker's settle, read by ops; what the
//! broker itself dead-lettered (too many deliveries) is read too. One subject a letter.

use chrono::{DateTime, Utc};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use uuid::Uuid;

use crate::{broker::Outgoing, task::Reason, topology::Topology, wakeup::PERSISTENT};

const REASON: &str = "kyhan-reason";
const CAUSE: &str = "kyhan-cause";
const ATTEMPTS: &str = "kyhan-attempts";
const KIND: &str = "kyhan-kind";
const SUBJECT: &str = "kyhan-subject";
const WAKEUP: &str = "kyhan-wakeup";
const ROUTING_KEY: &str = "kyhan-routing-key";
const HEADERS: &str = "kyhan-headers";
const HEADERS_DROPPED: &str = "kyhan-headers-dropped";

/// The namespace of dead letters' ids (UUID version 5).
const NAMESPACE: Uuid = Uuid::from_u128(0x6b79_6861_6e00_5000_8000_6465_6164_0000);
/// Longest cause that a header holds, in bytes.
const CAUSE_MAX: usize = 4 * 1024;
/// Most of the original headers that is kept, in bytes: a message's headers must fit into one frame (128 KiB), and a letter
/// that cannot be published would come back for ever.
const HEADERS_MAX: usize = 64 * 1024;
/// Longest routing key that AMQP allows, in bytes.
const ROUTING_KEY_MAX: usize = 255;

/// One dead letter.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Stable: the same failure of the same message has the same id.
    pub id: Uuid,
    /// A [`Reason`]'s name, or what the broker gave as its reason.
    pub reason: String,
    /// The chain of causes, outermost first.
    pub cause: String,
    pub attempts: u32,
    /// When it died, by the clock of the worker or broker that buried it; for people.
    pub died_at: Option<DateTime<Utc>>,
    pub kind: Option<String>,
    /// The subject it is about; `None` when the message could not be understood.
    pub subject: Option<Uuid>,
    /// The wake-up's id, where there was one.
    pub wakeup: Option<Uuid>,
    /// The routing key of the original message.
    pub routing_key: String,
    /// The original headers, without the broker's `x-…death` ones.
    pub headers: FieldTable,
    /// The original bytes.
    pub body: Vec<u8>,
}

/// What a letter is made of, besides the original message.
pub struct Death<'a> {
    pub reason: Reason,
    pub cause: &'a str,
    pub attempts: u32,
    pub kind: Option<&'a str>,
    pub subject: Option<Uuid>,
    pub wakeup: Option<Uuid>,
}

impl DeadLetter {
    /// The letter of a message that died.
    #[must_use]
    pub fn new(death: &Death<'_>, routing_key: &str, headers: Option<&FieldTable>, body: &[u8]) -> Self {
        let mut name = body.to_vec();
        name.extend_from_slice(death.subject.unwrap_or_default().as_bytes());
        name.extend_from_slice(&death.attempts.to_be_bytes());
        Self {
            id: Uuid::new_v5(&NAMESPACE, &name),
            reason: death.reason.name().to_owned(),
            cause: cut(death.cause, CAUSE_MAX),
            attempts: death.attempts,
            died_at: DateTime::from_timestamp(clock().timestamp(), 0),
            kind: death.kind.map(ToOwned::to_owned),
            subject: death.subject,
            wakeup: death.wakeup,
            routing_key: cut(routing_key, ROUTING_KEY_MAX),
            headers: without_deaths(headers),
            body: body.to_vec(),
        }
    }

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
        for (name, value) in
            [(KIND, self.kind), (SUBJECT, self.subject.map(|id| id.to_string())), (WAKEUP, self.wakeup.map(|id| id.to_string()))]
        {
            if let Some(value) = value {
                put(name, value);
            }
        }
        headers.insert(ATTEMPTS.into(), AMQPValue::LongLongInt(self.attempts.into()));
        let size = size_of_table(&self.headers);
        if size > HEADERS_MAX {
            headers.insert(HEADERS_DROPPED.into(), AMQPValue::LongLongInt(i64::try_from(size).unwrap_or(i64::MAX)));
        } else if !self.headers.inner().is_empty() {
            headers.insert(HEADERS.into(), AMQPValue::FieldTable(self.headers));
        }
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_message_id(self.id.to_string().into())
            .with_type("kyhan.dead-letter".into())
            .with_timestamp(self.died_at.and_then(|at| u64::try_from(at.timestamp()).ok()).unwrap_or_default())
            .with_headers(headers);
        Outgoing { exchange: topology.dead(), routing_key: self.routing_key, properties, body: self.body }
    }

    /// Reads a message of the dead-letter queue, or of the queue of `unrouted` ones. Every message is some letter.
    #[must_use]
    pub fn read(unrouted: bool, routing_key: &str, properties: &BasicProperties, body: Vec<u8>) -> Self {
        let empty = FieldTable::default();
        let headers = properties.headers().as_ref().unwrap_or(&empty);
        let text = |name: &str| match headers.inner().get(name) {
            Some(AMQPValue::LongString(text)) => Some(text.to_string()),
            _ => None,
        };
        let id = || text(SUBJECT).and_then(|id| id.parse().ok());
        // What the broker buried it has marked; its sender may have written anything else.
        match text(REASON).filter(|_| !headers.contains_key("x-death")) {
            Some(reason) => Self {
                id: properties.message_id().as_ref().and_then(|id| id.as_str().parse().ok()).unwrap_or_default(),
                reason,
                cause: text(CAUSE).unwrap_or_default(),
                attempts: match headers.inner().get(ATTEMPTS) {
                    Some(AMQPValue::LongLongInt(attempts)) => u32::try_from(*attempts).unwrap_or_default(),
                    _ => 0,
                },
                died_at: properties.timestamp().as_ref().and_then(|at| moment(*at)),
                kind: text(KIND),
                subject: id(),
                wakeup: text(WAKEUP).and_then(|id| id.parse().ok()),
                // Whoever wrote this header may have written more than AMQP can send again.
                routing_key: cut(&text(ROUTING_KEY).unwrap_or_default(), ROUTING_KEY_MAX),
                headers: match headers.inner().get(HEADERS) {
                    Some(AMQPValue::FieldTable(table)) => table.clone(),
                    _ => empty,
                },
                body,
            },
            None => Self::of_broker(unrouted, routing_key, headers, body),
        }
    }

    /// A message that the broker put here by itself: delivered too often, or sent where no lane is.
    fn of_broker(unrouted: bool, routing_key: &str, headers: &FieldTable, body: Vec<u8>) -> Self {
        let death = match headers.inner().get("x-death") {
            Some(AMQPValue::FieldArray(deaths)) => match deaths.as_slice().first() {
                Some(AMQPValue::FieldTable(death)) => Some(death.clone()),
                _ => None,
            },
            _ => None,
        };
        let told = |name: &str| match death.as_ref()?.inner().get(name) {
            Some(AMQPValue::LongString(text)) => Some(text.to_string()),
            _ => None,
        };
        let queue = told("queue").unwrap_or_default();
        let (reason, cause) = if unrouted {
            ("unrouted".to_owned(), format!("no lane takes the routing key {routing_key:?}"))
        } else if told("reason").as_deref() == Some("delivery_limit") {
            (
                Reason::DeliveryLimit.name().to_owned(),
                format!("delivered too often from {queue} without an answer: it may stop its worker"),
            )
        } else if let Some(reason) = told("reason") {
            (reason, format!("RabbitMQ took it out of {queue}"))
        } else {
            ("unknown".to_owned(), "somebody put it here without saying why".to_owned())
        };
        let died_at = match death.as_ref().and_then(|death| death.inner().get("time")) {
            Some(AMQPValue::Timestamp(at)) => moment(*at),
            _ => None,
        };
        let wakeup = crate::wakeup::Wakeup::decode(&body, None).ok();
        Self {
            id: Uuid::new_v5(&NAMESPACE, &body),
            reason,
            cause,
            attempts: wakeup.as_ref().map_or(0, |wakeup| wakeup.attempt),
            died_at,
            kind: wakeup.as_ref().map(|wakeup| wakeup.kind.to_owned()),
            subject: wakeup.as_ref().filter(|w| w.subjects.len() == 1).map(|w| w.subjects[0]),
            wakeup: wakeup.map(|wakeup| wakeup.id),
            routing_key: routing_key.to_owned(),
            headers: without_deaths(Some(headers)),
            body,
        }
    }
}

/// Headers without the broker's own record of dead-lettering, as republished with it a message is dropped as a cycle, and
/// without `CC` and `BCC`, by which a message would be routed to more queues than ours.
/// <https://www.rabbitmq.com/docs/sender-selected>
#[must_use]
pub fn without_deaths(headers: Option<&FieldTable>) -> FieldTable {
    let mut kept = FieldTable::default();
    for (name, value) in headers.into_iter().flat_map(FieldTable::inner) {
        let of_death = name.as_str() == "x-death"
            || name.as_str().starts_with("x-first-death-")
            || name.as_str().starts_with("x-last-death-")
            || ["CC", "BCC"].contains(&name.as_str());
        if !of_death {
            kept.insert(name.clone(), value.clone());
        }
    }
    kept
}

/// Whether headers leave room in a message's one frame for those that are added.
#[must_use]
pub fn fit_to_publish(headers: &FieldTable) -> bool {
    size_of_table(headers) <= HEADERS_MAX
}

/// How many bytes a table takes in a frame, a little too many.
fn size_of_table(table: &FieldTable) -> usize {
    table.inner().iter().map(|(name, value)| name.as_str().len() + 2 + size_of_value(value)).sum::<usize>() + 4
}

fn size_of_value(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::LongString(text) => text.len() + 4,
        AMQPValue::ShortString(text) => text.as_str().len() + 1,
        AMQPValue::ByteArray(bytes) => bytes.len() + 4,
        AMQPValue::FieldArray(values) => 4 + values.as_slice().iter().map(|value| 1 + size_of_value(value)).sum::<usize>(),
        AMQPValue::FieldTable(table) => size_of_table(table),
        _ => 8,
    }
}

/// An AMQP timestamp: whole seconds since 1970.
fn moment(seconds: u64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0)
}

#[expect(clippy::disallowed_methods, reason = "shown to people; nothing is decided by it")]
fn clock() -> DateTime<Utc> {
    std::time::SystemTime::now().into()
}

/// The beginning of a text, at most `most` bytes.
fn cut(text: &str, most: usize) -> String {
    text[..text.floor_char_boundary(most)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    fn death() -> Death<'static> {
        Death {
            reason: Reason::AttemptsExhausted,
            cause: "Execution Error: new row violates a check",
            attempts: 6,
            kind: Some("confirm-receipt"),
            subject: Some(Uuid::from_u128(7)),
            wakeup: Some(Uuid::from_u128(8)),
        }
    }

    fn headers(entries: &[(&str, &str)]) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert((*name).into(), AMQPValue::LongString((*value).into()));
        }
        table
    }

    fn sent(letter: DeadLetter) -> DeadLetter {
        let topology = Topology::new("kyhan", 1, &[], &Policy::default());
        let message = letter.message(&topology);
        DeadLetter::read(false, &message.routing_key, &message.properties, message.body)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let letter = DeadLetter::new(&death(), "confirm-receipt.0", Some(&headers(&[("traceparent", "00-…")])), b"bytes \xff");
        assert_eq!(sent(letter.clone()), letter);
    }

    #[test]
    fn the_brokers_record_of_dead_lettering_is_stripped() {
        let hostile =
            headers(&[("x-death", "…"), ("CC", "q"), ("x-first-death-queue", "q"), ("x-last-death-reason", "r"), ("mine", "1")]);
        assert_eq!(without_deaths(Some(&hostile)), headers(&[("mine", "1")]));
    }

    #[test]
    fn no_cause_and_no_headers_are_too_long_to_be_published() {
        let long = "ă".repeat(100_000);
        let letter = DeadLetter::new(&Death { cause: &long, ..death() }, &long, Some(&headers(&[("hostile", &long)])), b"");
        assert!(letter.cause.len() <= CAUSE_MAX && letter.routing_key.len() <= ROUTING_KEY_MAX);
        let read = sent(letter);
        assert!(read.headers.inner().is_empty());
        assert_eq!(read.subject, Some(Uuid::from_u128(7)));
    }

    #[test]
    fn a_forged_routing_key_can_be_sent_again() {
        let mut forged = headers(&[(REASON, "malformed")]);
        forged.insert(ROUTING_KEY.into(), AMQPValue::LongString("x".repeat(1_000).into()));
        let letter = DeadLetter::read(false, "", &BasicProperties::default().with_headers(forged), vec![]);
        assert_eq!(letter.routing_key.len(), ROUTING_KEY_MAX);
    }

    #[test]
    fn what_the_broker_put_there_by_itself_is_a_letter_too() {
        for (unrouted, reason) in [(true, "unrouted"), (false, "unknown")] {
            let letter = DeadLetter::read(unrouted, "make-coffee.0", &BasicProperties::default(), b"?".to_vec());
            assert_eq!((letter.reason.as_str(), letter.subject), (reason, None));
        }
    }
}

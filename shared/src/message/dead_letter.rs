//! A dead letter: the original bytes and headers, with why the message died. The worker's settle writes it, and the worker
//! that stores it reads it; messages that the broker itself dead-lettered (too many deliveries) are read too. Every message
//! can be read as a letter, and has the same id each time.

use chrono::{DateTime, Utc};
use lapin::types::{AMQPValue, FieldTable};
use sha1::{Digest, Sha1};
use uuid::Uuid;

use crate::{domain::outcome::Reason, message::wakeup::Wakeup};

mod body;
mod cause;
mod headers;
mod wire;

pub use body::WHOLE_MAX;
pub use cause::{GROUP_MAX, cause_group};
pub use headers::{fit_to_publish, headers_from_json, headers_to_json, memory_of, without_deaths};

/// The namespace of dead letters' ids (UUID version 5).
const NAMESPACE: Uuid = Uuid::from_u128(0x6b79_6861_6e00_5000_8000_6465_6164_0000);
/// Longest cause that is kept, in bytes.
const CAUSE_MAX: usize = 4 * 1024;
/// Longest routing key that AMQP allows, in bytes; other names have the same limit.
const NAME_MAX: usize = 255;

/// One dead letter.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Stable: the same failure of the same message has the same id. It is computed from the letter's content and never taken
    /// from a message, so that a forged id cannot merge two letters.
    pub id: Uuid,
    /// A [`Reason`]'s name, or the reason that the broker gave.
    pub reason: String,
    /// The chain of causes, outermost first.
    pub cause: String,
    pub attempts: u32,
    /// When it first failed, by the clock of the worker that tried; informational.
    pub first_failed_at: Option<DateTime<Utc>>,
    /// When it died, by the clock of the worker or broker that dead-lettered it; informational.
    pub died_at: Option<DateTime<Utc>>,
    /// The worker that gave up, as host and pid; `None` if the broker did.
    pub worker: Option<String>,
    pub kind: Option<String>,
    /// The subject it is about; `None` if the message could not be decoded, or names several.
    pub subject: Option<Uuid>,
    /// The wake-up's id, if there was one.
    pub wakeup: Option<Uuid>,
    /// The routing key of the original message.
    pub routing_key: String,
    /// The original headers, without the broker's `x-…death` ones.
    pub headers: FieldTable,
    /// The original bytes, or the first of them.
    pub body: Vec<u8>,
    /// The length and the hash of the original body, if it was longer than [`WHOLE_MAX`] and was cut.
    pub cut: Option<String>,
}

/// What a letter contains besides the original message.
pub struct Death<'a> {
    pub reason: Reason,
    pub cause: &'a str,
    pub attempts: u32,
    pub kind: Option<&'a str>,
    pub subject: Option<Uuid>,
    pub wakeup: Option<Uuid>,
    pub worker: Option<&'a str>,
    pub first_failed_at: Option<DateTime<Utc>>,
}

impl DeadLetter {
    /// The letter of a message that died.
    #[must_use]
    pub fn new(death: &Death<'_>, routing_key: &str, headers: Option<&FieldTable>, body: &[u8]) -> Self {
        let routing_key = cut(routing_key, NAME_MAX);
        let (body, body_cut) = body::copied(body);
        Self {
            id: id_of(&body, body_cut.as_deref(), &routing_key, Some((death.subject, death.attempts))),
            reason: death.reason.name().to_owned(),
            cause: cut(death.cause, CAUSE_MAX),
            attempts: death.attempts,
            first_failed_at: death.first_failed_at,
            died_at: Some(clock()),
            worker: death.worker.map(|worker| cut(worker, NAME_MAX)),
            kind: death.kind.map(ToOwned::to_owned),
            subject: death.subject,
            wakeup: death.wakeup,
            routing_key,
            headers: without_deaths(headers),
            body,
            cut: body_cut,
        }
    }

    /// The rows that it becomes in the store: a letter's id and subject for each subject. A packed wake-up that the broker
    /// dead-lettered becomes a row for each subject; a message that could not be decoded becomes one row without a subject.
    #[must_use]
    pub fn subjects(&self) -> Vec<(Uuid, Option<Uuid>)> {
        let packed = || Wakeup::decode(&self.body, None).map_or_else(|_| Vec::new(), |wakeup| wakeup.subjects);
        match (self.subject, &self.kind) {
            (None, Some(_)) => match packed().as_slice() {
                [] => vec![(self.id, None)],
                [only] => vec![(self.id, Some(*only))],
                several => several.iter().map(|subject| (Uuid::new_v5(&self.id, subject.as_bytes()), Some(*subject))).collect(),
            },
            (subject, _) => vec![(self.id, subject)],
        }
    }

    /// The trace in which the original message was sent, as 32 hexadecimal digits.
    /// <https://www.w3.org/TR/trace-context/#traceparent-header>
    #[must_use]
    pub fn trace_id(&self) -> Option<String> {
        let Some(AMQPValue::LongString(parent)) = self.headers.inner().get("traceparent") else { return None };
        let id = std::str::from_utf8(parent.as_bytes()).ok()?.split('-').nth(1)?;
        let sound = id.len() == 32 && id.bytes().all(|digit| digit.is_ascii_hexdigit()) && id.bytes().any(|digit| digit != b'0');
        sound.then(|| id.to_ascii_lowercase())
    }
}

/// The id of a letter: a hash of its bytes, what was `cut` from them, its routing key and, if a worker gave up, its subject and attempts.
fn id_of(body: &[u8], cut: Option<&str>, routing_key: &str, given_up: Option<(Option<Uuid>, u32)>) -> Uuid {
    let mut name = Sha1::new_with_prefix(NAMESPACE.as_bytes());
    // The same first failure may be recorded twice with different moments, and must still give one id.
    match Wakeup::decode(body, None) {
        Ok(wakeup) if wakeup.failed_at.is_some() => name.update(Wakeup { failed_at: None, ..wakeup }.body()),
        _ => name.update(body),
    }
    name.update(cut.unwrap_or_default().as_bytes());
    name.update(routing_key.as_bytes());
    if let Some((subject, attempts)) = given_up {
        name.update(subject.unwrap_or_default().as_bytes());
        name.update(attempts.to_be_bytes());
    }
    let mut beginning = [0; 16];
    beginning.copy_from_slice(&name.finalize()[..16]);
    uuid::Builder::from_sha1_bytes(beginning).into_uuid()
}

/// This machine's clock, to the second: informational, no decision depends on it.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "shown to people; no decision depends on it")]
pub fn clock() -> DateTime<Utc> {
    let now: DateTime<Utc> = std::time::SystemTime::now().into();
    DateTime::from_timestamp(now.timestamp(), 0).unwrap_or_default()
}

/// A text, cut to at most `most` bytes.
fn cut(text: &str, most: usize) -> String {
    text[..text.floor_char_boundary(most)].to_owned()
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;

    use super::*;
    use crate::{
        domain::policy::Policy,
        message::{outgoing::Outgoing, pack, topology::Topology, wakeup::TraceContext},
    };

    fn death() -> Death<'static> {
        Death {
            reason: Reason::AttemptsExhausted,
            cause: "Execution Error: new row violates a check",
            attempts: 6,
            kind: Some("confirm-receipt"),
            subject: Some(Uuid::from_u128(7)),
            wakeup: Some(Uuid::from_u128(8)),
            worker: Some("host/17"),
            first_failed_at: Some("2026-11-24T05:06:07Z".parse().unwrap()),
        }
    }

    fn headers(entries: &[(&str, &str)]) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert((*name).into(), AMQPValue::LongString((*value).into()));
        }
        table
    }

    fn topology() -> Topology {
        Topology::new("kyhan", 1, &[], &Policy::default())
    }

    fn sent(letter: DeadLetter) -> DeadLetter {
        let message = letter.message(&topology());
        DeadLetter::read(false, &message.routing_key, &message.properties, message.body)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let letter = DeadLetter::new(&death(), "confirm-receipt.0", Some(&headers(&[("traceparent", "00-…")])), b"bytes \xff");
        assert_eq!(sent(letter.clone()), letter);
    }

    #[test]
    fn no_cause_and_no_headers_are_too_long_to_be_published() {
        let long = "ă".repeat(100_000);
        let letter = DeadLetter::new(&Death { cause: &long, ..death() }, &long, Some(&headers(&[("hostile", &long)])), b"");
        assert!(letter.cause.len() <= CAUSE_MAX && letter.routing_key.len() <= NAME_MAX);
        let read = sent(letter);
        assert!(read.headers.inner().is_empty() && read.cause.ends_with("were too many to be kept"), "{}", read.cause);
        assert_eq!(read.subject, Some(Uuid::from_u128(7)));
    }

    #[test]
    fn a_forged_routing_key_can_be_sent_again() {
        let mut forged = headers(&[("kyhan-reason", "malformed")]);
        forged.insert("kyhan-routing-key".into(), AMQPValue::LongString("x".repeat(1_000).into()));
        let letter = DeadLetter::read(false, "", &BasicProperties::default().with_headers(forged), vec![]);
        assert_eq!(letter.routing_key.len(), NAME_MAX);
    }

    #[test]
    fn what_the_broker_put_there_by_itself_is_a_letter_too() {
        for (unrouted, reason) in [(true, "unrouted"), (false, "unknown")] {
            let letter = DeadLetter::read(unrouted, "make-coffee.0", &BasicProperties::default(), b"?".to_vec());
            assert_eq!((letter.reason.as_str(), letter.subject), (reason, None));
        }
    }

    /// A wake-up with this many subjects, as it is sent.
    fn wakeup(subjects: u128) -> Outgoing {
        let due_at = "2026-01-01T00:00:00Z".parse().unwrap();
        let waiting = (1..=subjects).map(|n| pack::WaitingSubject {
            kind: "confirm-receipt",
            subject: Uuid::from_u128(n),
            due_at,
            wait: chrono::TimeDelta::zero(),
            attempt: 0,
        });
        let packed = pack::pack(waiting, topology().ladder(), 1, 1_000, &TraceContext::default());
        Outgoing::of(&packed[0], &topology())
    }

    #[test]
    fn what_was_packed_is_one_for_each_subject_and_one_alone_keeps_the_letters_id() {
        let letter = |count| {
            let message = wakeup(count);
            DeadLetter::read(true, &message.routing_key, &message.properties, message.body)
        };
        let (one, three) = (letter(1), letter(3));
        assert_eq!(one.subjects(), [(one.id, Some(Uuid::from_u128(1)))]);
        assert_eq!(three.subject, None);
        let ids: std::collections::BTreeSet<Uuid> = three.subjects().iter().map(|(id, _)| *id).collect();
        assert_eq!((ids.len(), ids.contains(&three.id)), (3, false));
        assert_eq!(three.subjects()[1].1, Some(Uuid::from_u128(2)));
        assert_eq!(letter(3).subjects(), three.subjects(), "the same whenever it is read");
        let garbage = DeadLetter::read(false, "k", &BasicProperties::default(), b"?".to_vec());
        assert_eq!(garbage.subjects(), [(garbage.id, None)]);
    }

    #[test]
    fn no_message_id_makes_one_letter_of_two() {
        let read = |id: &str, key: &str, body: &[u8], reason: Option<&str>| {
            let entries: Vec<_> = reason.iter().map(|reason| ("kyhan-reason", *reason)).collect();
            let properties = BasicProperties::default().with_message_id(id.into()).with_headers(headers(&entries));
            DeadLetter::read(false, key, &properties, body.to_vec()).id
        };
        let forged = Uuid::from_u128(7).to_string();
        for reason in [None, Some("malformed")] {
            for id in ["", "nonsense", &Uuid::nil().to_string(), &forged] {
                assert_ne!(read(id, "k", b"one", reason), read(id, "k", b"two", reason), "{id} {reason:?}");
                assert_eq!(read(id, "k", b"one", reason), read("other", "k", b"one", reason));
            }
        }
        assert_ne!(read("", "k", b"one", None), read("", "elsewhere", b"one", None));
    }

    #[test]
    fn a_first_failure_published_twice_is_one_letter() {
        let wakeup = Wakeup::decode(&wakeup(1).body, None).unwrap();
        let letter = |failed_at: Option<&str>| {
            let body = Wakeup { failed_at: failed_at.map(|at| at.parse().unwrap()), ..wakeup.clone() }.body();
            DeadLetter::new(&death(), "confirm-receipt.0", None, &body)
        };
        let ids = [None, Some("2026-11-24T05:06:07Z"), Some("2026-11-24T05:06:08Z")].map(|at| letter(at).id);
        assert_eq!((ids[0], ids[1]), (ids[1], ids[2]));
        let again = DeadLetter::new(&Death { attempts: 7, ..death() }, "confirm-receipt.0", None, &letter(None).body);
        assert_ne!(again.id, ids[0]);
    }

    #[test]
    fn the_trace_is_that_of_the_original_message() {
        let traced = |parent: &str| DeadLetter::new(&death(), "k", Some(&headers(&[("traceparent", parent)])), b"").trace_id();
        let id = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(traced(&format!("00-{id}-b7ad6b7169203331-01")).as_deref(), Some(id));
        for nonsense in ["", "00", "00-xyz-b7ad6b7169203331-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01"] {
            assert_eq!(traced(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn a_moment_of_no_year_is_none() {
        let mut forged = headers(&[("kyhan-reason", "x"), ("kyhan-first-failed-at", "-0044-03-15T12:00:00Z")]);
        forged.insert("kyhan-attempts".into(), AMQPValue::LongLongInt(i64::MAX));
        let properties = BasicProperties::default().with_timestamp(u64::MAX / 3).with_headers(forged);
        let letter = DeadLetter::read(false, "k", &properties, vec![]);
        assert_eq!((letter.first_failed_at, letter.died_at, letter.attempts), (None, None, 0));
    }
}

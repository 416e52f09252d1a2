//! The wake-up: a message that names subjects to recheck, and carries no data about them, only ids, times and counters. A
//! message that cannot be decoded is refused with a reason; decoding never panics and allocates no more than the message's
//! size.
//!
//! Producers and workers are upgraded in any order. A wake-up is written in the oldest format that can express it, every
//! format up to [`VERSION`] is read, and a message of a later format is distinguished from a malformed one, so that it can
//! wait for a newer worker.

use chrono::{DateTime, TimeDelta, Utc};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, SeqAccess, Visitor},
};
use uuid::Uuid;

use crate::domain::tasks;

/// The newest format that this build reads, field `v` on the wire: 1, and 2 with `rest_ms`.
pub const VERSION: u32 = 2;
/// The format without `rest_ms`.
const VERSION_WITHOUT_REST: u32 = 1;
/// Longest rest of a pause that is accepted: RabbitMQ's maximum TTL.
const REST_MAX_MS: u64 = 3_650 * 86_400_000;
/// Most subjects that one wake-up may name.
pub const SUBJECTS_MAX: usize = 1_000;
/// Longest body of a wake-up, in bytes: [`SUBJECTS_MAX`] subjects and everything else.
pub const BODY_MAX: usize = 64 * 1024;
/// The same for a later format, which may need more, and for every message of the fleet: RabbitMQ's `max_message_size`, as
/// documented.
pub const MESSAGE_MAX: usize = 256 * 1024;
/// A subject in a body, with its quotes and comma.
const SUBJECT_LEN: usize = 39;
/// Room for everything else in a body.
const BODY_ROOM: usize = 256;
/// The content type of a wake-up.
pub const CONTENT_TYPE: &str = "application/json";
/// The AMQP `type` property of a wake-up.
pub const MESSAGE_TYPE: &str = "kyhan.wakeup";

/// A wake-up for one or more subjects of one kind and shard that fall due together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wakeup {
    /// Stable: the same wake-up, created again, has the same id (see [`crate::message::pack`]).
    pub id: Uuid,
    /// A kind of [`tasks::ALL`].
    pub kind: &'static str,
    /// Each subject once.
    pub subjects: Vec<Uuid>,
    /// When its latest subject falls due, as its sender saw it. Only the recheck decides.
    pub due_at: DateTime<Utc>,
    /// Failures so far.
    pub attempt: u32,
    /// How much of the pause before the next attempt is left when it arrives; zero except for retries.
    pub rest: TimeDelta,
    /// When it first failed, by the clock of the worker that tried; informational. `None` if it has not failed since it was
    /// last found not to be due.
    pub failed_at: Option<DateTime<Utc>>,
    pub trace: TraceContext,
}

/// W3C trace context, as it travels in a message's headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
}

/// Why a message is not a wake-up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the body has {0} bytes, more than {BODY_MAX}")]
    TooLong(usize),
    #[error("the body is not a wake-up: {0}")]
    NotAWakeup(String),
    #[error("there is no format version 0")]
    NoVersion,
    /// Of a later format: not malformed, but for a newer worker.
    #[error("format version {0} is later than this program supports ({VERSION})")]
    Future(u32),
    #[error("it would wait for {0} ms more, longer than {REST_MAX_MS}")]
    Rest(u64),
    #[error("unknown task {0:?}")]
    Kind(String),
    #[error("it names no subject")]
    NoSubjects,
    #[error("it names {0} subjects, more than {SUBJECTS_MAX}")]
    TooManySubjects(usize),
    #[error("it is a wake-up of {kind}, but arrived in the lane of {lane}")]
    WrongLane { kind: &'static str, lane: &'static str },
}

#[derive(Serialize)]
struct WrittenWakeup<'a> {
    v: u32,
    id: Uuid,
    kind: &'a str,
    due_at: DateTime<Utc>,
    attempt: u32,
    #[serde(skip_serializing_if = "is_zero")]
    rest_ms: u64,
    /// It needs no new format: a build that does not support it ignores it.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed_at: Option<DateTime<Utc>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Deserialize)]
struct Incoming<'a> {
    id: Uuid,
    #[serde(borrow)]
    kind: std::borrow::Cow<'a, str>,
    due_at: DateTime<Utc>,
    #[serde(deserialize_with = "number")]
    attempt: u32,
    /// Since version 2.
    #[serde(default, deserialize_with = "number")]
    rest_ms: u64,
    #[serde(default)]
    failed_at: Option<DateTime<Utc>>,
    #[serde(deserialize_with = "subjects")]
    subjects: Vec<Uuid>,
}

/// Reads a number. It accepts any value, because serde_json would quote a string of the wrong type in its error: escaped, the
/// string can be 24 times as long as the message, and text from outside must not reach the logs.
fn number<'de, N: TryFrom<u64>, D: Deserializer<'de>>(from: D) -> Result<N, D::Error> {
    struct Number;
    impl Visitor<'_> for Number {
        type Value = u64;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a number")
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<u64, E> {
            Ok(number)
        }

        fn visit_str<E: Error>(self, _: &str) -> Result<u64, E> {
            Err(E::custom("a text where a number should be"))
        }
    }
    N::try_from(from.deserialize_any(Number)?).map_err(|_| D::Error::custom("a number that is too large"))
}

/// Reads ids. Strings in their place are not quoted either.
fn subjects<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Uuid>, D::Error> {
    struct Subjects;
    impl<'de> Visitor<'de> for Subjects {
        type Value = Vec<Uuid>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list of ids")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut ids: A) -> Result<Vec<Uuid>, A::Error> {
            let mut subjects = Vec::new();
            while let Some(id) = ids.next_element()? {
                subjects.push(id);
            }
            Ok(subjects)
        }

        fn visit_str<E: Error>(self, _: &str) -> Result<Vec<Uuid>, E> {
            Err(E::custom("a text where a list of ids should be"))
        }
    }
    from.deserialize_any(Subjects)
}

impl Wakeup {
    /// The body of its message.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        let rest_ms = u64::try_from(self.rest.num_milliseconds()).unwrap_or_default();
        let wire = WrittenWakeup {
            // The oldest format that can express it: a worker not yet upgraded reads all but paused retries.
            v: if rest_ms == 0 { VERSION_WITHOUT_REST } else { VERSION },
            id: self.id,
            kind: self.kind,
            due_at: self.due_at,
            attempt: self.attempt,
            rest_ms,
            failed_at: self.failed_at,
        };
        let mut body = Vec::with_capacity(BODY_ROOM + self.subjects.len() * SUBJECT_LEN);
        if serde_json::to_writer(&mut body, &wire).is_err() {
            return Vec::new();
        }
        // The subjects are written by hand: an id needs no escaping, and searching for characters to escape takes longer than
        // all the rest.
        body.pop();
        body.extend_from_slice(br#","subjects":["#);
        let mut text = Uuid::encode_buffer();
        for (at, subject) in self.subjects.iter().enumerate() {
            body.extend_from_slice(if at == 0 { b"\"" } else { b",\"" });
            body.extend_from_slice(subject.hyphenated().encode_lower(&mut text).as_bytes());
            body.push(b'"');
        }
        body.extend_from_slice(b"]}");
        body
    }

    /// The AMQP properties of its message: persistent, identified, traced.
    #[must_use]
    pub fn properties(&self) -> BasicProperties {
        let mut headers = FieldTable::default();
        for (name, value) in [("traceparent", &self.trace.traceparent), ("tracestate", &self.trace.tracestate)] {
            if let Some(value) = value {
                headers.insert(name.into(), AMQPValue::LongString(value.as_str().into()));
            }
        }
        BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type(CONTENT_TYPE.into())
            .with_type(MESSAGE_TYPE.into())
            .with_message_id(self.id.to_string().into())
            .with_headers(headers)
    }

    /// Decodes a message.
    ///
    /// # Errors
    /// [`Malformed`], with what is wrong. A subject named twice counts once and is not an error.
    pub fn decode(body: &[u8], headers: Option<&FieldTable>) -> Result<Self, Malformed> {
        #[derive(Deserialize)]
        struct Versioned {
            #[serde(deserialize_with = "number")]
            v: u32,
        }

        if body.len() > MESSAGE_MAX {
            return Err(Malformed::TooLong(body.len()));
        }
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(Malformed::NotAWakeup("it is not a JSON object".to_owned()));
        }
        let not_a_wakeup = |error: serde_json::Error| Malformed::NotAWakeup(error.to_string());
        let Versioned { v } = serde_json::from_slice(body).map_err(not_a_wakeup)?;
        if v <= VERSION && body.len() > BODY_MAX {
            return Err(Malformed::TooLong(body.len()));
        }
        match v {
            0 => return Err(Malformed::NoVersion),
            1..=VERSION => {}
            _ => return Err(Malformed::Future(v)),
        }
        let wire: Incoming<'_> = serde_json::from_slice(body).map_err(not_a_wakeup)?;
        let kind = tasks::find(&wire.kind).ok_or_else(|| Malformed::Kind(shown(&wire.kind)))?.kind();
        if wire.rest_ms > REST_MAX_MS {
            return Err(Malformed::Rest(wire.rest_ms));
        }
        // Version 1 has no such field, and ignores unknown ones.
        let rest = if v == VERSION_WITHOUT_REST { 0 } else { i64::try_from(wire.rest_ms).unwrap_or_default() };
        let mut subjects = wire.subjects;
        if subjects.is_empty() {
            return Err(Malformed::NoSubjects);
        }
        if subjects.len() > SUBJECTS_MAX {
            return Err(Malformed::TooManySubjects(subjects.len()));
        }
        subjects.sort_unstable();
        subjects.dedup();
        Ok(Self {
            id: wire.id,
            kind,
            subjects,
            due_at: wire.due_at,
            attempt: wire.attempt,
            rest: TimeDelta::milliseconds(rest),
            failed_at: wire.failed_at,
            trace: trace_context(headers),
        })
    }
}

/// AMQP `delivery-mode` 2: written to disk before it is confirmed.
pub const PERSISTENT: u8 = 2;

/// A name from outside, short enough for a log line or a header.
fn shown(name: &str) -> String {
    name.chars().take(80).collect()
}

fn trace_context(headers: Option<&FieldTable>) -> TraceContext {
    let text = |name: &str| match headers?.inner().get(name)? {
        AMQPValue::LongString(value) => std::str::from_utf8(value.as_bytes()).ok().map(shown_trace),
        _ => None,
    };
    TraceContext { traceparent: text("traceparent"), tracestate: text("tracestate") }
}

/// W3C Trace Context recommends propagating at least 512 characters of `tracestate`.
fn shown_trace(value: &str) -> String {
    value.chars().take(512).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Wakeup {
        Wakeup {
            id: Uuid::from_u128(1),
            kind: "confirm-receipt",
            subjects: vec![Uuid::from_u128(2), Uuid::from_u128(3)],
            due_at: "2026-11-24T05:06:07.000008Z".parse().unwrap(),
            attempt: 0,
            rest: TimeDelta::zero(),
            failed_at: None,
            trace: TraceContext::default(),
        }
    }

    #[test]
    fn the_body_on_the_wire_is_pinned() {
        assert_eq!(
            String::from_utf8(sample().body()).unwrap(),
            r#"{"v":1,"id":"00000000-0000-0000-0000-000000000001","kind":"confirm-receipt","due_at":"2026-11-24T05:06:07.000008Z","attempt":0,"subjects":["00000000-0000-0000-0000-000000000002","00000000-0000-0000-0000-000000000003"]}"#
        );
    }

    #[test]
    fn a_wakeup_is_written_in_the_oldest_format_that_says_it_and_each_format_is_read() {
        let paused = Wakeup { attempt: 2, rest: TimeDelta::milliseconds(2_500), ..sample() };
        let body = String::from_utf8(paused.body()).unwrap();
        assert!(body.starts_with(r#"{"v":2,"#) && body.contains(r#""attempt":2,"rest_ms":2500,"subjects""#), "{body}");
        assert_eq!(Wakeup::decode(body.as_bytes(), None), Ok(paused));
        assert!(sample().body().starts_with(br#"{"v":1,"#));
        let same = String::from_utf8(sample().body()).unwrap().replace("\"v\":1", "\"v\":2");
        assert_eq!(Wakeup::decode(same.as_bytes(), None), Ok(sample()));
    }

    #[test]
    fn the_first_failure_travels_in_either_format_and_who_does_not_know_it_passes_over_it() {
        let failed_at = Some("2026-11-24T05:06:07Z".parse().unwrap());
        for rest in [TimeDelta::zero(), TimeDelta::milliseconds(2_500)] {
            let failed = Wakeup { attempt: 2, rest, failed_at, ..sample() };
            let body = String::from_utf8(failed.body()).unwrap();
            assert!(body.contains(r#""failed_at":"2026-11-24T05:06:07Z","subjects""#), "{body}");
            assert_eq!(Wakeup::decode(body.as_bytes(), None), Ok(failed.clone()));
            // As an older worker reads it: without the field.
            let without = body.replace(r#","failed_at":"2026-11-24T05:06:07Z""#, "");
            assert_eq!(Wakeup::decode(without.as_bytes(), None), Ok(Wakeup { failed_at: None, ..failed }));
        }
    }

    #[test]
    fn what_is_written_is_read_again_with_its_trace() {
        let mut wakeup = sample();
        wakeup.trace.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
        let properties = wakeup.properties();
        assert_eq!(Wakeup::decode(&wakeup.body(), properties.headers().as_ref()), Ok(wakeup));
    }

    #[test]
    fn a_due_date_of_any_year_is_read_again() {
        for due_at in ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "+10009-12-31T00:00:00Z"] {
            let wakeup = Wakeup { due_at: due_at.parse().unwrap(), ..sample() };
            assert_eq!(Wakeup::decode(&wakeup.body(), None), Ok(wakeup), "{due_at}");
        }
    }

    #[test]
    fn the_longest_wakeup_fits() {
        let subjects = (0..SUBJECTS_MAX as u128).map(Uuid::from_u128).collect();
        let latest = DateTime::<Utc>::MAX_UTC;
        let wakeup = Wakeup { subjects, attempt: u32::MAX, due_at: latest, failed_at: Some(latest), ..sample() };
        assert!(wakeup.body().len() < BODY_MAX);
    }

    #[test]
    fn every_malformed_message_is_refused_with_its_reason() {
        let with = |from: &str, to: &str| String::from_utf8(sample().body()).unwrap().replace(from, to);
        let subjects = |count: usize| {
            let subjects = vec![format!("{:?}", Uuid::from_u128(7).to_string()); count].join(",");
            with(r#""00000000-0000-0000-0000-000000000002","00000000-0000-0000-0000-000000000003""#, &subjects)
        };
        let refused = |body: &str| Wakeup::decode(body.as_bytes(), None).unwrap_err();
        assert!(matches!(refused("hello"), Malformed::NotAWakeup(_)));
        assert!(matches!(refused("{}"), Malformed::NotAWakeup(_)));
        assert!(matches!(refused("[[[[[["), Malformed::NotAWakeup(_)));
        assert!(matches!(refused(&with("000000000002", "zz")), Malformed::NotAWakeup(_)));
        assert!(matches!(refused(&with("2026-11", "2026-99")), Malformed::NotAWakeup(_)));
        // Text from outside is not repeated.
        for (from, to) in
            [("\"v\":1", "\"v\":\"private\""), ("\"attempt\":0", "\"attempt\":\"private\""), ("[\"", "\"private\",\"x\":[\"")]
        {
            let said = refused(&with(from, to)).to_string();
            assert!(said.contains("a text where") && !said.contains("private"), "{said}");
        }
        assert!(!refused("\"private\"").to_string().contains("private"));
        assert_eq!(refused(r#"{"v":3,"whatever":{}}"#), Malformed::Future(3));
        assert_eq!(refused(r#"{"v":0}"#), Malformed::NoVersion);
        assert!(matches!(refused(r#"{"v":-1}"#), Malformed::NotAWakeup(_)));
        assert_eq!(refused(&with(r#""v":1"#, r#""v":2,"rest_ms":18446744073709551615"#)), Malformed::Rest(u64::MAX));
        assert_eq!(refused(&with("confirm-receipt", "make-coffee")), Malformed::Kind("make-coffee".into()));
        assert_eq!(refused(&subjects(0)), Malformed::NoSubjects);
        assert_eq!(refused(&subjects(1_001)), Malformed::TooManySubjects(1_001));
        assert!(matches!(refused(&subjects(100_000)), Malformed::TooLong(_)));
        assert_eq!(Wakeup::decode(subjects(3).as_bytes(), None).unwrap().subjects.len(), 1, "the same subject counts once");
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(body in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = Wakeup::decode(&body, None);
        }
    }
}

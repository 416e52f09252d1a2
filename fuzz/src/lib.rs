//! The claims about input from outside, for any bytes: no panic, memory bounded by the message's size, and what was decoded can be encoded
//! again. A claim that does not hold panics.
//!
//! libFuzzer calls them (`fuzz_targets/`), and so does an ordinary test (`tests/fuzz/`), which includes this file.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, parsing::parse_field_table},
};
use peak_alloc::PeakAlloc;
use producer::schedule;
use shared::{
    domain::{
        event::{Event, EventType},
        outcome::Reason,
        policy::{Policy, PolicyLine},
    },
    message::{
        canary::Canary,
        dead_letter::{DeadLetter, Death, GROUP_MAX, cause_group, headers_from_json, headers_to_json},
        topology::Topology,
        wakeup::{BODY_MAX, SUBJECTS_MAX, TraceContext, Wakeup},
    },
};
use uuid::Uuid;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Separates the parts of a message in an input. None of our texts contains it, because JSON forbids control characters.
const SEPARATOR: u8 = 0x1e;
/// The longest frame that RabbitMQ and lapin agree on, in bytes. A message's properties must fit into one.
const FRAME_MAX: usize = 128 * 1024;
/// Room in a frame for everything except the table of headers, and for what a letter adds to the table: names, ids and numbers.
const FRAME_ROOM: usize = 1024;

/// Most memory for a decoded message: a multiple of its size, plus a constant. While a vector grows, its old and its new buffer coexist.
const UNDERSTOOD: (usize, usize) = (2, 1024);
/// Most memory for a refused message: an error quotes at most the beginning of a name, escaped.
const REFUSED: (usize, usize) = (2, 4096);
/// Most memory for a refused canary. Its error may quote the whole body, escaped, and the quote is copied while it grows.
const REFUSED_CANARY: (usize, usize) = (2, 48 * 1024);
/// Most memory for a letter: what it keeps, and several passes over the original message.
const LETTER: (usize, usize) = (4, 8192);

/// The type of the claims.
pub type Claim = fn(&[u8]);

/// The claims by name. Each has a file in `fuzz_targets/` and a folder in `seeds/`.
#[must_use]
pub fn claims() -> BTreeMap<&'static str, Claim> {
    BTreeMap::from([
        ("wakeup_decode", wakeup_decode as Claim),
        ("event_parse", event_parse),
        ("dead_letter_read", dead_letter_read),
    ])
}

/// Decodes a message as a wake-up and as a canary. The input is a body, a separator, and a table of headers in wire format. A decoded
/// wake-up is encoded and decodes to the same wake-up again.
pub fn wakeup_decode(input: &[u8]) {
    let (body, rest) = parted(input);
    let headers = table(rest);
    let size = body.len() + headers.as_ref().map_or(0, size_of_table);
    let (decoded, used) = measured(|| Wakeup::decode(body, headers.as_ref()));
    within(if decoded.is_ok() { UNDERSTOOD } else { REFUSED }, size, used);
    let (canary, used) = measured(|| Canary::decode(body));
    within(if canary.is_ok() { UNDERSTOOD } else { REFUSED_CANARY }, size, used);
    let Ok(wakeup) = decoded else { return };
    assert!(body.len() <= BODY_MAX && (1..=SUBJECTS_MAX).contains(&wakeup.subjects.len()));
    let (body, properties) = (wakeup.body(), wakeup.properties());
    assert!(body.len() <= BODY_MAX, "{} bytes", body.len());
    let again = Wakeup::decode(&body, properties.headers().as_ref());
    assert_eq!(again.as_ref(), Ok(&wakeup));
}

/// Parses an event from words, as `producer emit` takes them: its name, as in `outbox.event_type`, a subject's id and a time. Every parsed
/// event can be scheduled, and its wake-ups can be decoded.
pub fn event_parse(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let words: Vec<&str> = text.splitn(3, ' ').collect();
    let [name, subject, moment] = words[..] else {
        let (parsed, used) = measured(|| text.parse::<EventType>().map_err(|unknown| unknown.to_string()));
        within(if parsed.is_ok() { UNDERSTOOD } else { REFUSED }, text.len(), used);
        return;
    };
    let (parsed, used) = measured(|| {
        let event_type = name.parse::<EventType>().map_err(|unknown| unknown.to_string()).ok()?;
        Some(Event { id: Uuid::nil(), event_type, subject: subject.parse().ok()?, occurred_at: moment.parse().ok()? })
    });
    within(if parsed.is_some() { UNDERSTOOD } else { REFUSED }, text.len(), used);
    let Some(event) = parsed else { return };
    let (policy, topology) = fleet();
    let now: DateTime<Utc> = DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default();
    let plan = schedule::plan(&[event], now, &policy, &topology, 128, &TraceContext::default());
    assert!(plan.beyond.is_empty() || plan.wakeups.is_empty());
    for message in plan.messages(&topology) {
        let wakeup = Wakeup::decode(&message.body, message.properties.headers().as_ref());
        assert_eq!(wakeup.expect("it can be read").subjects, [event.subject]);
    }
}

/// Reads a dead letter from a routing key, a body, and a table of headers. The letter, and one written for the same message, fit into an
/// AMQP frame, and the letter's headers can be stored and read back.
pub fn dead_letter_read(input: &[u8]) {
    let (key, rest) = parted(input);
    let (body, rest) = parted(rest.unwrap_or_default());
    let key = String::from_utf8_lossy(key);
    let key = &key[..key.floor_char_boundary(255)];
    let headers = table(rest);
    let size = key.len() + body.len() + headers.as_ref().map_or(0, size_of_table);
    let mut properties = BasicProperties::default()
        .with_message_id(key.into())
        .with_timestamp(body.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
    if let Some(headers) = &headers {
        properties = properties.with_headers(headers.clone());
    }
    for unrouted in [false, true] {
        let given = body.to_vec();
        let (letter, used) = measured(|| DeadLetter::read(unrouted, key, &properties, given));
        within(LETTER, size, used);
        assert_eq!(letter.body, body);
        assert!(!letter.subjects().is_empty() && cause_group(&letter.cause).chars().count() <= GROUP_MAX);
        let (json, dropped) = headers_to_json(&letter.headers);
        let stored = headers_from_json(&json).expect("what was stored");
        // Values are not compared, because the last bit of a double may differ.
        assert!(dropped > 0 || stored.inner().keys().eq(letter.headers.inner().keys()));
        can_be_sent(letter);
    }
    let text = String::from_utf8_lossy(body);
    let death = Death {
        reason: Reason::Malformed,
        cause: &text,
        attempts: 7,
        kind: Some(key),
        subject: None,
        wakeup: None,
        worker: Some(key),
        first_failed_at: properties.timestamp().and_then(|at| DateTime::from_timestamp(i64::try_from(at).ok()?, 0)),
    };
    can_be_sent(DeadLetter::new(&death, key, headers.as_ref(), body));
}

/// Checks that the message of a letter fits into an AMQP frame.
fn can_be_sent(letter: DeadLetter) {
    let (_, topology) = fleet();
    let body = letter.body.clone();
    let message = letter.message(&topology);
    assert_eq!(message.body, body);
    assert!(message.routing_key.len() <= 255, "{}", message.routing_key.len());
    let size = message.properties.headers().as_ref().map_or(0, size_of_table);
    assert!(size + FRAME_ROOM <= FRAME_MAX, "{size} bytes of headers");
}

/// A policy and its topology, with lines on several event types.
fn fleet() -> (Policy, Topology) {
    let line = |on, task, after: &str| PolicyLine { on, task, after: after.parse().expect("a span") };
    let policy = Policy::new(vec![
        line(EventType::OrderShipped, "confirm-receipt", "14d"),
        line(EventType::OrderShipped, "collect-arrears", "24h"),
        line(EventType::OrderFeesChanged, "collect-arrears", "6 months"),
        line(EventType::CartItemAdded, "purge-cart-item", "30d"),
    ]);
    let policy = policy.expect("a policy");
    let topology = Topology::new("kyhan", 1, &[1, 3_600].map(Duration::from_secs), &policy);
    (policy, topology)
}

/// Splits at the first separator.
fn parted(input: &[u8]) -> (&[u8], Option<&[u8]>) {
    let at = input.iter().position(|byte| *byte == SEPARATOR);
    at.map_or((input, None), |at| (&input[..at], Some(&input[at + 1..])))
}

/// Parses headers with lapin's wire parser, if they fit into a frame.
fn table(entries: Option<&[u8]>) -> Option<FieldTable> {
    let entries = entries?;
    let mut wire = u32::try_from(entries.len()).ok()?.to_be_bytes().to_vec();
    wire.extend_from_slice(entries);
    let (_, table) = parse_field_table(&wire[..]).ok()?;
    (wire.len() + 2 * FRAME_ROOM <= FRAME_MAX).then_some(table)
}

/// The size of a table on the wire, in bytes.
fn size_of_table(table: &FieldTable) -> usize {
    4 + table.inner().iter().map(|(name, value)| 1 + name.as_str().len() + 1 + size_of_value(value)).sum::<usize>()
}

fn size_of_value(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::LongString(text) => 4 + text.len(),
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.as_slice().len(),
        AMQPValue::FieldArray(values) => 4 + values.as_slice().iter().map(|value| 1 + size_of_value(value)).sum::<usize>(),
        AMQPValue::FieldTable(table) => size_of_table(table),
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::DecimalValue(_) => 5,
        _ => 8,
    }
}

/// Runs `act` and returns its result with the peak of additional memory in bytes.
fn measured<T>(act: impl FnOnce() -> T) -> (T, usize) {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let done = act();
    (done, MEMORY.peak_usage().saturating_sub(before))
}

/// Checks that at most `times` the message's size plus `more` bytes were used.
fn within((times, more): (usize, usize), size: usize, used: usize) {
    assert!(used <= times * size + more, "{used} bytes of memory for {size}; {times} times that and {more} is the most");
}

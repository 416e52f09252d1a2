//! The claims about what comes from outside, over any bytes: no panic, no memory beyond the message's size, and what was read can
//! be written again. A claim that does not hold panics.
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
        policy::{Line, Policy},
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

/// Parts an input into the parts of a message. No text of ours contains it: JSON forbids control characters.
const SEPARATOR: u8 = 0x1e;
/// The longest frame that RabbitMQ and lapin agree on, in bytes. A message's properties must fit into one.
const FRAME_MAX: usize = 128 * 1024;
/// What a frame holds besides the table of headers, and what a letter adds to a table: names, ids and numbers, not texts.
const FRAME_ROOM: usize = 1024;

/// Memory for what is understood: so many times the message's size and a little. A vector that grows has the next one beside it.
const UNDERSTOOD: (usize, usize) = (2, 1024);
/// For what is refused: an error says what is wrong, and quotes no more of the message than a name's beginning, escaped.
const REFUSED: (usize, usize) = (2, 4096);
/// A canary is short, and is written by us: what stands in its place may be quoted, escaped, and the quote grows and is copied.
const REFUSED_CANARY: (usize, usize) = (2, 48 * 1024);
/// For a letter: what it keeps, and what it was is looked at more than once.
const LETTER: (usize, usize) = (4, 8192);

/// Any function here.
pub type Claim = fn(&[u8]);

/// The targets by name, as there is a file in `fuzz_targets/` and a folder in `seeds/` for each.
#[must_use]
pub fn claims() -> BTreeMap<&'static str, Claim> {
    BTreeMap::from([
        ("wakeup_decode", wakeup_decode as Claim),
        ("event_parse", event_parse),
        ("dead_letter_read", dead_letter_read),
    ])
}

/// A body, and behind a separator a table of headers as it is on the wire: what a worker is given, as a wake-up or as a canary. A
/// wake-up that was understood is written and read again as itself.
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

/// Words, as `producer emit` takes them: an event's name, which is what `outbox.event_type` holds, a subject's id and a moment.
/// Whatever is understood can be scheduled, and what is scheduled can be read.
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

/// A routing key, a body, and a table of headers: what a worker stores. A letter that was read, and one that is written of the
/// same message, fit into what AMQP can send, and its headers can be stored and read.
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
        // Not their values: a double's last bit may differ.
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

/// That the message of a letter fits into what AMQP can send.
fn can_be_sent(letter: DeadLetter) {
    let (_, topology) = fleet();
    let body = letter.body.clone();
    let message = letter.message(&topology);
    assert_eq!(message.body, body);
    assert!(message.routing_key.len() <= 255, "{}", message.routing_key.len());
    let size = message.properties.headers().as_ref().map_or(0, size_of_table);
    assert!(size + FRAME_ROOM <= FRAME_MAX, "{size} bytes of headers");
}

/// A policy and its topology, with something for every kind of event.
fn fleet() -> (Policy, Topology) {
    let line = |on, task, after: &str| Line { on, task, after: after.parse().expect("a span") };
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

/// What stands before the first separator and what stands behind it.
fn parted(input: &[u8]) -> (&[u8], Option<&[u8]>) {
    let at = input.iter().position(|byte| *byte == SEPARATOR);
    at.map_or((input, None), |at| (&input[..at], Some(&input[at + 1..])))
}

/// Headers, by the parser that reads them off the wire, where they fit into a frame.
fn table(entries: Option<&[u8]>) -> Option<FieldTable> {
    let entries = entries?;
    let mut wire = u32::try_from(entries.len()).ok()?.to_be_bytes().to_vec();
    wire.extend_from_slice(entries);
    let (_, table) = parse_field_table(&wire[..]).ok()?;
    (wire.len() + 2 * FRAME_ROOM <= FRAME_MAX).then_some(table)
}

/// How many bytes a table takes on the wire.
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

/// Does something, and tells how many bytes of memory it used at most beyond what was in use before.
fn measured<T>(act: impl FnOnce() -> T) -> (T, usize) {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let done = act();
    (done, MEMORY.peak_usage().saturating_sub(before))
}

/// That no more was used than so many times the message's size and so many bytes.
fn within((times, more): (usize, usize), size: usize, used: usize) {
    assert!(used <= times * size + more, "{used} bytes of memory for {size}; {times} times that and {more} is the most");
}

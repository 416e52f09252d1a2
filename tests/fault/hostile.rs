//! A hostile publisher: under the producer's own login, it publishes thousands of messages of every size, with forged headers and packed
//! nonsense, while honest work goes on in workers whose memory is limited.

use std::time::Duration;

use anyhow::Context;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldArray, FieldTable},
};
use rand::{RngExt, rngs::StdRng};
use shared::{
    broker::Broker,
    message::{
        ladder::Hop,
        outgoing::Outgoing,
        topology::Topology,
        wakeup::{MESSAGE_MAX, SUBJECTS_MAX},
    },
};
use tests::cage::{self, Cage};
use uuid::Uuid;

use crate::{
    harness::{Harness, Terms},
    scenario::Running,
};

/// The memory of a worker: the limit in `deploy/kubernetes/worker.yaml`.
const MEMORY: u64 = 256 << 20;
/// How many messages are published together.
const TOGETHER: u32 = 100;
const WORKERS: [&str; 2] = ["worker-1", "worker-2"];

pub fn patient() -> Terms {
    Terms { patience: Duration::from_secs(300), ..Terms::default() }
}

pub fn publisher(harness: &Harness, mut rng: StdRng) -> Running<'_> {
    Box::pin(async move {
        harness.start()?;
        let mut cages = Vec::new();
        for name in WORKERS {
            let pid = harness.fleet.pid(name).with_context(|| format!("{name} runs"))?;
            if let Some(cage) = Cage::new(MEMORY) {
                cage.lock_in(pid)?;
                cages.push(cage);
            }
        }
        let count: u32 = harness.setting.form(3_000, 10_000);
        let (mut letters, mut bytes) = (0, 0);
        let user = harness.sandbox.settings_with(&[("KYHAN_AMQP_URL", &harness.setting.pair.users.producer)])?;
        let broker = Broker::connect(&user.amqp, "kyhan hostile publisher").await?;
        let publisher = broker.publisher().await?;
        harness
            .populate_during(async {
                for _ in 0..count / TOGETHER {
                    let mut messages = Vec::new();
                    for _ in 0..TOGETHER {
                        let (message, becomes) = hostile(harness, &mut rng);
                        letters += becomes;
                        bytes += message.body.len();
                        messages.push(message);
                    }
                    publisher.publish_all(&messages).await?;
                }
                Ok(())
            })
            .await?;
        publisher.close().await;
        broker.close().await;
        harness.expect_letters(letters);
        harness.until_over().await?;
        for name in WORKERS {
            let pid = harness.fleet.pid(name).with_context(|| format!("{name} runs"))?;
            let peak = cage::peak_of(pid).unwrap_or_default();
            harness.note(format!("{name} took {} MiB at most", peak >> 20));
            if peak > MEMORY {
                harness.unexpected(1, format!("{name} took {} MiB; {} MiB is its limit", peak >> 20, MEMORY >> 20));
            }
        }
        if harness.fleet.restarts() > 0 {
            harness.unexpected(1, "a process died");
        }
        let how = if cages.is_empty() { "no cgroup could be created" } else { "each worker in a cgroup of 256 MiB" };
        harness.note(format!("{count} hostile messages of {} MiB; {how}", bytes >> 20));
        Ok(())
    })
}

/// A hostile message, and how many dead letters it becomes.
fn hostile(harness: &Harness, rng: &mut StdRng) -> (Outgoing, i64) {
    let topology = harness.settings().topology();
    let (kinds, nowhere) =
        (["confirm-receipt", "purge-cart-item", "collect-arrears", "hide-order"], ["make-coffee.0", "confirm-receipt.9", ""]);
    let kind = kinds[rng.random_range(0..kinds.len())];
    let (lane, nowhere) = (Topology::routing_key(kind, 0), nowhere[rng.random_range(0..nowhere.len())].to_owned());
    let due = topology.due_exchange();
    let rung = topology.exchange_of(Hop::Rung(topology.ladder().rungs()[0]));
    let (exchange, routing_key, body, becomes) = match rng.random_range(0..8) {
        0 | 1 => (due, lane, garbage(rng), 1),
        2 => (due, nowhere, garbage(rng), 1),
        3 => (rung, lane, garbage(rng), 1),
        4 => (rung, "make-coffee.0".to_owned(), garbage(rng), 1),
        5 => (due, "canary.0".to_owned(), garbage(rng), 0),
        // A sound wake-up of rows that do not exist.
        6 => (due, lane, packed(kind, rng.random_range(1..=SUBJECTS_MAX), rng), 0),
        // A packed one that no lane takes becomes a letter for each subject.
        _ => {
            let subjects = if rng.random_ratio(1, 50) { SUBJECTS_MAX } else { rng.random_range(1..=10) };
            (due, nowhere, packed(kind, subjects, rng), i64::try_from(subjects).unwrap_or(i64::MAX))
        }
    };
    let properties =
        BasicProperties::default().with_delivery_mode(2).with_timestamp(rng.random()).with_headers(forged(kind, rng));
    (Outgoing { exchange, routing_key, properties, body }, becomes)
}

/// Bytes that are no wake-up, never the same, of any size that the broker accepts. Most are small.
fn garbage(rng: &mut StdRng) -> Vec<u8> {
    let most = [100, 5_000, 60_000, MESSAGE_MAX][rng.random_range(0..4)];
    let mut body = format!("{{{:032x}", rng.random::<u128>()).into_bytes();
    body.resize(rng.random_range(body.len()..=most), b'[');
    body
}

/// A wake-up of that many rows at random.
fn packed(kind: &str, subjects: usize, rng: &mut StdRng) -> Vec<u8> {
    let subjects: Vec<String> = (0..subjects).map(|_| format!("\"{}\"", Uuid::from_u128(rng.random()))).collect();
    let (id, subjects) = (Uuid::from_u128(rng.random()), subjects.join(","));
    let failed =
        ["", ",\"failed_at\":\"0001-01-01T00:00:00Z\"", ",\"failed_at\":\"9999-12-31T23:59:59Z\""][rng.random_range(0..3)];
    let attempt: u32 = if rng.random() { 0 } else { rng.random() };
    format!("{{\"v\":1,\"id\":\"{id}\",\"kind\":\"{kind}\",\"due_at\":\"2001-01-01T00:00:00Z\",\"attempt\":{attempt}{failed},\"subjects\":[{subjects}]}}")
        .into_bytes()
}

/// Headers that claim what only a worker or the broker may state, and some that are large.
fn forged(kind: &str, rng: &mut StdRng) -> FieldTable {
    let mut headers = FieldTable::default();
    let mut put = |name: &str, value: AMQPValue| {
        headers.insert(name.into(), value);
    };
    let text = |text: &str| AMQPValue::LongString(text.into());
    if rng.random() {
        put("kyhan-reason", text("attempts-exhausted"));
        put("kyhan-kind", text(kind));
        put("kyhan-subject", text(&Uuid::from_u128(rng.random()).to_string()));
        put("kyhan-attempts", AMQPValue::LongLongInt(rng.random()));
        put("kyhan-first-failed-at", text("9999-12-31T23:59:59Z"));
    }
    if rng.random_ratio(1, 4) {
        let mut death = FieldTable::default();
        death.insert("reason".into(), text("delivery_limit"));
        death.insert("queue".into(), text("kyhan.quarantine"));
        death.insert("count".into(), AMQPValue::LongLongInt(1));
        put("x-death", AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(death)])));
    }
    match rng.random_range(0..20) {
        0 => put("long", text(&"x".repeat(rng.random_range(1..100_000)))),
        1 => put("voids", AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::Void; rng.random_range(1..100_000)]))),
        _ => {}
    }
    headers
}

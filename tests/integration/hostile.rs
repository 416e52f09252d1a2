//! A hostile publisher: what one may send costs bounded memory and storage, makes no claim that anything trusts, and stops no other's work.

use std::{path::PathBuf, time::Duration};

use lapin::types::{AMQPValue, FieldArray, FieldTable};
use shared::{
    broker::BrokerError,
    message::{dead_letter::WHOLE_MAX, ladder::Hop, outgoing::Outgoing, wakeup::MESSAGE_MAX},
};
use tests::{
    cage::Cage,
    fleet,
    sandbox::{always, eventually},
};
use uuid::Uuid;

use crate::{
    bad_input::raw,
    broker_users,
    harness::{Harness, QUICK, SOON, exampled, on_harness, with_harness, worker_with},
    letters_stored::put,
};

/// The memory that `deploy/kubernetes/worker.yaml` gives a worker.
const MEMORY: u64 = 256 << 20;

fn headers<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// Whether the broker accepts a message of that many bytes.
async fn accepts(harness: &Harness, bytes: usize) -> bool {
    let topology = harness.topology();
    let exchange = topology.exchange_of(Hop::Rung(topology.ladder().rungs()[0]));
    let message = Outgoing { exchange, routing_key: "size".into(), ..raw(harness, vec![0; bytes], FieldTable::default()) };
    let broker = harness.sandbox.broker().await.expect("a broker");
    let publisher = broker.publisher().await.expect("a channel");
    let answer = publisher.publish_all(&[message]).await;
    publisher.close().await;
    broker.close().await;
    match answer {
        Err(BrokerError::Returned { .. }) => true,
        Err(BrokerError::Protocol(_)) => false,
        other => panic!("{other:?}"),
    }
}

/// A body of that many bytes, different each time.
fn body(bytes: usize) -> Vec<u8> {
    let mut body = Uuid::new_v4().to_string().into_bytes();
    body.resize(bytes, b'x');
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_cannot_forge_a_letter_that_holds_back_collection() {
    let file = QUICK.replace("every_ms = 3600000", "every_ms = 100\n    grace_ms = 100");
    with_harness(&file, async |harness| {
        let (open, discarded) = (Uuid::new_v4(), Uuid::new_v4());
        let death = headers([
            ("reason", text("delivery_limit")),
            ("queue", text("kyhan.quarantine")),
            ("time", AMQPValue::Timestamp(4_102_444_800)),
        ]);
        for (subject, with_death) in [(open, false), (open, true), (discarded, false)] {
            let mut message = harness.wakeup("collect-arrears", &[subject]);
            let body = String::from_utf8(message.body).expect("JSON");
            message.body = body.replace("\"attempt\":0", "\"attempt\":5,\"failed_at\":\"2099-01-01T00:00:00Z\"").into();
            message.routing_key = format!("make-coffee.{}", u8::from(with_death));
            let mut forged = headers([
                ("kyhan-reason", text("attempts-exhausted")),
                ("kyhan-cause", text("forged")),
                ("kyhan-attempts", AMQPValue::LongLongInt(7)),
                ("kyhan-kind", text("collect-arrears")),
                ("kyhan-subject", text(&subject.to_string())),
                ("kyhan-worker", text("forged/1")),
                ("kyhan-first-failed-at", text("2001-01-01T00:00:00Z")),
            ]);
            if with_death {
                forged.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(death.clone())])));
            }
            message.properties = message.properties.with_timestamp(4_102_444_800).with_headers(forged);
            harness.publish(vec![message]).await;
        }
        let worker = harness.worker();
        harness.until_dead(3).await;
        let unbelieved = "SELECT count(*) = 3 FROM dead_letters
                           WHERE reason = 'unrouted' AND cause NOT LIKE '%forged%' AND attempts = 0 AND worker IS NULL
                             AND first_failed_at IS NULL AND last_failed_at BETWEEN now() - interval '1 hour' AND now()";
        assert!(harness.ask::<bool>(unbelieved).await);
        let decide = "UPDATE dead_letters SET state = 'discarded', decided_at = now() + interval '1 day', decided_by = 'lan', decided_why = 'so'
                       WHERE subject_id = $1";
        assert_eq!(harness.run(decide, [discarded.into()]).await, 1);
        let task = exampled("collect-arrears");
        for subject in [open, discarded] {
            harness.run(task.examples().due, [subject.into()]).await;
            eventually("it is collected", SOON, async || Ok(harness.effects(task, subject).await.iter().all(|count| *count == 1))).await;
        }
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_stored_once_for_all_its_letters_and_deleted_with_the_last_one() {
    with_harness(QUICK, async |harness| {
        let subjects: Vec<Uuid> = (0..1_000).map(|_| Uuid::new_v4()).collect();
        let packed = |note: &str| {
            let mut message = harness.wakeup("confirm-receipt", &subjects);
            message.routing_key = "make-coffee.0".into();
            message.properties =
                message.properties.with_headers(headers([("note", text(note)), ("pad", text(&"x".repeat(50_000)))]));
            message
        };
        let worker = harness.worker();
        harness.publish(vec![packed("first")]).await;
        harness.until_dead(1_000).await;
        // The same message with other headers is the same letters.
        harness.publish((0..20).map(|n| packed(&n.to_string())).collect()).await;
        eventually("they are taken", SOON, async || Ok(harness.depth("unrouted").await == 0)).await;
        worker.stop().await;
        let count = async |table: &str| harness.ask::<i64>(&format!("SELECT count(*) FROM {table}")).await;
        assert_eq!((count("dead_letters").await, count("dead_letter_bodies").await), (1_000, 1));
        let size = "SELECT pg_total_relation_size('dead_letters') + pg_total_relation_size('dead_letter_bodies')";
        let size = harness.ask::<i64>(size).await;
        assert!(size < 4 << 20, "{size} bytes for one message of 90 kB");

        let one: Uuid = harness.ask("SELECT id FROM dead_letters ORDER BY id LIMIT 1").await;
        let shown = harness.ops(&["dead", "show", &one.to_string()]).await.expect("a letter");
        assert!(shown.contains("subjects") && shown.contains("note"), "{shown}");
        harness.run("DELETE FROM dead_letters WHERE id <> $1", [one.into()]).await;
        assert_eq!(count("dead_letter_bodies").await, 1);
        harness.run("DELETE FROM dead_letters", []).await;
        assert_eq!(count("dead_letter_bodies").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_stays_within_its_memory_whatever_is_in_its_queues() {
    with_harness(QUICK, async |harness| {
        let topology = harness.topology();
        let to = |exchange: String, key: &str, body: Vec<u8>, headers: FieldTable| Outgoing {
            exchange,
            routing_key: key.to_owned(),
            ..raw(harness, body, headers)
        };
        let keys = ["confirm-receipt.0", "purge-cart-item.0", "collect-arrears.0", "hide-order.0", "canary.0", "make-coffee.0"];
        let due = |key: &str, body, headers| to(topology.due_exchange(), key, body, headers);
        // A header that takes 60 times as much memory as on the wire.
        let bomb = || headers([("voids", AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::Void; 100_000])))]);
        let mut letters = 0;
        for key in keys {
            let mut messages: Vec<Outgoing> =
                (0..150).map(|n| due(key, body([0, 40, 3_000, 60_000, MESSAGE_MAX][n % 5]), FieldTable::default())).collect();
            messages.extend((0..20).map(|_| due(key, body(40), bomb())));
            // Those that are no canary are dropped. Of each queue, the 30 empty ones are one letter.
            letters += if key == "canary.0" { 0 } else { messages.len() - 29 };
            harness.publish(messages).await;
        }
        if accepts(harness, 40 << 20).await {
            let megabytes = (0..150).map(|n| due(keys[n % keys.len()], body(1 << 20), FieldTable::default()));
            harness.publish(megabytes.collect()).await;
            let one = due("confirm-receipt.0", body(40 << 20), FieldTable::default());
            let dead = to(topology.dead(), "x", body(40 << 20), FieldTable::default());
            harness.publish(vec![one, dead]).await;
            letters += 125 + 2;
        }
        let orders = [harness.delivering().await, harness.delivering().await];
        harness.publish(vec![harness.wakeup("confirm-receipt", &orders)]).await;

        let log = std::env::temp_dir().join(format!("kyhan-hostile-{}.log", Uuid::new_v4()));
        let mut worker =
            fleet::start(fleet::command("worker", &harness.sandbox.env, [""; 0]).expect("built"), &log).expect("started");
        let pid = worker.id().expect("running");
        let cage = Cage::new(MEMORY).map(|cage| cage.lock_in(pid).map(|()| cage)).transpose().expect("a cgroup");
        let began = std::time::Instant::now();
        eventually("every letter is stored", Duration::from_secs(240), async || {
            anyhow::ensure!(worker.try_wait()?.is_none(), "the worker has died: {}", tail(&log));
            Ok(harness.ask::<i64>("SELECT count(*) FROM dead_letters").await >= letters as i64)
        })
        .await;
        harness.until("SELECT count(*) = 2 FROM orders WHERE status = 'received'").await;
        let peak = tests::cage::peak_of(pid).expect("its peak");
        eprintln!("peak {} MiB, in a cgroup: {}, {letters} letters in {:?}", peak >> 20, cage.is_some(), began.elapsed());
        assert!(peak < MEMORY, "{} MiB", peak >> 20);
        assert!(worker.try_wait().expect("a status").is_none(), "it still runs");
        worker.kill().await.expect("stopped");
        let _ = std::fs::remove_file(log);
    })
    .await;
}

fn tail(log: &PathBuf) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().rev().take(5).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_too_large_to_be_kept_is_cut_and_says_so_and_two_of_them_are_two_letters() {
    with_harness(QUICK, async |harness| {
        if !accepts(harness, 17 << 20).await {
            eprintln!("not run: the broker's own limit is smaller");
            return;
        }
        let mut bodies = [vec![b'x'; 17 << 20], vec![b'x'; 17 << 20]];
        bodies[1][16 << 20] = b'y';
        for body in &bodies {
            // By a worker, and by the broker.
            let malformed = raw(harness, body.clone(), FieldTable::default());
            harness.publish(vec![malformed.clone(), malformed.clone()]).await;
            harness.publish(vec![Outgoing { routing_key: "make-coffee.0".into(), ..malformed }]).await;
        }
        let worker = harness.worker();
        harness.until_dead(4).await;
        always("each is one letter", Duration::from_millis(500), async || Ok(harness.buried().await == 4)).await;
        worker.stop().await;
        let cut = "SELECT count(*) FROM dead_letters JOIN dead_letter_bodies ON hash = body_hash
                    WHERE octet_length(body) = 65536 AND cause LIKE '%the first 65536 bytes % 17825792 bytes, SHA-256 %'";
        assert_eq!(harness.ask::<i64>(cut).await, 4);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_says_when_the_broker_accepts_larger_messages_than_the_fleets() {
    const SAID: &str = "RabbitMQ accepts messages larger than the fleet's";
    let log_of = async |harness: &Harness| {
        let log = std::env::temp_dir().join(format!("kyhan-limit-{}.log", Uuid::new_v4()));
        let mut worker =
            fleet::start(fleet::command("worker", &harness.sandbox.env, [""; 0]).expect("built"), &log).expect("started");
        harness.until_consumed().await;
        worker.kill().await.expect("stopped");
        std::fs::read_to_string(&log).inspect(|_| drop(std::fs::remove_file(&log))).expect("a log")
    };
    with_harness(QUICK, async |harness| {
        let accepted = accepts(harness, MESSAGE_MAX + 1).await;
        let log = log_of(harness).await;
        assert_eq!(log.contains(SAID), accepted, "{log}");
        assert_eq!(harness.depth("").await, 0, "the probe went nowhere");
    })
    .await;
    // Servers of our own are set up as documented.
    let pair = broker_users::pair().await;
    on_harness(broker_users::sandbox(&pair).await, async |harness| {
        harness.sandbox.declare().await.expect("declared");
        assert!(!accepts(harness, MESSAGE_MAX + 1).await && accepts(harness, MESSAGE_MAX).await);
        let log = log_of(harness).await;
        assert!(!log.contains(SAID), "{log}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_send_nothing_that_is_honest_into_quarantine() {
    with_harness(QUICK, async |harness| {
        let orders = harness.many_delivering(300).await;
        for part in orders.chunks(30) {
            let mut messages: Vec<Outgoing> = part.iter().map(|order| harness.wakeup("confirm-receipt", &[*order])).collect();
            messages.extend((0..10).map(|_| raw(harness, body(MESSAGE_MAX), FieldTable::default())));
            harness.publish(messages).await;
        }
        let worker = worker_with(harness.settings().clone());
        harness.until("SELECT count(*) = 300 FROM orders WHERE status = 'received'").await;
        harness.until_dead(100).await;
        let totals = worker.stop().await;
        assert_eq!((totals.malformed, totals.rejected), (100, 0), "{totals:?}");
        assert_eq!(harness.depth("quarantine").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_as_large_as_a_broker_may_allow_is_stored_whole() {
    with_harness(QUICK, async |harness| {
        // Servers that deploy/services starts accept only what the fleet needs.
        let bytes = if accepts(harness, WHOLE_MAX).await { WHOLE_MAX } else { MESSAGE_MAX };
        let body = |fill: u8| vec![fill; bytes];
        let long = "x".repeat(60_000);
        let mut deep = AMQPValue::FieldTable(FieldTable::default());
        for _ in 0..100 {
            deep = AMQPValue::FieldTable(headers([("deeper", deep)]));
        }
        let hostile = headers([("long", text(&long)), ("deep", deep), ("", text(""))]);
        harness
            .publish(vec![
                put(harness, body(0), FieldTable::default()),
                put(harness, body(255), hostile),
                put(harness, "", FieldTable::default()),
            ])
            .await;
        let worker = harness.worker();
        harness.until_dead(3).await;
        worker.stop().await;
        let letters = harness.dead_letters().await;
        for fill in [0, 255] {
            assert!(letters.iter().any(|letter| letter.body == body(fill)), "{fill}");
        }
        let hostile = letters.iter().find(|letter| !letter.headers.inner().is_empty()).expect("its headers");
        assert!(hostile.cause.ends_with("header values dropped: 1"), "{}", hostile.cause);
        let names = ["", "deep", "long"];
        assert!(names.iter().all(|name| hostile.headers.contains_key(name)) && hostile.headers.inner().len() == names.len());
    })
    .await;
}

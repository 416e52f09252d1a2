//! The store of dead letters: each dead message becomes one row, moot letters close themselves, and old letters are kept or
//! deleted.

use std::time::Duration;

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use sea_orm::{ConnectionTrait, TransactionTrait, Value};
use shared::{
    database::statement,
    domain::{outcome::Reason, tasks},
    message::{
        dead_letter::{DeadLetter, Death},
        outgoing::Outgoing,
        topology::QUARANTINE_DELIVERY_LIMIT,
    },
};
use tests::{
    fleet,
    sandbox::{always, eventually},
};
use uuid::Uuid;

use crate::{
    harness::{Harness, QUICK, SOON, with_harness, worker_with},
    outages::{admin, name, run, throw_out},
    quarantine::give_up,
};

/// Settings of a sweep every 100 ms.
const SEVERAL_ROUNDS: Duration = Duration::from_millis(800);

/// Bytes that are not valid text.
const GARBAGE: &[u8] = b"\0 no text \xff\xfe \0";

/// The message that a worker publishes when it gives up.
fn given_up(harness: &Harness, kind: &str, subject: Uuid, cause: &str) -> Outgoing {
    let death = Death {
        reason: Reason::AttemptsExhausted,
        cause,
        attempts: 6,
        kind: Some(kind),
        subject: Some(subject),
        wakeup: Some(Uuid::new_v4()),
        worker: Some("host/17"),
        first_failed_at: None,
    };
    DeadLetter::new(&death, &format!("{kind}.0"), None, format!("{kind} {subject}").as_bytes()).message(&harness.topology())
}

/// The same message, which died that much later than its timestamp.
fn later(message: &Outgoing, seconds: u64) -> Outgoing {
    let died_at = message.properties.timestamp().expect("a moment");
    Outgoing { properties: message.properties.clone().with_timestamp(died_at + seconds), ..message.clone() }
}

/// A message in the dead-letter queue, as if put there by hand.
pub fn put(harness: &Harness, body: impl Into<Vec<u8>>, headers: FieldTable) -> Outgoing {
    let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
    Outgoing { exchange: harness.topology().dead(), routing_key: "somewhere".into(), properties, body: body.into() }
}

fn headers<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}

fn text(text: impl Into<Vec<u8>>) -> AMQPValue {
    AMQPValue::LongString(text.into().into())
}

/// Publishes these and one more after them, and waits until that one is stored: then the others are as well.
async fn stored(harness: &Harness, mut messages: Vec<Outgoing>) {
    let last = Uuid::new_v4();
    messages.push(put(harness, last.to_string(), FieldTable::default()));
    harness.publish(messages).await;
    let sql = format!(
        "SELECT count(*) = 1 FROM dead_letters WHERE body_hash IN (SELECT hash FROM dead_letter_bodies WHERE body = '{last}'::bytea)"
    );
    harness.until(&sql).await;
    harness
        .run(
            "DELETE FROM dead_letters WHERE body_hash IN (SELECT hash FROM dead_letter_bodies WHERE body = $1)",
            [last.to_string().into_bytes().into()],
        )
        .await;
}

/// The number of letters that match the condition.
async fn count(harness: &Harness, condition: &str) -> i64 {
    harness.ask(&format!("SELECT count(*) FROM dead_letters JOIN dead_letter_bodies ON hash = body_hash WHERE {condition}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_every_origin_become_rows_with_their_bytes() {
    with_harness(QUICK, async |harness| {
        let orders = [harness.delivering().await, harness.delivering().await, harness.delivering().await];
        harness.run("ALTER TABLE orders ADD CONSTRAINT obstacle CHECK (status <> 'received') NOT VALID", []).await;
        // The broker gives up a packed message.
        let topology = harness.topology();
        let packed = harness.wakeup("confirm-receipt", &orders[1..]);
        harness.publish(vec![Outgoing { exchange: topology.quarantine(), ..packed.clone() }]).await;
        give_up(harness, &topology.quarantine(), QUARANTINE_DELIVERY_LIMIT).await;
        let broker = harness.sandbox.broker().await.expect("a broker");
        eventually("it is buried", SOON, async || Ok(harness.sandbox.depth(&broker, "dead").await? == 1)).await;
        broker.close().await;
        // A worker gives up one message and cannot decode another; two more match no lane, and two more are put there by hand.
        let failing = harness.wakeup("confirm-receipt", &orders[..1]);
        let strange = headers([("nul", text("a\0b")), ("bytes", AMQPValue::ByteArray(vec![0, 255].into()))]);
        let malformed = Outgoing {
            body: GARBAGE.to_vec(),
            properties: BasicProperties::default().with_headers(strange.clone()),
            ..failing.clone()
        };
        let unrouted = |message: Outgoing| Outgoing { routing_key: "make-coffee.0".into(), ..message };
        let forged = headers([("kyhan-reason", text("forged\0")), ("kyhan-attempts", AMQPValue::LongLongInt(-1))]);
        harness
            .publish(vec![
                failing,
                malformed.clone(),
                unrouted(harness.wakeup("confirm-receipt", &orders[..2])),
                unrouted(malformed),
                put(harness, "one", forged.clone()),
                put(harness, "two", forged),
            ])
            .await;
        let worker = harness.worker();
        harness.until_dead(9).await;
        assert_eq!(harness.buried().await, 9, "nothing is left with the broker");
        assert_eq!(worker.stop().await.stored, 9);

        let exhausted = "reason = 'attempts-exhausted'";
        for (condition, expected) in [
            // The letter of the last attempt, which keeps the time of the first.
            (format!("{exhausted} AND kind = 'confirm-receipt' AND subject_id = '{}' AND attempts = 3", orders[0]), 1),
            (format!("{exhausted} AND worker LIKE '%/{}'", std::process::id()), 1),
            (format!("{exhausted} AND first_failed_at <= last_failed_at AND position('failed_at' IN convert_from(body, 'UTF8')) > 0"), 1),
            (format!("{exhausted} AND cause LIKE '%\"obstacle\"%' AND cause_group LIKE '%\"obstacle\"%' AND wakeup_id IS NOT NULL"), 1),
            (format!("reason = 'malformed' AND kind IS NULL AND subject_id IS NULL AND first_failed_at IS NOT NULL AND queue = '{}'", topology.dead()), 1),
            ("reason = 'delivery-limit' AND cause LIKE '%quarantine%' AND worker IS NULL AND kind = 'confirm-receipt'".into(), 2),
            (format!("reason = 'unrouted' AND routing_key = 'make-coffee.0' AND queue = '{}'", topology.unrouted()), 3),
            ("reason = 'unrouted' AND subject_id IS NOT NULL".into(), 2),
            ("reason = 'forged\u{fffd}' AND attempts = 0 AND routing_key = ''".into(), 2),
            ("state = 'open' AND decided_at IS NULL AND last_failed_at > now() - interval '1 hour'".into(), 9),
        ] {
            assert_eq!(count(harness, &condition).await, expected, "{condition}");
        }
        let letters = harness.dead_letters().await;
        let of = |reason: &str| letters.iter().filter(|letter| letter.reason == reason).cloned().collect::<Vec<_>>();
        assert_eq!((of("malformed")[0].body.as_slice(), &of("malformed")[0].headers), (GARBAGE, &strange));
        assert!(of("unrouted").iter().any(|letter| letter.body == GARBAGE && letter.headers == strange));
        let mut subjects: Vec<Uuid> = of("delivery-limit").iter().filter_map(|letter| letter.subject).collect();
        subjects.sort();
        let mut expected = orders[1..].to_vec();
        expected.sort();
        assert_eq!(subjects, expected);
        assert!(of("delivery-limit").iter().all(|letter| letter.body == packed.body), "each has the whole original");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_what_a_worker_gave_up_is_kept() {
    with_harness(QUICK, async |harness| {
        let order = harness.delivering().await;
        harness.run("ALTER TABLE orders ADD CONSTRAINT obstacle CHECK (status <> 'received') NOT VALID", []).await;
        let mut failing = harness.wakeup("confirm-receipt", &[order]);
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        failing.properties = failing.properties.with_headers(headers([("traceparent", text(parent))]));
        let worker = worker_with(harness.sandbox.settings_with(&[("KYHAN_WORKER_ATTEMPTS_MAX", "1")]).expect("settings"));
        harness.publish(vec![failing]).await;
        harness.until_dead(1).await;
        worker.stop().await;
        assert_eq!(harness.ask::<String>("SELECT trace_id FROM dead_letters").await, "0af7651916cd43dd8448eb211c80319c");
        assert!(harness.ask::<bool>("SELECT first_failed_at = last_failed_at FROM dead_letters").await, "it failed once");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_comes_twice_is_one_row_and_is_reopened_only_when_it_died_again() {
    with_harness(QUICK, async |harness| {
        let worker = harness.worker();
        let letter = given_up(harness, "confirm-receipt", Uuid::new_v4(), "first");
        // In the same batch, in another one, and as if a worker was killed between commit and ack.
        stored(harness, vec![letter.clone(), letter.clone()]).await;
        stored(harness, vec![letter.clone()]).await;
        assert_eq!(count(harness, "true").await, 1);
        // A message without a time of death.
        let stray = Outgoing { routing_key: "make-coffee.0".into(), ..harness.wakeup("confirm-receipt", &[Uuid::new_v4()]) };
        harness.publish(vec![stray.clone(), stray.clone()]).await;
        harness.until_dead(2).await;

        let before: String =
            harness.ask("SELECT string_agg(last_failed_at::text || attempts, ',' ORDER BY id) FROM dead_letters").await;
        let decide = "UPDATE dead_letters SET state = 'discarded', decided_at = now(), decided_by = 'lan', decided_why = 'known'";
        assert_eq!(harness.run(decide, []).await, 2);
        harness.publish(vec![stray]).await;
        eventually("it is taken", SOON, async || Ok(harness.depth("unrouted").await == 0)).await;
        stored(harness, vec![letter.clone()]).await;
        always("a redelivery reopens nothing", SEVERAL_ROUNDS, async || Ok(count(harness, "state = 'discarded'").await == 2))
            .await;
        let after: String =
            harness.ask("SELECT string_agg(last_failed_at::text || attempts, ',' ORDER BY id) FROM dead_letters").await;
        assert_eq!(before, after);

        let again = later(&letter, 10);
        stored(harness, vec![again.clone(), letter.clone(), again.clone()]).await;
        stored(harness, vec![again.clone(), letter.clone()]).await;
        assert_eq!(count(harness, "state = 'open' AND decided_at IS NULL").await, 1);
        let records = "SELECT count(*) FROM activity JOIN dead_letters letter ON letter.id = activity.subject_id
                        WHERE actor_kind = 'system' AND action = 'dead_letter.reopened' AND subject_kind = 'dead_letter'
                          AND letter.state = 'open'";
        assert_eq!(harness.ask::<i64>(records).await, 1);

        // On an open letter, only the last failure is updated.
        stored(harness, vec![later(&letter, 20)]).await;
        assert_eq!(harness.ask::<i64>(records).await, 1);
        let died_at = letter.properties.timestamp().expect("a moment") + 20;
        assert_eq!(count(harness, &format!("last_failed_at = to_timestamp({died_at})")).await, 1);
        assert_eq!(worker.stop().await.stored, 2 + 6, "each once, and the six that came behind");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_letters_wait_with_the_broker_and_come_in_afterwards() {
    const LETTERS: u32 = 100;
    with_harness(QUICK, async |harness| {
        let (name, admin) = (name(harness).await, admin().await);
        // The messages that a consumer already has when the hold begins go back soon as well.
        let worker = worker_with(harness.sandbox.settings_with(&[("KYHAN_WORKER_HOLD_MS", "100")]).expect("settings"));
        let (dead, broker) = (harness.topology().dead(), harness.sandbox.broker().await.expect("a broker"));
        let consumed = async || Ok(broker.observe(&dead).await?.is_some_and(|seen| seen.consumers == 1));
        eventually("they are taken", SOON, consumed).await;
        run(&admin, &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await;
        run(&admin, &throw_out(&name)).await;
        let letters = (0..LETTERS).map(|_| given_up(harness, "confirm-receipt", Uuid::new_v4(), "outage"));
        harness.publish(letters.collect()).await;
        let waits = async || Ok(broker.observe(&dead).await?.is_some_and(|seen| seen.messages == LETTERS && seen.consumers == 0));
        eventually("they wait, and no consumer takes them", SOON, waits).await;
        run(&admin, &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await;
        let sql = "SELECT count(*) FROM dead_letters";
        eventually("they are stored", SOON, async || {
            let row = harness.sandbox.db.query_one_raw(statement(sql, [])).await;
            Ok(matches!(row, Ok(Some(row)) if row.try_get_by_index::<i64>(0).is_ok_and(|found| found == i64::from(LETTERS))))
        })
        .await;
        eventually("none is left", SOON, async || Ok(harness.depth("dead").await == 0)).await;
        assert_eq!(worker.stop().await.stored, u64::from(LETTERS));
        broker.close().await;
        admin.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reported_outage_cuts_no_letter() {
    with_harness(QUICK, async |harness| {
        // As on a disk that is full for a moment: PostgreSQL accepts other writes.
        let full = "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$
                        BEGIN RAISE EXCEPTION 'full' USING ERRCODE = '53100'; END $$;
                    CREATE TRIGGER no_room BEFORE INSERT ON dead_letters FOR EACH ROW EXECUTE FUNCTION no_room()";
        harness.sandbox.db.execute_unprepared(full).await.expect("a trigger");
        let (worker, bodies) = (harness.worker(), [b'x', b'y'].map(|byte| vec![byte; 100 * 1024]));
        harness.publish(bodies.iter().map(|body| put(harness, body.clone(), FieldTable::default())).collect()).await;
        let unstored = async || Ok(harness.ask::<i64>("SELECT count(*) FROM dead_letters").await == 0);
        always("nothing is stored, and nothing cut", Duration::from_secs(3), unstored).await;
        harness.sandbox.db.execute_unprepared("DROP FUNCTION no_room() CASCADE").await.expect("room");
        harness.until("SELECT count(*) = 2 FROM dead_letters").await;
        let letters = harness.dead_letters().await;
        assert!(bodies.iter().all(|body| letters.iter().any(|letter| letter.body == *body)));
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cannot_be_stored_as_it_is_is_reduced_and_says_so_and_its_neighbours_are_whole() {
    with_harness(QUICK, async |harness| {
        let function = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                            IF octet_length(NEW.body) > 100000 OR position('refused' IN convert_from(NEW.headers, 'UTF8')) > 0 THEN
                                RAISE check_violation USING MESSAGE = 'refused';
                            END IF;
                            RETURN NEW;
                        END $$";
        harness.run(function, []).await;
        harness.run("CREATE TRIGGER refuse BEFORE INSERT ON dead_letter_bodies FOR EACH ROW EXECUTE FUNCTION refuse()", []).await;
        let mut messages: Vec<Outgoing> = (0..20).map(|n| put(harness, format!("sound {n}"), headers([("kept", text("1"))]))).collect();
        messages.push(put(harness, vec![b'x'; 200_000], FieldTable::default()));
        messages.push(put(harness, "headers", headers([("refused", text("1"))])));
        messages.extend((20..40).map(|n| put(harness, format!("sound {n}"), headers([("kept", text("1"))]))));
        harness.publish(messages).await;
        let worker = harness.worker();
        harness.until_dead(42).await;
        worker.stop().await;
        assert_eq!(harness.buried().await, 42);
        let letters = harness.dead_letters().await;
        let (reduced, whole): (Vec<_>, Vec<_>) = letters.iter().partition(|letter| letter.cause.contains("could not be stored"));
        assert_eq!((reduced.len(), whole.len()), (2, 40));
        assert!(whole.iter().all(|letter| letter.headers.contains_key("kept")));
        for (bytes, lost) in [(64 * 1024, "134464 of its 200000 bytes"), (7, "0 of its 7 bytes")] {
            let letter = reduced.iter().find(|letter| letter.body.len() == bytes).expect("reduced");
            assert!(letter.cause.contains(lost) && letter.headers.inner().is_empty(), "{}", letter.cause);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moot_letters_close_themselves_with_a_record_and_those_that_are_due_stay_open() {
    // The sweep leaves alone rows that became due less than an hour ago.
    let file = QUICK.replace("every_ms = 3600000", "every_ms = 100\n    grace_ms = 3600000");
    with_harness(&file, async |harness| {
        let mut letters = Vec::new();
        for task in harness.tasks() {
            let subject = Uuid::new_v4();
            harness.run(task.examples().due, [subject.into()]).await;
            harness.run(task.examples().moot, [subject.into()]).await;
            letters.push(given_up(harness, task.kind(), subject, "moot"));
        }
        // There is no such row.
        letters.push(given_up(harness, "confirm-receipt", Uuid::new_v4(), "moot"));
        let (due, not_yet, young) = (harness.delivering().await, harness.delivering().await, Uuid::new_v4());
        for (order, moment) in [(due, "now() - interval '10 minutes'"), (not_yet, "now() + interval '1 day'")] {
            harness.run(&format!("UPDATE orders SET delivering_since = {moment} WHERE id = $1"), [order.into()]).await;
            letters.push(given_up(harness, "confirm-receipt", order, "kept"));
        }
        letters.push(given_up(harness, "confirm-receipt", young, "kept: young"));
        letters.push(given_up(harness, "make-coffee", Uuid::new_v4(), "kept"));
        letters.push(put(harness, "garbage", FieldTable::default()));
        let workers = [harness.worker(), harness.worker()];
        harness.publish(letters).await;
        harness.until("SELECT count(*) = 9 FROM dead_letters").await;
        let old = "UPDATE dead_letters SET stored_at = now() - interval '2 hours' WHERE subject_id IS DISTINCT FROM $1";
        harness.run(old, [young.into()]).await;
        harness.until("SELECT count(*) = 4 FROM dead_letters WHERE state <> 'open'").await;
        let resolved = "state = 'resolved' AND cause = 'moot' AND decided_by = 'kyhan' AND decided_why LIKE 'moot: %' AND decided_at <= now()";
        always("the others stay open", SEVERAL_ROUNDS, async || {
            Ok(count(harness, resolved).await == 4 && count(harness, "state = 'open'").await == 5)
        })
        .await;
        let records = "SELECT count(*) FROM activity JOIN dead_letters letter ON letter.id = activity.subject_id
                        WHERE actor_kind = 'system' AND action = 'dead_letter.resolved' AND subject_kind = 'dead_letter'
                          AND letter.state = 'resolved' AND detail ->> 'by' = 'kyhan' AND detail ->> 'why' = decided_why";
        assert_eq!(harness.ask::<i64>(records).await, 4, "each once");
        // After another wake-up has applied the due one, its letter is moot too, but not while an operator is deciding about it.
        let deciding = harness.sandbox.db.begin().await.expect("a transaction");
        let lock = statement("SELECT 1 FROM dead_letters WHERE subject_id = $1 FOR UPDATE", [due.into()]);
        deciding.execute_raw(lock).await.expect("a lock");
        harness.run("UPDATE orders SET status = 'received', received_at = now() WHERE id = $1", [due.into()]).await;
        always("it is left alone", SEVERAL_ROUNDS, async || Ok(count(harness, "state = 'open'").await == 5)).await;
        deciding.rollback().await.expect("unlocked");
        harness.until(&format!("SELECT state = 'resolved' FROM dead_letters WHERE subject_id = '{due}'")).await;
        for worker in workers {
            worker.stop().await;
        }
        assert_eq!(harness.ask::<i64>(records).await, 5);
    })
    .await;
}

/// A stored letter that died that long ago, and that may have been decided that long ago.
async fn stored_letter(harness: &Harness, died: &str, decided: Option<&str>, repaired_from: Option<Uuid>) -> Uuid {
    let id = Uuid::new_v4();
    let sql = "INSERT INTO dead_letters (id, state, reason, cause, cause_group, attempts, last_failed_at, queue, routing_key, body_hash,
                                         decided_at, decided_by, decided_why, repaired_from)
               SELECT $1::uuid, CASE WHEN ago IS NULL THEN 'open' ELSE 'discarded' END, 'malformed', '', '', 0, now() - $2::text::interval, '', '',
                      $5, now() - ago, CASE WHEN ago IS NOT NULL THEN 'lan' END, CASE WHEN ago IS NOT NULL THEN 'known' END, $4::uuid
                 FROM (SELECT nullif($3::text, '')::interval AS ago) AS given";
    let body = harness.kept_body(b"{}", b"").await;
    let values: [Value; 5] = [id.into(), died.into(), decided.unwrap_or_default().into(), repaired_from.into(), body.into()];
    harness.run(sql, values).await;
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_kept_for_ever_unless_a_setting_says_how_long_and_open_ones_even_then() {
    let file = QUICK.replace("every_ms = 3600000", "every_ms = 100\n    grace_ms = 100");
    with_harness(&file, async |harness| {
        let old = Some("31 days");
        let mut kept = vec![
            stored_letter(harness, "400 days", None, None).await,
            stored_letter(harness, "400 days", Some("29 days"), None).await,
        ];
        // The original of a kept letter that was repaired.
        let original = stored_letter(harness, "40 days", old, None).await;
        kept.extend([original, stored_letter(harness, "40 days", None, Some(original)).await]);
        let mut gone = vec![stored_letter(harness, "31 days", old, None).await, stored_letter(harness, "400 days", old, None).await];
        // A repaired letter and its original.
        let original = stored_letter(harness, "50 days", old, None).await;
        gone.extend([original, stored_letter(harness, "50 days", old, Some(original)).await]);
        let all = i64::try_from(kept.len() + gone.len()).expect("few");

        let worker = harness.worker();
        harness.until("SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())").await;
        always("none is deleted", SEVERAL_ROUNDS, async || Ok(count(harness, "true").await == all)).await;
        worker.stop().await;

        let worker = worker_with(harness.sandbox.settings_with(&[("KYHAN_DEAD_LETTERS_KEEP", "30d")]).expect("settings"));
        harness.until(&format!("SELECT count(*) = {} FROM dead_letters", kept.len())).await;
        always("the others are kept", SEVERAL_ROUNDS, async || Ok(count(harness, "true").await == kept.len() as i64)).await;
        worker.stop().await;
        let mut left: Vec<Uuid> = harness.ask("SELECT array_agg(id) FROM dead_letters").await;
        left.sort();
        kept.sort();
        assert_eq!(left, kept);
        let recorded = "SELECT sum((detail #>> '{changed,letters}')::bigint)::bigint FROM activity
                         WHERE actor_kind = 'system' AND action = 'dead_letters.expired'";
        assert_eq!(harness.ask::<i64>(recorded).await, gone.len() as i64);
        let rounds: i64 = harness.ask("SELECT count(*) FROM activity WHERE action = 'dead_letters.expired'").await;
        assert_eq!(rounds, 2, "the original goes a round after what was repaired from it");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_killed_while_they_store_lose_no_letter_and_double_none() {
    const LETTERS: usize = 5_000;
    with_harness(QUICK, async |harness| {
        let letters = (0..LETTERS).map(|_| given_up(harness, "confirm-receipt", Uuid::new_v4(), "kept"));
        harness.publish(letters.collect()).await;
        for _ in 0..3 {
            let mut worker = fleet::command("worker", &harness.sandbox.env, [""; 0]).expect("built").spawn().expect("started");
            let before = count(harness, "true").await;
            harness.until(&format!("SELECT count(*) > least({before} + 100, {LETTERS} - 1) FROM dead_letters")).await;
            worker.kill().await.expect("killed");
        }
        let worker = harness.worker();
        harness.until_dead(LETTERS as u32).await;
        eventually("none is left with the broker", SOON, async || Ok(harness.depth("dead").await == 0)).await;
        worker.stop().await;
        assert_eq!(harness.buried().await, LETTERS as i64);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_letters_of_mixed_causes_all_arrive_once() {
    with_harness(QUICK, async |harness| {
        let mut messages = Vec::new();
        for n in 0..5_000u128 {
            let (kind, subject) = (tasks::EXAMPLED[(n % 3) as usize].kind(), Uuid::from_u128(n));
            let cause = match n % 4 {
                0 => format!(
                    "duplicate key value violates unique constraint \"orders_pkey\": Key (id)=({subject}) already exists."
                ),
                1 => "new row for relation \"orders\" violates check constraint \"obstacle\"".to_owned(),
                2 => format!("canceling statement due to lock timeout after {n} ms"),
                _ => format!("deadlock detected at 2026-11-24T05:06:{:02}Z", n % 60),
            };
            messages.push(given_up(harness, kind, subject, &cause));
        }
        messages.extend((0..2_000).map(|n| put(harness, [GARBAGE, format!("{n}").as_bytes()].concat(), FieldTable::default())));
        let stray = |message: Outgoing| Outgoing { routing_key: "make-coffee.0".into(), ..message };
        for n in 0..2_000u128 {
            messages.push(stray(harness.wakeup("purge-cart-item", &[Uuid::from_u128(n)])));
        }
        for n in 0..10u128 {
            let subjects: Vec<Uuid> = (0..100).map(|m| Uuid::from_u128(n * 100 + m)).collect();
            messages.push(stray(harness.wakeup("confirm-receipt", &subjects)));
        }
        let twice: Vec<Outgoing> = messages.iter().step_by(10).cloned().collect();
        messages.extend(twice);
        harness.publish(messages).await;
        let workers = [harness.worker(), harness.worker()];
        harness.until_dead(10_000).await;
        eventually("none is left with the broker", SOON, async || {
            Ok(harness.depth("dead").await + harness.depth("unrouted").await == 0)
        })
        .await;
        let mut stored = 0;
        for worker in workers {
            stored += worker.stop().await.stored;
        }
        assert_eq!((stored, harness.buried().await), (10_000, 10_000));
        for (condition, expected) in [
            ("reason = 'attempts-exhausted'", 5_000),
            ("reason = 'unknown' AND kind IS NULL", 2_000),
            ("reason = 'unrouted' AND kind = 'purge-cart-item'", 2_000),
            ("reason = 'unrouted' AND kind = 'confirm-receipt' AND subject_id IS NOT NULL", 1_000),
        ] {
            assert_eq!(count(harness, condition).await, expected, "{condition}");
        }
        let groups = "SELECT count(DISTINCT cause_group) FROM dead_letters WHERE reason = 'attempts-exhausted'";
        assert_eq!(harness.ask::<i64>(groups).await, 4);
    })
    .await;
}

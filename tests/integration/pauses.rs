//! Pauses: after `ops pause` has returned, nothing of the kind is applied, no attempt is spent and nothing is dead-lettered.
//! After it is resumed, every wake-up is applied once.

use std::time::Duration;

use lapin::{
    options::BasicGetOptions,
    types::{AMQPValue, FieldTable},
};
use sea_orm::{ConnectionTrait, TransactionTrait};
use serde_json::Value;
use shared::{
    broker::Broker,
    database::statement,
    message::{outgoing::Outgoing, topology::LANE_DELIVERY_LIMIT},
    process::health::Health,
};
use tests::{
    fleet,
    sandbox::{always, eventually},
};
use tokio_util::sync::CancellationToken;

use crate::{
    harness::{Harness, QUICK, SOON, with_harness, worker_with},
    quarantine::give_up,
};

const RECEIVED: &str = "SELECT count(*) FROM orders WHERE status = 'received'";
/// Within this time every worker notices a pause or its end, and returns the messages that it held.
const NOTICED: Duration = Duration::from_secs(30);

async fn pause(harness: &Harness) {
    let said = harness.ops(&["--as", "lan", "pause", "confirm-receipt", "--why", "phí sai"]).await.expect("paused");
    assert!(said.contains("it is not applied until"), "{said}");
}

async fn resume(harness: &Harness) {
    let said = harness.ops(&["--as", "minh", "resume", "confirm-receipt", "--why", "put right"]).await.expect("resumed");
    assert!(said.contains("is resumed; it was paused since") && said.contains("by lan"), "{said}");
}

/// The exit code and the output.
async fn run(harness: &Harness, arguments: &[&str]) -> (i32, String) {
    let done = fleet::command("ops", &harness.sandbox.env, arguments).expect("built").output().await.expect("an end");
    let said = [done.stdout, done.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    (done.status.code().expect("an exit code"), said)
}

/// Waits until that many messages rest in the kind's lane and it has no consumer.
async fn until_at_rest(harness: &Harness, broker: &Broker, messages: u32) {
    let lane = harness.topology().lane("confirm-receipt", 0);
    let mut seen = None;
    eventually("they rest in their lane", NOTICED, async || {
        seen = broker.observe(&lane).await?;
        Ok(seen.is_some_and(|seen| seen.messages == messages && seen.consumers == 0))
    })
    .await;
}

/// The highest number of times that a message of the kind's lane was returned by a consumer. This check returns them all once
/// more.
async fn deliveries(harness: &Harness, broker: &Broker) -> i64 {
    let lane = harness.topology().lane("confirm-receipt", 0);
    let channel = broker.channel().await.expect("a channel");
    let mut most = 0;
    while let Some(got) = channel.basic_get(lane.as_str().into(), BasicGetOptions::default()).await.expect("an answer") {
        let headers = got.delivery.properties.headers().as_ref().map(FieldTable::inner);
        let count = headers.and_then(|headers| headers.get("x-delivery-count"));
        most = most.max(match count {
            None => 0,
            Some(AMQPValue::LongLongInt(count)) => *count,
            Some(AMQPValue::LongInt(count)) => (*count).into(),
            Some(AMQPValue::LongUInt(count)) => (*count).into(),
            Some(AMQPValue::ShortShortUInt(count)) => (*count).into(),
            Some(other) => panic!("x-delivery-count is {other:?}"),
        });
    }
    shared::broker::close_channel(&channel).await;
    most
}

/// Makes every batch take some time between its first statement and its commit.
async fn slow_down(harness: &Harness) {
    let function =
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.05); RETURN NULL; END $$";
    harness.run(function, []).await;
    harness.run("CREATE TRIGGER slow AFTER UPDATE ON orders FOR EACH STATEMENT EXECUTE FUNCTION slow()", []).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_paused_kind_is_applied_once_ops_has_returned_and_everything_once_when_it_is_resumed() {
    with_harness(QUICK, async |harness| {
        let orders = harness.many_delivering(6_000).await;
        slow_down(harness).await;
        let small = harness.sandbox.settings_with(&[("KYHAN_WORKER_BATCH_MAX", "20")]).expect("settings");
        let workers = [worker_with(small.clone()), worker_with(small)];
        harness.publish(orders.chunks(5).map(|some| harness.wakeup("confirm-receipt", some)).collect()).await;
        harness.until(&RECEIVED.replace("count(*)", "count(*) > 200")).await;
        pause(harness).await;
        let applied: i64 = harness.ask(RECEIVED).await;
        assert!(applied < 6_000, "it came too late to show anything");
        let items = [harness.in_cart().await, harness.in_cart().await, harness.in_cart().await];
        harness.publish(items.iter().map(|item| harness.wakeup("purge-cart-item", &[*item])).collect()).await;
        let unchanged = async || Ok(harness.ask::<i64>(RECEIVED).await == applied);
        always("nothing more is applied", Duration::from_secs(3), unchanged).await;
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM cart_items").await, 0, "other kinds go on");

        let broker = harness.sandbox.broker().await.expect("a broker");
        let lane = harness.topology().lane("confirm-receipt", 0);
        let rests = async || Ok(broker.observe(&lane).await?.is_some_and(|seen| seen.consumers == 0));
        eventually("the lane has no consumer any more", NOTICED, rests).await;
        always("and no consumer comes back", Duration::from_secs(7), rests).await;
        let most = deliveries(harness, &broker).await;
        assert!(most <= 1, "a pause returns a message once: {most}");
        assert!(unchanged().await.expect("an answer"));

        resume(harness).await;
        eventually("all are received", Duration::from_secs(60), async || Ok(harness.ask::<i64>(RECEIVED).await == 6_000)).await;
        harness.until_settled().await;
        for worker in workers {
            assert_eq!(worker.stop().await.retried, 0);
        }
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM order_status_history").await, 6_000, "each once");
        assert_eq!(harness.depth("dead").await + harness.depth("quarantine").await, 0);
        broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_waits_for_batches_that_began_before_it_and_says_so_when_it_waits_in_vain() {
    with_harness(QUICK, async |harness| {
        let [held, other] = [harness.delivering().await, harness.delivering().await];
        let gate = "CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$
                        BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NEW; END $$;
                    CREATE TRIGGER gate BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION gate()";
        harness.sandbox.db.execute_unprepared(gate).await.expect("a gate");
        let blocker = harness.sandbox.db.begin().await.expect("a transaction");
        blocker.execute_unprepared("SELECT pg_advisory_xact_lock(7)").await.expect("closed");
        let patient = [("KYHAN_DATABASE_LOCK_TIMEOUT_MS", "60000")];
        let worker = worker_with(harness.sandbox.settings_with(&patient).expect("settings"));
        harness.publish(vec![harness.wakeup("confirm-receipt", &[held])]).await;
        harness
            .until("SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'")
            .await;
        let (code, said) = run(harness, &["pause", "confirm-receipt", "--why", "x", "--wait", "1"]).await;
        assert!(code == 1 && said.contains("is paused, but 1 transaction that began earlier may still commit"), "{said}");

        let again = run(harness, &["pause", "confirm-receipt", "--why", "x", "--wait", "60"]);
        let mut again = std::pin::pin!(again);
        let waits = tokio::time::timeout(Duration::from_secs(2), &mut again).await;
        assert!(waits.is_err(), "{waits:?}");
        blocker.rollback().await.expect("unlocked");
        let (code, said) = again.await;
        assert!(
            code == 0 && said.contains("is already paused") && said.contains("waiting for 1 transaction that began earlier"),
            "{said}"
        );
        assert_eq!(harness.ask::<i64>(RECEIVED).await, 1, "what began before is done by the time it returns");
        harness.publish(vec![harness.wakeup("confirm-receipt", &[other])]).await;
        always("nothing more is applied", Duration::from_secs(2), async || Ok(harness.ask::<i64>(RECEIVED).await == 1)).await;
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_read_does_not_hold_up_a_pause() {
    with_harness(QUICK, async |harness| {
        // As a dump does.
        let reader = harness.sandbox.db.begin().await.expect("a transaction");
        reader.query_all_raw(statement("SELECT FROM orders, pauses", [])).await.expect("an answer");
        let writer = harness.sandbox.db.begin().await.expect("a transaction");
        writer.query_all_raw(statement("SELECT FROM orders FOR UPDATE", [])).await.expect("an answer");
        pause(harness).await;
        writer.rollback().await.expect("done");
        reader.rollback().await.expect("done");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_paused_kind_do_not_go_from_hand_to_hand() {
    with_harness(QUICK, async |harness| {
        let orders = harness.many_delivering(50).await;
        // More consumers than RabbitMQ's delivery limit, in workers that each notice the pause separately.
        let many = [("KYHAN_WORKER_CONSUMERS", "6"), ("KYHAN_DATABASE_MAX_CONNECTIONS", "4"), ("KYHAN_WORKER_PREFETCH", "3")];
        let settings = harness.sandbox.settings_with(&many).expect("settings");
        let workers: Vec<_> = (0..4).map(|_| worker_with(settings.clone())).collect();
        const { assert!(4 * 6 > LANE_DELIVERY_LIMIT) };
        let broker = harness.sandbox.broker().await.expect("a broker");
        let lane = harness.topology().lane("confirm-receipt", 0);
        let all = async || Ok(broker.observe(&lane).await?.is_some_and(|seen| seen.consumers == 24));
        eventually("all of them take", SOON, all).await;
        pause(harness).await;
        harness.publish(orders.iter().map(|order| harness.wakeup("confirm-receipt", &[*order])).collect()).await;
        until_at_rest(harness, &broker, 50).await;
        let most = deliveries(harness, &broker).await;
        assert!(most <= 2, "delivered {most} times");
        assert_eq!(harness.depth("dead").await + harness.depth("quarantine").await + harness.depth("rung.").await, 0);
        resume(harness).await;
        eventually("all are received", NOTICED, async || Ok(harness.ask::<i64>(RECEIVED).await == 50)).await;
        for worker in workers {
            assert_eq!(worker.stop().await.retried, 0);
        }
        broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_started_in_a_pause_is_ready_takes_nothing_of_the_kind_and_says_why() {
    with_harness(QUICK, async |harness| {
        let (order, item) = (harness.delivering().await, harness.in_cart().await);
        pause(harness).await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order]), harness.wakeup("purge-cart-item", &[item])]).await;
        let (health, shutdown) = (Health::new(), CancellationToken::new());
        let worker = tokio::spawn({
            let (settings, health, shutdown) = (harness.settings().clone(), health.clone(), shutdown.clone());
            async move { worker::run(&settings, &health, shutdown).await }
        });
        let shutdown = shutdown.drop_guard();
        harness.until("SELECT count(*) = 0 FROM cart_items").await;
        eventually("it is ready", SOON, async || Ok(health.report().ready)).await;
        let lane = harness.topology().lane("confirm-receipt", 0);
        let resting = || {
            let parts = health.report().parts.into_iter().filter(|part| part.rests.is_some());
            parts.map(|part| (part.name, part.rests.unwrap_or_default())).collect::<Vec<_>>()
        };
        assert!(
            !resting().is_empty()
                && resting().iter().all(|(name, why)| name.starts_with(&lane)
                    && why.starts_with("confirm-receipt has been paused since 20")
                    && why.ends_with("by lan: phí sai")),
            "{:?}",
            resting()
        );
        let broker = harness.sandbox.broker().await.expect("a broker");
        until_at_rest(harness, &broker, 1).await;
        assert_eq!(deliveries(harness, &broker).await, 0);
        resume(harness).await;
        eventually("it is received", NOTICED, async || Ok(harness.ask::<i64>(RECEIVED).await == 1)).await;
        eventually("nothing rests", SOON, async || Ok(health.report().ready && resting().is_empty())).await;
        drop(shutdown);
        worker.await.expect("no panic").expect("a worker that works");
        broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sweep_leaves_a_paused_kind_alone() {
    let file = QUICK.replace("every_ms = 3600000", "every_ms = 100\n    grace_ms = 100");
    with_harness(&file, async |harness| {
        harness.delivering().await;
        pause(harness).await;
        let worker = harness.worker();
        harness.in_cart().await;
        harness.until("SELECT count(*) = 0 FROM cart_items").await;
        let broker = harness.sandbox.broker().await.expect("a broker");
        let left = async || Ok(harness.ask::<bool>("SELECT count(*) = 0 FROM swept WHERE kind = 'confirm-receipt'").await);
        always("it is not woken", Duration::from_secs(2), left).await;
        until_at_rest(harness, &broker, 0).await;
        resume(harness).await;
        eventually("it is woken and received", NOTICED, async || Ok(harness.ask::<i64>(RECEIVED).await == 1)).await;
        worker.stop().await;
        broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_message_of_a_paused_kind_waits_in_its_lane_and_holds_up_no_other() {
    with_harness(QUICK, async |harness| {
        let orders = [harness.delivering().await, harness.delivering().await, harness.delivering().await];
        let item = harness.in_cart().await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &orders[..2]), harness.wakeup("purge-cart-item", &[item])]).await;
        for kind in ["confirm-receipt", "purge-cart-item"] {
            give_up(harness, &harness.topology().lane(kind, 0), LANE_DELIVERY_LIMIT).await;
        }
        let broker = harness.sandbox.broker().await.expect("a broker");
        let given_up = async || Ok(harness.sandbox.depth(&broker, "quarantine").await? == 2);
        eventually("both are quarantined", SOON, given_up).await;
        pause(harness).await;
        let worker = harness.worker();
        harness.until("SELECT count(*) = 0 FROM cart_items").await;
        until_at_rest(harness, &broker, 1).await;
        resume(harness).await;
        eventually("it is applied", NOTICED, async || Ok(harness.ask::<i64>(RECEIVED).await == 2)).await;
        harness.until_consumed().await;

        // And by a worker that has not noticed the pause yet.
        pause(harness).await;
        let quarantined =
            Outgoing { exchange: harness.topology().quarantine(), ..harness.wakeup("confirm-receipt", &orders[2..]) };
        harness.publish(vec![quarantined]).await;
        until_at_rest(harness, &broker, 1).await;
        assert_eq!(harness.depth("quarantine").await + harness.depth("dead").await, 0);
        let most = deliveries(harness, &broker).await;
        assert!(most <= 2, "delivered {most} times");
        resume(harness).await;
        eventually("it is applied too", NOTICED, async || Ok(harness.ask::<i64>(RECEIVED).await == 3)).await;
        assert_eq!(worker.stop().await.retried, 0);
        broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_paused_and_resumed_and_why_is_recorded_once_and_shown_and_again_changes_nothing() {
    with_harness(QUICK, async |harness| {
        let subject = ops::actor::id_of("confirm-receipt");
        for wrong in [
            &["pause", "confirm-reciept", "--why", "x"][..],
            &["pause", "confirm-receipt"],
            &["pause", "confirm-receipt", "--why", " "],
            &["resume", "confirm-receipt", "--why", "a\nb"],
        ] {
            let (code, said) = run(harness, wrong).await;
            assert_eq!(code, 2, "{said}");
            assert!(!wrong.contains(&"confirm-reciept") || said.contains("must be one of confirm-receipt, purge-cart-item"), "{said}");
        }
        let (code, said) = run(harness, &["resume", "confirm-receipt", "--why", "x"]).await;
        assert!(code == 0 && said.contains("was never paused; nothing was changed"), "{said}");
        pause(harness).await;
        let (code, said) = run(harness, &["--as", "minh", "pause", "confirm-receipt", "--why", "another reason"]).await;
        assert!(code == 0 && said.contains("is already paused, since 20") && said.contains("by lan: phí sai"), "{said}");

        let worker = harness.worker();
        eventually("the pause is no trouble", SOON, async || Ok(harness.ops(&["status"]).await.is_ok())).await;
        let status: Value = serde_json::from_str(&harness.ops(&["status", "--json"]).await.expect("well")).expect("JSON");
        let shown = &status["pauses"][0];
        assert_eq!((&shown["kind"], &shown["by"], &shown["why"]), (&"confirm-receipt".into(), &"lan".into(), &"phí sai".into()));
        let screen = harness.ops(&["status"]).await.expect("a pause is no trouble");
        assert!(screen.contains("PAUSED  confirm-receipt since 20") && screen.contains("+07 by lan: phí sai"), "{screen}");
        worker.stop().await;

        resume(harness).await;
        let (code, said) = run(harness, &["resume", "confirm-receipt", "--why", "x"]).await;
        assert!(code == 0 && said.contains("is not paused: it was resumed at 20") && said.contains("by minh"), "{said}");
        let recorded = "SELECT string_agg(concat_ws(' ', actor_kind, action, subject_kind, subject_id, detail ->> 'by',
                                                    detail ->> 'why', detail -> 'changed' ->> 'kind'), '; ' ORDER BY id)
                          FROM activity";
        let both = format!(
            "staff kind.paused kind {subject} lan phí sai confirm-receipt; staff kind.resumed kind {subject} minh put right confirm-receipt"
        );
        assert_eq!(harness.ask::<String>(recorded).await, both);
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM pauses").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_because_of_a_pause_is_not_off_and_not_wrong() {
    with_harness(QUICK, async |harness| {
        let order = harness.delivering().await;
        harness.run("UPDATE orders SET delivering_since = now() - interval '20 minutes'", []).await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
        let verdicts = async || {
            let (status, _) = run(harness, &["status"]).await;
            let audit =
                fleet::command("ops", &harness.sandbox.env, ["audit", "--json"]).expect("built").output().await.expect("an end");
            let report: Value = serde_json::from_slice(&audit.stdout).expect("JSON");
            let verdict = report["due"][0]["verdict"].as_str().expect("a verdict").to_owned();
            (status, audit.status.code().expect("an exit code"), verdict)
        };
        assert_eq!(verdicts().await, (1, 1, "off".to_owned()));
        pause(harness).await;
        // The audit's findings from before the pause remain until the next audit.
        assert_eq!(verdicts().await, (1, 0, "note".to_owned()));
        let worker = harness.worker();
        eventually("nothing is wrong", SOON, async || Ok(verdicts().await == (0, 0, "note".to_owned()))).await;
        worker.stop().await;
        assert_eq!(harness.depth("due.confirm-receipt").await, 1);
    })
    .await;
}

/// Two pauses at the same time have the effect of one.
#[tokio::test(flavor = "multi_thread")]
async fn two_who_pause_at_once_are_one_pause() {
    with_harness(QUICK, async |harness| {
        let one = || run(harness, &["pause", "confirm-receipt", "--why", "x"]);
        let all = futures::future::join_all((0..4).map(|_| one())).await;
        assert!(all.iter().all(|(code, _)| *code == 0), "{all:?}");
        assert_eq!(all.iter().filter(|(_, said)| said.contains("is already paused")).count(), 3, "{all:?}");
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM activity").await, 1);
    })
    .await;
}

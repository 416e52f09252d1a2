//! Canaries and `ops status`: a stalled rung is reported, and a working one is not.

use lapin::types::FieldTable;
use serde_json::Value;
use tests::sandbox::eventually;

use crate::harness::{Harness, QUICK, SOON, with_harness};

fn watched(grace_ms: u32) -> String {
    QUICK.replace("every_ms = 3600000", &format!("every_ms = 100\n    grace_ms = {grace_ms}"))
}

/// The output of `ops status --json`, and whether it exited 0.
async fn status(harness: &Harness) -> (Value, bool) {
    let mut command = tests::fleet::command("ops", &harness.sandbox.env, ["status", "--json"]).expect("built");
    let done = command.output().await.expect("run");
    (serde_json::from_slice(&done.stdout).expect("JSON"), done.status.success())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rungs_canaries_come_back_and_nothing_is_wrong() {
    with_harness(&watched(60_000), async |harness| {
        let worker = harness.worker();
        let rungs = harness.topology().rungs().count();
        harness.until(&format!("SELECT count(DISTINCT queue) = {rungs} FROM canaries WHERE arrived_at IS NOT NULL")).await;
        harness.until("SELECT count(*) > 3 FROM canaries WHERE queue LIKE '%.100ms' AND arrived_at IS NOT NULL").await;
        harness.until_consumed().await;
        let (status, success) = status(harness).await;
        assert!(success && status["troubles"].as_array().expect("a list").is_empty(), "{status:#}");
        for rung in status["rungs"].as_array().expect("rungs") {
            let late = rung["late_s"].as_f64().expect("one has come");
            assert!((0.0..10.0).contains(&late), "{rung:#}");
        }
        let shown = harness.ops(&["status"]).await.expect("well");
        assert!(shown.contains("nothing is wrong") && shown.contains("holds for"), "{shown}");
        let totals = worker.stop().await;
        assert_eq!((totals.malformed, totals.applied), (0, 0), "canaries are no wake-ups: {totals:?}");
        assert_eq!(harness.buried().await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rung_that_does_not_move_is_named_and_the_others_are_not() {
    with_harness(&watched(500), async |harness| {
        let worker = harness.worker();
        let rungs = harness.topology().rungs().count();
        harness.until(&format!("SELECT count(DISTINCT queue) = {rungs} FROM canaries WHERE arrived_at IS NOT NULL")).await;
        harness.until_consumed().await;
        // A rung without a TTL: messages in it never leave.
        let jammed = format!("{}1s", harness.topology().rung_prefix());
        harness.replace(&jammed, |table| *table = FieldTable::default()).await;
        let troubles = async || status(harness).await.0["troubles"].as_array().expect("a list").len();
        eventually("it is noticed", SOON, async || Ok(troubles().await > 0)).await;
        let (wrong, success) = status(harness).await;
        assert!(!success);
        let troubles = wrong["troubles"].as_array().expect("a list");
        assert!(
            troubles.len() == 1
                && troubles[0].as_str().is_some_and(|said| said.starts_with(&jammed) && said.contains("has stalled")),
            "{wrong:#}"
        );
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_queue_and_lanes_without_a_worker_are_named() {
    with_harness(QUICK, async |harness| {
        let order = harness.delivering().await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
        let broker = harness.sandbox.broker().await.expect("a broker");
        let rung = format!("{}1s", harness.topology().rung_prefix());
        broker.delete_queue(&rung).await.expect("deleted");
        broker.close().await;
        let troubles = async || {
            let (status, success) = status(harness).await;
            assert!(!success);
            let troubles = status["troubles"].as_array().expect("a list").clone();
            troubles.iter().map(|said| said.as_str().expect("text").to_owned()).collect::<Vec<_>>().join("\n")
        };
        eventually("both are named", SOON, async || {
            let said = troubles().await;
            Ok(said.contains(&format!("{rung} is missing"))
                && said.contains("no worker consumes any lane (1 messages wait); is a worker running?"))
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_no_canary_keeps_none_from_being_noted() {
    with_harness(&watched(60_000), async |harness| {
        let bodies = ["hello", "{\"id\":\"00000000-0000-4000-8000-000000000001\",\"queue\":\"elsewhere\",\"published_at\":\"-9999-01-01T00:00:00Z\"}"];
        let stray = harness.wakeup("confirm-receipt", &[uuid::Uuid::new_v4()]);
        let strays =
            bodies.map(|body| shared::message::outgoing::Outgoing { routing_key: "canary.0".into(), body: body.into(), ..stray.clone() });
        harness.publish(strays.to_vec()).await;
        let worker = harness.worker();
        let rungs = harness.topology().rungs().count();
        harness.until(&format!("SELECT count(DISTINCT queue) = {rungs} FROM canaries WHERE arrived_at IS NOT NULL")).await;
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM canaries WHERE queue = 'elsewhere'").await, 0);
        worker.stop().await;
    })
    .await;
}

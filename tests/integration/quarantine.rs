//! Quarantine: messages over the delivery limit are applied one subject at a time, so that only the subject that stops its worker
//! becomes a dead letter.

use std::time::Duration;

use lapin::options::BasicGetOptions;
use shared::message::topology::{LANE_DELIVERY_LIMIT, QUARANTINE_DELIVERY_LIMIT};
use tests::{fleet, sandbox::eventually};
use uuid::Uuid;

use crate::harness::{Harness, QUICK, SOON, with_harness};

/// From now on every worker that applies this order hangs, as if the row caused an endless loop.
async fn hangs_its_worker(harness: &Harness, order: Uuid) {
    let function = format!(
        "CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF OLD.id = '{order}' THEN PERFORM pg_sleep(3600); END IF;
             RETURN NEW;
         END $$"
    );
    harness.run(&function, []).await;
    harness.run("CREATE TRIGGER hang BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION hang()", []).await;
}

/// Worker after worker takes the first message of a queue and dies, until the queue gives it up.
pub async fn give_up(harness: &Harness, queue: &str, limit: i64) {
    let broker = harness.sandbox.broker().await.expect("a broker");
    for _ in 0..=limit {
        let channel = broker.channel().await.expect("a channel");
        let mut taken = None;
        eventually("it is back", SOON, async || {
            taken = channel.basic_get(queue.into(), BasicGetOptions::default()).await?;
            Ok(taken.is_some())
        })
        .await;
        shared::broker::close_channel(&channel).await;
    }
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packed_wakeup_that_stops_its_workers_is_taken_apart_and_only_the_culprit_is_a_dead_letter() {
    with_harness(QUICK, async |harness| {
        let orders = [harness.delivering().await, harness.delivering().await, harness.delivering().await];
        let culprit = orders[1];
        hangs_its_worker(harness, culprit).await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &orders)]).await;
        give_up(harness, &harness.topology().lane("confirm-receipt", 0), LANE_DELIVERY_LIMIT).await;
        let broker = harness.sandbox.broker().await.expect("a broker");
        eventually("it is quarantined", SOON, async || Ok(harness.sandbox.depth(&broker, "quarantine").await? == 1)).await;

        // Now real workers: each takes the culprit, hangs, and is killed.
        let hanging = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
        let end_it = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event = 'PgSleep'";
        let mut deaths = 0;
        while harness.buried().await == 0 {
            let mut worker = fleet::command("worker", &harness.sandbox.env, [""; 0]).expect("built").spawn().expect("started");
            eventually("it hangs, or the culprit is given up", SOON, async || {
                Ok(harness.ask::<bool>(hanging).await || harness.buried().await == 1)
            })
            .await;
            worker.kill().await.expect("killed");
            harness.ask::<i64>(end_it).await;
            // A session takes a moment to end; it must not be mistaken for the next one.
            eventually("no session hangs", SOON, async || Ok(!harness.ask::<bool>(hanging).await)).await;
            deaths += 1;
            assert!(deaths <= QUARANTINE_DELIVERY_LIMIT + 2, "it is never given up");
        }
        let worker = harness.worker();
        harness.until("SELECT count(*) = 2 FROM orders WHERE status = 'received'").await;
        harness.until_dead(1).await;
        harness.until_settled().await;
        worker.stop().await;
        let letters = harness.dead_letters().await;
        assert_eq!(letters.len(), 1);
        assert_eq!((letters[0].reason.as_str(), letters[0].subject), ("delivery-limit", Some(culprit)));
        assert!(letters[0].cause.contains("quarantine"), "{}", letters[0].cause);

        // After the fault is fixed, the next wake-up applies it.
        harness.run("DROP TRIGGER hang ON orders", []).await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &[culprit])]).await;
        let worker = harness.worker();
        harness.until("SELECT count(*) = 3 FROM orders WHERE status = 'received'").await;
        worker.stop().await;
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM order_status_history").await, 3);
        broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_lay_beside_the_culprit_is_applied_and_nothing_is_buried() {
    with_harness(QUICK, async |harness| {
        let orders = [harness.delivering().await, harness.delivering().await];
        let item = harness.in_cart().await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &orders), harness.wakeup("purge-cart-item", &[item])]).await;
        for kind in ["confirm-receipt", "purge-cart-item"] {
            give_up(harness, &harness.topology().lane(kind, 0), LANE_DELIVERY_LIMIT).await;
        }
        let worker = harness.worker();
        harness.until("SELECT count(*) = 2 FROM orders WHERE status = 'received'").await;
        harness.until("SELECT count(*) = 0 FROM cart_items").await;
        tests::sandbox::always("nothing is buried", Duration::from_millis(500), async || Ok(harness.buried().await == 0)).await;
        assert_eq!(worker.stop().await.applied, 3);
        assert_eq!(harness.depth("quarantine").await, 0);
    })
    .await;
}

//! Rebuild: after the broker has lost its disk, every wake-up is made again from the rows. On a healthy broker a rebuild is
//! harmless, and an interrupted one can be continued.

use shared::domain::task::Task;
use tests::{fleet, sandbox::eventually};
use uuid::Uuid;

use crate::harness::{Harness, QUICK, SOON, with_harness};

/// Empties the broker, as after the loss of its disk.
async fn lose_the_broker(harness: &Harness) {
    let broker = harness.sandbox.broker().await.expect("a broker");
    for queue in harness.topology().queues() {
        broker.delete_queue(&queue.name).await.expect("deleted");
    }
    for exchange in harness.topology().exchanges() {
        broker.delete_exchange(&exchange.name).await.expect("deleted");
    }
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_lost_with_its_disk_loses_no_deadline() {
    let file = QUICK.replace("400ms", "1s").replace("200ms", "1s").replace("300ms", "1s");
    with_harness(&file, async |harness| {
        let mut subjects = Vec::new();
        for task in harness.tasks() {
            for _ in 0..10 {
                let id = Uuid::new_v4();
                harness.run(task.examples().due, [id.into()]).await;
                subjects.push((task, id));
            }
        }
        // Half of the orders fall due only in a second.
        let later =
            "UPDATE orders SET delivering_since = now() WHERE status = 'delivering' AND id IN (SELECT id FROM orders LIMIT 5)";
        harness.run(later, []).await;
        lose_the_broker(harness).await;
        let counted = harness.ops(&["rebuild", "--dry-run"]).await.expect("counted");
        assert!(harness.tasks().map(Task::kind).all(|kind| counted.contains(&format!("{kind}: 10 pending"))), "{counted}");
        let rebuilt = harness.ops(&["rebuild"]).await.expect("rebuilt");
        assert!(
            harness.tasks().map(Task::kind).all(|kind| rebuilt.contains(&format!("{kind}: 10 subjects scheduled again"))),
            "{rebuilt}"
        );
        let worker = harness.worker();
        for (task, id) in &subjects {
            eventually("the effect", SOON, async || Ok(harness.effects(*task, *id).await.iter().all(|count| *count == 1))).await;
        }
        harness.until_settled().await;
        let totals = worker.stop().await;
        assert_eq!((totals.applied, totals.retried, totals.rejected), (subjects.len() as u64, 0, 0), "{totals:?}");
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM rebuilds").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_healthy_broker_it_doubles_nothing() {
    with_harness(QUICK, async |harness| {
        let orders = harness.many_delivering(500).await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &orders)]).await;
        let unknown = harness.ops(&["rebuild", "--kind", "make-coffee"]).await.expect_err("refused").to_string();
        assert!(unknown.contains("must be one of confirm-receipt"), "{unknown}");
        harness.ops(&["rebuild", "--kind", "confirm-receipt"]).await.expect("rebuilt");
        let worker = harness.worker();
        harness.until("SELECT count(*) = 500 FROM orders WHERE status = 'received'").await;
        harness.until_settled().await;
        let totals = worker.stop().await;
        assert_eq!((totals.applied, totals.stale), (500, 500));
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM order_status_history").await, 500);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_it_goes_on_where_it_stopped_and_leaves_no_row_out() {
    with_harness(QUICK, async |harness| {
        harness.many_delivering(30_000).await;
        let arguments = ["rebuild", "--kind", "confirm-receipt", "--rate", "10000"];
        let mut first = fleet::command("ops", &harness.sandbox.env, arguments).expect("built").spawn().expect("started");
        harness.until("SELECT count(*) = 1 FROM rebuilds").await;
        first.kill().await.expect("killed");
        let counted = harness.ops(&["rebuild", "--dry-run", "--kind", "confirm-receipt"]).await.expect("counted");
        assert!(counted.contains("30000 pending") && counted.contains("a rebuild was interrupted at"), "{counted}");
        // Long ago: the broker may have been lost again since, so an operator has to choose.
        let age = "UPDATE rebuilds SET at = at - interval '2 hours' * $1";
        harness.run(age, [1.0f64.into()]).await;
        let refused = harness.ops(&["rebuild", "--kind", "confirm-receipt"]).await.expect_err("refused").to_string();
        assert!(refused.contains("Pass --restart to start from the beginning"), "{refused}");
        harness.run(age, [(-1.0f64).into()]).await;
        let rebuilt = harness.ops(&["rebuild", "--kind", "confirm-receipt"]).await.expect("rebuilt");
        assert!(!rebuilt.contains("30000 subjects"), "it went on: {rebuilt}");
        let worker = harness.worker();
        harness.until("SELECT count(*) = 30000 FROM orders WHERE status = 'received'").await;
        worker.stop().await;
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM order_status_history").await, 30_000);
    })
    .await;
}

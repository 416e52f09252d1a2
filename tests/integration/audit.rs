//! `ops audit` finds nothing wrong with a healthy system, and counts each kind of fault exactly, with exit code 1. It is
//! read-only.

use sea_orm::{ConnectionTrait, TransactionTrait};
use serde_json::Value;
use shared::{
    database::statement,
    domain::task::{EXAMPLE_CUSTOMER, Exampled},
    message::topology::QueueRole,
};
use tests::{fleet, sandbox::eventually};
use uuid::Uuid;

use crate::harness::{Harness, QUICK, SOON, with_harness};

/// A policy under which rows wait for an hour or are a year overdue.
fn patient() -> String {
    QUICK.replace("400ms", "1h").replace("200ms", "1h").replace("300ms", "1h")
}

/// The output of `ops audit --json` and its exit code.
async fn audited(harness: &Harness) -> (Value, i32) {
    let mut command = fleet::command("ops", &harness.sandbox.env, ["audit", "--json"]).expect("built");
    let done = command.output().await.expect("an end");
    let said = String::from_utf8_lossy(&done.stdout);
    let report = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}{:?}", done.stderr));
    (report, done.status.code().expect("an exit code"))
}

/// The counts that are off, as `section check count`. The section is the name of a kind, queue or check.
fn off(report: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (section, lines) in report.as_object().expect("a document") {
        for line in lines.as_array().unwrap_or(&vec![lines.clone()]) {
            if line["verdict"] == "off" {
                let what = ["check", "queue", "kind"].iter().find_map(|name| line[name].as_str()).unwrap_or_default();
                let what = what.rsplit_once(".due.").map_or(what, |(_, lane)| lane);
                let count = ["count", "overdue", "missing", "messages"].iter().find_map(|name| line[name].as_i64());
                found.push(format!("{section} {what} {}", count.map_or("-".into(), |count| count.to_string())));
            }
        }
    }
    assert_eq!(report["off"], found.len(), "{report}");
    found
}

/// Asserts that the audit finds exactly these counts off.
async fn only_off(harness: &Harness, expected: &[&str]) {
    let (report, code) = audited(harness).await;
    assert_eq!(off(&report), expected, "{report}");
    assert_eq!(code, i32::from(!expected.is_empty()));
}

/// Tampers with rows: bypasses the triggers, which no role can.
async fn tamper(harness: &Harness, sql: &str) -> u64 {
    let tx = harness.sandbox.db.begin().await.expect("a transaction");
    tx.execute_unprepared("SET LOCAL session_replication_role = replica").await.expect("a superuser");
    let done = tx.execute_raw(statement(sql, [])).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    tx.commit().await.expect("a commit");
    done.rows_affected()
}

/// Orders due in an hour, each with its wake-up in the rung.
async fn waiting(harness: &Harness, count: i64) -> Vec<Uuid> {
    let orders = harness.many_delivering(count).await;
    harness.run("UPDATE orders SET delivering_since = now()", []).await;
    for order in &orders {
        harness.event("order.shipped", *order).await;
    }
    let relay = harness.relay();
    harness.until("SELECT count(*) = 0 FROM outbox").await;
    relay.stop().await;
    orders
}

/// One subject of each kind, to which a worker has applied the effect.
async fn applied(harness: &Harness) -> Vec<(&'static dyn Exampled, Uuid)> {
    let mut subjects = Vec::new();
    for task in harness.tasks() {
        let id = Uuid::new_v4();
        harness.run(task.examples().due, [id.into()]).await;
        harness.publish(vec![harness.wakeup(task.kind(), &[id])]).await;
        subjects.push((task, id));
    }
    let worker = harness.worker();
    for (task, id) in &subjects {
        eventually("the effect", SOON, async || Ok(harness.effects(*task, *id).await.iter().all(|count| *count == 1))).await;
    }
    worker.stop().await;
    subjects
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_system_is_found_healthy_and_left_as_it_was() {
    with_harness(&patient(), async |harness| {
        waiting(harness, 300).await;
        applied(harness).await;
        let everything = "SELECT md5(database_to_xml(true, false, '')::text)";
        let before = (harness.ask::<String>(everything).await, harness.depth("").await);
        let (report, code) = audited(harness).await;
        assert_eq!((off(&report), code), (vec![], 0));
        assert_eq!(
            tamper(harness, "DELETE FROM activity WHERE action = 'audit.finished'").await,
            1,
            "that it was made is recorded"
        );
        assert_eq!((harness.ask(everything).await, harness.depth("").await), before);

        assert_eq!(report["due"][0]["kind"], "confirm-receipt");
        assert_eq!((&report["due"][0]["pending"], &report["due"][0]["overdue"]), (&300.into(), &0.into()));
        // 300 of confirm-receipt in packs of 128. The arrears wake-ups of the same orders wait there as well; those orders owe
        // nothing.
        assert_eq!(report["wakeups"]["messages"], harness.depth("rung.").await);
        assert_eq!((&report["wakeups"]["subjects"], &report["wakeups"]["missing"]), (&300.into(), &0.into()));
        let rung = report["rungs"].as_array().expect("rungs").iter().find(|rung| rung["rung"] == "1h").expect("a rung");
        assert_eq!((&rung["candidates"], &rung["messages"]), (&300.into(), &report["wakeups"]["messages"]));

        let shown = harness.ops(&["audit"]).await.expect("exit code 0");
        assert!(shown.trim_end().ends_with("nothing is off"), "{shown}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn overdue_rows_are_counted_and_those_within_the_grace_are_on_their_way() {
    with_harness(&patient(), async |harness| {
        harness.many_delivering(7).await;
        harness.in_cart().await;
        only_off(harness, &["due confirm-receipt 7", "due purge-cart-item 1"]).await;
        // The sweep's grace is five minutes.
        harness.run("UPDATE orders SET delivering_since = now() - interval '62 minutes'", []).await;
        harness.run("UPDATE cart_items SET added_at = now() - interval '62 minutes'", []).await;
        only_off(harness, &[]).await;
        let (report, _) = audited(harness).await;
        assert_eq!((&report["due"][0]["due"], &report["due"][1]["due"]), (&7.into(), &1.into()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_that_lies_centuries_ahead_is_off_and_explained() {
    with_harness(&patient(), async |harness| {
        let order = harness.delivering().await;
        harness.run("UPDATE orders SET delivering_since = delivering_since + interval '900 years'", []).await;
        only_off(harness, &["records rows due more than ten years from now 1", "wakeups  1"]).await;
        let explained = harness.ops(&["explain", &order.to_string()]).await.expect("explained");
        assert!(explained.contains("more than ten years from now: check the moment from which it counts"), "{explained}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_missing_in_history_and_one_recorded_twice_are_off() {
    with_harness(&patient(), async |harness| {
        applied(harness).await;
        let copied = "INSERT INTO order_status_history (order_id, from_status, to_status, reason, at)
                      SELECT order_id, from_status, to_status, reason, at FROM order_status_history WHERE reason = 'confirm-receipt'";
        harness.run(copied, []).await;
        only_off(harness, &["records receipts recorded twice for one delivery 1"]).await;
        assert_eq!(harness.run("DELETE FROM order_status_history WHERE reason = 'confirm-receipt'", []).await, 2);
        only_off(harness, &["records received orders whose history does not say so 1"]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn history_of_an_order_that_does_not_exist_is_off() {
    with_harness(&patient(), async |harness| {
        applied(harness).await;
        let orphan = "INSERT INTO order_status_history (order_id, from_status, to_status, reason)
                      VALUES (gen_random_uuid(), 'delivering', 'received', 'khách')";
        assert_eq!(tamper(harness, orphan).await, 1);
        only_off(harness, &["records history rows of orders that do not exist 1"]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_staff_and_customers_may_do_is_not_off() {
    with_harness(&patient(), async |harness| {
        // One order of a system that keeps no history, and one whose customer's confirmation is recorded.
        for sql in [
            "UPDATE orders SET status = 'received', received_at = now() WHERE id = $1",
            "WITH confirmed AS (UPDATE orders SET status = 'received', received_at = now(), updated_at = now() WHERE id = $1 RETURNING id)
             INSERT INTO order_status_history (order_id, from_status, to_status, reason) SELECT id, 'delivering', 'received', 'khách' FROM confirmed",
        ] {
            let order = harness.delivering().await;
            harness.run(sql, [order.into()]).await;
        }
        // Set back to delivering after an automatic receipt, with and without history, and received automatically again.
        for history in [false, true] {
            let order = harness.delivering().await;
            for again in [true, false] {
                if history {
                    let sql = "INSERT INTO order_status_history (order_id, from_status, to_status, reason) VALUES ($1, 'received', 'delivering', 'nhân viên')";
                    harness.run(sql, [order.into()]).await;
                }
                harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
                let worker = harness.worker();
                harness.until(&format!("SELECT status = 'received' FROM orders WHERE id = '{order}'")).await;
                worker.stop().await;
                if again {
                    harness.run("UPDATE orders SET status = 'delivering' WHERE id = $1", [order.into()]).await;
                }
            }
        }
        // An item inserted again under its old id.
        let item = Uuid::new_v4();
        let added = "INSERT INTO cart_items (id, customer_id, product_ref, product_name, quantity, added_at)
                     VALUES ($1, $2, 'ref', 'name', 1, now() - interval '1 year' * $3)";
        harness.run(added, [item.into(), EXAMPLE_CUSTOMER.into(), 1.0f64.into()]).await;
        harness.publish(vec![harness.wakeup("purge-cart-item", &[item])]).await;
        let worker = harness.worker();
        harness.until("SELECT count(*) = 0 FROM cart_items").await;
        worker.stop().await;
        harness.run(added, [item.into(), EXAMPLE_CUSTOMER.into(), 0.0f64.into()]).await;

        let (report, _) = audited(harness).await;
        let records = report["records"].as_array().expect("records");
        assert!(records.iter().all(|record| record["count"] == 0), "{report}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purged_item_that_is_there_and_a_purge_recorded_twice_are_off() {
    with_harness(&patient(), async |harness| {
        let item = applied(harness).await[1].1;
        let copied = "INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail)
                      SELECT actor_kind, action, subject_kind, subject_id, detail FROM activity WHERE action = 'cart_item.purged'";
        harness.run(copied, []).await;
        only_off(harness, &["records items whose purge is recorded twice 1"]).await;
        // It was added before it was purged and belongs to an order, so nothing is due.
        let back = "INSERT INTO cart_items (id, customer_id, product_ref, product_name, quantity, added_at, order_id)
                    SELECT $1, $2, 'ref', 'name', 1, now() - interval '1 year', id FROM orders LIMIT 1";
        harness.run(back, [item.into(), EXAMPLE_CUSTOMER.into()]).await;
        let twice = ["records items purged by record and still there 1", "records items whose purge is recorded twice 1"];
        only_off(harness, &twice).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn arrears_and_their_records_that_differ_are_off() {
    with_harness(&patient(), async |harness| {
        applied(harness).await;
        let undo = [
            "DELETE FROM order_status_history WHERE reason LIKE 'collect-arrears%'",
            "UPDATE activity SET detail = jsonb_set(detail, '{collected,goods}', '1499999') WHERE action = 'order.arrears_collected'",
            "UPDATE transfers SET idempotency_key = replace(idempotency_key, ':goods:', ':shipping:') WHERE reason = 'arrears'",
        ];
        for sql in undo {
            assert!(tamper(harness, sql).await > 0, "{sql}");
        }
        let differ = "records activities whose amounts differ from their charges 1";
        let key = "records charges whose key names another order or component 1";
        let restored = "records orders put back by history or by activity alone 1";
        only_off(harness, &[differ, key, restored]).await;
        assert_eq!(tamper(harness, "DELETE FROM activity WHERE action = 'order.arrears_collected'").await, 1);
        only_off(harness, &["records charges without an activity 2", key]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balance_that_was_tampered_with_is_off_twice_and_two_that_cancel_out_once() {
    with_harness(&patient(), async |harness| {
        applied(harness).await;
        tamper(harness, "UPDATE accounts SET balance = balance + 5 WHERE kind = 'wallet'").await;
        only_off(harness, &["ledger the sum of all balances 5", "ledger accounts that differ from their transfers 1"]).await;
        tamper(harness, "UPDATE accounts SET balance = balance - 5 WHERE kind = 'service'").await;
        only_off(harness, &["ledger accounts that differ from their transfers 2"]).await;
        let shown = harness.ops(&["audit"]).await.expect_err("exit code 1").to_string();
        assert!(shown.contains("exit status: 1"), "{shown}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wakeups_purged_from_a_rung_are_missing_as_far_as_counts_can_tell() {
    with_harness(&patient(), async |harness| {
        let orders = waiting(harness, 300).await;
        let broker = harness.sandbox.broker().await.expect("a broker");
        let channel = broker.channel().await.expect("a channel");
        let rung = format!("{}1h", harness.topology().rung_prefix());
        channel.queue_purge(rung.as_str().into(), lapin::options::QueuePurgeOptions::default()).await.expect("purged");
        shared::broker::close_channel(&channel).await;
        broker.close().await;
        only_off(harness, &["wakeups  300"]).await;
        // A message names at most 128 subjects; this one names one.
        let mut one = harness.wakeup("confirm-receipt", &orders[..1]);
        one.exchange.clone_from(&rung);
        harness.publish(vec![one]).await;
        only_off(harness, &["wakeups  172"]).await;
        // Events still in the outbox will get their wake-ups.
        for order in &orders[1..201] {
            harness.event("order.shipped", *order).await;
        }
        only_off(harness, &[]).await;
        // A canary is a message as well. If it is the only message, the audit prints a note.
        let canary = "INSERT INTO canaries (id, queue, published_at, due_at) VALUES (gen_random_uuid(), $1, now(), now() + interval '1 hour')";
        harness.run(canary, [rung.into()]).await;
        let (report, code) = audited(harness).await;
        let wakeups = &report["wakeups"];
        assert_eq!((&wakeups["perhaps_missing"], &wakeups["missing"], &wakeups["verdict"]), (&100.into(), &0.into(), &"note".into()));
        assert_eq!(code, 0);
        harness.run("DELETE FROM canaries", []).await;
        harness.run("DELETE FROM outbox", []).await;
        harness.ops(&["rebuild"]).await.expect("rebuilt");
        only_off(harness, &[]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_queue_and_a_lane_without_consumers_are_off_and_letters_are_a_note() {
    with_harness(&patient(), async |harness| {
        let broker = harness.sandbox.broker().await.expect("a broker");
        let rung = harness.topology().queues().into_iter().find(|queue| queue.role == QueueRole::Rung).expect("a rung");
        broker.delete_queue(&harness.topology().lane("purge-cart-item", 0)).await.expect("deleted");
        broker.delete_queue(&rung.name).await.expect("deleted");
        broker.close().await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &[Uuid::new_v4()])]).await;
        harness.publish(vec![harness.wakeup("purge-cart-item", &[Uuid::new_v4()])]).await;
        harness.event("order.shiped", Uuid::new_v4()).await;
        let lanes = ["queues purge-cart-item.0 -".to_owned(), "queues confirm-receipt.0 1".to_owned()];
        let (report, code) = audited(harness).await;
        let mut expected = vec![format!("queues {} -", rung.name)];
        expected.extend(lanes);
        assert_eq!((off(&report), code), (expected, 1), "{report}");
        // The second message had no lane.
        let unrouted = report["queues"].as_array().expect("queues").iter().find(|queue| queue["role"] == "unrouted");
        let unrouted = unrouted.expect("a queue");
        assert_eq!((&unrouted["messages"], &unrouted["verdict"]), (&1.into(), &"note".into()));
        // Nothing is pending, so a wake-up that waits is stale.
        assert_eq!((&report["wakeups"]["messages"], &report["wakeups"]["verdict"]), (&1.into(), &"note".into()));

        // A relay and a worker declare what is missing and do the pending work. The rest is reported, but is not off.
        let (relay, worker) = (harness.relay(), harness.worker());
        harness.until("SELECT count(*) = 1 FROM set_aside").await;
        harness.until_settled().await;
        relay.stop().await;
        worker.stop().await;
        only_off(harness, &[]).await;
        let (report, _) = audited(harness).await;
        assert_eq!((&report["events"][1]["count"], &report["events"][1]["verdict"]), (&1.into(), &"note".into()));
    })
    .await;
}

/// Each hostile transfer of a fleet's login, as if the ledger's own trigger had been disabled.
#[tokio::test(flavor = "multi_thread")]
async fn money_that_a_login_of_the_fleet_moved_past_the_ledgers_trigger_is_off() {
    with_harness(&patient(), async |harness| {
        applied(harness).await;
        let other = Uuid::new_v4();
        harness.run("INSERT INTO customers VALUES ($1, 'Lê Thị Khác', '0902', 'khac@example.vn', 'Huế')", [other.into()]).await;
        harness.run("INSERT INTO accounts (kind, customer_id) VALUES ('wallet', $1)", [other.into()]).await;
        harness.run("ALTER TABLE transfers DISABLE TRIGGER transfers_of_the_fleet", []).await;
        only_off(harness, &[]).await;
        let worker = harness.sandbox.connect_as(shared::database::roles::DatabaseRole::Worker).await.expect("a login");
        let moved = async |payer: Uuid, to: &str, amount: i64, reason: &str, key: &str| {
            let sql = format!(
                "WITH moved AS (
                     INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key)
                     SELECT payer.id, payee.id, {amount}, '{reason}', payee.order_id, '{key}' FROM accounts AS payer, accounts AS payee
                      WHERE payer.customer_id = '{payer}' AND payee.{to} RETURNING order_id
                 )
                 INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail)
                 SELECT 'system', 'order.arrears_collected', 'order', order_id, jsonb_build_object('collected', '{{\"goods\": {amount}}}'::jsonb)
                   FROM moved WHERE order_id IS NOT NULL"
            );
            worker.execute_unprepared(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        };
        // With its activity, as an attacker who knows the audit would.
        moved(EXAMPLE_CUSTOMER, &format!("customer_id = '{other}'"), 700, "adjustment", "x").await;
        only_off(harness, &["ledger transfers by the fleet's logins that are not arrears 1"]).await;
        let order: Uuid = harness.ask("SELECT order_id FROM accounts WHERE kind = 'goods'").await;
        let key = |at: &str| format!("collect-arrears:{order}:goods:{at}");
        moved(EXAMPLE_CUSTOMER, "kind = 'goods'", 1, "arrears", &key("2026")).await;
        let beyond = "records charges beyond what was due 1";
        only_off(harness, &["ledger transfers by the fleet's logins that are not arrears 1", beyond]).await;
        moved(other, "kind = 'goods'", 1, "arrears", &key("2027")).await;
        let expected = [
            "ledger transfers by the fleet's logins that are not arrears 1",
            "records charges that another customer's wallet paid 1",
            "records charges beyond what was due 2",
        ];
        only_off(harness, &expected).await;
        worker.close().await.expect("closed");
    })
    .await;
}

//! News of an order: what counts as activity, brings a hidden order back, and excludes a hiding at the same time, whichever login writes
//! it and in whatever order the two transactions come.

use std::time::Duration;

use sea_orm::{ConnectionTrait, IsolationLevel, TransactionTrait};
use shared::database::roles::DatabaseRole;
use tests::sandbox::{always, eventually};
use uuid::Uuid;

use crate::{
    harness::{QUICK, SOON, every_kind, with_harness},
    retention::heard_of,
};

#[tokio::test(flavor = "multi_thread")]
async fn no_login_hides_early_and_news_of_a_hidden_order_brings_it_back() {
    with_harness(&every_kind(QUICK), async |harness| {
        let (old, young) = (heard_of(harness, "now() - interval '1 year'").await, heard_of(harness, "now() - interval '5 months'").await);
        let worker = harness.sandbox.connect_as(DatabaseRole::Worker).await.expect("a login");
        let hide = async |order: Uuid, at: &str| worker.execute_unprepared(&format!("UPDATE orders SET hidden_at = {at} WHERE id = '{order}'")).await;
        let changed = worker.execute_unprepared(&format!("UPDATE orders SET status = 'cancelled', hidden_at = now() WHERE id = '{old}'")).await;
        assert!(changed.expect_err("refused").to_string().contains("must not change anything else"));
        let snapshot = worker.begin_with_config(Some(IsolationLevel::RepeatableRead), None).await.expect("a transaction");
        let blind = snapshot.execute_unprepared(&format!("UPDATE orders SET hidden_at = now() WHERE id = '{old}'")).await;
        assert!(blind.expect_err("refused").to_string().contains("in a transaction that is repeatable read"));
        snapshot.rollback().await.expect("rolled back");
        let records = worker.execute_unprepared("UPDATE records_retention SET hidden_before = now() - interval '5 months'").await;
        assert!(records.expect_err("refused").to_string().contains("on line for six months"));
        for (order, at) in [(young, "now()"), (young, "now() + interval '1 year'"), (old, "now() + interval '1 second'"), (old, "now() - interval '11 months'")] {
            let refused = hide(order, at).await.expect_err("refused").to_string();
            assert!(refused.contains("six months after the last news"), "{refused}");
        }
        let order_system = harness.sandbox.connect_as(DatabaseRole::OrderSystem).await.expect("a login");
        let account = "INSERT INTO accounts (kind, customer_id, order_id) VALUES ('outside', NULL, NULL), ('goods', NULL, $1)";
        harness.run(account, [old.into()]).await;
        for (news, back_again) in [
            (format!("INSERT INTO order_messages (order_id, author, body) VALUES ('{old}', 'khách', 'x')"), "DELETE FROM order_messages"),
            (format!("INSERT INTO order_status_history (order_id, from_status, to_status, reason) VALUES ('{old}', 'a', 'b', 'c')"), "DELETE FROM order_status_history"),
            (
                // The transfer does not name the order, but its account does.
                "INSERT INTO transfers (debit_account, credit_account, amount, reason, idempotency_key)
                 SELECT a.id, b.id, 1, 'x', gen_random_uuid() FROM accounts a, accounts b WHERE a.kind = 'outside' AND b.kind = 'goods'".to_owned(),
                "DELETE FROM transfers; UPDATE accounts SET balance = 0",
            ),
            (format!("INSERT INTO activity (actor_kind, action, subject_kind, subject_id) VALUES ('customer', 'order.complaint', 'order', '{old}')"), "SELECT"),
            (format!("UPDATE orders SET on_hold = true WHERE id = '{old}'"), "UPDATE orders SET on_hold = false, changed_at = NULL"),
        ] {
            hide(old, "now()").await.expect("hidden");
            order_system.execute_unprepared(&news).await.unwrap_or_else(|error| panic!("{news}: {error}"));
            assert!(harness.ask::<bool>(&format!("SELECT hidden_at IS NULL FROM orders WHERE id = '{old}'")).await, "{news}");
            harness.as_superuser(&format!("{back_again}; DELETE FROM activity")).await;
        }
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM outbox WHERE event_type = 'order.recorded'").await, 5, "each has its wake-up again");
        // A write during the hiding waits, and brings the order back.
        for news in [
            "INSERT INTO transfers (debit_account, credit_account, amount, reason, idempotency_key)
             SELECT a.id, b.id, 1, 'x', gen_random_uuid() FROM accounts a, accounts b WHERE a.kind = 'outside' AND b.kind = 'goods'".to_owned(),
            format!("INSERT INTO activity (actor_kind, action, subject_kind, subject_id) VALUES ('customer', 'order.complaint', 'order', '{old}')"),
        ] {
            let hiding = worker.begin().await.expect("a transaction");
            hiding.execute_unprepared(&format!("UPDATE orders SET hidden_at = now() WHERE id = '{old}'")).await.expect("hidden");
            let (order_system, sql) = (order_system.clone(), news.clone());
            let writing = tokio::spawn(async move { order_system.execute_unprepared(&sql).await.map(|_| ()) });
            harness.until("SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").await;
            hiding.commit().await.expect("a commit");
            writing.await.expect("no panic").unwrap_or_else(|error| panic!("{news}: {error}"));
            assert!(harness.ask::<bool>(&format!("SELECT hidden_at IS NULL FROM orders WHERE id = '{old}'")).await, "{news}");
            harness.as_superuser("DELETE FROM activity; DELETE FROM transfers; UPDATE accounts SET balance = 0").await;
        }
        // The hiding waits for a write that has begun.
        let writing = harness.sandbox.db.begin().await.expect("a transaction");
        writing.execute_unprepared(&format!("INSERT INTO order_messages (order_id, author, body) VALUES ('{old}', 'khách', 'x')")).await.expect("said");
        let fleet = harness.worker();
        harness.publish(vec![harness.wakeup("hide-order", &[old])]).await;
        let on_line = format!("SELECT hidden_at IS NULL FROM orders WHERE id = '{old}'");
        let stays = async || Ok(harness.ask::<bool>(&on_line).await);
        always("it waits", Duration::from_secs(1), stays).await;
        writing.commit().await.expect("a commit");
        eventually("it is judged", SOON, async || Ok(harness.depth("due.hide-order").await == 0)).await;
        always("it stays on line", Duration::from_secs(1), stays).await;
        fleet.stop().await;
        worker.close().await.expect("closed");
        order_system.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn money_that_moves_between_two_orders_is_news_of_both() {
    with_harness(&every_kind(QUICK), async |harness| {
        let (from, to) = (heard_of(harness, "now() - interval '1 year'").await, heard_of(harness, "now() - interval '1 year'").await);
        // Seven too many were paid for one order, and are missing for the other.
        harness.run("INSERT INTO accounts (kind, order_id) VALUES ('goods', $1), ('goods', $2)", [from.into(), to.into()]).await;
        harness.as_superuser(&format!("UPDATE accounts SET balance = 7 WHERE order_id = '{from}'; UPDATE orders SET goods_due = 7 WHERE id = '{to}'")).await;
        let order_system = harness.sandbox.connect_as(DatabaseRole::OrderSystem).await.expect("a login");
        for named in [from, to] {
            let moved = format!(
                "INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key)
                 SELECT a.id, b.id, 7, 'chuyển', '{named}', gen_random_uuid() FROM accounts a, accounts b WHERE a.order_id = '{from}' AND b.order_id = '{to}'"
            );
            order_system.execute_unprepared(&moved).await.expect("moved");
            let young = "SELECT bool_and(settled AND newest_at > now() - interval '1 hour') FROM order_retention";
            assert!(harness.ask::<bool>(young).await, "{named}");
            let back = format!(
                "DELETE FROM transfers; UPDATE orders SET changed_at = NULL;
                 UPDATE accounts SET balance = CASE order_id WHEN '{from}' THEN 7 ELSE 0 END"
            );
            harness.as_superuser(&back).await;
        }
        order_system.close().await.expect("closed");
    })
    .await;
}

//! `confirm-receipt` and `purge-cart-item`: the columns that they change, and everything that they leave alone.

use sea_orm::prelude::Uuid;
use shared::domain::task::EXAMPLE_CUSTOMER;

use crate::harness::{QUICK, with_harness};

/// All data about orders, except the columns that the policy allows to change.
const ALL_ELSE: &str = "SELECT jsonb_build_object(
    'orders', (SELECT jsonb_agg(to_jsonb(o) - 'status' - 'received_at' - 'updated_at' ORDER BY id) FROM orders o),
    'messages', (SELECT jsonb_agg(m ORDER BY id) FROM order_messages m),
    'sources', (SELECT jsonb_agg(s ORDER BY order_id) FROM order_sources s),
    'items', (SELECT jsonb_agg(c ORDER BY id) FROM cart_items c),
    'customers', (SELECT jsonb_agg(c ORDER BY id) FROM customers c),
    'transfers', (SELECT jsonb_agg(t ORDER BY id) FROM transfers t),
    'accounts', (SELECT jsonb_agg(a ORDER BY id) FROM accounts a),
    'activity', (SELECT jsonb_agg(a ORDER BY id) FROM activity a))::text";

#[tokio::test(flavor = "multi_thread")]
async fn confirm_receipt_changes_the_status_and_nothing_else() {
    with_harness(QUICK, async |harness| {
        let order = harness.delivering().await;
        harness.run("UPDATE orders SET goods_due = 0, parcel_recorded_at = now(), fees_changed_at = now(), on_hold = true WHERE id = $1", [order.into()]).await;
        harness.run("INSERT INTO order_messages (order_id, author, body) VALUES ($1, 'khách', 'Bao giờ hàng về?')", [order.into()]).await;
        harness.run("INSERT INTO order_sources VALUES ($1, 'Xưởng A', 'https://example.cn/a', 'ghi chú')", [order.into()]).await;
        let before: String = harness.ask(ALL_ELSE).await;

        let worker = harness.worker();
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        worker.stop().await;

        assert_eq!(harness.ask::<String>(ALL_ELSE).await, before);
        assert!(harness.ask::<bool>("SELECT received_at = updated_at AND received_at > now() - interval '1 minute' FROM orders").await);
        let history: String = harness.ask("SELECT string_agg(from_status || ' → ' || to_status || ' ' || reason, ',') FROM order_status_history WHERE wakeup_id IS NOT NULL").await;
        assert_eq!(history, "delivering → received confirm-receipt");
        // The policy collects arrears after a receipt, so the effect raised the event in its own transaction.
        assert_eq!(harness.ask::<String>("SELECT string_agg(event_type, ',') FROM outbox").await, "order.received");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_the_customer_confirmed_is_left_alone() {
    with_harness(QUICK, async |harness| {
        let order = harness.delivering().await;
        harness
            .run("UPDATE orders SET status = 'received', received_at = now() - interval '3 days' WHERE id = $1", [order.into()])
            .await;
        let before: String = harness.ask("SELECT to_jsonb(orders)::text FROM orders").await;
        let worker = harness.worker();
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
        harness.until_settled().await;
        assert_eq!(worker.stop().await.stale, 1);
        assert_eq!(harness.ask::<String>("SELECT to_jsonb(orders)::text FROM orders").await, before);
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM order_status_history").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_policy_changes_what_is_already_on_its_way() {
    with_harness(QUICK, async |harness| {
        let order = harness.delivering().await;
        harness.run("UPDATE orders SET delivering_since = now() - interval '10 days' WHERE id = $1", [order.into()]).await;
        // The wake-up was made for 400 ms, but the policy now says two weeks.
        let longer = QUICK.replace("400ms", "14d");
        let path = std::env::temp_dir().join(format!("{}.toml", Uuid::new_v4()));
        std::fs::write(&path, longer).expect("a file");
        let mut env = harness.sandbox.env.clone();
        env.remove("KYHAN_CONFIG");
        let settings = shared::settings::Settings::read(Some(&path), env).expect("settings");
        std::fs::remove_file(&path).expect("removed");
        harness.sandbox.apply(&settings.policy).await.expect("applied");
        let worker = harness.worker();
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
        tests::sandbox::eventually("it waits on", crate::harness::SOON, async || {
            let broker = harness.sandbox.broker().await?;
            let rungs = settings.topology();
            let mut waiting = 0;
            for queue in rungs.queues().iter().filter(|queue| queue.name.contains(".rung.")) {
                waiting += broker.observe(&queue.name).await?.map_or(0, |seen| seen.messages);
            }
            broker.close().await;
            Ok(waiting == 1)
        })
        .await;
        assert_eq!(worker.stop().await.postponed, 1);
        assert_eq!(harness.ask::<String>("SELECT status FROM orders").await, "delivering");
        let broker = harness.sandbox.broker().await.expect("a broker");
        for queue in settings.topology().queues().iter().filter(|queue| queue.name.contains("rung.14d")) {
            broker.delete_queue(&queue.name).await.expect("deleted");
            broker.delete_exchange(&queue.exchange).await.expect("deleted");
        }
        broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_deletes_the_item_and_records_it_without_naming_the_product() {
    with_harness(QUICK, async |harness| {
        let item = harness.in_cart().await;
        let worker = harness.worker();
        harness.publish(vec![harness.wakeup("purge-cart-item", &[item])]).await;
        harness.until("SELECT count(*) = 0 FROM cart_items").await;
        worker.stop().await;
        let record: String = harness
            .ask("SELECT action || ' ' || actor_kind || ' ' || (detail - 'added_at' - 'wakeup_id')::text FROM activity")
            .await;
        assert_eq!(record, format!("cart_item.purged system {{\"quantity\": 2, \"customer_id\": \"{EXAMPLE_CUSTOMER}\"}}"));
        let whole: String = harness.ask("SELECT to_jsonb(activity)::text FROM activity").await;
        assert!(!whole.contains("taobao") && !whole.contains("Áo khoác"), "{whole}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_ordered_meanwhile_stays() {
    with_harness(QUICK, async |harness| {
        let (item, order) = (harness.in_cart().await, harness.delivering().await);
        harness.publish(vec![harness.wakeup("purge-cart-item", &[item])]).await;
        harness.run("UPDATE cart_items SET order_id = $1 WHERE id = $2", [order.into(), item.into()]).await;
        let worker = harness.worker();
        harness.until_settled().await;
        assert_eq!(worker.stop().await.stale, 1);
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM cart_items").await, 1);
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM activity").await, 0);
    })
    .await;
}

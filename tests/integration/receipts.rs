//! `confirm-receipt` and `purge-cart-item`: what they change, and all that they leave alone.

use sea_orm::prelude::Uuid;
use shared::domain::task::EXAMPLE_CUSTOMER;

use crate::stage::{QUICK, on_stage, worker_with};

/// Everything in the database about orders, but for the columns that the policy lets change.
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
    on_stage(QUICK, async |stage| {
        let order = stage.delivering().await;
        stage.run("UPDATE orders SET goods_due = 0, parcel_recorded_at = now(), fees_changed_at = now(), on_hold = true WHERE id = $1", [order.into()]).await;
        stage.run("INSERT INTO order_messages (order_id, author, body) VALUES ($1, 'khách', 'Bao giờ hàng về?')", [order.into()]).await;
        stage.run("INSERT INTO order_sources VALUES ($1, 'Xưởng A', 'https://example.cn/a', 'ghi chú')", [order.into()]).await;
        let before: String = stage.ask(ALL_ELSE).await;

        let worker = stage.worker();
        stage.publish(vec![stage.wakeup("confirm-receipt", &[order])]).await;
        stage.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        worker.stop().await;

        assert_eq!(stage.ask::<String>(ALL_ELSE).await, before);
        assert!(stage.ask::<bool>("SELECT received_at = updated_at AND received_at > now() - interval '1 minute' FROM orders").await);
        let history: String = stage.ask("SELECT string_agg(from_status || ' → ' || to_status || ' ' || reason, ',') FROM order_status_history WHERE wakeup_id IS NOT NULL").await;
        assert_eq!(history, "delivering → received confirm-receipt");
        // The policy collects arrears after a receipt, so the effect has raised it, in its own transaction.
        assert_eq!(stage.ask::<String>("SELECT string_agg(event_type, ',') FROM outbox").await, "order.received");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_the_customer_confirmed_is_left_alone() {
    on_stage(QUICK, async |stage| {
        let order = stage.delivering().await;
        stage
            .run("UPDATE orders SET status = 'received', received_at = now() - interval '3 days' WHERE id = $1", [order.into()])
            .await;
        let before: String = stage.ask("SELECT to_jsonb(orders)::text FROM orders").await;
        let worker = stage.worker();
        stage.publish(vec![stage.wakeup("confirm-receipt", &[order])]).await;
        stage.until_settled().await;
        assert_eq!(worker.stop().await.stale, 1);
        assert_eq!(stage.ask::<String>("SELECT to_jsonb(orders)::text FROM orders").await, before);
        assert_eq!(stage.ask::<i64>("SELECT count(*) FROM order_status_history").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_policy_changes_what_is_already_on_its_way() {
    on_stage(QUICK, async |stage| {
        let order = stage.delivering().await;
        stage.run("UPDATE orders SET delivering_since = now() - interval '10 days' WHERE id = $1", [order.into()]).await;
        // Woken under 400 ms, but the policy says two weeks by now.
        let longer = QUICK.replace("400ms", "14d");
        let path = std::env::temp_dir().join(format!("{}.toml", Uuid::new_v4()));
        std::fs::write(&path, longer).expect("a file");
        let mut env = stage.sandbox.env.clone();
        env.remove("KYHAN_CONFIG");
        let settings = shared::settings::Settings::read(Some(&path), env).expect("settings");
        std::fs::remove_file(&path).expect("removed");
        let worker = worker_with(settings.clone());
        stage.publish(vec![stage.wakeup("confirm-receipt", &[order])]).await;
        tests::sandbox::eventually("it waits on", crate::stage::SOON, async || {
            let broker = stage.sandbox.broker().await?;
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
        assert_eq!(stage.ask::<String>("SELECT status FROM orders").await, "delivering");
        let broker = stage.sandbox.broker().await.expect("a broker");
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
    on_stage(QUICK, async |stage| {
        let item = stage.in_cart().await;
        let worker = stage.worker();
        stage.publish(vec![stage.wakeup("purge-cart-item", &[item])]).await;
        stage.until("SELECT count(*) = 0 FROM cart_items").await;
        worker.stop().await;
        let record: String = stage
            .ask("SELECT action || ' ' || actor_kind || ' ' || (detail - 'added_at' - 'wakeup_id')::text FROM activity")
            .await;
        assert_eq!(record, format!("cart_item.purged system {{\"quantity\": 2, \"customer_id\": \"{EXAMPLE_CUSTOMER}\"}}"));
        let whole: String = stage.ask("SELECT to_jsonb(activity)::text FROM activity").await;
        assert!(!whole.contains("taobao") && !whole.contains("Áo khoác"), "{whole}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_ordered_meanwhile_stays() {
    on_stage(QUICK, async |stage| {
        let (item, order) = (stage.in_cart().await, stage.delivering().await);
        stage.publish(vec![stage.wakeup("purge-cart-item", &[item])]).await;
        stage.run("UPDATE cart_items SET order_id = $1 WHERE id = $2", [order.into(), item.into()]).await;
        let worker = stage.worker();
        stage.until_settled().await;
        assert_eq!(worker.stop().await.stale, 1);
        assert_eq!(stage.ask::<i64>("SELECT count(*) FROM cart_items").await, 1);
        assert_eq!(stage.ask::<i64>("SELECT count(*) FROM activity").await, 0);
    })
    .await;
}

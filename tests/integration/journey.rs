//! The main job, end to end: an event occurs, a wake-up waits, and a worker applies what is due.

use producer::{Producer, schedule};
use sea_orm::{ConnectionTrait, TransactionTrait};
use shared::{
    database::{roles::DatabaseRole, schema::triggers},
    domain::{event::EventType, task::EXAMPLE_CUSTOMER},
};
use tests::sandbox::eventually;
use uuid::Uuid;

use crate::harness::{QUICK, SOON, with_harness};

#[tokio::test(flavor = "multi_thread")]
async fn an_event_in_the_outbox_becomes_an_effect_when_it_is_due() {
    with_harness(QUICK, async |harness| {
        let (relay, worker) = (harness.relay(), harness.worker());
        let order = harness.delivering().await;
        let item = harness.in_cart().await;
        harness.run("UPDATE orders SET delivering_since = now(), goods_due = 900 WHERE id = $1", [order.into()]).await;
        harness.run("UPDATE cart_items SET added_at = now() WHERE id = $1", [item.into()]).await;
        harness.event("order.shipped", order).await;
        harness.event("cart.item_added", item).await;
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        harness.until("SELECT count(*) = 0 FROM cart_items").await;
        harness.until("SELECT count(*) = 1 FROM transfers").await;
        let early = "SELECT received_at < delivering_since + interval '400 ms' FROM orders";
        assert!(!harness.ask::<bool>(early).await, "two weeks are two weeks");
        harness.until("SELECT count(*) = 0 FROM outbox").await;
        harness.until_settled().await;
        let report = relay.stop().await;
        let totals = worker.stop().await;
        // The receipt raised an event as well, whose arrears were already collected.
        assert_eq!((report.events, totals.applied), (3, 3), "{report:?} {totals:?}");
        assert_eq!(totals.rejected + totals.retried + totals.malformed, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_triggers_an_order_system_need_not_change_a_line() {
    with_harness(QUICK, async |harness| {
        triggers::install(&harness.sandbox.db).await.expect("triggers");
        triggers::install(&harness.sandbox.db).await.expect("again is no harm");
        let order = harness.delivering().await;
        let events = "SELECT coalesce(string_agg(event_type, ' ' ORDER BY id), '') FROM outbox";
        assert_eq!(harness.ask::<String>(events).await, "order.recorded order.shipped");
        for (change, raised) in [
            ("status = status", ""),
            ("delivering_since = now()", "order.shipped"),
            ("goods_due = 5, fees_changed_at = now()", "order.fees_changed"),
            // An order system that does not set the times: the triggers fill them in.
            ("goods_due = 6", "order.fees_changed"),
            ("status = 'in_warehouse', delivering_since = NULL", ""),
            ("status = 'delivering'", "order.shipped"),
            ("on_hold = true", ""),
            ("status = 'out_of_stock', out_of_stock_since = now()", "order.out_of_stock"),
            ("parcel_recorded_at = now()", "order.out_of_stock"),
            ("status = 'received', received_at = now()", "order.received"),
            ("status = 'cancelled'", ""),
        ] {
            harness.run("DELETE FROM outbox", []).await;
            harness.run(&format!("UPDATE orders SET {change} WHERE id = $1"), [order.into()]).await;
            assert_eq!(harness.ask::<String>(events).await, raised, "{change}");
            let now = "SELECT coalesce(bool_and(occurred_at > now() - interval '1 minute'), true) FROM outbox";
            assert!(harness.ask::<bool>(now).await, "{change}");
        }
        let account = "INSERT INTO accounts (id, kind, customer_id, order_id) VALUES ($1, $2, $3, $4)";
        let (wallet, goods) = (Uuid::new_v4(), Uuid::new_v4());
        harness.run(account, [wallet.into(), "wallet".into(), EXAMPLE_CUSTOMER.into(), None::<Uuid>.into()]).await;
        harness.run(account, [goods.into(), "goods".into(), None::<Uuid>.into(), order.into()]).await;
        for (debit, credit, raised) in [(wallet, goods, ""), (goods, wallet, "order.fees_changed")] {
            let sql = "INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key)
                       VALUES ($1, $2, 5, 'test', $3, gen_random_uuid()::text)";
            harness.run(sql, [debit.into(), credit.into(), order.into()]).await;
            assert_eq!(harness.ask::<String>(events).await, raised, "a refund leaves an order short, a payment does not");
        }
        harness.run("DELETE FROM outbox", []).await;
        harness.in_cart().await;
        harness.run("UPDATE cart_items SET quantity = 3", []).await;
        assert_eq!(harness.ask::<String>(events).await, "cart.item_added");

        // The fleet raises the events of its own changes, once each.
        harness.run("DELETE FROM outbox", []).await;
        let order = harness.delivering().await;
        harness.run("DELETE FROM outbox", []).await;
        let worker = harness.worker();
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        worker.stop().await;
        assert_eq!(harness.ask::<String>(events).await, "order.received");

        triggers::remove(&harness.sandbox.db).await.expect("removed");
        harness.run("DELETE FROM outbox", []).await;
        harness.delivering().await;
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM outbox").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_order_systems_search_path_is_its_events_land_in_our_outbox() {
    with_harness(QUICK, async |harness| {
        triggers::install(&harness.sandbox.db).await.expect("triggers");
        // Tables of another program with the same names, which the order system may write.
        harness.sandbox.db.execute_unprepared(
            "CREATE SCHEMA shop; CREATE TABLE shop.outbox (LIKE kyhan.outbox INCLUDING ALL); CREATE TABLE shop.accounts (LIKE public.accounts);
             CREATE TABLE shop.orders (LIKE public.orders); GRANT USAGE ON SCHEMA shop TO PUBLIC; GRANT ALL ON ALL TABLES IN SCHEMA shop TO PUBLIC",
        ).await.expect("a shop");
        let db = harness.sandbox.connect_as(DatabaseRole::OrderSystem).await.expect("a login");
        for path in ["shop", "''", "pg_temp, shop, public"] {
            harness.run("DELETE FROM outbox", []).await;
            let tx = db.begin().await.expect("a transaction");
            let order = Uuid::new_v4();
            for sql in [
                // In each session, ahead of all schemas that are not named.
                "CREATE TEMPORARY TABLE outbox (event_type text, subject_id uuid, occurred_at timestamptz)",
                &format!("SET LOCAL search_path = {path}"),
                &format!(
                    "INSERT INTO public.orders (id, code, customer_id, status) VALUES ('{order}', 'BG-{order}', '{EXAMPLE_CUSTOMER}', 'in_warehouse')"
                ),
                &format!("UPDATE public.orders SET status = 'delivering' WHERE id = '{order}'"),
                &format!(
                    "INSERT INTO public.cart_items (id, customer_id, product_ref, product_name, quantity)
                     VALUES ('{order}', '{EXAMPLE_CUSTOMER}', 'x', 'x', 1)"
                ),
            ] {
                tx.execute_unprepared(sql).await.unwrap_or_else(|error| panic!("{path}: {sql}: {error}"));
            }
            tx.execute_unprepared("DROP TABLE pg_temp.outbox").await.expect("dropped");
            tx.commit().await.expect("committed");
            let events = "SELECT string_agg(event_type, ' ' ORDER BY id) FROM kyhan.outbox";
            assert_eq!(harness.ask::<String>(events).await, "order.recorded order.shipped cart.item_added", "{path}");
            assert_eq!(harness.ask::<i64>("SELECT count(*) FROM shop.outbox").await, 0, "{path}");
        }
        db.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rust_caller_schedules_a_thousand_orders_in_a_handful_of_messages() {
    with_harness(QUICK, async |harness| {
        let orders = harness.many_delivering(1000).await;
        let events: Vec<_> = orders.iter().map(|order| schedule::event(EventType::OrderShipped, *order)).collect();
        let producer = Producer::connect(harness.settings()).await.expect("a producer");
        assert_eq!(producer.schedule(&events).await.expect("confirmed"), []);
        producer.close().await;
        let broker = harness.sandbox.broker().await.expect("a connection");
        let messages =
            async || anyhow::Ok(harness.sandbox.depth(&broker, "rung").await? + harness.sandbox.depth(&broker, "due").await?);
        // Two wake-ups for each order, packed 128 to a message.
        eventually("a handful of messages", SOON, async || Ok((1..=32).contains(&messages().await?))).await;
        broker.close().await;
        let worker = harness.worker();
        harness.until("SELECT count(*) = 1000 FROM orders WHERE status = 'received'").await;
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM order_status_history").await, 1000);
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_and_two_relays_share_the_work_and_double_nothing() {
    with_harness(QUICK, async |harness| {
        let (relays, workers) = ([harness.relay(), harness.relay()], [harness.worker(), harness.worker()]);
        for _ in 0..20 {
            harness
                .run(
                    "WITH made AS (
                         INSERT INTO orders (id, code, customer_id, status, delivering_since, goods_due)
                         SELECT gen_random_uuid(), 'BG-' || gen_random_uuid(), $1, 'delivering', now(), 1000 FROM generate_series(1, 100)
                         RETURNING id)
                     INSERT INTO outbox (event_type, subject_id) SELECT 'order.shipped', id FROM made, generate_series(1, 2)",
                    [EXAMPLE_CUSTOMER.into()],
                )
                .await;
        }
        harness.until("SELECT count(*) = 2000 FROM orders WHERE status = 'received'").await;
        harness.until("SELECT count(*) = 2000 FROM transfers").await;
        harness.until("SELECT count(*) = 0 FROM outbox").await;
        harness.until_settled().await;
        let mut applied = 0;
        for worker in workers {
            applied += worker.stop().await.applied;
        }
        for relay in relays {
            relay.stop().await;
        }
        assert_eq!(applied, 4000);
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM order_status_history").await, 2000);
        assert_eq!(harness.ask::<i64>("SELECT balance FROM accounts WHERE kind = 'wallet'").await, -2_000_000);
        assert_eq!(harness.ask::<i64>("SELECT sum(balance)::bigint FROM accounts").await, 0);
    })
    .await;
}

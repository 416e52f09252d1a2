//! The outbox and its relay: no event is lost, invalid events are set aside, and they block no others.

use sea_orm::ConnectionTrait;
use shared::domain::task::EXAMPLE_CUSTOMER;
use tests::{fleet, sandbox::eventually};
use uuid::Uuid;

use crate::harness::{QUICK, SOON, with_harness};

#[tokio::test(flavor = "multi_thread")]
async fn events_that_make_no_sense_are_set_aside_whole_and_block_nothing() {
    with_harness(QUICK, async |harness| {
        let order = harness.delivering().await;
        harness.event("order.shiped", order).await;
        harness.event("order.shipped", Uuid::from_u128(77)).await;
        harness.event("cart.item_added", order).await;
        for moment in ["infinity", "-infinity", "200000-01-01"] {
            let sql = "INSERT INTO outbox (event_type, subject_id, occurred_at, data) VALUES ('order.shipped', $1, $2::timestamptz, '{\"a\": 1}')";
            harness.run(sql, [order.into(), moment.into()]).await;
        }
        harness.event("order.shipped", order).await;
        let (relay, worker) = (harness.relay(), harness.worker());
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        harness.until("SELECT count(*) = 0 FROM outbox").await;
        worker.stop().await;
        let report = relay.stop().await;
        assert_eq!(report.set_aside, 6, "{report:?}");
        let list = harness.ops(&["set-aside", "list"]).await.expect("a list");
        for said in ["order.shiped", "known are order.recorded", "orders has no row with this id", "cart_items has no row", "infinity"] {
            assert!(list.replace('\n', " ").contains(said) || list.contains(said.split(' ').next().expect("a word")), "{said}: {list}");
        }
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM set_aside WHERE data = '{\"a\": 1}'").await, 3);

        // Once the row exists, the event can be put back.
        harness
            .run(
                "INSERT INTO orders (id, code, customer_id, status, delivering_since) VALUES ($1, 'BG-77', $2, 'delivering', now() - interval '1 year')",
                [Uuid::from_u128(77).into(), EXAMPLE_CUSTOMER.into()],
            )
            .await;
        let id: i64 = harness.ask("SELECT id FROM set_aside WHERE subject_id = '00000000-0000-0000-0000-00000000004d'").await;
        let back = harness.ops(&["set-aside", "retry", &id.to_string()]).await.expect("back");
        assert!(back.contains("1 events"), "{back}");
        let recorded = "SELECT count(*) FROM activity WHERE action = 'set_aside.retried' AND actor_kind = 'staff' AND detail ? 'by'";
        assert_eq!(harness.ask::<i64>(recorded).await, 1);
        let (relay, worker) = (harness.relay(), harness.worker());
        harness.until("SELECT count(*) = 2 FROM orders WHERE status = 'received'").await;
        worker.stop().await;
        relay.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_cannot_be_moved_are_set_aside_without_their_data_and_block_no_others() {
    with_harness(QUICK, async |harness| {
        let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                          IF NEW.data ? 'poison' THEN
                              RAISE check_violation USING MESSAGE = 'refused';
                          END IF;
                          RETURN NEW;
                      END $$";
        harness.run(refuse, []).await;
        harness.run("CREATE TRIGGER refuse BEFORE INSERT ON set_aside FOR EACH ROW EXECUTE FUNCTION refuse()", []).await;
        let nonsense = "INSERT INTO outbox (event_type, subject_id, data)
                        SELECT 'order.nonsense', gen_random_uuid(), CASE WHEN n % 60 = 7 THEN '{\"poison\": 1}' ELSE '{\"kept\": 1}' END::jsonb
                          FROM generate_series(1, 200) AS n";
        harness.run(nonsense, []).await;
        let order = harness.delivering().await;
        harness.event("order.shipped", order).await;
        let (relay, worker) = (harness.relay(), harness.worker());
        harness.until("SELECT count(*) = 0 FROM outbox").await;
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        worker.stop().await;
        let report = relay.stop().await;
        assert_eq!(report.set_aside, 200, "{report:?}");
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM set_aside WHERE data = '{\"kept\": 1}'").await, 196);
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM set_aside WHERE data IS NULL AND reason LIKE '%its data is lost%'").await, 4);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_with_much_data_is_refused_when_it_is_written() {
    with_harness(QUICK, async |harness| {
        let insert = |bytes: usize| {
            format!("INSERT INTO outbox (event_type, subject_id, data) VALUES ('order.shipped', gen_random_uuid(), to_jsonb(repeat('x', {bytes})))")
        };
        let db = &harness.sandbox.db;
        db.execute_unprepared(&insert(65_534)).await.expect("64 KiB");
        let refused = db.execute_unprepared(&insert(65_535)).await.expect_err("refused").to_string();
        assert!(refused.contains("outbox_data_has_at_most_64_kib"), "{refused}");
        let long = "INSERT INTO outbox (event_type, subject_id) VALUES (repeat('x', 201), gen_random_uuid())";
        let refused = db.execute_unprepared(long).await.expect_err("refused").to_string();
        assert!(refused.contains("outbox_event_type_has_at_most_200_bytes"), "{refused}");
        let update = "UPDATE outbox SET data = to_jsonb(repeat('x', 100000))";
        assert!(db.execute_unprepared(update).await.is_err());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_killed_at_any_moment_loses_no_event() {
    const EVENTS: i64 = 20_000;
    with_harness(QUICK, async |harness| {
        harness
            .run(
                "WITH made AS (
                     INSERT INTO orders (id, code, customer_id, status, delivering_since)
                     SELECT gen_random_uuid(), 'BG-' || n, $1, 'delivering', now() FROM generate_series(1, 20000) n RETURNING id)
                 INSERT INTO outbox (event_type, subject_id) SELECT 'order.shipped', id FROM made",
                [EXAMPLE_CUSTOMER.into()],
            )
            .await;
        let mut env = harness.sandbox.env.clone();
        env.insert("KYHAN_RELAY_BATCH_MAX".into(), "50".into());
        for _ in 0..4 {
            let before: i64 = harness.ask("SELECT count(*) FROM outbox").await;
            let mut relay = fleet::command("producer", &env, ["relay"]).expect("built").spawn().expect("started");
            harness.until(&format!("SELECT count(*) < {before} FROM outbox")).await;
            relay.kill().await.expect("killed");
        }
        let left: i64 = harness.ask("SELECT count(*) FROM outbox").await;
        assert!((1..EVENTS).contains(&left), "killed too late: {left} left");
        let (relay, worker) = (harness.relay(), harness.worker());
        harness.until("SELECT count(*) = 20000 FROM orders WHERE status = 'received'").await;
        harness.until_settled().await;
        relay.stop().await;
        worker.stop().await;
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM order_status_history").await, EVENTS);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_wait_in_the_outbox_until_the_broker_takes_them() {
    with_harness(QUICK, async |harness| {
        let order = harness.delivering().await;
        harness.event("order.shipped", order).await;
        let relay = harness.relay();
        harness.until("SELECT count(*) = 0 FROM outbox").await;
        // The rung is deleted while the relay runs: its publish is refused, nothing is committed, and it declares the rung again.
        let broker = harness.sandbox.broker().await.expect("a broker");
        let rung = format!("{}400ms", harness.topology().rung_prefix());
        broker.delete_exchange(&rung).await.expect("deleted");
        let second = harness.delivering().await;
        harness.event("order.shipped", second).await;
        harness.until("SELECT count(*) = 0 FROM outbox").await;
        // Without its queue, the exchange accepts, acks and returns the message: that is not a delivery.
        eventually("what waited is due", SOON, async || Ok(harness.depth("rung.").await == 0)).await;
        broker.delete_queue(&rung).await.expect("deleted");
        let third = harness.delivering().await;
        harness.event("order.shipped", third).await;
        harness.until("SELECT count(*) = 0 FROM outbox").await;
        broker.close().await;
        let worker = harness.worker();
        harness.until("SELECT count(*) = 3 FROM orders WHERE status = 'received'").await;
        worker.stop().await;
        relay.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_can_emit_an_event() {
    with_harness(QUICK, async |harness| {
        let order = harness.delivering().await;
        let emit = |event: &str, subject: String| fleet::command("producer", &harness.sandbox.env, ["emit", event, &subject]);
        let said = fleet::output(emit("order.shipped", order.to_string()).expect("built")).await.expect("emitted");
        assert!(said.contains("confirm-receipt") && said.contains("collect-arrears"), "{said}");
        let nothing = fleet::output(emit("order.recorded", order.to_string()).expect("built")).await.expect("emitted");
        assert!(nothing.contains("the policy has no line on order.recorded"), "{nothing}");
        for (event, subject, why) in [
            ("order.shipped", Uuid::nil().to_string(), "orders has no row with the id"),
            ("order.shiped", order.to_string(), "unknown event type"),
            ("order.shipped", "17".into(), "invalid value"),
        ] {
            let refused = fleet::output(emit(event, subject).expect("built")).await.expect_err("refused").to_string();
            assert!(refused.contains(why), "{refused}");
        }
        let worker = harness.worker();
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        worker.stop().await;
    })
    .await;
}

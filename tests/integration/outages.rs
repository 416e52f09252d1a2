//! Outages: no attempt is spent, nothing is dead-lettered, and only outages are treated as outages.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DatabaseConnection};
use shared::{
    database::roles::DatabaseRole,
    message::topology::{LANE_DELIVERY_LIMIT, QueueRole},
    process::health::Health,
};
use tests::sandbox::{always, as_role, eventually};
use tokio_util::sync::CancellationToken;

use crate::harness::{Harness, QUICK, SOON, with_harness, worker_with};

/// A connection that is not affected by an outage of the test's own database.
pub async fn admin() -> DatabaseConnection {
    sea_orm::Database::connect(std::env::var("KYHAN_DATABASE_URL").expect("a URL")).await.expect("a server")
}

pub async fn run(admin: &DatabaseConnection, sql: &str) {
    admin.execute_unprepared(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

pub async fn name(harness: &Harness) -> String {
    harness.ask("SELECT current_database()::text").await
}

pub fn throw_out(name: &str) -> String {
    format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_for_too_long_returns_to_its_lane_and_does_not_go_from_hand_to_hand() {
    with_harness(QUICK, async |harness| {
        let orders = harness.many_delivering(50).await;
        let (name, admin) = (name(harness).await, admin().await);
        // More consumers than RabbitMQ's delivery limit: if one after the other held the message, the broker would give it up.
        let consumers = (LANE_DELIVERY_LIMIT + 5).to_string();
        let many = [
            ("KYHAN_WORKER_HOLD_MS", "100"),
            ("KYHAN_WORKER_CONSUMERS", consumers.as_str()),
            ("KYHAN_DATABASE_MAX_CONNECTIONS", "4"),
        ];
        let worker = worker_with(harness.sandbox.settings_with(&many).expect("settings"));
        harness.until_consumed().await;
        run(&admin, &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await;
        run(&admin, &throw_out(&name)).await;
        harness.publish(orders.iter().map(|order| harness.wakeup("confirm-receipt", &[*order])).collect()).await;
        let lane = harness.topology().lane("confirm-receipt", 0);
        let broker = harness.sandbox.broker().await.expect("a broker");
        let rests = async || Ok(broker.observe(&lane).await?.is_some_and(|seen| seen.messages == 50 && seen.consumers == 0));
        eventually("everything is back in the lane, and nothing consumes it", SOON, rests).await;
        always("it rests there", Duration::from_secs(2), rests).await;
        run(&admin, &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await;
        received(harness, 50).await;
        harness.until_settled().await;
        let totals = worker.stop().await;
        assert_eq!(totals.retried, 0, "{totals:?}");
        assert_eq!(harness.buried().await + i64::from(harness.depth("quarantine").await), 0);
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM order_status_history").await, 50);
        broker.close().await;
        admin.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_work_notices_an_outage_and_takes_nothing_until_it_is_over() {
    with_harness(QUICK, async |harness| {
        let order = harness.delivering().await;
        let (name, admin) = (name(harness).await, admin().await);
        let worker = harness.worker();
        harness.until_consumed().await;
        run(&admin, &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await;
        run(&admin, &throw_out(&name)).await;
        let broker = harness.sandbox.broker().await.expect("a broker");
        for lane in [harness.topology().lane("confirm-receipt", 0), harness.topology().quarantine()] {
            let left = async || Ok(broker.observe(&lane).await?.is_some_and(|seen| seen.consumers == 0));
            eventually("it has no consumer", SOON, left).await;
        }
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
        run(&admin, &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await;
        received(harness, 1).await;
        worker.stop().await;
        broker.close().await;
        admin.close().await.expect("closed");
    })
    .await;
}

/// Waits until that many orders are received, even if the query itself fails meanwhile.
async fn received(harness: &Harness, count: i64) {
    let sql = "SELECT count(*) FROM orders WHERE status = 'received'";
    eventually("they are received", SOON, async || {
        let row = harness.sandbox.db.query_one_raw(shared::database::statement(sql, [])).await;
        Ok(matches!(row, Ok(Some(row)) if row.try_get_by_index::<i64>(0).is_ok_and(|found| found == count)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_takes_long_and_waits_for_no_server_is_not_taken_from_its_consumer() {
    with_harness(QUICK, async |harness| {
        let order = harness.delivering().await;
        let blocker = harness.locked("orders").await;
        let slow =
            [("KYHAN_WORKER_HOLD_MS", "100"), ("KYHAN_DATABASE_LOCK_TIMEOUT_MS", "20000"), ("KYHAN_WORKER_CONSUMERS", "1")];
        let worker = worker_with(harness.sandbox.settings_with(&slow).expect("settings"));
        harness.until_consumed().await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
        let lane = harness.topology().lane("confirm-receipt", 0);
        let broker = harness.sandbox.broker().await.expect("a broker");
        let held = async || Ok(broker.observe(&lane).await?.is_some_and(|seen| seen.messages == 0 && seen.consumers == 1));
        eventually("it is in hand", SOON, held).await;
        always("it stays there", Duration::from_secs(1), held).await;
        blocker.rollback().await.expect("unlocked");
        received(harness, 1).await;
        let totals = worker.stop().await;
        assert_eq!((totals.applied, totals.stale), (1, 0), "{totals:?}");
        broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_read_only_is_away_and_no_attempt_is_spent() {
    with_harness(QUICK, async |harness| {
        let (name, admin) = (name(harness).await, admin().await);
        let worker = harness.worker();
        harness.until_consumed().await;
        let order = harness.delivering().await;
        run(&admin, &format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await;
        // Existing sessions go on writing; new ones are read-only.
        run(&admin, &throw_out(&name)).await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
        let unspent = async || Ok(harness.depth("dead").await + harness.depth("rung.").await == 0);
        always("no attempt is spent", Duration::from_millis(800), unspent).await;
        run(&admin, &format!("ALTER DATABASE {name} RESET default_transaction_read_only")).await;
        received(harness, 1).await;
        let totals = worker.stop().await;
        assert_eq!((totals.applied, totals.retried), (1, 0), "{totals:?}");
        assert_eq!(harness.buried().await, 0);
        admin.close().await.expect("closed");
    })
    .await;
}

/// A row whose effect runs this SQL in its own session.
async fn booby_trap(harness: &Harness, order: uuid::Uuid, sql: &str) {
    let function = format!(
        "CREATE FUNCTION trap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF OLD.id = '{order}' THEN {sql} END IF;
             RETURN NEW;
         END $$"
    );
    harness.run(&function, []).await;
    harness.run("CREATE TRIGGER trap BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION trap()", []).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_breaks_its_connection_is_no_outage_and_ends_alone() {
    // As with a damaged page: the server process that touches it crashes, but the server does not. Or all of them are gone, as
    // after a crash of one.
    for sql in [
        "PERFORM pg_terminate_backend(pg_backend_pid());",
        "PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'kyhan worker';",
    ] {
        with_harness(QUICK, async |harness| {
            let orders = harness.many_delivering(4).await;
            booby_trap(harness, orders[2], sql).await;
            let worker = worker_with(harness.sandbox.settings_with(&[("KYHAN_WORKER_ATTEMPTS_MAX", "1")]).expect("settings"));
            harness.publish(vec![harness.wakeup("confirm-receipt", &orders)]).await;
            let done = async || Ok(harness.ask::<bool>("SELECT count(*) = 3 FROM orders WHERE status = 'received'").await);
            eventually("its neighbours are applied", Duration::from_secs(120), done).await;
            let dead = async || Ok(harness.ask::<bool>("SELECT count(*) = 1 FROM dead_letters").await);
            eventually("it is a dead letter", Duration::from_secs(120), dead).await;
            worker.stop().await;
            assert_eq!(harness.dead_letters().await[0].subject, Some(orders[2]));
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_whose_lane_is_deleted_declares_it_again_and_goes_on() {
    with_harness(QUICK, async |harness| {
        let worker = harness.worker();
        harness.until_consumed().await;
        let broker = harness.sandbox.broker().await.expect("a broker");
        for lane in harness.topology().queues().iter().filter(|queue| queue.role == QueueRole::Lane) {
            broker.delete_queue(&lane.name).await.expect("deleted");
        }
        broker.close().await;
        harness.until_consumed().await;
        let order = harness.delivering().await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_reports_an_outage_is_given_up_alone_and_stops_no_kind() {
    with_harness(QUICK, async |harness| {
        let codes = ["25006", "53100", "53300", "57P03"];
        let trap = "CREATE FUNCTION trap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                        IF NEW.code LIKE 'SQLSTATE %' THEN RAISE EXCEPTION 'x' USING ERRCODE = right(NEW.code, 5); END IF;
                        RETURN NEW;
                    END $$;
                    CREATE TRIGGER trap BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION trap()";
        harness.sandbox.db.execute_unprepared(trap).await.expect("a trap");
        harness.many_delivering(100).await;
        let bad = "INSERT INTO orders (id, code, customer_id, status, delivering_since)
                   SELECT gen_random_uuid(), 'SQLSTATE ' || $1, id, 'delivering', now() - interval '1 day' FROM customers";
        for code in codes {
            harness.run(bad, [code.into()]).await;
        }
        let item = harness.in_cart().await;
        let worker = harness.worker();
        harness
            .publish(vec![
                harness.wakeup("confirm-receipt", &harness.order_ids().await),
                harness.wakeup("purge-cart-item", &[item]),
            ])
            .await;
        harness.until("SELECT count(*) = 0 FROM cart_items").await;
        received(harness, 100).await;
        harness.until_dead(codes.len() as u32).await;
        let mut causes: Vec<_> = harness.dead_letters().await.into_iter().map(|letter| letter.cause).collect();
        causes.sort();
        assert!(causes.iter().zip(codes).all(|(cause, code)| cause.contains(code)), "{causes:?}");
        let totals = worker.stop().await;
        assert_eq!(totals.applied, 101, "{totals:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_weeks_ahead_makes_nothing_due_and_records_made_by_it_are_found() {
    with_harness("", async |harness| {
        // Statements of this worker call these functions instead of PostgreSQL's own. The triggers would not, and would refuse.
        let ahead = "CREATE SCHEMA ahead;
                     CREATE TABLE ahead.by (span interval);
                     INSERT INTO ahead.by VALUES ('40 days');
                     CREATE FUNCTION ahead.now() RETURNS timestamptz LANGUAGE sql STABLE SECURITY DEFINER
                         AS 'SELECT pg_catalog.now() + span FROM ahead.by';
                     CREATE FUNCTION ahead.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE SECURITY DEFINER
                         AS 'SELECT pg_catalog.clock_timestamp() + span FROM ahead.by';
                     GRANT USAGE ON SCHEMA ahead TO kyhan_worker;
                     ALTER TABLE orders DISABLE TRIGGER USER;
                     ALTER TABLE order_status_history DISABLE TRIGGER USER";
        harness.sandbox.db.execute_unprepared(ahead).await.expect("a clock");
        let mut settings = as_role(harness.settings().clone(), DatabaseRole::Worker).expect("a role's settings");
        settings.database.schema.insert_str(0, "ahead, ");
        settings.database.order_system_schema.push_str(", pg_catalog");
        let order = harness.delivering().await;
        harness.run("UPDATE orders SET delivering_since = now() - interval '1 day'", []).await;
        let (health, stop) = (Health::new(), CancellationToken::new());
        let worker = tokio::spawn({
            let (health, stop) = (health.clone(), stop.clone());
            async move { worker::run(&settings, &health, stop).await }
        });
        let why = async || {
            let parts = health.report().parts;
            Ok(parts.iter().any(|part| {
                part.why.as_deref().is_some_and(|why| why.contains("PostgreSQL's clock is 40 days ahead of this machine's"))
            }))
        };
        eventually("it says so", SOON, why).await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
        let delivering = async || Ok(harness.ask::<bool>("SELECT bool_and(status = 'delivering') FROM orders").await);
        always("nothing is applied", Duration::from_secs(2), delivering).await;
        // The clock jumps between two looks: the batch itself notices.
        harness.run("UPDATE ahead.by SET span = '0'", []).await;
        eventually("it is ready", SOON, async || Ok(health.report().ready)).await;
        harness.run("UPDATE ahead.by SET span = '40 days'", []).await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
        always("nothing is applied", Duration::from_secs(2), delivering).await;
        harness.run("UPDATE ahead.by SET span = '0'", []).await;
        eventually("it is ready", SOON, async || Ok(health.report().ready)).await;
        eventually("its lane is empty", SOON, async || Ok(harness.depth("due.confirm-receipt").await == 0)).await;
        stop.cancel();
        let totals = worker.await.expect("no panic").expect("a worker that works");
        assert_eq!((totals.applied, totals.retried, totals.postponed), (0, 0, 2), "{totals:?}");

        let early = "INSERT INTO order_status_history (order_id, from_status, to_status, reason, at)
                     SELECT id, 'delivering', 'received', 'confirm-receipt', now() + interval '40 days' FROM orders";
        harness.as_superuser(early).await;
        let audit = crate::letters::ops(harness, &["audit", "--json"]).await;
        let audit: serde_json::Value = serde_json::from_str(&audit.out).expect("JSON");
        let found =
            audit["events"].as_array().expect("checks").iter().find(|check| check["check"] == "records dated later than now");
        assert_eq!(found.expect("the check")["verdict"], "off", "{audit}");
    })
    .await;
}

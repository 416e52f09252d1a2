//! Outages: nothing is spent, nothing is buried, and what is not an outage is not taken for one.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DatabaseConnection};
use shared::topology::Role;
use tests::sandbox::{always, eventually};

use crate::stage::{QUICK, SOON, Stage, on_stage, worker_with};

/// A connection that an outage of the test's own database does not touch.
async fn admin() -> DatabaseConnection {
    sea_orm::Database::connect(std::env::var("KYHAN_DATABASE_URL").expect("a URL")).await.expect("a server")
}

async fn run(admin: &DatabaseConnection, sql: &str) {
    admin.execute_unprepared(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn name(stage: &Stage) -> String {
    stage.ask("SELECT current_database()::text").await
}

fn throw_out(name: &str) -> String {
    format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_for_too_long_returns_to_its_lane_once_and_is_applied_when_the_database_is_back() {
    on_stage(QUICK, async |stage| {
        let orders = stage.many_delivering(50).await;
        let (name, admin) = (name(stage).await, admin().await);
        let settings = stage.sandbox.settings_with(&[("KYHAN_WORKER_HOLD_MS", "300"), ("KYHAN_WORKER_CONSUMERS", "1")]);
        let worker = worker_with(settings.expect("settings"));
        stage.until_consumed().await;
        run(&admin, &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await;
        run(&admin, &throw_out(&name)).await;
        stage.publish(orders.iter().map(|order| stage.wakeup("confirm-receipt", &[*order])).collect()).await;
        // Back in the lane, with nobody consuming: not delivered over and over until RabbitMQ gives them up.
        let lane = stage.topology().lane("confirm-receipt", 0);
        let broker = stage.sandbox.broker().await.expect("a broker");
        let rests = async || Ok(broker.observe(&lane).await?.is_some_and(|seen| seen.messages == 50 && seen.consumers == 0));
        eventually("all of it is back", SOON, rests).await;
        always("it rests there", Duration::from_millis(800), rests).await;
        run(&admin, &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await;
        let received = "SELECT count(*) FROM orders WHERE status = 'received'";
        eventually("all are applied", SOON, async || {
            let row = stage.sandbox.db.query_one_raw(shared::database::statement(received, [])).await;
            Ok(matches!(row, Ok(Some(row)) if row.try_get_by_index::<i64>(0).is_ok_and(|count| count == 50)))
        })
        .await;
        stage.until_settled().await;
        let totals = worker.stop().await;
        assert_eq!(totals.retried, 0, "{totals:?}");
        assert_eq!(stage.depth("dead").await + stage.depth("quarantine").await, 0);
        assert_eq!(stage.ask::<i64>("SELECT count(*) FROM order_status_history").await, 50);
        broker.close().await;
        admin.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_read_only_is_away_and_no_attempt_is_spent() {
    on_stage(QUICK, async |stage| {
        let (name, admin) = (name(stage).await, admin().await);
        let worker = stage.worker();
        stage.until_consumed().await;
        let order = stage.delivering().await;
        run(&admin, &format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await;
        // Whoever is connected goes on writing; who connects anew may not.
        run(&admin, &throw_out(&name)).await;
        stage.publish(vec![stage.wakeup("confirm-receipt", &[order])]).await;
        let unspent = async || Ok(stage.depth("dead").await + stage.depth("rung.").await == 0);
        always("no attempt is spent", Duration::from_millis(800), unspent).await;
        run(&admin, &format!("ALTER DATABASE {name} RESET default_transaction_read_only")).await;
        let received = "SELECT count(*) FROM orders WHERE status = 'received'";
        eventually("it is applied", SOON, async || {
            let row = stage.sandbox.db.query_one_raw(shared::database::statement(received, [])).await;
            Ok(matches!(row, Ok(Some(row)) if row.try_get_by_index::<i64>(0).is_ok_and(|count| count == 1)))
        })
        .await;
        let totals = worker.stop().await;
        assert_eq!((totals.applied, totals.retried), (1, 0), "{totals:?}");
        admin.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_breaks_its_connection_is_no_outage_and_ends_alone() {
    on_stage(QUICK, async |stage| {
        let orders = stage.many_delivering(8).await;
        // As one whose page is damaged would: the server process that touches it is gone, the server is not.
        let function = format!(
            "CREATE FUNCTION break() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF OLD.id = '{}' THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
                 RETURN NEW;
             END $$",
            orders[3]
        );
        stage.run(&function, []).await;
        stage.run("CREATE TRIGGER break BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION break()", []).await;
        let worker = worker_with(stage.sandbox.settings_with(&[("KYHAN_WORKER_ATTEMPTS_MAX", "1")]).expect("settings"));
        stage.publish(vec![stage.wakeup("confirm-receipt", &orders)]).await;
        let done = async || Ok(stage.ask::<bool>("SELECT count(*) = 7 FROM orders WHERE status = 'received'").await);
        eventually("its neighbours are applied", Duration::from_secs(120), done).await;
        let broker = stage.sandbox.broker().await.expect("a broker");
        let dead = async || Ok(stage.sandbox.depth(&broker, "dead").await? == 1);
        eventually("it is a dead letter", Duration::from_secs(120), dead).await;
        broker.close().await;
        worker.stop().await;
        assert_eq!(stage.dead_letters().await[0].subject, Some(orders[3]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_whose_lane_is_deleted_declares_it_again_and_goes_on() {
    on_stage(QUICK, async |stage| {
        let worker = stage.worker();
        stage.until_consumed().await;
        let broker = stage.sandbox.broker().await.expect("a broker");
        for lane in stage.topology().queues().iter().filter(|queue| queue.role == Role::Lane) {
            broker.delete_queue(&lane.name).await.expect("deleted");
        }
        broker.close().await;
        stage.until_consumed().await;
        let order = stage.delivering().await;
        stage.publish(vec![stage.wakeup("confirm-receipt", &[order])]).await;
        stage.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        worker.stop().await;
    })
    .await;
}

//! The triggers that replace the foreign key of `order_status_history`: every row has its order, for every writer and every
//! transaction snapshot.

use sea_orm::{ConnectionTrait, DatabaseTransaction, IsolationLevel, TransactionTrait};
use tests::sandbox::eventually;
use uuid::Uuid;

use crate::harness::{Harness, QUICK, SOON, with_harness};

const LEVELS: [IsolationLevel; 2] = [IsolationLevel::ReadCommitted, IsolationLevel::RepeatableRead];

fn history_of(order: Uuid) -> String {
    format!(
        "INSERT INTO order_status_history (order_id, from_status, to_status, reason)
         VALUES ('{order}', 'delivering', 'received', 'khách')"
    )
}

async fn transaction(harness: &Harness, level: IsolationLevel) -> DatabaseTransaction {
    let tx = harness.sandbox.db.begin_with_config(Some(level), None).await.expect("a transaction");
    // The first statement takes the snapshot.
    run(&tx, "SELECT count(*) FROM orders").await;
    tx
}

async fn run(tx: &impl ConnectionTrait, sql: &str) {
    tx.execute_unprepared(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Runs a statement that must be refused, and returns the reason.
async fn refused(tx: &impl ConnectionTrait, sql: &str) -> String {
    tx.execute_unprepared(sql).await.map(|_| ()).expect_err(sql).to_string()
}

/// The same, and ends the transaction.
async fn refused_for(tx: DatabaseTransaction, sql: &str, why: &str) {
    let said = refused(&tx, sql).await;
    assert!(said.contains(why), "{sql}: {said}");
    tx.rollback().await.expect("rolled back");
}

const NO_ORDER: &str = "refers to an order that does not exist";
const NAMED: &str = "while order_status_history refers to it";
const CANNOT_TELL: &str = "in a transaction that is REPEATABLE READ";

#[tokio::test(flavor = "multi_thread")]
async fn history_of_no_order_is_refused_and_of_one_that_goes_meanwhile() {
    with_harness(QUICK, async |harness| {
        let (kept, gone) = (harness.delivering().await, harness.delivering().await);
        for level in LEVELS {
            let tx = transaction(harness, level).await;
            run(&tx, &history_of(kept)).await;
            tx.commit().await.expect("a commit");
            refused_for(transaction(harness, level).await, &history_of(Uuid::new_v4()), NO_ORDER).await;
            let moved = format!("UPDATE order_status_history SET order_id = '{}'", Uuid::new_v4());
            refused_for(transaction(harness, level).await, &moved, NO_ORDER).await;
        }
        // A transaction that writes history of an order that another one is deleting waits, and is then refused.
        for (level, why) in LEVELS.into_iter().zip([NO_ORDER, "could not serialize access"]) {
            let order = harness.delivering().await;
            let (deletes, writes) =
                (transaction(harness, IsolationLevel::ReadCommitted).await, transaction(harness, level).await);
            run(&deletes, &format!("DELETE FROM orders WHERE id = '{order}'")).await;
            let written = history_of(order);
            let ends = async {
                let waits =
                    "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
                eventually("it waits", SOON, async || Ok(harness.ask::<bool>(waits).await)).await;
                deletes.commit().await.expect("a commit");
            };
            // The lock timeout is for deployments that must not wait.
            run(&writes, "SET LOCAL lock_timeout = 0").await;
            tokio::join!(refused_for(writes, &written, why), ends);
        }
        assert_eq!(harness.run("DELETE FROM orders WHERE id = $1", [gone.into()]).await, 1, "without history it may go");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_with_history_stays_and_keeps_its_id_whatever_a_snapshot_shows() {
    with_harness(QUICK, async |harness| {
        let order = harness.delivering().await;
        for sql in [
            format!("DELETE FROM orders WHERE id = '{order}'"),
            format!("UPDATE orders SET id = gen_random_uuid() WHERE id = '{order}'"),
        ] {
            let mut snapshots = Vec::new();
            for level in LEVELS {
                snapshots.push(transaction(harness, level).await);
            }
            harness.sandbox.db.execute_unprepared(&history_of(order)).await.expect("history");
            for (tx, why) in snapshots.into_iter().zip([NAMED, CANNOT_TELL]) {
                refused_for(tx, &sql, why).await;
            }
            refused_for(transaction(harness, IsolationLevel::RepeatableRead).await, &sql, NAMED).await;
            // Both may be deleted together.
            let tx = transaction(harness, IsolationLevel::ReadCommitted).await;
            run(&tx, "DELETE FROM order_status_history").await;
            run(&tx, &sql).await;
            tx.rollback().await.expect("rolled back");
            harness.run("DELETE FROM order_status_history", []).await;
        }
        // A statement that deletes no row and leaves the ids unchanged is allowed at any level.
        let tx = transaction(harness, IsolationLevel::RepeatableRead).await;
        run(&tx, "DELETE FROM orders WHERE status = 'cancelled'").await;
        run(&tx, "UPDATE orders SET id = id, on_hold = true").await;
        tx.commit().await.expect("a commit");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_truncated_only_together_with_their_history() {
    with_harness(QUICK, async |harness| {
        let db = &harness.sandbox.db;
        let order = harness.delivering().await;
        run(db, &history_of(order)).await;
        run(db, &format!("INSERT INTO accounts (kind, order_id) VALUES ('goods', '{order}')")).await;
        let said = refused(db, "TRUNCATE orders CASCADE").await;
        assert!(said.contains(NAMED), "{said}");
        // The ledger is not truncated with them.
        let said = refused(db, "TRUNCATE orders, order_status_history CASCADE").await;
        assert!(said.contains("while the ledger refers to it"), "{said}");
        run(db, "DELETE FROM accounts").await;
        run(db, "TRUNCATE orders, order_status_history CASCADE").await;
        assert_eq!(
            harness.ask::<i64>("SELECT (SELECT count(*) FROM orders) + (SELECT count(*) FROM order_status_history)").await,
            0
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_may_only_insert_history_can_and_a_search_path_deceives_no_trigger() {
    with_harness(QUICK, async |harness| {
        let db = &harness.sandbox.db;
        let (order, role) = (harness.delivering().await, format!("kyhan_clerk_{}", Uuid::new_v4().simple()));
        run(db, &format!("CREATE ROLE {role}")).await;
        run(db, &format!("GRANT INSERT ON order_status_history TO {role}")).await;
        run(db, &format!("GRANT TEMPORARY ON DATABASE {} TO {role}", harness.sandbox.database())).await;
        let clerk = format!("SET LOCAL ROLE {role}");

        let tx = transaction(harness, IsolationLevel::ReadCommitted).await;
        run(&tx, &clerk).await;
        run(&tx, &history_of(order)).await;
        refused_for(tx, &history_of(Uuid::new_v4()), NO_ORDER).await;

        // The triggers find the right table despite a temporary table or an empty search path.
        let tx = transaction(harness, IsolationLevel::ReadCommitted).await;
        run(&tx, &clerk).await;
        let orphan = Uuid::new_v4();
        run(&tx, &format!("CREATE TEMPORARY TABLE orders AS SELECT '{orphan}'::uuid AS id")).await;
        refused_for(tx, &history_of(orphan), NO_ORDER).await;
        let tx = transaction(harness, IsolationLevel::ReadCommitted).await;
        run(&tx, "SET LOCAL search_path = pg_catalog").await;
        let elsewhere = |order| history_of(order).replace("order_status_history", "public.order_status_history");
        run(&tx, &elsewhere(order)).await;
        refused_for(tx, &elsewhere(orphan), NO_ORDER).await;

        run(db, &format!("DROP OWNED BY {role}")).await;
        run(db, &format!("DROP ROLE {role}")).await;
    })
    .await;
}

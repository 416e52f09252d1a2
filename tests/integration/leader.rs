//! The leader as an operator sees it: its heartbeat, and a lock that another login holds.

use sea_orm::{ConnectionTrait, TransactionTrait};
use shared::database::{leader::LOCK, roles::DatabaseRole};

use crate::{
    harness::{Harness, QUICK, with_harness},
    letters::ops,
};

/// What `ops status` reports about the leader.
async fn troubles(harness: &Harness) -> Vec<String> {
    let status: serde_json::Value = serde_json::from_str(&ops(harness, &["status", "--json"]).await.out).expect("JSON");
    let troubles = status["troubles"].as_array().expect("troubles").iter();
    troubles.filter_map(|trouble| trouble.as_str()).filter(|trouble| trouble.contains("leader")).map(ToOwned::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_holds_the_leaders_lock_is_named_once_no_round_ends_any_more() {
    with_harness(&QUICK.replace("3600000", "200"), async |harness| {
        assert!(troubles(harness).await.is_empty(), "a new database has had no time for a round");
        let worker = harness.worker();
        harness.until("SELECT count(*) = 1 FROM leader WHERE instance LIKE '%/%'").await;
        assert!(troubles(harness).await.is_empty());
        worker.stop().await;

        let thief = harness.sandbox.connect_as(DatabaseRole::OrderSystem).await.expect("a login");
        let held = thief.begin().await.expect("a transaction");
        held.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({LOCK})")).await.expect("the lock");
        let worker = harness.worker();
        harness.run("UPDATE leader SET beat_at = now() - interval '1 hour'", []).await;
        let said = troubles(harness).await.join("; ");
        let login: String = harness.ask("SELECT usename::text FROM pg_stat_activity WHERE usename LIKE '%order_system' AND datname = current_database() LIMIT 1").await;
        assert!(said.contains("no leader has ended a round for 36") && said.contains(&format!("the login {login} ")), "{said}");

        held.rollback().await.expect("given back");
        harness.until("SELECT beat_at > now() - interval '1 minute' FROM leader").await;
        assert!(troubles(harness).await.is_empty());
        worker.stop().await;
        thief.close().await.expect("closed");

        harness.run("DELETE FROM leader", []).await;
        harness.run("UPDATE kyhan_migrations SET applied_at = applied_at - 3600", []).await;
        let said = troubles(harness).await.join("; ");
        assert!(said.contains("no session holds the leader's lock; is a worker running?"), "{said}");
    })
    .await;
}

//! A database in which no policy was applied yet, such as a running shop's: nothing is published and nothing applied, every light says so,
//! and the first policy releases what it makes due gradually.

use std::time::Duration;

use sea_orm::TransactionTrait;
use serde_json::Value;
use shared::{
    database::{
        active_policy::NONE,
        failure::is_refused,
        roles::DatabaseRole,
        statements::{NotApplied, OnLocked, Statements},
    },
    domain::tasks,
};
use tests::{
    fleet,
    sandbox::{always, eventually},
};
use uuid::Uuid;

use crate::{
    admin::{Process, readiness, until_ready, why},
    harness::{Harness, SOON, exampled, with_harness},
    letters::{json, ops},
    policies::{File, delivering},
};

const FILE: &str = "[sweep]\nevery_ms = 100\ngrace_ms = 100\n[relay]\npoll_ms = 100\n";

/// Rows, events and messages that a fleet with a policy would change within a second.
async fn untouched(harness: &Harness, orders: i64) -> bool {
    let sql = "SELECT ARRAY[(SELECT count(*) FROM orders WHERE status = 'delivering'), (SELECT count(*) FROM outbox)]";
    harness.ask::<Vec<i64>>(sql).await == [orders, 1] && harness.depth("due.confirm-receipt").await == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn before_a_policy_is_applied_nothing_is_published_or_applied_and_every_light_says_so() {
    with_harness(FILE, async |harness| {
        harness.without_policy().await;
        delivering(harness, 20).await;
        let order = harness.order_ids().await[0];
        harness.event("order.shipped", order).await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &harness.order_ids().await)]).await;
        let fleet =
            [Process::start("worker", &[], &harness.sandbox.env), Process::start("producer", &["relay"], &harness.sandbox.env)];
        for process in &fleet {
            let address = process.address().await;
            eventually("it says why it is not ready", SOON, async || {
                let (status, report) = readiness(address)?;
                Ok(status == 503 && why(&report, "postgresql") == Some(NONE) && process.said()?.contains("no policy was applied"))
            })
            .await;
        }
        for (line, code) in [("status", 1), ("audit", 1), ("forecast", 0), ("rebuild --dry-run", 0), ("policy show", 0)] {
            let said = ops(harness, &line.split(' ').collect::<Vec<_>>()).await;
            let lights = format!("{}{}", said.out, said.err).to_lowercase();
            assert!(said.code == code && lights.contains("no policy was applied"), "{line}: {said:?}");
        }
        let emitted = fleet::command("producer", &harness.sandbox.env, ["emit", "order.shipped", &order.to_string()]);
        let emitted = emitted.expect("built").output().await.expect("run");
        assert!(!emitted.status.success() && String::from_utf8_lossy(&emitted.stderr).contains(NONE), "{emitted:?}");
        always("nothing happens", Duration::from_secs(2), async || Ok(untouched(harness, 20).await)).await;

        // 6 of the 20 are older than the policy needs for 6 of them; one a second is released, to a fleet that was not restarted.
        let file = File::new(&harness.settings().policy.to_string());
        let preview = json(harness, &["policy", "preview", file.path(), "--json"]).await;
        let receipts =
            preview["kinds"].as_array().expect("kinds").iter().find(|kind| kind["kind"] == "confirm-receipt").expect("it");
        assert_eq!(
            (&receipts["due_before"], &receipts["at_once"], &receipts["appear"]),
            (&0.into(), &6.into(), &20.into()),
            "{preview}"
        );
        let apply = ["policy", "apply", file.path(), "--why", "adopted", "--rate", "1", "--yes", "--json"];
        let applied: Value = json(harness, &apply).await;
        assert_eq!(applied["scheduled"], 20 + 20, "receipts and arrears: {applied}");
        for process in &fleet {
            until_ready(process.address().await).await;
        }
        harness.until("SELECT count(*) = 6 FROM order_status_history WHERE reason = 'confirm-receipt'").await;
        let spread =
            "SELECT extract(epoch FROM max(at) - min(at))::float8 FROM order_status_history WHERE reason = 'confirm-receipt'";
        assert!(harness.ask::<f64>(spread).await > 1.0, "6 rows at one a second");
        harness.until("SELECT count(*) = 0 FROM outbox").await;
        for process in fleet {
            process.stop().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_itself_refuses_to_collect_arrears_before_a_policy_is_applied() {
    with_harness(FILE, async |harness| {
        harness.without_policy().await;
        let task = exampled("collect-arrears");
        let order = Uuid::new_v4();
        harness.run(task.examples().due, [order.into()]).await;
        let worker = harness.sandbox.connect_as(DatabaseRole::Worker).await.expect("a login");
        let tx = worker.begin().await.expect("a transaction");
        let file = harness.sandbox.settings_with(&[]).expect("settings").policy;
        let statements = Statements::new(tasks::find(task.kind()).expect("a task"), &file, None);
        match statements.apply(&tx, &[(order, Uuid::new_v4())], OnLocked::Wait).await {
            Err(NotApplied::Database(error)) => assert!(is_refused(&error), "{error}"),
            done => panic!("{done:?}"),
        }
        tx.rollback().await.expect("rolled back");
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM transfers WHERE reason = 'arrears'").await, 0);
        worker.close().await.expect("closed");
    })
    .await;
}

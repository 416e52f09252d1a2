//! The sweep: what was lost is made again, once; what is merely behind is left alone; what keeps failing is woken ever more rarely.

use std::time::Duration;

use sea_orm::{ConnectionTrait, TransactionTrait};
use shared::{database::statement, tasks};
use tests::sandbox::{always, eventually};
use uuid::Uuid;

use crate::stage::{QUICK, SOON, on_stage};

/// Of a sweep every 100 ms.
const SEVERAL_ROUNDS: Duration = Duration::from_millis(800);

/// The quick policy with a sweep every 100 ms.
fn swept(more: &str) -> String {
    QUICK.replace("every_ms = 3600000", &format!("every_ms = 100\n    {more}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overdue_row_whose_wakeup_was_lost_is_woken_and_applied_once() {
    on_stage(&swept("grace_ms = 300"), async |stage| {
        let mut subjects = Vec::new();
        for task in tasks::ALL {
            for _ in 0..20 {
                let id = Uuid::new_v4();
                stage.run(task.examples().due, [id.into()]).await;
                subjects.push((*task, id));
            }
        }
        let workers = [stage.worker(), stage.worker()];
        for (task, id) in &subjects {
            eventually("the effect", SOON, async || Ok(stage.effects(*task, *id).await.iter().all(|count| *count == 1))).await;
        }
        assert_eq!(stage.ask::<i64>("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())").await, 1, "one leader");
        let (mut applied, mut stale) = (0, 0);
        for worker in workers {
            let totals = worker.stop().await;
            applied += totals.applied;
            stale += totals.stale;
        }
        assert_eq!((applied, stale), (subjects.len() as u64, 0));
        assert_eq!(stage.ask::<i64>("SELECT count(*) FROM swept WHERE times = 1").await, subjects.len() as i64);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_not_overdue_by_the_grace_is_left_to_its_wakeup() {
    on_stage(&swept("grace_ms = 3600000"), async |stage| {
        let order = stage.delivering().await;
        stage.run("UPDATE orders SET delivering_since = now() - interval '10 minutes' WHERE id = $1", [order.into()]).await;
        let worker = stage.worker();
        let unswept = "SELECT count(*) = 0 FROM swept";
        always("nothing is swept", SEVERAL_ROUNDS, async || Ok(stage.ask::<bool>(unswept).await)).await;
        worker.stop().await;
        assert_eq!(stage.ask::<String>("SELECT status FROM orders").await, "delivering");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_looks_back_only_so_far_and_a_whole_one_now_and_then() {
    const LONG_OVERDUE: &str = "UPDATE orders SET delivering_since = now() - interval '1 hour' WHERE id = $1";
    let received = "SELECT count(*) FROM orders WHERE status = 'received'";
    for (whole_every_ms, found) in [("3600000", false), ("1500", true)] {
        let file = swept(&format!("grace_ms = 100\n    lookback_ms = 60000\n    whole_every_ms = {whole_every_ms}"));
        on_stage(&file, async |stage| {
            // The first round looks at everything.
            let first = stage.delivering().await;
            stage.run(LONG_OVERDUE, [first.into()]).await;
            let worker = stage.worker();
            stage.until(&format!("SELECT ({received}) = 1")).await;
            // What was put so far back in the meantime, only a whole round sees; what fell due lately, every round.
            let (long, lately) = (stage.delivering().await, stage.delivering().await);
            stage.run(LONG_OVERDUE, [long.into()]).await;
            stage.until(&format!("SELECT status = 'received' FROM orders WHERE id = '{lately}'")).await;
            if found {
                stage.until(&format!("SELECT ({received}) = 3")).await;
            } else {
                always("the others are left", SEVERAL_ROUNDS, async || Ok(stage.ask::<i64>(received).await == 2)).await;
            }
            worker.stop().await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_is_merely_behind_is_not_flooded() {
    let file = swept("grace_ms = 50\n    lane_depth_max = 0");
    on_stage(&file, async |stage| {
        let orders = stage.many_delivering(30).await;
        let blocker = stage.sandbox.db.begin().await.expect("a transaction");
        blocker.execute_raw(statement("SELECT 1 FROM orders FOR UPDATE", [])).await.expect("locks");
        stage.publish(orders.iter().map(|order| stage.wakeup("confirm-receipt", &[*order])).collect()).await;
        let slow = [
            ("KYHAN_WORKER_PREFETCH", "1"),
            ("KYHAN_WORKER_CONSUMERS", "1"),
            ("KYHAN_WORKER_BATCH_MAX", "1"),
            ("KYHAN_DATABASE_LOCK_TIMEOUT_MS", "20000"),
        ];
        let worker = crate::stage::worker_with(stage.sandbox.settings_with(&slow).expect("settings"));
        stage
            .until("SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
            .await;
        let unswept = "SELECT count(*) = 0 FROM swept WHERE kind = 'confirm-receipt'";
        always("the lane is not swept", SEVERAL_ROUNDS, async || Ok(stage.ask::<bool>(unswept).await)).await;
        blocker.rollback().await.expect("unlocked");
        stage.until("SELECT count(*) = 30 FROM orders WHERE status = 'received'").await;
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_keeps_failing_is_woken_ever_more_rarely() {
    let file = swept("grace_ms = 100").replace("attempts_max = 3", "attempts_max = 1");
    on_stage(&file, async |stage| {
        let order = stage.delivering().await;
        stage.run("ALTER TABLE orders ADD CONSTRAINT obstacle CHECK (status <> 'received') NOT VALID", []).await;
        let worker = stage.worker();
        stage.until("SELECT count(*) = 1 FROM swept WHERE times = 3").await;
        // 100 ms doubled thrice: the fourth time is 800 ms away from the third.
        let (third, fourth) =
            ("SELECT (at AT TIME ZONE 'UTC')::text FROM swept", "SELECT count(*) = 1 FROM swept WHERE times = 4");
        let third: String = stage.ask(third).await;
        stage.until(fourth).await;
        assert!(stage.ask::<bool>(&format!("SELECT at - '{third}Z'::timestamptz >= interval '750 ms' FROM swept")).await);
        stage.run("ALTER TABLE orders DROP CONSTRAINT obstacle", []).await;
        stage.until(&format!("SELECT status = 'received' FROM orders WHERE id = '{order}'")).await;
        worker.stop().await;
    })
    .await;
}

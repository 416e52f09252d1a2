//! The sweep: lost wake-ups are made again, once; rows that are merely late are left alone; rows that keep failing are woken less
//! and less often.

use std::time::Duration;

use shared::domain::task::EXAMPLE_CUSTOMER;
use tests::sandbox::{always, eventually};
use uuid::Uuid;

use crate::{
    harness::{Harness, QUICK, SOON, exampled, with_harness},
    letters::StoredLetter,
};

/// Settings of a sweep every 100 ms.
const SEVERAL_ROUNDS: Duration = Duration::from_millis(800);

/// The quick policy with a sweep every 100 ms.
fn swept(more: &str) -> String {
    QUICK.replace("every_ms = 3600000", &format!("every_ms = 100\n    {more}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overdue_row_whose_wakeup_was_lost_is_woken_and_applied_once() {
    with_harness(&swept("grace_ms = 300"), async |harness| {
        let mut subjects = Vec::new();
        for task in harness.tasks() {
            for _ in 0..20 {
                let id = Uuid::new_v4();
                harness.run(task.examples().due, [id.into()]).await;
                subjects.push((task, id));
            }
        }
        let workers = [harness.worker(), harness.worker()];
        for (task, id) in &subjects {
            eventually("the effect", SOON, async || Ok(harness.effects(*task, *id).await.iter().all(|count| *count == 1))).await;
        }
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())").await, 1, "one leader");
        let (mut applied, mut stale) = (0, 0);
        for worker in workers {
            let totals = worker.stop().await;
            applied += totals.applied;
            stale += totals.stale;
        }
        assert_eq!((applied, stale), (subjects.len() as u64, 0));
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM swept WHERE times = 1").await, subjects.len() as i64);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_not_overdue_by_the_grace_is_left_to_its_wakeup() {
    with_harness(&swept("grace_ms = 3600000"), async |harness| {
        let order = harness.delivering().await;
        harness.run("UPDATE orders SET delivering_since = now() - interval '10 minutes' WHERE id = $1", [order.into()]).await;
        let worker = harness.worker();
        let unswept = "SELECT count(*) = 0 FROM swept";
        always("nothing is swept", SEVERAL_ROUNDS, async || Ok(harness.ask::<bool>(unswept).await)).await;
        worker.stop().await;
        assert_eq!(harness.ask::<String>("SELECT status FROM orders").await, "delivering");
    })
    .await;
}

/// A sweep that looks back a minute each round, and at everything older every `whole_every_ms`.
fn short_sighted(whole_every_ms: u32) -> String {
    swept(&format!("grace_ms = 100\n    lookback_ms = 60000\n    whole_every_ms = {whole_every_ms}"))
}

/// An order whose delivery began that long ago.
async fn delivering_since(harness: &Harness, ago: &str) -> Uuid {
    let id = Uuid::new_v4();
    let sql = "INSERT INTO orders (id, code, customer_id, status, delivering_since)
               VALUES ($1, 'BG-' || $1::text, $2, 'delivering', now() - $3::text::interval)";
    harness.run(sql, [id.into(), EXAMPLE_CUSTOMER.into(), ago.into()]).await;
    id
}

async fn until_received(harness: &Harness, order: Uuid) {
    harness.until(&format!("SELECT status = 'received' FROM orders WHERE id = '{order}'")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_looks_back_only_so_far_and_at_the_rest_of_the_past_now_and_then() {
    for (whole_every_ms, found) in [(3_600_000, false), (1500, true)] {
        with_harness(&short_sighted(whole_every_ms), async |harness| {
            // A new leader looks at everything, however old, including infinite timestamps.
            let first = [delivering_since(harness, "1 hour").await, delivering_since(harness, "70 years").await];
            harness.run("UPDATE orders SET delivering_since = '-infinity' WHERE id = $1", [first[1].into()]).await;
            let worker = harness.worker();
            for order in first {
                until_received(harness, order).await;
            }
            // An old overdue row that appears meanwhile is found only by the next full look; one that fell due recently, in every
            // round.
            let long = delivering_since(harness, "1 hour").await;
            until_received(harness, delivering_since(harness, "2 seconds").await).await;
            if found {
                until_received(harness, long).await;
            } else {
                let left = format!("SELECT status = 'delivering' FROM orders WHERE id = '{long}'");
                always("it is left", SEVERAL_ROUNDS, async || Ok(harness.ask::<bool>(&left).await)).await;
            }
            worker.stop().await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_at_the_rest_of_the_past_that_fails_stops_no_other_and_goes_on_when_it_can() {
    let file = format!("{}\n    [database]\n    statement_timeout_ms = 1000", short_sighted(3_600_000));
    with_harness(&file, async |harness| {
        // Reading rows from a month ago takes longer than the statement timeout.
        harness.run("ALTER TABLE orders RENAME TO all_orders", []).await;
        harness
            .run(
                "CREATE FUNCTION obstacle(moment timestamptz) RETURNS boolean LANGUAGE plpgsql COST 10000 AS $$
                 BEGIN
                     IF moment < now() - interval '30 days' THEN PERFORM pg_sleep(60); END IF;
                     RETURN true;
                 END $$",
                [],
            )
            .await;
        harness.run("CREATE VIEW public.orders AS SELECT * FROM all_orders WHERE obstacle(delivering_since)", []).await;
        harness.run("GRANT SELECT, UPDATE ON orders TO kyhan_worker, kyhan_owner", []).await;
        let sql = "INSERT INTO all_orders (id, code, customer_id, status, delivering_since)
                   VALUES ($1, 'BG-0', $2, 'delivering', now() - interval '60 days')";
        let beyond = Uuid::new_v4();
        harness.run(sql, [beyond.into(), EXAMPLE_CUSTOMER.into()]).await;
        let before = delivering_since(harness, "10 days").await;
        let worker = harness.worker();
        until_received_of_all(harness, before).await;
        let stuck = "SELECT count(*) > 0 FROM pg_stat_activity
                      WHERE datname = current_database() AND wait_event = 'PgSleep' AND query !~ 'arrears'";
        // It fails, round after round.
        for _ in 0..3 {
            harness.until(stuck).await;
            let lately = delivering_since(harness, "2 seconds").await;
            until_received_of_all(harness, lately).await;
        }
        assert_eq!(harness.ask::<String>(&format!("SELECT status FROM all_orders WHERE id = '{beyond}'")).await, "delivering");
        let passable = "CREATE OR REPLACE FUNCTION obstacle(moment timestamptz) RETURNS boolean LANGUAGE sql AS 'SELECT true'";
        harness.run(passable, []).await;
        until_received_of_all(harness, beyond).await;
        worker.stop().await;
    })
    .await;
}

/// Waits for the order in the table itself, because reading through the view fails.
async fn until_received_of_all(harness: &Harness, order: Uuid) {
    harness.until(&format!("SELECT status = 'received' FROM all_orders WHERE id = '{order}'")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_woken_before_is_woken_again_however_long_it_is_overdue() {
    with_harness(&short_sighted(3_600_000), async |harness| {
        let first = delivering_since(harness, "1 hour").await;
        let worker = harness.worker();
        until_received(harness, first).await;
        // By now the full look has taken place. One of the two rows was woken five times, the last time a while ago.
        let (woken, unseen) = (Uuid::new_v4(), delivering_since(harness, "1 hour").await);
        let sql = "WITH made AS (
                       INSERT INTO orders (id, code, customer_id, status, delivering_since)
                       VALUES ($1, 'BG-0', $2, 'delivering', now() - interval '1 hour')
                       RETURNING id, delivering_since)
                   INSERT INTO swept (kind, subject_id, due_at, at, times)
                   SELECT 'confirm-receipt', id, delivering_since + interval '400 ms', now() - interval '1 second', 5 FROM made";
        harness.run(sql, [woken.into(), EXAMPLE_CUSTOMER.into()]).await;
        until_received(harness, woken).await;
        // 100 ms, doubled five times.
        let again = "SELECT times = 6 AND at >= due_at + interval '1 hour' - interval '400 ms' + interval '2200 ms' FROM swept";
        harness.until(&format!("{again} WHERE subject_id = '{woken}'")).await;
        assert_eq!(harness.ask::<String>(&format!("SELECT status FROM orders WHERE id = '{unseen}'")).await, "delivering");
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_is_merely_behind_is_not_flooded() {
    let file = swept("grace_ms = 50\n    lane_depth_max = 0");
    with_harness(&file, async |harness| {
        let orders = harness.many_delivering(30).await;
        let blocker = harness.locked("orders").await;
        harness.publish(orders.iter().map(|order| harness.wakeup("confirm-receipt", &[*order])).collect()).await;
        let slow = [
            ("KYHAN_WORKER_PREFETCH", "1"),
            ("KYHAN_WORKER_CONSUMERS", "1"),
            ("KYHAN_WORKER_BATCH_MAX", "1"),
            ("KYHAN_DATABASE_LOCK_TIMEOUT_MS", "20000"),
        ];
        let worker = crate::harness::worker_with(harness.sandbox.settings_with(&slow).expect("settings"));
        harness
            .until("SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
            .await;
        let unswept = "SELECT count(*) = 0 FROM swept WHERE kind = 'confirm-receipt'";
        always("the lane is not swept", SEVERAL_ROUNDS, async || Ok(harness.ask::<bool>(unswept).await)).await;
        blocker.rollback().await.expect("unlocked");
        harness.until("SELECT count(*) = 30 FROM orders WHERE status = 'received'").await;
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_keeps_failing_is_woken_ever_more_rarely() {
    let file = swept("grace_ms = 100").replace("attempts_max = 3", "attempts_max = 1");
    with_harness(&file, async |harness| {
        let order = harness.delivering().await;
        harness.run("ALTER TABLE orders ADD CONSTRAINT obstacle CHECK (status <> 'received') NOT VALID", []).await;
        let worker = harness.worker();
        harness.until("SELECT count(*) = 1 FROM swept WHERE times = 3").await;
        // 100 ms, doubled three times: the fourth wake-up comes 800 ms after the third.
        let (third, fourth) =
            ("SELECT (at AT TIME ZONE 'UTC')::text FROM swept", "SELECT count(*) = 1 FROM swept WHERE times = 4");
        let third: String = harness.ask(third).await;
        harness.until(fourth).await;
        assert!(harness.ask::<bool>(&format!("SELECT at - '{third}Z'::timestamptz >= interval '750 ms' FROM swept")).await);
        harness.run("ALTER TABLE orders DROP CONSTRAINT obstacle", []).await;
        harness.until(&format!("SELECT status = 'received' FROM orders WHERE id = '{order}'")).await;
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_operators_have_decided_about_and_money_they_are_to_decide_about_is_left_to_them() {
    with_harness(&swept("grace_ms = 100"), async |harness| {
        let made = async |kind: &'static str, state: Option<(&str, &str)>| {
            let (task, id) = (exampled(kind), Uuid::new_v4());
            harness.run(task.examples().due, [id.into()]).await;
            if let Some((state, decided)) = state {
                let letter = StoredLetter { kind: Some(kind), subject: Some(id), ..StoredLetter::default() }.store(harness).await;
                let sql = "UPDATE dead_letters SET state = $2, decided_at = now() - $3::text::interval, decided_by = 'lan', decided_why = 'so'
                            WHERE id = $1 AND $2 <> 'open'";
                harness.run(sql, [letter.into(), state.into(), decided.into()]).await;
            }
            (task, id)
        };
        let (open, now, long_ago) = (Some(("open", "0")), Some(("discarded", "0")), Some(("discarded", "2 years")));
        let left = [made("collect-arrears", open).await, made("collect-arrears", now).await, made("confirm-receipt", now).await];
        let woken = [
            made("collect-arrears", None).await,
            made("collect-arrears", long_ago).await,
            made("confirm-receipt", None).await,
            made("confirm-receipt", long_ago).await,
            // Its fault has passed, and it moves no money.
            made("confirm-receipt", open).await,
        ];
        // A rebuild makes wake-ups for the same rows, and a dry run counts them.
        let counted = harness.ops(&["rebuild", "--dry-run"]).await.expect("counts");
        assert!(counted.contains("confirm-receipt: 3 pending") && counted.contains("collect-arrears: 2 pending"), "{counted}");
        harness.ops(&["rebuild"]).await.expect("a rebuild");
        let worker = harness.worker();
        for (task, id) in woken {
            eventually("the effect", SOON, async || Ok(harness.effects(task, id).await.iter().all(|count| *count == 1))).await;
        }
        harness.until("SELECT count(*) = 1 FROM dead_letters WHERE kind = 'confirm-receipt' AND state = 'resolved'").await;
        let untouched = async || {
            for (task, id) in left {
                if harness.effects(task, id).await.iter().any(|count| *count != 0) {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        always("nothing comes of what is the operators'", SEVERAL_ROUNDS, untouched).await;
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM swept JOIN dead_letters USING (kind, subject_id) WHERE state = 'open'").await, 0);
        worker.stop().await;
    })
    .await;
}

//! The conformance suite: the rules that every kind in the list of tasks must keep. A new kind inherits all of them.

use sea_orm::TransactionTrait;
use shared::{
    database::{
        roles::DatabaseRole,
        statement,
        statements::{NotApplied, OnLocked, Statements},
    },
    domain::{
        task::{Exampled, RecordedRows},
        tasks,
    },
    message::topology::QueueRole,
};
use tests::sandbox::{always, eventually};
use uuid::Uuid;

use crate::harness::{Harness, QUICK, SOON, every_kind, exampled, with_harness, worker_with};

async fn due(harness: &Harness, task: &dyn Exampled) -> Uuid {
    let id = Uuid::new_v4();
    harness.run(task.examples().due, [id.into()]).await;
    id
}

async fn happened(harness: &Harness, task: &dyn Exampled, subject: Uuid, times: i64) {
    let counts = harness.effects(task, subject).await;
    assert!(counts.iter().all(|count| *count == times), "{}: {counts:?} instead of all {times}", task.kind());
}

/// Asserts that effects and records agree, as `ops audit` counts them.
async fn nothing_is_off(harness: &Harness, task: &dyn Exampled) {
    assert!(!task.checks().is_empty(), "{} has records, so it needs checks that compare them", task.kind());
    for check in task.checks() {
        assert_eq!(harness.ask::<i64>(check.sql).await, 0, "{}: {}", task.kind(), check.name);
    }
}

/// From now on, the effect on each of these subjects fails.
async fn poison(harness: &Harness, task: &dyn Exampled, subjects: &[Uuid]) {
    harness.run("CREATE TABLE IF NOT EXISTS poisoned (id uuid PRIMARY KEY)", []).await;
    let function = "CREATE OR REPLACE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
                        IF OLD.id IN (SELECT id FROM poisoned) THEN
                            RAISE check_violation USING MESSAGE = 'poisoned';
                        END IF;
                        RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
                    END $$";
    harness.run(function, []).await;
    let trigger = "CREATE OR REPLACE TRIGGER poison BEFORE UPDATE OR DELETE ON {} FOR EACH ROW EXECUTE FUNCTION poison()";
    harness.run(&trigger.replace("{}", task.table()), []).await;
    for subject in subjects {
        harness.run("INSERT INTO poisoned VALUES ($1)", [(*subject).into()]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn delivered_twice_gives_one_effect() {
    with_harness(&every_kind(QUICK), async |harness| {
        for task in tasks::EXAMPLED {
            let subject = due(harness, *task).await;
            happened(harness, *task, subject, 0).await;
            let message = harness.wakeup(task.kind(), &[subject]);
            harness.publish(vec![message.clone(), message.clone()]).await;
            let worker = harness.worker();
            harness.until_settled().await;
            harness.publish(vec![message]).await;
            harness.until_settled().await;
            let totals = worker.stop().await;
            assert_eq!((totals.applied, totals.stale), (1, 2), "{}", task.kind());
            happened(harness, *task, subject, 1).await;
            nothing_is_off(harness, *task).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_effect_is_one_record_where_effects_are_counted() {
    with_harness(&every_kind(QUICK), async |harness| {
        let worker = harness.worker();
        for task in tasks::EXAMPLED {
            for _ in 0..3 {
                let subject = due(harness, *task).await;
                harness.publish(vec![harness.wakeup(task.kind(), &[subject])]).await;
            }
            harness.until_settled().await;
            let RecordedRows { table, rows } = task.recorded();
            assert_eq!(harness.ask::<i64>(&format!("SELECT count(*) FROM {table} WHERE {rows}")).await, 3, "{}", task.kind());
        }
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_kind_is_refused_to_every_caller_and_the_others_are_not() {
    with_harness(&every_kind(QUICK), async |harness| {
        for task in tasks::EXAMPLED {
            let subject = due(harness, *task).await;
            harness.run("INSERT INTO pauses (kind, paused_by, why) VALUES ($1, 'lan', 'x')", [task.kind().into()]).await;
            let apply = async |task: &dyn Exampled, subject| {
                let tx = harness.sandbox.db.begin().await.expect("a transaction");
                let applied = Statements::new(task, &harness.settings().policy, harness.settings().arrears.wallet_floor)
                    .apply(&tx, &[(subject, Uuid::new_v4())], OnLocked::Wait)
                    .await;
                tx.rollback().await.expect("rolled back");
                applied
            };
            let refused = apply(*task, subject).await;
            let Err(NotApplied::Paused(pause)) = refused else { panic!("{}: {refused:?}", task.kind()) };
            assert_eq!((pause.kind.as_str(), pause.by.as_str()), (task.kind(), "lan"));
            for other in tasks::EXAMPLED.iter().filter(|other| other.kind() != task.kind()) {
                apply(*other, Uuid::new_v4()).await.expect("not paused");
            }
            harness.run("DELETE FROM pauses", []).await;
            apply(*task, subject).await.expect("resumed");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn state_changed_meanwhile_gives_no_effect() {
    with_harness(&every_kind(QUICK), async |harness| {
        for task in tasks::EXAMPLED {
            let subject = due(harness, *task).await;
            let before = harness.effects(*task, subject).await;
            harness.publish(vec![harness.wakeup(task.kind(), &[subject])]).await;
            harness.run(task.examples().moot, [subject.into()]).await;
            let worker = harness.worker();
            harness.until_settled().await;
            let totals = worker.stop().await;
            assert_eq!((totals.applied, totals.stale), (0, 1), "{}", task.kind());
            assert!(before.iter().all(|count| *count == 0));
            let history: i64 = harness.ask("SELECT count(*) FROM order_status_history WHERE wakeup_id IS NOT NULL").await;
            let activity: i64 = harness.ask("SELECT count(*) FROM activity").await;
            let transfers: i64 = harness.ask("SELECT count(*) FROM transfers").await;
            assert_eq!((history, activity, transfers), (0, 0, 0), "{}", task.kind());
            nothing_is_off(harness, *task).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_that_is_no_row_is_stale() {
    with_harness(&every_kind(QUICK), async |harness| {
        for task in tasks::EXAMPLED {
            harness.publish(vec![harness.wakeup(task.kind(), &[Uuid::new_v4()])]).await;
        }
        let worker = harness.worker();
        harness.until_settled().await;
        assert_eq!(worker.stop().await.stale, tasks::EXAMPLED.len() as u64);
        assert_eq!(harness.buried().await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_batch_bad_leaves_the_other_half_applied_and_each_bad_one_a_dead_letter_with_its_bytes() {
    with_harness(&every_kind(QUICK), async |harness| {
        let worker = harness.worker();
        for (done, task) in tasks::EXAMPLED.iter().enumerate() {
            let mut subjects = Vec::new();
            for _ in 0..20 {
                subjects.push(due(harness, *task).await);
            }
            let (bad, good) = subjects.split_at(10);
            poison(harness, *task, bad).await;
            let message = harness.wakeup(task.kind(), &subjects);
            harness.publish(vec![message.clone()]).await;
            harness.until_dead(10 * (done as u32 + 1)).await;
            for subject in good {
                happened(harness, *task, *subject, 1).await;
            }
            for subject in bad {
                let counts = harness.effects(*task, *subject).await;
                assert!(counts.iter().all(|count| *count == 0), "{}: {counts:?}", task.kind());
            }
            let letters = harness.dead_letters().await;
            for subject in bad {
                let letter = letters.iter().find(|letter| letter.subject == Some(*subject)).expect("a letter of its own");
                assert_eq!((letter.reason.as_str(), letter.attempts), ("attempts-exhausted", 3));
                assert_eq!(letter.kind.as_deref(), Some(task.kind()));
                assert!(
                    letter.cause.contains("SQLSTATE 23514 (integrity constraint violation) in PL/pgSQL function poison"),
                    "{}",
                    letter.cause
                );
                // The wake-up of its last attempt, which names this subject.
                let text = String::from_utf8_lossy(&letter.body);
                assert!(text.contains(&subject.to_string()) && text.contains("\"attempt\":2"), "{text}");
            }
            nothing_is_off(harness, *task).await;
        }
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_row_among_many_costs_a_logarithm_of_tries() {
    with_harness(&QUICK.replace("attempts_max = 3", "attempts_max = 1"), async |harness| {
        let orders = harness.many_delivering(256).await;
        poison(harness, exampled("confirm-receipt"), &orders[100..101]).await;
        // A sequence does not roll back, so it counts every attempt.
        harness.run("CREATE SEQUENCE tries", []).await;
        let count =
            "CREATE FUNCTION try() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN PERFORM nextval('tries'); RETURN NULL; END $$";
        harness.run(count, []).await;
        harness.run("CREATE TRIGGER try BEFORE UPDATE ON orders FOR EACH STATEMENT EXECUTE FUNCTION try()", []).await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &orders)]).await;
        let worker = harness.worker();
        harness.until("SELECT count(*) = 255 FROM orders WHERE status = 'received'").await;
        harness.until_dead(1).await;
        worker.stop().await;
        // The whole batch, then both halves of each failing part: 1 + 2 × 8.
        assert_eq!(harness.ask::<i64>("SELECT last_value FROM tries").await, 17);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_commit_and_ack_gives_one_effect() {
    with_harness(&every_kind(QUICK), async |harness| {
        for task in tasks::EXAMPLED {
            let subject = due(harness, *task).await;
            harness.publish(vec![harness.wakeup(task.kind(), &[subject])]).await;
            // A worker takes the message, commits its effect and dies before the ack.
            let broker = harness.sandbox.broker().await.expect("a broker");
            let channel = broker.channel().await.expect("a channel");
            let lane = harness.topology().lane(task.kind(), 0);
            let taken = channel.basic_get(lane.as_str().into(), lapin::options::BasicGetOptions::default()).await;
            let delivery = taken.expect("an answer").expect("the message").delivery;
            let wakeup = worker::pipeline::intake::take(delivery, Some(task.kind())).content.expect("a wake-up");
            let db = harness.sandbox.connect_as(DatabaseRole::Worker).await.expect("a database");
            let tx = db.begin().await.expect("a transaction");
            let statements = Statements::new(*task, &harness.settings().policy, harness.settings().arrears.wallet_floor);
            statements.apply(&tx, &[(subject, wakeup.id)], OnLocked::Wait).await.expect("an effect");
            tx.commit().await.expect("a commit");
            happened(harness, *task, subject, 1).await;
            broker.close().await;
            eventually("it is back in its lane", SOON, async || Ok(harness.depth("due.").await == 1)).await;

            let worker = harness.worker();
            harness.until_settled().await;
            let totals = worker.stop().await;
            assert_eq!((totals.applied, totals.stale), (0, 1), "{}", task.kind());
            happened(harness, *task, subject, 1).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_due_yet_is_postponed_and_applied_in_time() {
    // Due one second from now: the wake-up comes early, goes up one rung, and returns.
    let file = QUICK.replace("400ms", "1s").replace("200ms", "1s").replace("300ms", "1s");
    with_harness(&file, async |harness| {
        let worker = harness.worker();
        for task in harness.tasks() {
            let subject = due(harness, task).await;
            from_now(harness, task, subject).await;
            harness.publish(vec![harness.wakeup(task.kind(), &[subject])]).await;
            eventually("the effect", SOON, async || Ok(harness.effects(task, subject).await.iter().all(|c| *c == 1))).await;
        }
        let totals = worker.stop().await;
        assert_eq!(totals.applied, harness.tasks().count() as u64);
        assert!(totals.postponed >= harness.tasks().count() as u64, "{totals:?}");
    })
    .await;
}

/// Makes a subject's deadline count from now.
pub async fn from_now(harness: &Harness, task: &dyn Exampled, subject: Uuid) {
    for moment in ["delivering_since", "out_of_stock_since", "parcel_recorded_at", "added_at"] {
        let exists = "SELECT count(*) > 0 FROM information_schema.columns WHERE table_name = '{t}' AND column_name = '{c}'";
        if harness.ask::<bool>(&exists.replace("{t}", task.table()).replace("{c}", moment)).await {
            let sql = format!("UPDATE {} SET {moment} = now() WHERE id = $1 AND {moment} IS NOT NULL", task.table());
            harness.run(&sql, [subject.into()]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_falls_due_while_its_recheck_waits_for_a_lock_is_applied_after_all() {
    let file = QUICK.replace("400ms", "1s").replace("200ms", "1s").replace("300ms", "1s");
    with_harness(&file, async |harness| {
        let worker = harness.worker();
        for task in harness.tasks() {
            let subject = due(harness, task).await;
            from_now(harness, task, subject).await;
            let blocker = harness.locked(task.table()).await;
            harness.publish(vec![harness.wakeup(task.kind(), &[subject])]).await;
            harness
                .until(
                    "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
                )
                .await;
            // By the database clock, which decides: the deadline passes while the recheck waits.
            let began: String = harness.ask("SELECT clock_timestamp()::text").await;
            harness.until(&format!("SELECT clock_timestamp() > '{began}'::timestamptz + interval '1.1 seconds'")).await;
            blocker.rollback().await.expect("unlocked");
            eventually("the effect", SOON, async || Ok(harness.effects(task, subject).await.iter().all(|c| *c == 1))).await;
        }
        let totals = worker.stop().await;
        assert_eq!((totals.applied, totals.stale), (harness.tasks().count() as u64, 0), "{totals:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rung_that_disappears_under_a_worker_is_declared_again_and_nothing_is_buried() {
    let file = QUICK.replace("400ms", "2s");
    with_harness(&file, async |harness| {
        let worker = harness.worker();
        harness.until_consumed().await;
        let broker = harness.sandbox.broker().await.expect("a broker");
        for queue in harness.topology().queues().iter().filter(|queue| queue.role == QueueRole::Rung) {
            broker.delete_queue(&queue.name).await.expect("deleted");
            broker.delete_exchange(&queue.exchange).await.expect("deleted");
        }
        broker.close().await;
        // The early one needs a rung; its neighbours are due.
        let early = harness.delivering().await;
        harness.run("UPDATE orders SET delivering_since = now() WHERE id = $1", [early.into()]).await;
        let mut messages = vec![harness.wakeup("confirm-receipt", &[early])];
        for _ in 0..20 {
            messages.push(harness.wakeup("confirm-receipt", &[harness.delivering().await]));
        }
        harness.publish(messages).await;
        harness.until("SELECT count(*) = 21 FROM orders WHERE status = 'received'").await;
        harness.until_settled().await;
        worker.stop().await;
        assert_eq!(harness.buried().await, 0);
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM order_status_history").await, 21);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postponement_forgets_the_failures_of_before() {
    with_harness(&QUICK.replace("400ms", "1 hour"), async |harness| {
        let order = harness.delivering().await;
        harness.run("UPDATE orders SET delivering_since = now() WHERE id = $1", [order.into()]).await;
        let mut message = harness.wakeup("confirm-receipt", &[order]);
        message.body = String::from_utf8(message.body).expect("JSON").replace("\"attempt\":0", "\"attempt\":2").into();
        harness.publish(vec![message]).await;
        let worker = harness.worker();
        eventually("it waits", SOON, async || Ok(harness.depth("rung.1h").await == 1)).await;
        worker.stop().await;
        let broker = harness.sandbox.broker().await.expect("a broker");
        let channel = broker.channel().await.expect("a channel");
        let rung = format!("{}1h", harness.topology().rung_prefix());
        let got = channel.basic_get(rung.as_str().into(), lapin::options::BasicGetOptions::default()).await;
        let wakeup = worker::pipeline::intake::take(got.expect("an answer").expect("it").delivery, Some("confirm-receipt"))
            .content
            .expect("a wake-up");
        assert_eq!((wakeup.attempt, wakeup.subjects), (0, vec![order]));
        shared::broker::close_channel(&channel).await;
        broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_locked_for_long_holds_up_no_other() {
    with_harness(&every_kind(QUICK), async |harness| {
        let orders = harness.many_delivering(300).await;
        let blocker = harness.sandbox.db.begin().await.expect("a transaction");
        let lock = statement("SELECT 1 FROM orders WHERE id = $1 FOR UPDATE", [orders[123].into()]);
        sea_orm::ConnectionTrait::execute_raw(&blocker, lock).await.expect("a lock");
        let settings = [("KYHAN_DATABASE_LOCK_TIMEOUT_MS", "50"), ("KYHAN_WORKER_ATTEMPTS_MAX", "1000")];
        let worker = worker_with(harness.sandbox.settings_with(&settings).expect("settings"));
        harness.publish(vec![harness.wakeup("confirm-receipt", &orders)]).await;
        harness.until("SELECT count(*) = 299 FROM orders WHERE status = 'received'").await;
        eventually("it is postponed", SOON, async || Ok(harness.depth("rung.").await > 0)).await;
        blocker.rollback().await.expect("unlocked");
        harness.until("SELECT count(*) = 300 FROM orders WHERE status = 'received'").await;
        harness.until_settled().await;
        let totals = worker.stop().await;
        assert_eq!((totals.applied, totals.stale, totals.retried, totals.rejected), (300, 0, 0, 0), "{totals:?}");
        assert!(totals.postponed > 0, "{totals:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_rows_that_others_have_locked_hold_up_no_unlocked_row() {
    with_harness(QUICK, async |harness| {
        let orders = harness.many_delivering(420).await;
        harness.run("UPDATE orders SET goods_due = 10", []).await;
        // The rows of the first 200, and the wallets of the next 200, who are customers of their own.
        for sql in [
            "INSERT INTO customers SELECT gen_random_uuid(), id::text, id::text, id::text, '' FROM orders",
            "UPDATE orders SET customer_id = customers.id FROM customers WHERE full_name = orders.id::text",
            "INSERT INTO accounts (kind, customer_id) SELECT 'wallet', customer_id FROM orders",
        ] {
            harness.run(sql, []).await;
        }
        let blocker = harness.sandbox.db.begin().await.expect("a transaction");
        for (sql, of) in [
            ("SELECT FROM orders WHERE id = ANY ($1) FOR UPDATE", &orders[..200]),
            (
                "SELECT FROM accounts JOIN orders USING (customer_id) WHERE orders.id = ANY ($1) FOR UPDATE OF accounts",
                &orders[200..400],
            ),
        ] {
            sea_orm::ConnectionTrait::execute_raw(&blocker, statement(sql, [of.to_vec().into()])).await.expect("locks");
        }
        let worker = harness.worker();
        for kind in ["confirm-receipt", "collect-arrears"] {
            harness.publish(orders.iter().map(|order| harness.wakeup(kind, &[*order])).collect()).await;
        }
        harness.until("SELECT count(*) = 220 FROM orders WHERE status = 'received'").await;
        harness.until("SELECT count(*) = 20 FROM transfers").await;
        blocker.rollback().await.expect("unlocked");
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_database_spends_no_attempt() {
    with_harness(&every_kind(QUICK), async |harness| {
        let mut subjects = Vec::new();
        for task in tasks::EXAMPLED {
            subjects.push((*task, due(harness, *task).await));
        }
        let worker = harness.worker();
        harness.until_consumed().await;
        // New connections are refused and existing ones are terminated: for a worker, the database is down.
        let name: String = harness.ask("SELECT current_database()::text").await;
        let admin = sea_orm::Database::connect(std::env::var("KYHAN_DATABASE_URL").expect("a URL")).await.expect("a server");
        let away = [
            format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"),
            format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"),
        ];
        for sql in away {
            sea_orm::ConnectionTrait::execute_unprepared(&admin, &sql).await.expect("an outage");
        }
        for (task, subject) in &subjects {
            harness.publish(vec![harness.wakeup(task.kind(), &[*subject])]).await;
        }
        // For longer than all attempts would take.
        let unspent = async || Ok(harness.depth("dead").await + harness.depth("rung.").await == 0);
        always("no attempt is spent", std::time::Duration::from_millis(800), unspent).await;
        let back = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true");
        sea_orm::ConnectionTrait::execute_unprepared(&admin, &back).await.expect("the end of it");
        for (task, subject) in &subjects {
            eventually("the effect", SOON, async || {
                let counts = sea_orm::ConnectionTrait::query_one_raw(
                    &harness.sandbox.db,
                    statement(task.examples().effects, [(*subject).into()]),
                )
                .await;
                Ok(match counts {
                    Ok(Some(row)) => {
                        (0..row.column_names().len()).all(|at| row.try_get_by_index::<i64>(at).is_ok_and(|count| count == 1))
                    }
                    _ => false,
                })
            })
            .await;
        }
        let totals = worker.stop().await;
        assert_eq!((totals.applied, totals.retried), (tasks::EXAMPLED.len() as u64, 0), "{totals:?}");
        assert_eq!(harness.buried().await, 0);
        admin.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_abandons_what_waits_for_the_database_when_its_grace_is_over() {
    with_harness(&every_kind(QUICK), async |harness| {
        let subject = harness.delivering().await;
        let blocker = harness.locked("orders").await;
        let impatient = harness.sandbox.settings_with(&[("KYHAN_WORKER_GRACE_MS", "100")]).expect("settings");
        let worker = worker_with(impatient);
        harness.publish(vec![harness.wakeup("confirm-receipt", &[subject])]).await;
        let waiting = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        harness.until(waiting).await;
        let totals = worker.stop().await;
        assert_eq!(totals.applied, 0);
        blocker.rollback().await.expect("unlocked");
        // The unacked message returns to its lane, and another worker applies it.
        let worker = harness.worker();
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        worker.stop().await;
    })
    .await;
}

//! The sealed record (policy point 5): any later change to an activity row is detected, whichever role made it, and the affected
//! range is reported. What is said about an order is recorded when it is said.

use std::time::Duration;

use sea_orm::{ConnectionTrait, TransactionTrait};
use serde_json::Value;
use shared::{
    database::{roles::DatabaseRole, statement},
    domain::task::EXAMPLE_CUSTOMER,
};
use tests::{fleet, sandbox::always};
use uuid::Uuid;

use crate::{
    harness::{Harness, QUICK, with_harness},
    letters::ops,
};

/// The quick policy, with leader rounds every 100 ms.
fn sealing() -> String {
    QUICK.replace("every_ms = 3600000", "every_ms = 100")
}

async fn recorded(harness: &Harness, count: i64) {
    let sql = "INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail)
               SELECT 'staff', 'order.noted', 'order', gen_random_uuid(), jsonb_build_object('n', n) FROM generate_series(1, $1::bigint) AS n";
    harness.run(sql, [count.into()]).await;
}

const ALL_SEALED: &str = "SELECT coalesce((SELECT max(last_id) FROM activity_seals), 0) >= (SELECT max(id) FROM activity)";

/// The output of `ops activity verify` and its exit code.
async fn verified(harness: &Harness, more: &[&str]) -> (Value, i32) {
    let done = ops(harness, &[&["activity", "verify", "--json"][..], more].concat()).await;
    (serde_json::from_str(&done.out).unwrap_or_else(|_| panic!("{done:?}")), done.code)
}

/// The only fault reported: its range and its description.
fn only_fault(verified: &(Value, i32)) -> (i64, i64, String) {
    let (said, code) = verified;
    let faults = said["faults"].as_array().expect("faults");
    assert!(*code == 1 && faults.len() == 1, "{said}");
    let number = |name: &str| faults[0][name].as_i64().unwrap_or(-1);
    (number("first_id"), number("last_id"), faults[0]["what"].as_str().expect("a text").to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_row_that_a_superuser_alters_removes_or_slips_in_is_found_and_its_range_named() {
    with_harness(&sealing(), async |harness| {
        let worker = harness.worker();
        for _ in 0..3 {
            recorded(harness, 40).await;
            harness.until(ALL_SEALED).await;
        }
        worker.stop().await;
        let (said, code) = verified(harness, &[]).await;
        assert_eq!((code, &said["rows"], &said["unsealed"]), (0, &120.into(), &0.into()), "{said}");
        let seals = said["seals"].as_i64().expect("a count");
        assert!(seals >= 3, "{said}");
        let head = format!("{}:{}", said["head"]["number"], said["head"]["hash"].as_str().expect("a hash"));
        assert_eq!(verified(harness, &["--seal", &head]).await.1, 0);

        let range = "SELECT jsonb_build_array(first_id, last_id) FROM activity_seals WHERE 60 BETWEEN first_id AND last_id";
        let range: Value = harness.ask(range).await;
        let of_range = (range[0].as_i64().expect("an id"), range[1].as_i64().expect("an id"));
        // The same time and the same JSON, written differently, are no change. Every column counts.
        harness.as_superuser("UPDATE activity SET at = at, detail = detail || '{}' WHERE id = 60").await;
        assert_eq!(verified(harness, &[]).await.1, 0);
        for (change, back) in [
            ("at = at + interval '1 microsecond'", "at = at - interval '1 microsecond'"),
            ("actor_kind = 'system'", "actor_kind = 'staff'"),
            ("actor_id = subject_id", "actor_id = NULL"),
            ("action = 'order.notes'", "action = 'order.noted'"),
            ("subject_kind = 'orders'", "subject_kind = 'order'"),
            ("detail = '{\"n\": 21}'", "detail = '{\"n\": 20}'"),
        ] {
            harness.as_superuser(&format!("UPDATE activity SET {change} WHERE id = 60")).await;
            let (first, last, what) = only_fault(&verified(harness, &[]).await);
            assert_eq!((first, last), of_range, "{change}");
            assert_eq!(what, "its rows do not match the seal: at least one was changed");
            harness.as_superuser(&format!("UPDATE activity SET {back} WHERE id = 60")).await;
            assert_eq!(verified(harness, &[]).await.1, 0, "{back}");
        }
        harness
            .as_superuser("CREATE TABLE kept AS SELECT * FROM activity WHERE id = 60; DELETE FROM activity WHERE id = 60")
            .await;
        let (first, last, what) = only_fault(&verified(harness, &[]).await);
        assert_eq!((first, last), of_range);
        assert!(what.ends_with("39 exist") || what.contains("rows were sealed, but"), "{what}");
        harness.as_superuser("INSERT INTO activity OVERRIDING SYSTEM VALUE SELECT * FROM kept").await;
        assert_eq!(verified(harness, &[]).await.1, 0);
        let slipped = "INSERT INTO activity (id, actor_kind, action, subject_kind, subject_id) OVERRIDING SYSTEM VALUE
                       VALUES (-1, 'system', 'x', 'x', gen_random_uuid())";
        harness.as_superuser(slipped).await;
        assert!(only_fault(&verified(harness, &[]).await).2.contains("slipped in"));
        harness.as_superuser("DELETE FROM activity WHERE id = -1").await;

        // A chain that was rebuilt or cut short is detected with a seal that was noted down.
        let last = "DELETE FROM activity_seals WHERE number = (SELECT max(number) FROM activity_seals)";
        harness.as_superuser(last).await;
        assert_eq!(verified(harness, &[]).await.1, 0);
        assert!(only_fault(&verified(harness, &["--seal", &head]).await).2.contains("cut short"));
        harness.as_superuser("UPDATE activity SET action = 'order.forged' WHERE id = 1").await;
        harness.as_superuser("DELETE FROM activity_seals").await;
        let forged = format!("SELECT kyhan_seal_activity(1000, 120 / {seals})");
        for _ in 0..seals {
            harness.run(&forged, []).await;
        }
        assert_eq!(verified(harness, &[]).await.1, 0, "by itself the forged chain is sound");
        assert!(only_fault(&verified(harness, &["--seal", &head]).await).2.contains("the chain was rewritten"));
        // A changed seal in the middle no longer follows from the seals before it.
        harness.as_superuser("UPDATE activity_seals SET sealed_at = sealed_at - interval '1 day' WHERE number = 2").await;
        assert!(only_fault(&verified(harness, &[]).await).2.contains("does not follow from the seals before it"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_may_read_the_rows_trusts_no_function_of_the_database() {
    with_harness(QUICK, async |harness| {
        recorded(harness, 10).await;
        harness.run("SELECT kyhan_seal_activity(1000, 1000)", []).await;
        harness.as_superuser("UPDATE activity SET action = 'order.forged' WHERE id = 5").await;
        // A superuser makes the function return what was sealed.
        harness
            .run(
                "CREATE OR REPLACE FUNCTION kyhan_seal_holds(number bigint, OUT rows bigint, OUT holds boolean)
                 LANGUAGE sql STABLE SECURITY DEFINER SET search_path = kyhan, public, pg_temp AS
                 $$ SELECT seal.rows, true FROM activity_seals AS seal WHERE seal.number = $1 $$",
                [],
            )
            .await;
        assert_eq!(verified(harness, &[]).await.1, 0, "operators may only ask the function");
        let db = harness.sandbox.connect_as(DatabaseRole::OrderSystem).await;
        let db = db.expect("a login");
        let read = ::ops::activity::verify(&db, None, false, |_, _| {}).await.expect("verified");
        assert!(read.read_directly && read.faults.len() == 1, "{read:?}");
        db.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sealed_that_a_transaction_may_still_add_to() {
    with_harness(&sealing(), async |harness| {
        // This transaction has its id but has not committed; another one with a later id has.
        let slow = harness.sandbox.db.begin().await.expect("a transaction");
        let sql = "INSERT INTO activity (actor_kind, action, subject_kind, subject_id) VALUES ('staff', 'slow', 'order', gen_random_uuid())";
        slow.execute_unprepared(sql).await.expect("written");
        recorded(harness, 5).await;
        let worker = harness.worker();
        let unsealed = "SELECT count(*) = 0 FROM activity_seals";
        always("it is not sealed", Duration::from_millis(800), async || Ok(harness.ask::<bool>(unsealed).await)).await;
        slow.commit().await.expect("a commit");
        harness.until(ALL_SEALED).await;
        worker.stop().await;
        let (said, code) = verified(harness, &[]).await;
        assert_eq!((code, &said["rows"]), (0, &6.into()), "{said}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_and_two_leaders_in_turn_leave_a_sound_chain() {
    with_harness(&sealing(), async |harness| {
        let mut worker = harness.worker();
        for round in 0..6 {
            let writers: Vec<_> = (0..4)
                .map(|_| {
                    let db = harness.sandbox.db.clone();
                    tokio::spawn(async move {
                        for n in 0..20_i64 {
                            let tx = db.begin().await.expect("a transaction");
                            let sql = "INSERT INTO activity (actor_kind, action, subject_kind, subject_id)
                                       SELECT 'staff', 'order.noted', 'order', gen_random_uuid() FROM generate_series(1, 7)";
                            tx.execute_unprepared(sql).await.expect("written");
                            // Ids that never become rows are part of a range as well.
                            if n % 3 == 0 {
                                tx.rollback().await.expect("rolled back");
                            } else {
                                tx.commit().await.expect("a commit");
                            }
                        }
                    })
                })
                .collect();
            for writer in writers {
                writer.await.expect("no panic");
            }
            harness.until("SELECT count(*) > 0 FROM activity_seals").await;
            if round % 2 == 1 {
                harness.until(ALL_SEALED).await;
                worker.stop().await;
                worker = harness.worker();
            }
        }
        harness.until(ALL_SEALED).await;
        worker.stop().await;
        let (said, code) = verified(harness, &[]).await;
        let rows: i64 = harness.ask("SELECT count(*) FROM activity").await;
        assert_eq!((code, said["rows"].as_i64()), (0, Some(rows)), "{said}");
        assert!(rows > 1_000 && said["seals"].as_i64() >= Some(3), "{said}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_about_an_order_is_recorded_and_its_change_found() {
    with_harness(QUICK, async |harness| {
        let order = harness.delivering().await;
        let db = harness.sandbox.connect_as(DatabaseRole::OrderSystem).await.expect("a login");
        let said = "INSERT INTO order_messages (order_id, author, body) VALUES ($1, 'người nói', $2)";
        // By SQL and by the library, each in the caller's transaction; once for a customer and once for staff.
        let tx = db.begin().await.expect("a transaction");
        tx.execute_raw(statement("SELECT set_config('kyhan.customer_id', $1, true)", [EXAMPLE_CUSTOMER.to_string().into()])).await.expect("set");
        tx.execute_raw(statement(said, [order.into(), "Bao giờ hàng về?".into()])).await.expect("said");
        tx.commit().await.expect("a commit");
        let tx = db.begin().await.expect("a transaction");
        let recorder = producer::record::ActivityRecorder::new(&harness.settings().database);
        let message = producer::record::Message { order, author: "nhân viên".to_owned().into(), body: "Ngày mai.".to_owned().into() };
        let id = recorder.message(&tx, &message).await.expect("said");
        tx.commit().await.expect("a commit");
        let lost = db.begin().await.expect("a transaction");
        recorder.message(&lost, &message).await.expect("said");
        lost.rollback().await.expect("rolled back");

        let recorded = "SELECT string_agg(actor_kind || ' ' || coalesce(actor_id::text, '-') || ' ' || subject_id, ', ' ORDER BY id) FROM activity
                         WHERE action = 'order.message_recorded'";
        assert_eq!(harness.ask::<String>(recorded).await, format!("customer {EXAMPLE_CUSTOMER} {order}, staff - {order}"));
        let whole: String = harness.ask("SELECT string_agg(to_jsonb(activity)::text, ' ') FROM activity").await;
        assert!(!whole.contains("Ngày mai") && !whole.contains("người nói"), "{whole}");
        assert_eq!(verified(harness, &[]).await.1, 0);
        let unsaid = harness.sandbox.db.execute_unprepared("UPDATE order_messages SET body = 'khác', salt = NULL").await;
        assert!(unsaid.expect_err("refused").to_string().contains("order_messages_check"), "only what was erased has no salt");
        for change in [
            "body = 'Hôm nay.'",
            "author = 'ai đó'",
            "at = at + interval '1 s'",
            "salt = gen_random_uuid()",
            // Like an erasure, but of a customer who was not erased.
            "body = '', author = '', salt = NULL",
        ] {
            let tx = harness.sandbox.db.begin().await.expect("a transaction");
            tx.execute_raw(statement(&format!("CREATE TABLE before AS SELECT * FROM order_messages WHERE id = '{id}'"), [])).await.expect("kept");
            tx.execute_raw(statement(&format!("UPDATE order_messages SET {change} WHERE id = '{id}'"), [])).await.expect("changed");
            tx.commit().await.expect("a commit");
            let found = verified(harness, &[]).await;
            assert!(only_fault(&found).2.contains(&id.to_string()), "{change}");
            harness.run("UPDATE order_messages AS m SET body = b.body, author = b.author, at = b.at, salt = b.salt FROM before AS b WHERE b.id = m.id", []).await;
            harness.run("DROP TABLE before", []).await;
            assert_eq!(verified(harness, &[]).await.1, 0);
        }
        harness.run("DELETE FROM order_messages WHERE id = $1", [id.into()]).await;
        assert!(only_fault(&verified(harness, &[]).await).2.contains("is gone"));
        db.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customers_action_is_recorded_in_the_callers_transaction_and_operators_learn_only_that_it_was() {
    with_harness(QUICK, async |harness| {
        let order = harness.delivering().await;
        let db = harness.sandbox.connect_as(DatabaseRole::OrderSystem).await.expect("a login");
        let recorder = producer::record::ActivityRecorder::new(&harness.settings().database);
        let action = producer::record::Action {
            actor: producer::record::Actor::Customer(EXAMPLE_CUSTOMER),
            action: "order.address_changed",
            subject: ("order", order),
            detail: serde_json::json!({ "field": "address", "said": "12 Hàng Bài" }),
        };
        let tx = db.begin().await.expect("a transaction");
        recorder.action(&tx, &action).await.expect("recorded");
        tx.rollback().await.expect("rolled back");
        let tx = db.begin().await.expect("a transaction");
        recorder.action(&tx, &action).await.expect("recorded");
        tx.commit().await.expect("a commit");
        db.close().await.expect("closed");
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM activity WHERE actor_kind = 'customer'").await, 1);
        let explained = harness.ops(&["explain", &order.to_string()]).await.expect("an explanation");
        assert!(explained.contains("activity by customer") && explained.contains("order.address_changed"), "{explained}");
        assert!(!explained.contains("Hàng Bài"), "{explained}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_ranges_go_whole_with_their_seals_intact_and_young_altered_or_needed_ones_stay() {
    with_harness(&format!("{}\n    [retention]\n    mode = \"delete\"", sealing()), async |harness| {
        let (hidden, online) = (harness.delivering().await, harness.delivering().await);
        // Final, so that the fleet does nothing about them here.
        harness.as_superuser("UPDATE orders SET status = 'cancelled'").await;
        harness.as_superuser(&format!("UPDATE orders SET hidden_at = now() - interval '7 months' WHERE id = '{hidden}'")).await;
        let about = async |order: Uuid| {
            let sql = "INSERT INTO activity (actor_kind, action, subject_kind, subject_id) VALUES ('staff', 'order.noted', 'order', $1)";
            harness.run(sql, [order.into()]).await;
            harness.run("SELECT kyhan_seal_activity(1000, 1000)", []).await;
        };
        for order in [hidden, online, hidden, Uuid::new_v4(), hidden, hidden] {
            about(order).await;
        }
        // Five of the six become older than six months. The chain is rebuilt with those times, because the test cannot wait.
        harness.as_superuser("CREATE TABLE ranges AS SELECT * FROM activity_seals; DELETE FROM activity_seals").await;
        let anew = "INSERT INTO activity_seals SELECT number, first_id, last_id, rows, salt, digest, sealed, kyhan_seal_hash(coalesce((SELECT hash FROM activity_seals ORDER BY number DESC LIMIT 1), ''), number, first_id, last_id, rows, digest, sealed)
                      FROM ranges CROSS JOIN LATERAL (SELECT CASE WHEN number <> 5 THEN now() - interval '13 months' ELSE now() - interval '5 months' END AS sealed) AS s WHERE number = $1";
        for number in 1..=6_i64 {
            harness.run(anew, [number.into()]).await;
        }
        assert_eq!(verified(harness, &[]).await.1, 0);
        harness.as_superuser("UPDATE activity SET action = 'order.forged' WHERE id = 6").await;
        let worker = harness.worker();
        harness.until("SELECT count(*) = 3 FROM activity_removals").await;
        harness.until(ALL_SEALED).await;
        worker.stop().await;
        let found = verified(harness, &[]).await;
        assert!(only_fault(&found).2.contains("at least one was changed"), "an altered range is kept: {found:?}");
        assert_eq!(found.0["removed"], 3);
        assert_eq!(found.0["removals"][0]["first_seal"], 1, "{found:?}");
        harness.as_superuser("UPDATE activity SET action = 'order.noted' WHERE id = 6").await;
        let left = "SELECT string_agg(subject_id::text, ',' ORDER BY id) FROM activity WHERE action = 'order.noted'";
        assert_eq!(harness.ask::<String>(left).await, format!("{online},{hidden},{hidden}"), "of one on line, young, altered");
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM activity WHERE action = 'activity.removed'").await, 3, "it is recorded");
        // No role can remove a young range in any way, and rows inserted into a removed range are detected.
        for sql in [
            "DELETE FROM activity",
            "INSERT INTO activity_removals VALUES (5, now(), 1)",
            "INSERT INTO activity_removals VALUES (2, now() - interval '1 year', 1)",
        ] {
            harness.sandbox.db.execute_unprepared(sql).await.expect_err(sql);
        }
        assert_eq!(harness.ask::<i64>("SELECT kyhan_remove_activity(now() + interval '1 year', 100)").await, 1, "the one that was put right");
        assert_eq!(verified(harness, &[]).await.1, 0);
        // Where the policy deletes nothing, a removed range is the work of a superuser.
        let verify = async |arguments: &[&str]| {
            let mut command = fleet::command("ops", &harness.sandbox.env, ["activity", "verify"].iter().chain(arguments)).expect("built");
            let done = command.env("KYHAN_RETENTION_MODE", "hide").output().await.expect("run");
            (done.status.code(), String::from_utf8_lossy(&done.stdout).into_owned())
        };
        let (code, said) = verify(&[]).await;
        assert!(code == Some(1) && said.contains("retention.mode does not allow deletion") && said.contains("removed: seals 1 to 1, activity ids "), "{said}");
        assert_eq!(verify(&["--removed-before"]).await.0, Some(0));
        let gone = "DELETE FROM activity USING activity_seals AS seal WHERE number = 5 AND id BETWEEN first_id AND last_id";
        for (removed, what) in [
            ("(5, now(), 1)", "before they were six months old"),
            ("(5, 'infinity', 1)", "before they were six months old"),
            ("(2, now(), 1)", "no activity records the removal"),
        ] {
            let number = &removed[1..2];
            harness.as_superuser(&format!("CREATE TABLE kept AS SELECT activity.* FROM activity, activity_seals WHERE number = {number} AND id BETWEEN first_id AND last_id")).await;
            harness.as_superuser(&format!("INSERT INTO activity_removals VALUES {removed}; {}", gone.replace('5', number))).await;
            assert!(only_fault(&verified(harness, &[]).await).2.contains(what), "{removed}");
            harness.as_superuser(&format!("DELETE FROM activity_removals WHERE number = {number}; INSERT INTO activity OVERRIDING SYSTEM VALUE SELECT * FROM kept; DROP TABLE kept")).await;
            assert_eq!(verified(harness, &[]).await.1, 0);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_caller_can_seal_past_a_transaction_that_is_still_open() {
    with_harness(QUICK, async |harness| {
        recorded(harness, 3).await;
        let late = harness.sandbox.db.begin().await.expect("a transaction");
        let record =
            "INSERT INTO activity (actor_kind, action, subject_kind, subject_id) VALUES ('system', 'x', 'x', gen_random_uuid())";
        late.execute_unprepared(record).await.expect("recorded");
        recorded(harness, 3).await;
        let worker = harness.sandbox.connect_as(DatabaseRole::Worker).await.expect("a login");
        // As a stolen login would claim that everything is complete.
        let forced = "SELECT kyhan_seal_activity(9223372036854775807, 2147483647)";
        for _ in 0..3 {
            worker.execute_unprepared(forced).await.expect("no seal");
        }
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM activity_seals").await, 0);
        late.commit().await.expect("a commit");
        worker.execute_unprepared(forced).await.expect("sealed");
        assert_eq!(harness.ask::<i64>("SELECT sum(rows)::bigint FROM activity_seals").await, 7);
        assert_eq!(verified(harness, &[]).await.1, 0, "what committed late is sealed, too");
        worker.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_and_activity_are_never_changed_or_removed() {
    with_harness(QUICK, async |harness| {
        let sql = "WITH made AS (INSERT INTO accounts (kind, customer_id) VALUES ('wallet', $1), ('outside', NULL) RETURNING id)
                   INSERT INTO transfers (debit_account, credit_account, amount, reason, idempotency_key)
                   SELECT payer, payee, 5, 'x', gen_random_uuid() FROM (SELECT min(id::text)::uuid AS payer, max(id::text)::uuid AS payee FROM made) AS pair";
        harness.run(sql, [EXAMPLE_CUSTOMER.into()]).await;
        let sql = "INSERT INTO activity (actor_kind, action, subject_kind, subject_id) VALUES ('staff', 'x', 'customer', $1)";
        harness.run(sql, [EXAMPLE_CUSTOMER.into()]).await;
        for sql in
            ["UPDATE transfers SET amount = 1", "DELETE FROM transfers", "TRUNCATE transfers CASCADE", "DELETE FROM activity"]
        {
            let refused = harness.sandbox.db.execute_unprepared(sql).await.expect_err(sql).to_string();
            assert!(refused.contains("insert only"), "{refused}");
        }
    })
    .await;
}

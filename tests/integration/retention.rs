//! Retention (policy point 4): orders are hidden after six calendar months in Asia/Ho_Chi_Minh without activity, and not a second
//! earlier. They stay complete until they are deleted, where the policy deletes them. An order that is still referenced is kept.

use std::time::Duration;

use sea_orm::{ConnectionTrait, TransactionTrait};
use shared::{
    database::{roles::DatabaseRole, statement},
    domain::{due, task::EXAMPLE_CUSTOMER, tasks},
    settings::Settings,
};
use tests::sandbox::{always, eventually};
use uuid::Uuid;

use crate::{
    harness::{Harness, QUICK, SOON, every_kind, with_harness, worker_with},
    letters::{json, ops},
};

/// An order that was received, without activity since a time (SQL).
pub async fn heard_of(harness: &Harness, moment: &str) -> Uuid {
    let id = Uuid::new_v4();
    let sql = format!(
        "INSERT INTO orders (id, code, customer_id, status, delivering_since, received_at, created_at, updated_at)
         SELECT $1, 'BG-' || $1::text, $2, 'received', ago, ago, ago, ago FROM (SELECT {moment} AS ago) AS moment"
    );
    harness.run(&sql, [id.into(), EXAMPLE_CUSTOMER.into()]).await;
    id
}

/// The settings of the leaders in this file: all duties, ten times a second.
fn kept(more: &str) -> String {
    every_kind(&QUICK.replace("every_ms = 3600000", &format!("every_ms = 100\n    grace_ms = 100\n    {more}")))
}

/// Settings for workers with a different clock: their statements call `clock.now()`, which returns the value of `clock.at`.
async fn clock(harness: &Harness) -> Settings {
    for sql in [
        "CREATE SCHEMA clock",
        "CREATE TABLE clock.at (now timestamptz)",
        "INSERT INTO clock.at VALUES (NULL)",
        "CREATE FUNCTION clock.now() RETURNS timestamptz LANGUAGE sql STABLE SECURITY DEFINER AS 'SELECT now FROM clock.at'",
        "GRANT USAGE ON SCHEMA clock TO kyhan_worker",
    ] {
        harness.run(sql, []).await;
    }
    let mut settings = harness.settings().clone();
    // The `search_path` becomes: clock, kyhan, public, pg_catalog, pg_temp.
    settings.database.schema.insert_str(0, "clock, ");
    settings.database.order_system_schema.push_str(", pg_catalog");
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_hidden_six_calendar_months_after_the_last_news_and_not_a_second_earlier() {
    // Times in Asia/Ho_Chi_Minh, and when six months end there: ends of months, leap years, midnights, the turn of a year.
    const CASES: [(&str, &str); 10] = [
        ("2022-08-31 10:00:00+07", "2023-02-28 10:00:00+07"),
        ("2022-08-29 00:00:00+07", "2023-02-28 00:00:00+07"),
        ("2023-08-31 10:00:00+07", "2024-02-29 10:00:00+07"),
        ("2024-02-29 23:59:59+07", "2024-08-29 23:59:59+07"),
        ("2023-02-28 12:00:00+07", "2023-08-28 12:00:00+07"),
        ("2024-12-31 23:59:59+07", "2025-06-30 23:59:59+07"),
        ("2025-03-31 00:00:00+07", "2025-09-30 00:00:00+07"),
        // Late in the evening of the 30th in UTC it is the 31st there; early on the 1st there it is still the 31st in UTC.
        ("2025-08-30 18:00:00+00", "2026-02-27 18:00:00+00"),
        ("2025-10-31 17:00:00+00", "2026-04-30 17:00:00+00"),
        ("2025-06-15 08:30:15.123456+07", "2025-12-15 08:30:15.123456+07"),
    ];
    with_harness(&every_kind(QUICK), async |harness| {
        let clocked = clock(harness).await;
        let hidden = "SELECT count(*) > 0 FROM orders WHERE hidden_at IS NOT NULL";
        for (news, end) in CASES {
            let order = heard_of(harness, &format!("timestamptz '{news}'")).await;
            // A second and then a microsecond before the end.
            for early in ["1 second", "1 microsecond"] {
                harness.run(&format!("UPDATE clock.at SET now = timestamptz '{end}' - interval '{early}'"), []).await;
                let worker = worker_with(clocked.clone());
                harness.publish(vec![harness.wakeup("hide-order", &[order])]).await;
                eventually("it is judged", SOON, async || Ok(harness.depth("due.hide-order").await == 0)).await;
                assert!(worker.stop().await.postponed > 0, "{news}, {early} before {end}");
                assert!(!harness.ask::<bool>(hidden).await, "{news}, {early} before {end}");
            }
            harness.run(&format!("UPDATE clock.at SET now = timestamptz '{end}'"), []).await;
            let worker = worker_with(clocked.clone());
            harness.publish(vec![harness.wakeup("hide-order", &[order])]).await;
            harness.until(&format!("SELECT hidden_at IS NOT DISTINCT FROM '{end}' FROM orders WHERE id = '{order}'")).await;
            worker.stop().await;
            harness.run("DELETE FROM orders", []).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_heard_of_an_order_counts_anew() {
    with_harness(&every_kind(QUICK), async |harness| {
        let task = tasks::find("hide-order").expect("the kind");
        let due = due::query(task, &harness.settings().policy);
        let order = heard_of(harness, "now() - interval '2 years'").await;
        let overdue = format!("SELECT due_at <= now() FROM {due} AS due");
        assert!(harness.ask::<bool>(&overdue).await);
        let transfer = "WITH made AS (
                INSERT INTO accounts (kind, order_id) VALUES ('goods', $1), ('outside', NULL) RETURNING id, kind)
            INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key)
            SELECT outside.id, goods.id, 1, 'trả', $1, 'x' FROM made outside, made goods WHERE outside.kind = 'outside' AND goods.kind = 'goods'";
        for news in [
            "INSERT INTO order_status_history (order_id, from_status, to_status, reason) VALUES ($1, 'delivering', 'received', 'x')",
            transfer,
            "INSERT INTO activity (actor_kind, action, subject_kind, subject_id) VALUES ('customer', 'order.looked_at', 'order', $1)",
            "INSERT INTO order_messages (order_id, author, body) VALUES ($1, 'khách', 'x')",
            "UPDATE orders SET updated_at = now() WHERE id = $1",
            "UPDATE orders SET fees_changed_at = now() WHERE id = $1",
            // Also if the client gives an old time or no time.
            "UPDATE orders SET parcel_recorded_at = '2020-01-01' WHERE id = $1",
            "UPDATE orders SET delivering_since = '2020-01-01', updated_at = '2020-01-01' WHERE id = $1",
        ] {
            let tx = harness.sandbox.db.begin().await.expect("a transaction");
            // One statement for each kind of activity.
            let sql = news.replace("$1", &format!("'{order}'"));
            tx.execute_unprepared("SET LOCAL session_replication_role = origin").await.expect("set");
            tx.execute_unprepared(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
            let row = tx.query_one_raw(statement(&overdue, [])).await.expect("asked").expect("a row");
            assert!(!row.try_get_by_index::<bool>(0).expect("a boolean"), "{news}");
            tx.rollback().await.expect("rolled back");
        }
        assert!(harness.ask::<bool>(&overdue).await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_short_disputed_or_held_is_postponed_and_hidden_once_it_is_settled() {
    with_harness(&every_kind(QUICK), async |harness| {
        let order = heard_of(harness, "now() - interval '2 years'").await;
        let short = "UPDATE orders SET goods_due = 1000 WHERE id = $1";
        let outstanding = "INSERT INTO arrears_outstanding VALUES ($1, 5, now())";
        let held = "INSERT INTO retention_holds (order_id, held_by, why) VALUES ($1, 'lan', 'kiện')";
        for (opens, closes) in [
            ("UPDATE orders SET status = 'in_transit' WHERE id = $1", "UPDATE orders SET status = 'received' WHERE id = $1"),
            ("UPDATE orders SET status = 'delivering' WHERE id = $1", "UPDATE orders SET status = 'cancelled' WHERE id = $1"),
            (
                "UPDATE orders SET status = 'out_of_stock', out_of_stock_since = received_at, parcel_recorded_at = received_at WHERE id = $1",
                "UPDATE orders SET status = 'received', parcel_recorded_at = NULL WHERE id = $1",
            ),
            (short, "UPDATE orders SET goods_due = 0 WHERE id = $1"),
            // Overpaid; and cancelled but not refunded.
            ("INSERT INTO accounts (kind, order_id, balance) VALUES ('goods', $1, 7)", "UPDATE orders SET status = 'cancelled' WHERE id = $1"),
            ("UPDATE orders SET goods_due = 6 WHERE id = $1", "UPDATE orders SET goods_due = 7 WHERE id = $1"),
            ("UPDATE orders SET on_hold = true WHERE id = $1", "UPDATE orders SET on_hold = false WHERE id = $1"),
            (outstanding, "DELETE FROM arrears_outstanding WHERE order_id = $1"),
            (held, "DELETE FROM retention_holds WHERE order_id = $1"),
        ] {
            let arranged = |sql: &str| sql.replace("$1", &format!("'{order}'"));
            harness.as_superuser(&arranged(opens)).await;
            let worker = harness.worker();
            harness.publish(vec![harness.wakeup("hide-order", &[order])]).await;
            eventually("it is judged", SOON, async || Ok(harness.depth("due.hide-order").await == 0)).await;
            let totals = worker.stop().await;
            assert!(totals.postponed > 0 && totals.applied == 0, "{opens}: {totals:?}");
            assert!(harness.ask::<bool>("SELECT hidden_at IS NULL FROM orders").await, "{opens}");
            harness.as_superuser(&arranged(closes)).await;
        }
        // Settling it is activity as well.
        let overdue = format!("SELECT due_at <= now() FROM {} AS due", due::query(tasks::find("hide-order").expect("the kind"), &harness.settings().policy));
        assert!(harness.ask::<bool>(&overdue).await);
        for sql in ["UPDATE orders SET on_hold = true", "UPDATE orders SET on_hold = false"] {
            harness.run(sql, []).await;
            assert!(!harness.ask::<bool>(&overdue).await, "{sql}");
        }
        // An order that really is out of stock is final.
        harness.as_superuser("UPDATE orders SET status = 'out_of_stock', out_of_stock_since = received_at, changed_at = NULL").await;
        let worker = harness.worker();
        harness.publish(vec![harness.wakeup("hide-order", &[order])]).await;
        harness.until("SELECT hidden_at IS NOT NULL FROM orders").await;
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_order_leaves_the_views_and_stays_whole_and_comes_back_with_a_reason() {
    with_harness(&every_kind(QUICK), async |harness| {
        let order = heard_of(harness, "now() - interval '2 years'").await;
        let whole = "SELECT (to_jsonb(orders) - 'hidden_at')::text FROM orders";
        let before: String = harness.ask(whole).await;
        let online = "SELECT count(*) FROM orders_online";
        assert_eq!(harness.ask::<i64>(online).await, 1);
        let worker = harness.worker();
        harness.publish(vec![harness.wakeup("hide-order", &[order])]).await;
        harness.until("SELECT hidden_at IS NOT NULL FROM orders").await;
        worker.stop().await;
        assert_eq!((harness.ask::<i64>(online).await, harness.ask::<String>(whole).await), (0, before));

        let id = order.to_string();
        let back = json(harness, &["--as", "lan", "retention", "unhide", &id, "--why", "khách hỏi", "--json"]).await;
        assert_eq!(back["changed"], true);
        assert_eq!(harness.ask::<i64>(online).await, 1);
        let recorded = "SELECT detail ->> 'by' || ' ' || (detail ->> 'why') || ' ' || (detail ->> 'login' LIKE 'kyhan%\\_operator\\_lan') FROM activity WHERE action = 'order.unhidden'";
        assert_eq!(harness.ask::<String>(recorded).await, "lan khách hỏi true");
        // It has its wake-up again and another six months. Unhiding it again changes nothing.
        assert_eq!(harness.ask::<String>("SELECT event_type FROM outbox").await, "order.recorded");
        let again = json(harness, &["retention", "unhide", &id, "--why", "again", "--json"]).await;
        assert_eq!(again["changed"], false);
        let worker = harness.worker();
        harness.publish(vec![harness.wakeup("hide-order", &[order])]).await;
        eventually("it is judged", SOON, async || Ok(harness.depth("due.hide-order").await == 0)).await;
        assert!(worker.stop().await.postponed > 0);
        // Only the records: the broker's count of the message that was just acked may lag behind.
        let audit: serde_json::Value = serde_json::from_str(&ops(harness, &["audit", "--json"]).await.out).expect("JSON");
        let off = audit["records"].to_string();
        assert!(off.contains("\"verdict\":\"ok\"") && !off.contains("\"verdict\":\"off\""), "{off}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_keeps_an_order_and_is_placed_listed_and_released_once_with_who_and_why() {
    with_harness(&every_kind(QUICK), async |harness| {
        let order = heard_of(harness, "now() - interval '2 years'").await;
        let code = format!("BG-{order}");
        let held = ops(harness, &["--as", "lan", "retention", "hold", &code, "--why", "khiếu nại"]).await;
        assert!(held.code == 0 && held.out.contains("is held: it is neither hidden nor deleted"), "{held:?}");
        let twice = ops(harness, &["--as", "minh", "retention", "hold", &order.to_string(), "--why", "x"]).await;
        assert!(twice.code == 0 && twice.out.contains("by lan: khiếu nại; nothing was changed"), "{twice:?}");
        let list = json(harness, &["retention", "list", "--json"]).await;
        assert_eq!((list["holds"][0]["code"].as_str(), list["holds"].as_array().map(Vec::len)), (Some(code.as_str()), Some(1)));
        let worker = harness.worker();
        harness.publish(vec![harness.wakeup("hide-order", &[order])]).await;
        eventually("it is judged", SOON, async || Ok(harness.depth("due.hide-order").await == 0)).await;
        assert_eq!(worker.stop().await.applied, 0);
        for (by, said) in [("lan", "is released; it was held since"), ("minh", "is not held; nothing was changed")] {
            let released = ops(harness, &["--as", by, "retention", "release", &code, "--why", "xong"]).await;
            assert!(released.code == 0 && released.out.contains(said), "{released:?}");
        }
        let recorded =
            "SELECT string_agg(action || ' ' || (detail ->> 'by'), ', ' ORDER BY id) FROM activity WHERE subject_kind = 'order'";
        assert_eq!(harness.ask::<String>(recorded).await, "order.held lan, order.released lan");
        let unknown = ops(harness, &["retention", "hold", "BG-none", "--why", "x"]).await;
        assert!(unknown.code == 1 && unknown.err.contains("no order has the code or id \"BG-none\""), "{unknown:?}");
        assert_eq!(ops(harness, &["retention", "hold", &code]).await.code, 2, "without a reason");
    })
    .await;
}

/// Adds everything that is kept with an order, and ledger entries about it.
pub async fn furnish(harness: &Harness, order: Uuid) {
    for sql in [
        "INSERT INTO order_messages (id, order_id, author, body, at) VALUES (gen_random_uuid(), $1, 'khách', 'x', now() - interval '2 years')",
        "INSERT INTO order_sources VALUES ($1, 'Xưởng A', 'https://example.cn/a', NULL)",
        "INSERT INTO order_status_history (order_id, from_status, to_status, reason, at) VALUES ($1, 'a', 'b', 'c', now() - interval '2 years')",
    ] {
        harness.run(sql, [order.into()]).await;
    }
    let item = "INSERT INTO cart_items (id, customer_id, product_ref, product_name, quantity, added_at, order_id)
                VALUES (gen_random_uuid(), $2, 'taobao/1', 'Áo', 1, now() - interval '2 years', $1)";
    harness.run(item, [order.into(), EXAMPLE_CUSTOMER.into()]).await;
    let paid = "WITH made AS (
            INSERT INTO accounts (kind, customer_id, order_id) VALUES ('outside', NULL, NULL), ('goods', NULL, $1) RETURNING id, kind)
        INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key, at)
        SELECT outside.id, goods.id, 1000, 'trả', $1, 'paid:' || $1, now() - interval '2 years'
          FROM made outside, made goods WHERE outside.kind = 'outside' AND goods.kind = 'goods'";
    harness.run(paid, [order.into()]).await;
    // Back-dates the records of the messages' trigger to the messages, and the fees as well.
    harness
        .as_superuser(&format!(
            "UPDATE activity SET at = at - interval '2 years'; UPDATE orders SET goods_due = 1000 WHERE id = '{order}'"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_mode_delete_an_order_goes_with_all_that_is_kept_with_it_and_the_ledger_stays() {
    with_harness(&format!("{}\n    [retention]\n    mode = \"delete\"", kept("")), async |harness| {
        let long_ago = "now() - interval '2 years'";
        let goes = heard_of(harness, long_ago).await;
        let kept_ones = [
            "UPDATE orders SET hidden_at = now() - interval '5 months' WHERE id = '{order}'",
            "INSERT INTO retention_holds (order_id, held_by, why) VALUES ('{order}', 'lan', 'kiện')",
            "UPDATE orders SET on_hold = true WHERE id = '{order}'",
            "UPDATE orders SET goods_due = 5 WHERE id = '{order}'",
            // Back-dated: there is no such record.
            "DELETE FROM activity WHERE subject_id = '{order}' AND action = 'order.hidden'",
            // The record has an earlier time.
            "UPDATE activity SET at = at - interval '1 month' WHERE subject_id = '{order}' AND action = 'order.hidden'",
            // Activity since it was hidden.
            "INSERT INTO activity (actor_kind, action, subject_kind, subject_id) VALUES ('customer', 'x', 'order', '{order}')",
        ];
        furnish(harness, goes).await;
        let mut orders = vec![goes];
        for _ in kept_ones {
            orders.push(heard_of(harness, long_ago).await);
        }
        harness.as_superuser("UPDATE orders SET hidden_at = now() - interval '7 months'").await;
        let recorded = "INSERT INTO activity (at, actor_kind, action, subject_kind, subject_id)
                        SELECT hidden_at, 'system', 'order.hidden', 'order', id FROM orders";
        harness.as_superuser(recorded).await;
        for (order, keeps) in orders[1..].iter().zip(kept_ones) {
            harness.as_superuser(&keeps.replace("{order}", &order.to_string())).await;
        }
        harness.run("INSERT INTO outbox (event_type, subject_id, data) VALUES ('x', $1, '{}')", [goes.into()]).await;
        let worker = harness.worker();
        harness.until("SELECT count(*) = 1 FROM deleted_orders").await;
        let only_that = async || Ok(harness.ask::<i64>("SELECT count(*) FROM orders").await == 7);
        always("the others stay", Duration::from_millis(800), only_that).await;
        worker.stop().await;
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM outbox WHERE data IS NOT NULL").await, 0);
        let left = format!(
            "SELECT (SELECT count(*) FROM order_messages WHERE order_id = '{goes}') + (SELECT count(*) FROM order_sources WHERE order_id = '{goes}')
                    + (SELECT count(*) FROM cart_items WHERE order_id = '{goes}') + (SELECT count(*) FROM order_status_history WHERE order_id = '{goes}')"
        );
        assert_eq!(harness.ask::<i64>(&left).await, 0);
        let ledger = format!("SELECT count(*) FROM transfers JOIN accounts ON accounts.id = credit_account WHERE accounts.order_id = '{goes}' AND transfers.order_id = '{goes}' AND balance = 1000");
        assert_eq!(harness.ask::<i64>(&ledger).await, 1);
        assert_eq!(harness.ask::<i64>("SELECT sum(balance)::bigint FROM accounts").await, 0);
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM activity WHERE action = 'order.deleted'").await, 1);
        // Three are hidden without a matching record, as the test arranged; everything else agrees.
        let audit = ops(harness, &["audit", "--json"]).await.out;
        let audit: serde_json::Value = serde_json::from_str(&audit).expect("JSON");
        let counted = ["ledger", "records"].iter().flat_map(|part| audit[part].as_array().expect("counts"));
        let off: Vec<_> = counted.filter(|counted| counted["verdict"] == "off").map(|counted| counted["check"].to_string()).collect();
        assert_eq!(off, ["\"hidden orders whose activity does not say so\""]);
        assert_eq!(json(harness, &["activity", "verify", "--json"]).await["faults"], serde_json::json!([]));
        // Its id is not reused, and no role can delete an order that has ledger entries.
        for (sql, why) in [
            (format!("INSERT INTO orders (id, code, customer_id, status) VALUES ('{goes}', 'x', '{EXAMPLE_CUSTOMER}', 'received')"), "ids cannot be reused"),
            (format!("INSERT INTO accounts (kind, order_id) VALUES ('shipping', '{goes}')"), "refers to an order that does not exist"),
        ] {
            let refused = harness.sandbox.db.execute_unprepared(&sql).await.expect_err("refused").to_string();
            assert!(refused.contains(why), "{refused}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_cannot_be_deleted_holds_up_no_other() {
    with_harness(&format!("{}\n    [retention]\n    mode = \"delete\"", kept("")), async |harness| {
        let mut orders = Vec::new();
        for _ in 0..9 {
            orders.push(heard_of(harness, "now() - interval '2 years'").await);
        }
        // Another program's table refers to two of them, of which the first is the oldest.
        for sql in [
            format!("CREATE TABLE claims AS SELECT id FROM orders WHERE id IN ('{}', '{}')", orders[0], orders[5]),
            "ALTER TABLE claims ADD FOREIGN KEY (id) REFERENCES orders (id)".to_owned(),
            "INSERT INTO activity (actor_kind, action, subject_kind, subject_id) SELECT 'system', 'order.hidden', 'order', id FROM orders"
                .to_owned(),
        ] {
            harness.run(&sql, []).await;
        }
        harness.as_superuser("UPDATE activity SET at = now() - interval '7 months'").await;
        for (days, order) in orders.iter().enumerate() {
            let hidden = format!("UPDATE orders SET hidden_at = now() - interval '8 months' + {days} * interval '1 day' WHERE id = '{order}'");
            harness.as_superuser(&hidden).await;
        }
        let worker = harness.worker();
        harness.until("SELECT count(*) = 2 AND bool_and(EXISTS (SELECT FROM claims WHERE claims.id = orders.id)) FROM orders").await;
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hiding_is_the_default_and_deletes_nothing() {
    with_harness(&kept(""), async |harness| {
        heard_of(harness, "now() - interval '5 years'").await;
        let worker = harness.worker();
        // The sweep finds it, without a wake-up of its own.
        harness.until("SELECT count(*) = 1 FROM orders WHERE hidden_at IS NOT NULL").await;
        harness.as_superuser("UPDATE orders SET hidden_at = now() - interval '4 years'").await;
        always("it stays", Duration::from_millis(800), async || Ok(harness.ask::<i64>("SELECT count(*) FROM orders").await == 1))
            .await;
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_older_than_six_months_leave_the_views_unless_their_order_is_on_line() {
    with_harness(&kept(""), async |harness| {
        let (hidden, online) = (heard_of(harness, "now() - interval '3 years'").await, heard_of(harness, "now()").await);
        harness.as_superuser(&format!("UPDATE orders SET hidden_at = now() - interval '2 years' WHERE id = '{hidden}'")).await;
        harness.run("INSERT INTO accounts (kind, customer_id) VALUES ('outside', NULL), ('wallet', $1)", [EXAMPLE_CUSTOMER.into()]).await;
        for (name, order, age) in [
            ("hidden old", Some(hidden), "7 months"),
            ("hidden young", Some(hidden), "1 day"),
            ("online old", Some(online), "7 months"),
            ("wallet old", None, "7 months"),
            ("wallet young", None, "5 months"),
        ] {
            // As before it was hidden; an update would count as activity and bring it back.
            let named = order.map_or("NULL".to_owned(), |order| format!("'{order}'"));
            let sql = format!(
                "INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key, at)
                 SELECT outside.id, wallet.id, 1, 'x', {named}, '{name}', now() - interval '{age}' FROM accounts outside, accounts wallet
                  WHERE outside.kind = 'outside' AND wallet.kind = 'wallet'"
            );
            harness.as_superuser(&sql).await;
            let sql = "INSERT INTO activity (at, actor_kind, action, subject_kind, subject_id)
                       VALUES (now() - $3::text::interval, 'staff', $1, 'x', coalesce($2, gen_random_uuid()))";
            harness.run(sql, [name.into(), order.into(), age.into()]).await;
        }
        let worker = harness.worker();
        harness.until("SELECT hidden_before > now() - interval '7 months' FROM records_retention").await;
        worker.stop().await;
        let kept = "hidden young,online old,wallet young";
        assert_eq!(harness.ask::<String>("SELECT string_agg(idempotency_key, ',' ORDER BY 1) FROM (SELECT idempotency_key FROM transfers_online ORDER BY 1) AS t").await, kept);
        assert_eq!(harness.ask::<String>("SELECT string_agg(action, ',') FROM (SELECT action FROM activity_online WHERE actor_kind = 'staff' ORDER BY 1) AS a").await, kept);
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM transfers").await, 5, "nothing is gone");
        // Never early: the cutoff of six months is not later than six calendar months allow.
        assert!(harness.ask::<bool>("SELECT (hidden_before AT TIME ZONE 'Asia/Ho_Chi_Minh' + interval '6 months') AT TIME ZONE 'Asia/Ho_Chi_Minh' <= now() FROM records_retention").await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_set_aside_is_discarded_after_its_time_and_the_discard_recorded() {
    with_harness(&QUICK.replace("3600000", "200"), async |harness| {
        for days in [10, 89, 91, 400] {
            let sql = "INSERT INTO set_aside (event_id, event_type, subject_id, occurred_at, reason, set_aside_at)
                       VALUES (gen_random_uuid(), 'x', gen_random_uuid(), now(), 'x', now() - $1::int * interval '1 day')";
            harness.run(sql, [days.into()]).await;
        }
        let worker = harness.worker();
        harness.until("SELECT count(*) = 2 FROM set_aside").await;
        worker.stop().await;
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM activity WHERE action = 'event.expired'").await, 2);
        // A worker's login cannot discard a younger one.
        let db = harness.sandbox.connect_as(DatabaseRole::Worker).await.expect("a login");
        db.execute_unprepared("SELECT kyhan_forget_set_aside('infinity', 2147483647)").await.expect("run");
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM set_aside WHERE set_aside_at > now() - interval '30 days'").await, 1);
        db.close().await.expect("closed");
    })
    .await;
}

//! `ops forecast`: its counts match an independent SQL count, day by day in Asia/Ho_Chi_Minh.

use std::collections::BTreeMap;

use sea_orm::ConnectionTrait;
use serde_json::Value;
use shared::{database::statement, domain::task::EXAMPLE_CUSTOMER};
use tests::fleet;

use crate::harness::{Harness, with_harness};

/// The published policy, with no sweep.
const FILE: &str = "[sweep]\n every_ms = 3600000";

/// Subjects and amount, by day.
type Days = BTreeMap<String, (i64, Option<i64>)>;

async fn forecast(harness: &Harness, days: &str) -> Value {
    let forecast = harness.ops(&["forecast", "--days", days, "--json"]).await.expect("a forecast");
    serde_json::from_str(&forecast).expect("JSON")
}

fn kind<'a>(forecast: &'a Value, kind: &str) -> &'a Value {
    forecast["kinds"].as_array().expect("kinds").iter().find(|one| one["kind"] == kind).expect("the kind")
}

/// The days on which subjects of a kind fall due.
fn days(kind: &Value) -> Days {
    let days = kind["days"].as_array().expect("days").iter();
    let days = days.map(|day| {
        (day["day"].as_str().expect("a day").to_owned(), (day["subjects"].as_i64().expect("a count"), day["amount"].as_i64()))
    });
    days.filter(|(_, (subjects, _))| *subjects > 0).collect()
}

/// An independent count in SQL: text `day`, `subjects` and `amount`.
async fn by_hand(harness: &Harness, sql: &str) -> Days {
    let rows = harness.sandbox.db.query_all_raw(statement(sql, [])).await.expect("counts");
    let of = |row: &sea_orm::QueryResult| {
        (
            row.try_get("", "day").expect("a day"),
            (row.try_get("", "subjects").expect("a count"), row.try_get("", "amount").expect("an amount")),
        )
    };
    rows.iter().map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_and_amounts_are_those_that_sql_counts_by_hand() {
    with_harness(FILE, async |harness| {
        // Due from 10 days ago until 45 days from now, every 7 hours; a third of them are not to be collected.
        let orders = "INSERT INTO orders (id, code, customer_id, status, delivering_since, received_at, goods_due, service_due)
                      SELECT gen_random_uuid(), 'BG-' || n, $1, CASE WHEN n % 3 = 0 THEN 'received' ELSE 'delivering' END,
                             now() - interval '24 days' + n * interval '7 hours',
                             CASE WHEN n % 3 = 0 THEN now() - interval '24 days' + n * interval '7 hours' END,
                             CASE WHEN n % 2 = 0 THEN 1000 * n ELSE 0 END, CASE WHEN n % 2 = 0 THEN n ELSE 0 END
                        FROM generate_series(1, 188) AS n";
        harness.run(orders, [EXAMPLE_CUSTOMER.into()]).await;
        let items = "INSERT INTO cart_items (id, customer_id, product_ref, product_name, quantity, added_at)
                     SELECT gen_random_uuid(), $1, 'ref', 'name', 1, now() - interval '40 days' + n * interval '5 hours'
                       FROM generate_series(1, 250) AS n";
        harness.run(items, [EXAMPLE_CUSTOMER.into()]).await;
        // Partly paid.
        let paid = "WITH chosen AS (SELECT id FROM orders WHERE goods_due > 2000 ORDER BY code LIMIT 20),
                         wallet AS (INSERT INTO accounts (kind, customer_id) VALUES ('wallet', $1) RETURNING id),
                         goods AS (INSERT INTO accounts (kind, order_id) SELECT 'goods', id FROM chosen RETURNING id, order_id)
                    INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key, at)
                    SELECT wallet.id, goods.id, 700, 'paid', goods.order_id, goods.order_id::text, now() - interval '60 days'
                      FROM wallet, goods";
        assert_eq!(harness.run(paid, [EXAMPLE_CUSTOMER.into()]).await, 20);

        let forecast = forecast(harness, "30").await;
        let receipt = "delivering_since + interval '14 days'";
        let purge = "added_at + interval '30 days'";
        let arrears = "greatest(delivering_since, received_at) + interval '1 day'";
        let short =
            "(goods_due + service_due - (SELECT coalesce(sum(balance), 0) FROM accounts WHERE order_id = orders.id))::bigint";
        for (kind_name, from, due, amount) in [
            ("confirm-receipt", "orders WHERE status = 'delivering'", receipt, "NULL::bigint"),
            ("purge-cart-item", "cart_items WHERE true", purge, "NULL::bigint"),
            ("collect-arrears", "orders WHERE goods_due > 0", arrears, short),
        ] {
            let today = "(now() AT TIME ZONE 'UTC' + interval '7 hours')::date";
            let of = kind(&forecast, kind_name);
            let sql = format!(
                "SELECT due_on::text AS day, count(*) AS subjects, sum(amount)::bigint AS amount
                   FROM (SELECT (({due}) AT TIME ZONE 'UTC' + interval '7 hours')::date AS due_on, {amount} AS amount
                           FROM {from} AND {due} > now()) AS due
                  WHERE due_on < {today} + 30 GROUP BY 1"
            );
            assert_eq!(days(of), by_hand(harness, &sql).await, "{kind_name}");
            let overdue = harness.ask::<i64>(&format!("SELECT count(*) FROM {from} AND {due} <= now()")).await;
            assert_eq!(of["overdue"]["subjects"], overdue, "{kind_name}");
            let all = harness.ask::<i64>(&format!("SELECT count(*) FROM {from}")).await;
            let counted = days(of).values().map(|(subjects, _)| subjects).sum::<i64>() + overdue;
            assert_eq!(of["later"]["subjects"], all - counted, "{kind_name}");
        }
        let stake = "SELECT sum(goods_due + service_due)::bigint - 14000 FROM orders";
        let arrears = kind(&forecast, "collect-arrears");
        let amount = days(arrears).values().filter_map(|(_, amount)| *amount).sum::<i64>();
        let amount = amount
            + arrears["overdue"]["amount"].as_i64().expect("an amount")
            + arrears["later"]["amount"].as_i64().expect("an amount");
        assert_eq!(amount, harness.ask::<i64>(stake).await);
        assert_eq!(kind(&forecast, "confirm-receipt")["overdue"].get("amount"), None, "it moves no money");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_ends_at_midnight_in_ho_chi_minh_city() {
    with_harness(FILE, async |harness| {
        // Days in the far future, so that no midnight passes during the test.
        let midnight = "((now() AT TIME ZONE 'Asia/Ho_Chi_Minh')::date + 5)::timestamp AT TIME ZONE 'Asia/Ho_Chi_Minh'";
        for (count, shift) in
            [(1, "- interval '1 second'"), (2, ""), (4, "+ interval '23 hours 59 minutes'"), (8, "+ interval '1 day'")]
        {
            let sql = format!(
                "INSERT INTO orders (id, code, customer_id, status, delivering_since)
                 SELECT gen_random_uuid(), gen_random_uuid()::text, $1, 'delivering', {midnight} {shift} - interval '14 days'
                   FROM generate_series(1, {count})"
            );
            harness.run(&sql, [EXAMPLE_CUSTOMER.into()]).await;
        }
        let forecast = forecast(harness, "30").await;
        let subjects: Vec<i64> = days(kind(&forecast, "confirm-receipt")).values().map(|(subjects, _)| *subjects).collect();
        assert_eq!(subjects, [1, 6, 8], "{forecast}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chart_is_drawn_and_days_out_of_range_are_refused() {
    with_harness(FILE, async |harness| {
        harness.many_delivering(3).await;
        let sql = "INSERT INTO orders (id, code, customer_id, status, delivering_since, service_due)
                   VALUES (gen_random_uuid(), 'x', $1, 'delivering', now() - interval '12 days', 1500000)";
        harness.run(sql, [EXAMPLE_CUSTOMER.into()]).await;
        let chart = harness.ops(&["forecast", "--days", "7"]).await.expect("a chart");
        for said in ["overdue", "later", "█", "1.500.000 ₫", "at stake"] {
            assert!(chart.contains(said), "{said}: {chart}");
        }
        assert!(chart.lines().all(|line| line.chars().count() <= 110), "{chart}");
        for days in ["0", "367", "-1", "soon"] {
            let arguments = ["forecast".to_owned(), format!("--days={days}")];
            let done = fleet::command("ops", &harness.sandbox.env, arguments).expect("built").output().await.expect("run");
            assert_eq!(done.status.code(), Some(2), "{days}");
        }
        // Extreme rows and amounts do not make the count fail.
        harness.run("UPDATE orders SET delivering_since = 'infinity', goods_due = 9223372036854775807, shipping_due = 9223372036854775807", []).await;
        let later = kind(&forecast(harness, "366").await, "collect-arrears")["later"].clone();
        assert_eq!((&later["subjects"], &later["amount"]), (&4.into(), &i64::MAX.into()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shell_gets_its_completions_without_a_server() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let nothing = BTreeMap::new();
        let script =
            fleet::output(fleet::command("ops", &nothing, ["completions", shell]).expect("built")).await.expect("a script");
        assert!(script.contains("forecast") && script.contains("explain"), "{shell}: {script}");
    }
}

//! Market statistics (policy point 6): only over enough customers, none of whom dominates a group. Nothing can be derived by
//! comparing what is shown with other or earlier figures.

use std::collections::BTreeSet;

use sea_orm::ConnectionTrait;
use shared::database::{roles::DatabaseRole, statement};
use uuid::Uuid;

use crate::harness::{Harness, QUICK, with_harness};

/// Makes orders of `customers` in the month `months` ago, `of_one` orders each, worth `goods` each. The customers are new.
async fn bought(harness: &Harness, months: i32, customers: u32, of_one: i64, goods: i64) -> Vec<Uuid> {
    let mut ids = Vec::new();
    for _ in 0..customers {
        let id = Uuid::new_v4();
        harness.run("INSERT INTO customers VALUES ($1, 'Khách', '09', 'x', 'x')", [id.into()]).await;
        more(harness, id, months, of_one, goods).await;
        ids.push(id);
    }
    ids
}

async fn more(harness: &Harness, customer: Uuid, months: i32, orders: i64, goods: i64) {
    let sql = "WITH made AS (
                   INSERT INTO orders (id, code, customer_id, status, goods_due, created_at)
                   SELECT gen_random_uuid(), 'BG-' || gen_random_uuid(), $1, 'received', $4,
                          (date_trunc('month', now() AT TIME ZONE 'Asia/Ho_Chi_Minh') - $2::int * interval '1 month' + interval '3 days')
                              AT TIME ZONE 'Asia/Ho_Chi_Minh'
                     FROM generate_series(1, $3::bigint) RETURNING id)
               INSERT INTO cart_items (id, customer_id, product_ref, product_name, quantity, order_id)
               SELECT gen_random_uuid(), $1, 'taobao/1', 'Áo', 2, id FROM made";
    harness.run(sql, [customer.into(), months.into(), orders.into(), goods.into()]).await;
}

/// Publishes as a worker does, with the rule of at least five customers and a share of at most a half.
async fn publish(harness: &Harness) {
    let db = harness.sandbox.connect_as(DatabaseRole::Worker).await.expect("a login");
    loop {
        let row =
            db.query_one_raw(statement("SELECT kyhan_publish_statistics(5, 0.5)::text AS month", [])).await.expect("an answer");
        if row.expect("a row").try_get::<Option<String>>("", "month").expect("a month").is_none() {
            break;
        }
    }
    db.close().await.expect("closed");
}

/// The operators' view, group by group: months ago, band, orders, quantity, value.
async fn shown(harness: &Harness) -> Vec<String> {
    let db = harness.sandbox.connect_as(DatabaseRole::Ops).await.expect("a login");
    let sql = "SELECT concat_ws(' | ', (extract(year FROM age) * 12 + extract(month FROM age))::int, price_band, orders, quantity, value)
                 FROM market_statistics, age(date_trunc('month', now() AT TIME ZONE 'Asia/Ho_Chi_Minh'), month) AS age
                ORDER BY month, price_band";
    let rows = db.query_all_raw(statement(sql, [])).await.expect("statistics");
    db.close().await.expect("closed");
    rows.iter().map(|row| row.try_get_by_index(0).expect("a text")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_shown_from_five_customers_on() {
    with_harness(QUICK, async |harness| {
        // One group of each size, each in its own month.
        for size in 1..=6 {
            bought(harness, 1 + size, size as u32, 1, 300_000).await;
        }
        publish(harness).await;
        assert_eq!(shown(harness).await, ["7 | under 500.000 ₫ | 6 | 12 | 1800000", "6 | under 500.000 ₫ | 5 | 10 | 1500000"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_one_customer_dominates_is_not_shown_by_whichever_figure() {
    with_harness(QUICK, async |harness| {
        // Of ten orders, six belong to one customer.
        let six = bought(harness, 3, 5, 1, 300_000).await;
        more(harness, six[0], 3, 5, 300_000).await;
        // Equal numbers of orders, but one customer has most of the money: 9.9 million beside five of 2.
        bought(harness, 4, 5, 1, 2_000_000).await;
        bought(harness, 4, 1, 2, 9_900_000).await;
        // Equal amounts of money, but one customer has most of the pieces.
        let pieces = bought(harness, 5, 6, 1, 300_000).await;
        harness.run("UPDATE cart_items SET quantity = 100 WHERE customer_id = $1", [pieces[0].into()]).await;
        // Exactly a half is not too much.
        bought(harness, 6, 5, 1, 300_000).await;
        bought(harness, 6, 1, 5, 300_000).await;
        publish(harness).await;
        assert_eq!(shown(harness).await, ["6 | under 500.000 ₫ | 10 | 20 | 3000000"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_never_changes_so_that_comparing_reveals_nothing() {
    with_harness(QUICK, async |harness| {
        bought(harness, 2, 6, 1, 300_000).await;
        let recent = bought(harness, 1, 6, 1, 300_000).await;
        publish(harness).await;
        let first = shown(harness).await;
        assert_eq!(first.len(), 1, "the month before this one is not over for long enough: {first:?}");
        // A seventh customer's order in the month, another sum, a cancelled and a deleted order: changed figures would reveal
        // which.
        let seventh = bought(harness, 2, 1, 1, 499_999).await;
        publish(harness).await;
        assert_eq!(shown(harness).await, first);
        harness.run("UPDATE orders SET status = 'cancelled' WHERE customer_id = $1", [seventh[0].into()]).await;
        harness.run("UPDATE orders SET goods_due = goods_due + 1 WHERE customer_id = $1", [recent[0].into()]).await;
        harness.run("DELETE FROM cart_items", []).await;
        publish(harness).await;
        assert_eq!(shown(harness).await, first);
        // Each order is in one group, and there are no totals over groups.
        let columns: Vec<String> = harness
            .ask("SELECT array_agg(column_name::text ORDER BY ordinal_position) FROM information_schema.columns WHERE table_name = 'market_statistics'")
            .await;
        assert_eq!(columns, ["month", "price_band", "orders", "quantity", "value"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_question_about_what_is_shown_reveals_one_customer() {
    with_harness(QUICK, async |harness| {
        // Groups of 1 to 9 over bands and months, some dominated.
        for (months, customers, goods) in
            [(2, 4, 100_000), (2, 6, 700_000), (3, 5, 100_000), (3, 1, 3_000_000), (4, 9, 12_000_000)]
        {
            bought(harness, months, customers, 1, goods).await;
        }
        publish(harness).await;
        // For all combinations of months, bands and differences: everything that can be derived follows from the groups shown,
        // and each of them contains at least five customers.
        let shown: BTreeSet<String> = shown(harness).await.into_iter().collect();
        assert_eq!(shown.len(), 3, "{shown:?}");
        let least: i64 = harness
            .ask(
                "SELECT min(customers) FROM (SELECT s.month, s.price_band, count(DISTINCT customer_id) AS customers
                    FROM market_statistics s JOIN orders o
                         ON date_trunc('month', o.created_at AT TIME ZONE 'Asia/Ho_Chi_Minh')::date = s.month
                        AND o.goods_due * s.orders = s.value
                   GROUP BY s.month, s.price_band) AS groups",
            )
            .await;
        assert!(least >= 5, "{least}");
        // A condition that is evaluated before the view's own condition would reveal the hidden rows.
        let db = harness.sandbox.connect_as(DatabaseRole::Ops).await.expect("a login");
        let leaky = "SELECT 1 FROM market_statistics WHERE 1 / (customers_of(orders)) > 0";
        harness
            .run(
                "CREATE FUNCTION customers_of(orders bigint) RETURNS bigint LANGUAGE plpgsql COST 0.0001 AS $$
                   BEGIN IF orders < 5 THEN RAISE 'seen: %', orders; END IF; RETURN orders; END $$",
                [],
            )
            .await;
        harness.run("GRANT EXECUTE ON FUNCTION customers_of(bigint) TO PUBLIC", []).await;
        db.query_all_raw(statement(leaky, [])).await.expect("nothing kept back is seen");
        for table in ["published_statistics", "published_months", "statistics_rule"] {
            let refused = db.query_all_raw(statement(&format!("SELECT FROM {table}"), [])).await;
            assert!(refused.expect_err(table).to_string().contains("permission denied"));
        }
        // A stricter rule also applies to earlier publications; a laxer one is refused.
        let worker = harness.sandbox.connect_as(DatabaseRole::Worker).await.expect("a login");
        worker.execute_unprepared("SELECT kyhan_publish_statistics(6, 0.5)").await.expect("a rule");
        assert_eq!(db.query_all_raw(statement("SELECT FROM market_statistics", [])).await.expect("rows").len(), 2);
        let lax = worker.execute_unprepared("SELECT kyhan_publish_statistics(2, 0.5)").await.expect_err("refused").to_string();
        assert!(lax.contains("statistics_rule_min_customers_check"), "{lax}");
        worker.close().await.expect("closed");
        db.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_whose_second_customer_could_compute_the_first_is_not_shown() {
    with_harness(QUICK, async |harness| {
        // In the second, the largest has less than a half, but the customer with 99 can compute it to within 9 of 100.
        for (figures, hides) in [
            ("100, 99, 4, 3, 3", true),
            ("100, 99, 3, 3, 3", false),
            ("5, 5, 5, 5, 5", true),
            ("5, 5, 5, 5", false),
            ("60, 20, 20, 10, 5", false),
            ("0, 0, 0, 0, 0", true),
        ] {
            assert_eq!(
                harness.ask::<bool>(&format!("SELECT kyhan_hides_contributors(ARRAY[{figures}])")).await,
                hides,
                "{figures}"
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_asks_for_an_absurd_rule_spoils_no_month() {
    with_harness(QUICK, async |harness| {
        bought(harness, 3, 6, 1, 1_000_000).await;
        let worker = harness.sandbox.connect_as(DatabaseRole::Worker).await.expect("a login");
        for _ in 0..3 {
            worker.execute_unprepared("SELECT kyhan_publish_statistics(2147483647, 0.0001)").await.expect("published");
        }
        assert!(shown(harness).await.is_empty(), "the rule hides everything");
        worker.close().await.expect("closed");
        publish(harness).await;
        assert_eq!(shown(harness).await.len(), 1, "and the next leader's rule shows it again");
    })
    .await;
}

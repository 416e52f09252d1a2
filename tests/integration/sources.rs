//! Sources of goods (policy point 6): visible only in the owning customer's session, for every role. And a customer's own import
//! history.

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, TransactionTrait};
use shared::{
    database::{roles::DatabaseRole, statement},
    domain::task::EXAMPLE_CUSTOMER,
};
use uuid::Uuid;

use crate::harness::{Harness, QUICK, with_harness};

const OTHER: Uuid = Uuid::from_u128(0x0000_0000_0000_4000_8000_0000_0000_0002);

/// Two customers with an order each. The first order also has an item.
async fn two_customers(harness: &Harness) -> (Uuid, Uuid) {
    harness
        .run("INSERT INTO customers VALUES ($1, 'Trần Văn Khác', '0911111111', 'khac@example.vn', 'Huế')", [OTHER.into()])
        .await;
    let (own, others) = (harness.delivering().await, harness.delivering().await);
    harness.run("UPDATE orders SET customer_id = $2 WHERE id = $1", [others.into(), OTHER.into()]).await;
    let item = harness.in_cart().await;
    harness.run("UPDATE cart_items SET order_id = $2 WHERE id = $1", [item.into(), own.into()]).await;
    (own, others)
}

async fn as_customer(tx: &DatabaseTransaction, customer: Option<Uuid>) {
    let customer = customer.map(|id| id.to_string()).unwrap_or_default();
    let sql = "SELECT set_config('kyhan.customer_id', $1, true)";
    tx.execute_raw(statement(sql, [customer.into()])).await.expect("set");
}

async fn seen(tx: &DatabaseTransaction, sql: &str) -> Vec<String> {
    let rows = tx.query_all_raw(statement(sql, [])).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    rows.iter().map(|row| row.try_get_by_index(0).expect("a text")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_written_by_the_order_system_and_seen_by_the_owning_customer_alone() {
    with_harness(QUICK, async |harness| {
        let (own, others) = two_customers(harness).await;
        let db = harness.sandbox.connect_as(DatabaseRole::OrderSystem).await.expect("a login");
        let written = "INSERT INTO order_sources (order_id, supplier_name, supplier_url) VALUES ($1, $2, 'https://example.cn')";
        for (order, supplier) in [(own, "Xưởng A"), (others, "Xưởng B")] {
            db.execute_raw(statement(written, [order.into(), supplier.into()])).await.expect("written");
        }
        let tx = db.begin().await.expect("a transaction");
        let all = "SELECT supplier_name FROM order_sources ORDER BY 1";
        assert!(seen(&tx, all).await.is_empty(), "without a customer");
        as_customer(&tx, Some(EXAMPLE_CUSTOMER)).await;
        assert_eq!(seen(&tx, all).await, ["Xưởng A"]);
        assert_eq!(seen(&tx, "SELECT supplier_name FROM own_imports").await, ["Xưởng A"]);
        // A join, a condition that reveals values through an error, and an upsert all fail to reach the other customer's rows.
        let joined = "SELECT supplier_name FROM orders LEFT JOIN order_sources ON order_id = orders.id WHERE supplier_name IS NOT NULL";
        assert_eq!(seen(&tx, joined).await, ["Xưởng A"]);
        let revealing = "SELECT supplier_name FROM order_sources WHERE 1 / (CASE WHEN supplier_name = 'Xưởng B' THEN 0 ELSE 1 END) = 1";
        assert_eq!(seen(&tx, revealing).await, ["Xưởng A"]);
        let changed = |sql: &'static str| {
            let tx = &tx;
            async move { tx.execute_unprepared(sql).await.map(|done| done.rows_affected()) }
        };
        assert_eq!(changed("UPDATE order_sources SET note = 'x'").await.expect("own"), 1);
        assert_eq!(changed("DELETE FROM order_sources WHERE supplier_name <> 'Xưởng A'").await.expect("none"), 0);
        as_customer(&tx, Some(OTHER)).await;
        assert_eq!(seen(&tx, all).await, ["Xưởng B"]);
        tx.rollback().await.expect("rolled back");
        let tx = db.begin().await.expect("a transaction");
        as_customer(&tx, Some(EXAMPLE_CUSTOMER)).await;
        let upsert = format!(
            "INSERT INTO order_sources VALUES ('{others}', 'x', 'x') ON CONFLICT (order_id) DO UPDATE SET note = 'x' RETURNING supplier_name"
        );
        let refused: Result<_, DbErr> = tx.query_one_raw(statement(&upsert, [])).await;
        assert!(refused.expect_err("refused").to_string().contains("row-level security"));
        tx.rollback().await.expect("rolled back");
        // The setting ends with the transaction: a pooled connection does not carry one customer's name over to the next.
        assert!(seen(&db.begin().await.expect("a transaction"), all).await.is_empty());
        db.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn even_the_owner_of_the_tables_sees_no_source_and_a_nonsense_customer_is_an_error() {
    with_harness(QUICK, async |harness| {
        let (own, _) = two_customers(harness).await;
        harness.run("INSERT INTO order_sources VALUES ($1, 'Xưởng A', 'https://example.cn/a', NULL)", [own.into()]).await;
        let owner = harness.sandbox.connect_as(DatabaseRole::Owner).await.expect("a login");
        let tx = owner.begin().await.expect("a transaction");
        assert!(seen(&tx, "SELECT supplier_name FROM order_sources").await.is_empty());
        tx.rollback().await.expect("rolled back");
        owner.close().await.expect("closed");
        let db = harness.sandbox.connect_as(DatabaseRole::OrderSystem).await.expect("a login");
        let tx = db.begin().await.expect("a transaction");
        tx.execute_unprepared("SET LOCAL kyhan.customer_id = 'x'' OR true'").await.expect("set");
        let error = tx.execute_unprepared("SELECT FROM order_sources").await.expect_err("an error").to_string();
        assert!(error.contains("invalid input syntax for type uuid"), "{error}");
        tx.rollback().await.expect("rolled back");
        db.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_history_is_the_customers_own_with_what_was_bought() {
    with_harness(QUICK, async |harness| {
        let (own, others) = two_customers(harness).await;
        for (order, supplier) in [(own, "Xưởng A"), (others, "Xưởng B")] {
            harness.run("INSERT INTO order_sources VALUES ($1, $2, 'https://example.cn', NULL)", [order.into(), supplier.into()]).await;
        }
        let db = harness.sandbox.connect_as(DatabaseRole::OrderSystem).await.expect("a login");
        let tx = db.begin().await.expect("a transaction");
        let history = "SELECT concat_ws(' ', supplier_name, products -> 0 ->> 'product', products -> 0 ->> 'quantity') FROM own_imports";
        assert!(seen(&tx, history).await.is_empty());
        as_customer(&tx, Some(EXAMPLE_CUSTOMER)).await;
        assert_eq!(seen(&tx, history).await, ["Xưởng A Áo khoác 2"]);
        tx.rollback().await.expect("rolled back");
        harness.as_superuser(&format!("UPDATE orders SET status = 'cancelled', created_at = now() - interval '1 year', updated_at = now() - interval '1 year' WHERE id = '{own}'")).await;
        harness.run("UPDATE orders SET hidden_at = now() WHERE id = $1", [own.into()]).await;
        let tx = db.begin().await.expect("a transaction");
        as_customer(&tx, Some(EXAMPLE_CUSTOMER)).await;
        assert!(seen(&tx, history).await.is_empty(), "hidden, it is on line no more");
        tx.rollback().await.expect("rolled back");
        db.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_in_a_cart_is_seen_by_its_own_customer_alone() {
    with_harness(QUICK, async |harness| {
        two_customers(harness).await;
        let db = harness.sandbox.connect_as(DatabaseRole::OrderSystem).await.expect("a login");
        let added = "INSERT INTO cart_items (id, customer_id, product_ref, product_name, quantity) VALUES (gen_random_uuid(), $1, $2, 'x', 1)";
        db.execute_raw(statement(added, [OTHER.into(), "1688/theirs".into()])).await.expect("without a customer");
        let tx = db.begin().await.expect("a transaction");
        let all = "SELECT DISTINCT product_ref FROM cart_items";
        assert!(seen(&tx, all).await.is_empty(), "without a customer");
        as_customer(&tx, Some(EXAMPLE_CUSTOMER)).await;
        assert_eq!(seen(&tx, all).await, ["taobao/1"]);
        for sql in ["UPDATE cart_items SET quantity = 9 WHERE product_ref LIKE '1688%'", "DELETE FROM cart_items WHERE product_ref LIKE '1688%'"] {
            assert_eq!(tx.execute_unprepared(sql).await.expect("no rows").rows_affected(), 0, "{sql}");
        }
        assert_eq!(tx.execute_unprepared("UPDATE cart_items SET quantity = 3").await.expect("one's own").rows_affected(), 1);
        as_customer(&tx, Some(OTHER)).await;
        assert_eq!(seen(&tx, all).await, ["1688/theirs"]);
        let refused = tx.execute_raw(statement(added, [EXAMPLE_CUSTOMER.into(), "x".into()])).await;
        assert!(refused.expect_err("another's cart").to_string().contains("row-level security"));
        tx.rollback().await.expect("undone");
        db.close().await.expect("closed");

        // The fleet and the owner are not affected.
        for role in [DatabaseRole::Worker, DatabaseRole::Ops, DatabaseRole::Owner] {
            let db = harness.sandbox.connect_as(role).await.expect("a login");
            let tx = db.begin().await.expect("a transaction");
            assert_eq!(seen(&tx, "SELECT count(*)::text FROM cart_items").await, ["2"], "{role}");
            // The tasks delete only what no order was made of.
            let left = tx.execute_unprepared("DELETE FROM cart_items WHERE order_id IS NULL").await.expect("deleted");
            assert_eq!(left.rows_affected(), 1, "{role}");
            tx.rollback().await.expect("undone");
            db.close().await.expect("closed");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_planner_estimates_the_same_for_every_supplier_and_product() {
    with_harness(QUICK, async |harness| {
        for n in 0..40 {
            let (order, item) = (harness.delivering().await, harness.in_cart().await);
            let supplier = if n < 30 { "common" } else { "rare" };
            harness.run("INSERT INTO order_sources VALUES ($1, $2, $2, $2)", [order.into(), supplier.into()]).await;
            harness.run("UPDATE cart_items SET product_ref = $2 WHERE id = $1", [item.into(), supplier.into()]).await;
        }
        harness.run("ANALYZE order_sources, cart_items", []).await;
        let db = harness.sandbox.connect_as(DatabaseRole::OrderSystem).await.expect("a login");
        for column in
            ["order_sources.supplier_name", "order_sources.supplier_url", "order_sources.note", "cart_items.product_ref"]
        {
            let (table, column) = column.split_once('.').expect("a column");
            let mut plans = Vec::new();
            for value in ["common", "rare", "nothing"] {
                let sql = format!("EXPLAIN SELECT FROM {table} WHERE {column} = '{value}'");
                let rows = db.query_all_raw(statement(&sql, [])).await.expect("a plan");
                let plan: Vec<String> = rows.iter().map(|row| row.try_get_by_index(0).expect("a line")).collect();
                plans.push(plan.join("\n").replace(value, "?"));
            }
            assert!(plans.iter().all(|plan| *plan == plans[0]), "{column}: {plans:#?}");
        }
        db.close().await.expect("closed");
    })
    .await;
}

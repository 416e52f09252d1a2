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

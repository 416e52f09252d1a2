//! The population: every column that may hold personal data or a source of goods is filled with text around its own marker. No
//! column that can hold text is overlooked: each is marked, or a list here gives the reason why it is not.

use std::collections::BTreeSet;

use sea_orm::{ConnectionTrait, DatabaseTransaction};
use shared::{database::statement, domain::task::EXAMPLE_CUSTOMER};
use uuid::Uuid;

use super::search::{Capture, marker};
use crate::harness::Harness;

/// The place of the marker in its text.
const PLACE: &str = "#";

/// A column and the text written into it.
pub struct MarkedColumn {
    pub table: &'static str,
    pub name: &'static str,
    text: &'static str,
}

const fn column(table: &'static str, name: &'static str, text: &'static str) -> MarkedColumn {
    MarkedColumn { table, name, text }
}

/// Columns of customers, of sources of goods, and of free text. A mask shows fewer characters than these markers have.
pub const MARKED: &[MarkedColumn] = &[
    column("customers", "full_name", "Nguyễn Thị # Ánh"),
    column("customers", "phone", "09#678"),
    column("customers", "email", "kính.#@thư.example.vn"),
    column("customers", "address", "Số 1 ngõ #, phường Đống Đa, Hà Nội"),
    column("order_sources", "supplier_name", "Xưởng # Quảng Châu"),
    column("order_sources", "supplier_url", "https://shop.example.cn/xưởng/#?q=áo khoác"),
    column("order_sources", "note", "Ưu tiên #, giá sỉ"),
    column("order_messages", "author", "Khách # Ánh"),
    column("order_messages", "body", "Bao giờ hàng # về đến nơi ạ? Gọi số 0901234567"),
    column("order_status_history", "reason", "Khách # gọi điện"),
    column("cart_items", "product_ref", "taobao/#"),
    column("cart_items", "product_name", "Áo khoác # đỏ"),
    column("transfers", "reason", "Anh # chuyển khoản"),
    column("transfers", "idempotency_key", "nạp-ví-#"),
    column("activity", "detail", r##"{"lời nhắn": "Gửi chị # ở Huế", "#": ["địa chỉ", {"sđt": "09#"}], "by": "#", "why": "#"}"##),
    column("outbox", "data", r##"{"người nhận": "Đặng # Huế", "#": {"nguồn": "https://example.cn/#"}}"##),
];

/// Columns of the same tables that can hold text and are not marked, with the reason.
const NOT_MARKED: &[(&str, &str, &str)] = &[
    ("orders", "code", "the name by which customers, staff and operators speak of an order"),
    ("orders", "status", "one of the nine"),
    ("order_status_history", "from_status", "a status"),
    ("order_status_history", "to_status", "a status"),
    ("accounts", "kind", "one of five"),
    ("activity", "actor_kind", "one of three"),
    ("activity", "action", "a name that the fleet counts by"),
    ("activity", "subject_kind", "a name"),
    ("transfers", "made_by", "the login of a program or an operator"),
    ("outbox", "event_type", "a name; an unknown one is shown to operators unchanged"),
];

/// This system's own tables, and which of their rows it writes. Their readers learn nothing personal from them.
const OWN: &[(&str, &str)] = &[
    ("activity", "actor_kind <> 'customer'"),
    ("activity_closing", "true"),
    ("activity_removals", "true"),
    ("activity_seals", "true"),
    ("arrears_outstanding", "true"),
    ("canaries", "true"),
    ("dead_letter_bodies", "true"),
    ("dead_letters", "true"),
    ("deleted_orders", "true"),
    ("leader", "true"),
    ("operator_charges", "true"),
    ("operators", "true"),
    ("order_status_history", "wakeup_id IS NOT NULL"),
    ("kyhan_migrations", "true"),
    ("pauses", "true"),
    ("policies", "true"),
    ("policy_proposals", "true"),
    ("published_months", "true"),
    ("published_statistics", "true"),
    ("rebuilds", "true"),
    ("records_retention", "true"),
    ("replay_plan_letters", "true"),
    ("replay_plans", "true"),
    ("retention_holds", "true"),
    ("rungs", "true"),
    ("statistics_rule", "true"),
    ("swept", "true"),
    ("transfers", "idempotency_key NOT LIKE 'nạp-ví-%'"),
];

/// Tables that belong to neither list, with the reason.
const NEITHER: &[(&str, &str)] = &[(
    "set_aside",
    "keeps an invalid event in full, to be corrected, in the database only; the output of `ops set-aside` is searched",
)];

/// Types that cannot hold free text.
const NO_TEXT: &str = "'uuid', 'smallint', 'integer', 'bigint', 'boolean', 'date', 'timestamp with time zone'";

/// # Panics
/// If there is a table, or a column that can hold text, that no list here contains.
pub async fn assert_known(harness: &Harness) {
    let of_schema = "FROM information_schema.tables JOIN information_schema.columns USING (table_schema, table_name)
                     WHERE table_schema IN ('kyhan', 'public') AND table_type = 'BASE TABLE'";
    let names = async |what: &str, filter: &str| {
        let sql = format!("SELECT coalesce(array_agg(DISTINCT {what}::text), '{{}}') {of_schema} AND {filter}");
        harness.ask::<Vec<String>>(&sql).await.into_iter().collect::<BTreeSet<_>>()
    };
    let of_others: BTreeSet<&str> = MARKED.iter().map(|of| of.table).chain(NOT_MARKED.iter().map(|(table, ..)| *table)).collect();
    let known = of_others.iter().copied().chain(OWN.iter().chain(NEITHER).map(|(table, _)| *table));
    let known: BTreeSet<String> = known.map(ToOwned::to_owned).collect();
    assert_eq!(
        names("table_name", "true").await,
        known,
        "every table is one of the order system's, with its columns, or one of OWN"
    );

    let tables = of_others.iter().map(|table| format!("'{table}'")).collect::<Vec<_>>().join(", ");
    let filter = format!("table_name IN ({tables}) AND data_type NOT IN ({NO_TEXT})");
    let marked = MARKED.iter().map(|of| (of.table, of.name));
    let known = marked.chain(NOT_MARKED.iter().map(|(table, column, _)| (*table, *column)));
    let known: BTreeSet<String> = known.map(|(table, column)| format!("{table}.{column}")).collect();
    let there = names("table_name || '.' || column_name", &filter).await;
    let differ: Vec<_> = there.symmetric_difference(&known).collect();
    assert!(
        differ.is_empty(),
        "every column that can hold text is in MARKED, or in NOT_MARKED with its reason; not so {differ:?}"
    );
}

/// The text written into a column.
fn text(table: &str, column: &str) -> String {
    let of = MARKED.iter().find(|of| (of.table, of.name) == (table, column)).expect("a marked column");
    of.text.replace(PLACE, &marker(table, column))
}

/// Marks the customer of all examples. All other marked data belongs to this customer.
pub async fn mark_customer(harness: &Harness) {
    let values = ["full_name", "phone", "email", "address"].map(|column| text("customers", column).into());
    let [name, phone, email, address] = values;
    let sql = "UPDATE customers SET full_name = $1, phone = $2, email = $3, address = $4 WHERE id = $5";
    assert_eq!(harness.run(sql, [name, phone, email, address, EXAMPLE_CUSTOMER.into()]).await, 1);
    // Paid in by hand, with a note.
    let sql = "WITH outside AS (INSERT INTO accounts (kind) VALUES ('outside') RETURNING id),
                    wallet AS (INSERT INTO accounts (kind, customer_id) VALUES ('wallet', $1) RETURNING id)
               INSERT INTO transfers (debit_account, credit_account, amount, reason, idempotency_key)
               SELECT outside.id, wallet.id, 1000000, $2, $3 FROM outside, wallet";
    let [reason, key] = ["reason", "idempotency_key"].map(|column| text("transfers", column).into());
    harness.run(sql, [EXAMPLE_CUSTOMER.into(), reason, key]).await;
}

/// Marks the data of an example, in the transaction that made it, so that it is never visible unmarked.
pub async fn mark_subject(tx: &DatabaseTransaction, table: &str, subject: Uuid) {
    let t = |table: &str, column: &str| sea_orm::Value::from(text(table, column));
    let mut statements = vec![(
        "INSERT INTO activity (actor_kind, actor_id, action, subject_kind, subject_id, detail)
         VALUES ('customer', $2, 'order.noted', $3, $1, $4::text::jsonb)",
        vec![EXAMPLE_CUSTOMER.into(), table.into(), t("activity", "detail")],
    )];
    if table == "cart_items" {
        statements.push((
            "UPDATE cart_items SET product_ref = $2, product_name = $3 WHERE id = $1",
            vec![t("cart_items", "product_ref"), t("cart_items", "product_name")],
        ));
    } else {
        statements.extend([
            (
                "INSERT INTO order_sources (order_id, supplier_name, supplier_url, note) VALUES ($1, $2, $3, $4)",
                ["supplier_name", "supplier_url", "note"].map(|column| t("order_sources", column)).into(),
            ),
            (
                "INSERT INTO order_messages (order_id, author, body) VALUES ($1, $2, $3)",
                ["author", "body"].map(|column| t("order_messages", column)).into(),
            ),
            (
                "UPDATE order_status_history SET reason = $2 WHERE order_id = $1",
                vec![t("order_status_history", "reason")],
            ),
            (
                "INSERT INTO order_status_history (order_id, from_status, to_status, reason) SELECT id, 'deposited', 'in_warehouse', $2
                   FROM orders WHERE id = $1 AND status <> 'out_of_stock'",
                vec![t("order_status_history", "reason")],
            ),
            // Pays one đồng for the goods, so that they are only partly paid.
            (
                "WITH goods AS (INSERT INTO accounts (kind, order_id) VALUES ('goods', $1) ON CONFLICT DO NOTHING RETURNING id)
                 INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key)
                 SELECT wallet.id, goods.id, 1, $2, $1, $3 || '-' || $1 FROM goods, accounts AS wallet
                  WHERE wallet.kind = 'wallet' AND wallet.customer_id = $4",
                vec![t("transfers", "reason"), t("transfers", "idempotency_key"), EXAMPLE_CUSTOMER.into()],
            ),
        ]);
    }
    for (sql, values) in statements {
        let values = [subject.into()].into_iter().chain(values);
        tx.execute_raw(statement(sql, values)).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

/// Makes everything about an order a year old and paid, so that what counts from the last activity is due. The records of its
/// messages then disagree with their times, which `ops activity verify` reports.
pub async fn as_long_ago(tx: &DatabaseTransaction, order: Uuid) {
    let sql = "SET LOCAL session_replication_role = replica;
               UPDATE activity SET at = at - interval '1 year' WHERE subject_id = '{order}';
               UPDATE order_messages SET at = at - interval '1 year' WHERE order_id = '{order}';
               UPDATE order_status_history SET at = at - interval '1 year' WHERE order_id = '{order}';
               UPDATE transfers SET at = at - interval '1 year' WHERE order_id = '{order}';
               UPDATE orders SET goods_due = 1 WHERE id = '{order}';
               SET LOCAL session_replication_role = origin";
    tx.execute_unprepared(&sql.replace("{order}", &order.to_string())).await.expect("long ago");
}

/// An event of the order system with arbitrary data.
pub async fn event(harness: &Harness, event_type: &str, subject: Uuid) {
    let sql = "INSERT INTO outbox (event_type, subject_id, data) VALUES ($1, $2, $3::text::jsonb)";
    harness.run(sql, [event_type.into(), subject.into(), text("outbox", "data").into()]).await;
}

/// # Panics
/// If a marked column contains no marker: then the search would prove nothing.
pub async fn assert_marked(harness: &Harness) {
    for MarkedColumn { table, name: column, .. } in MARKED {
        // The relay deletes an event once it is relayed; an event that is set aside is kept in full.
        let table_now = if *table == "outbox" { "set_aside" } else { table };
        let sql = format!("SELECT EXISTS (SELECT FROM {table_now} WHERE {column}::text LIKE '%{}%')", marker(table, column));
        assert!(harness.ask::<bool>(&sql).await, "{table}.{column} is not marked");
    }
}

/// The rows that this system wrote, as text, one capture per table.
pub async fn own_rows(harness: &Harness) -> Vec<Capture> {
    let mut captures = Vec::new();
    for (table, rows) in OWN {
        let sql = format!("SELECT coalesce(string_agg({table}::text, E'\\n'), '') FROM {table} WHERE {rows}");
        captures.push(Capture::new(format!("table {table}"), harness.ask::<String>(&sql).await));
    }
    captures
}

//! The population that is drained: orders, cart items and a ledger made by set-based SQL, and the checks of every row afterwards. One
//! subject in ten of each kind is stale: its task must not touch it.
//!
//! Ids are random and read in random order, so that an order's positions in the queue, in the heap and in the index are unrelated, as after
//! two weeks of business.

use anyhow::{Context, Result, ensure};
use sea_orm::{ConnectionTrait, DatabaseTransaction, TransactionTrait};
use shared::database::statement;
use tests::sandbox::Sandbox;
use uuid::Uuid;

use crate::harness::ask;

/// Subjects of one kind, and how its task's effects are counted.
pub struct Load {
    pub kind: &'static str,
    /// Only this kind's lines of the published policy, so that wake-ups and sweeps of other kinds do not interfere.
    pub policy: &'static str,
    make: &'static [&'static str],
    /// The table in which each effect writes one row, and the condition on these rows.
    pub record: &'static str,
    pub record_is: &'static str,
    /// The subjects' table.
    table: &'static str,
    /// Statements that count errors; each must return 0. `{due}` stands for the expected number of effects.
    wrong: &'static [(&'static str, &'static str)],
}

/// One subject in this many is stale.
pub const STALE_EVERY: usize = 10;

/// The expected number of effects among `count` subjects.
pub const fn due_of(count: usize) -> usize {
    count - count / STALE_EVERY
}

const CUSTOMERS: &str = "
    INSERT INTO customers (id, full_name, phone, email, address)
    SELECT gen_random_uuid(),
           (ARRAY['Nguyễn','Trần','Lê','Phạm','Hoàng','Phan','Vũ','Đặng'])[1 + n % 8] || ' ' ||
           (ARRAY['Thị','Văn','Hữu','Ngọc','Minh','Thanh'])[1 + n % 6] || ' ' || (ARRAY['An','Bình','Hà','Lan','Nam','Tú'])[1 + n % 5],
           '09' || lpad(floor(random() * 100000000)::text, 8, '0'), 'khach' || n || '@example.vn', n || ' Lý Thường Kiệt, Hà Nội'
      FROM generate_series(1, 5000) n";

/// Due for at most a day; the customer of every tenth order confirmed receipt yesterday.
const SHIPPED_ORDERS: &str = "
    INSERT INTO orders (id, code, customer_id, status, delivering_since, received_at, parcel_recorded_at,
                        goods_due, shipping_due, service_due, created_at, updated_at)
    SELECT id, 'BG-' || upper(left(replace(id::text, '-', ''), 16)), customers.ids[1 + floor(random() * cardinality(customers.ids))::int],
           CASE WHEN n % 10 = 0 THEN 'received' ELSE 'delivering' END, since,
           CASE WHEN n % 10 = 0 THEN now() - interval '1 day' END, since - interval '2 days',
           500000 + n % 2000 * 1000, 30000 + n % 90 * 1000, 25000, since - interval '20 days', since
      FROM (SELECT gen_random_uuid() AS id, n, now() - interval '14 days' - random() * interval '1 day' AS since
              FROM generate_series(1, {count}) n) AS new,
           (SELECT array_agg(id) AS ids FROM customers) AS customers";

pub const CONFIRM_RECEIPT: Load = Load {
    kind: "confirm-receipt",
    policy: r#"
        [[policy]]
        on = "order.shipped"
        task = "confirm-receipt"
        after = "14d"
    "#,
    make: &[CUSTOMERS, SHIPPED_ORDERS],
    record: "order_status_history",
    record_is: "reason = 'confirm-receipt' AND to_status = 'received'",
    table: "orders",
    wrong: &[
        ("orders that were due and not received", "SELECT count(*) FROM orders WHERE status <> 'received'"),
        ("receipts too many or too few", "SELECT count(*) - {due} FROM order_status_history"),
        (
            "received orders without exactly one row of history of that moment",
            "SELECT count(*) - {due} FROM orders
              WHERE (SELECT count(*) FROM order_status_history AS history
                      WHERE history.order_id = orders.id AND history.at = orders.received_at) = 1",
        ),
        (
            "orders of their customers' receipt that were touched",
            "SELECT count(*) FROM orders WHERE received_at < delivering_since + interval '13 days' AND updated_at <> delivering_since",
        ),
    ],
};

pub const PURGE_CART_ITEM: Load = Load {
    kind: "purge-cart-item",
    policy: r#"
        [[policy]]
        on = "cart.item_added"
        task = "purge-cart-item"
        after = "30d"
    "#,
    make: &[
        CUSTOMERS,
        // Items that were ordered: five per order.
        "INSERT INTO orders (id, code, customer_id, status, goods_due)
         SELECT id, 'BG-' || upper(left(replace(id::text, '-', ''), 16)), customer, 'deposited', 900000
           FROM (SELECT gen_random_uuid() AS id, id AS customer FROM customers) AS new",
        "INSERT INTO cart_items (id, customer_id, product_ref, product_name, quantity, added_at, order_id)
         SELECT gen_random_uuid(), customers.ids[1 + n % 5000], 'sp-' || n,
                (ARRAY['Áo khoác nữ','Tai nghe','Giày thể thao','Ốp lưng','Nồi chiên'])[1 + n % 5], 1 + n % 3,
                now() - interval '30 days' - random() * interval '1 day', CASE WHEN n % 10 = 0 THEN orders.ids[1 + n % 5000] END
           FROM generate_series(1, {count}) n, (SELECT array_agg(id) AS ids FROM customers) AS customers,
                (SELECT array_agg(id) AS ids FROM orders) AS orders",
    ],
    record: "activity",
    record_is: "action = 'cart_item.purged'",
    table: "cart_items",
    wrong: &[
        ("items that were due and are still there", "SELECT count(*) FROM cart_items WHERE order_id IS NULL"),
        ("items lost of which orders were made", "SELECT {stale} - count(*) FROM cart_items"),
        ("purges too many or too few", "SELECT count(*) - {due} FROM activity"),
        ("items purged twice", "SELECT count(*) - count(DISTINCT subject_id) FROM activity"),
    ],
};

/// The balances of the components' accounts, paid when the orders shipped.
const PAID: &str = "
    INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key, at)
    SELECT wallet.id, paid.id, paid.balance, 'thanh toán', orders.id, 'payment:' || paid.id, orders.delivering_since
      FROM accounts AS paid JOIN orders ON orders.id = paid.order_id
           JOIN accounts AS wallet ON wallet.customer_id = orders.customer_id AND wallet.kind = 'wallet'";

pub const COLLECT_ARREARS: Load = Load {
    kind: "collect-arrears",
    policy: r#"
        [[policy]]
        on = ["order.shipped", "order.received", "order.out_of_stock", "order.fees_changed"]
        task = "collect-arrears"
        after = "24h"
    "#,
    make: &[
        CUSTOMERS,
        "INSERT INTO orders (id, code, customer_id, status, delivering_since, parcel_recorded_at, goods_due, shipping_due, service_due,
                             created_at, updated_at)
         SELECT id, 'BG-' || upper(left(replace(id::text, '-', ''), 16)), customers.ids[1 + floor(random() * 5000)::int], 'delivering',
                since, since - interval '2 days', 500000 + n % 2000 * 1000, 30000 + n % 90 * 1000, 25000, since - interval '20 days', since
           FROM (SELECT gen_random_uuid() AS id, n, now() - interval '1 day' - random() * interval '1 day' AS since
                   FROM generate_series(1, {count}) n) AS new,
                (SELECT array_agg(id) AS ids FROM customers) AS customers",
        "INSERT INTO accounts (kind) VALUES ('outside')",
        "INSERT INTO accounts (kind, customer_id) SELECT 'wallet', id FROM customers",
        // Every tenth order is paid in full; in the others all three components are short.
        "INSERT INTO accounts (kind, order_id, balance)
         SELECT kind, id, CASE WHEN place % 10 = 0 THEN due ELSE due * 6 / 10 END
           FROM (SELECT *, row_number() OVER () AS place FROM orders) AS orders
                CROSS JOIN LATERAL (VALUES ('goods', goods_due), ('shipping', shipping_due), ('service', service_due)) AS part (kind, due)",
        "INSERT INTO transfers (debit_account, credit_account, amount, reason, idempotency_key, at)
         SELECT outside.id, wallet.id, 300000000, 'nạp ví', 'top-up:' || wallet.id, now() - interval '40 days'
           FROM accounts AS outside, accounts AS wallet WHERE outside.kind = 'outside' AND wallet.kind = 'wallet'",
        PAID,
        // The balances that the ledger's trigger would keep, in one statement instead of one per transfer.
        "UPDATE accounts SET balance = sum FROM (
             SELECT account, sum(delta)::bigint AS sum FROM (
                 SELECT credit_account AS account, amount AS delta FROM transfers
                 UNION ALL SELECT debit_account, -amount FROM transfers) AS moved GROUP BY account) AS moved
          WHERE moved.account = accounts.id AND accounts.kind IN ('wallet', 'outside')",
    ],
    record: "activity",
    record_is: "action = 'order.arrears_collected'",
    table: "orders",
    wrong: &[
        (
            "components that are not paid exactly",
            "SELECT count(*) FROM orders
                    CROSS JOIN LATERAL (VALUES ('goods', goods_due), ('shipping', shipping_due), ('service', service_due)) AS part (kind, due)
                    LEFT JOIN accounts ON accounts.order_id = orders.id AND accounts.kind = part.kind
              WHERE balance IS DISTINCT FROM due",
        ),
        ("charges too many or too few", "SELECT count(*) - 3 * {due} FROM transfers WHERE reason = 'arrears'"),
        (
            "charges of another amount than was missing",
            "SELECT count(*) FROM transfers AS charge JOIN transfers AS paid ON paid.idempotency_key = 'payment:' || charge.credit_account
                    JOIN accounts ON accounts.id = charge.credit_account
              WHERE charge.reason = 'arrears' AND charge.amount <> accounts.balance - paid.amount",
        ),
        ("the ledger's sum", "SELECT coalesce(sum(balance), 0)::bigint FROM accounts"),
        (
            "accounts that differ from their transfers",
            "SELECT count(*) FROM accounts LEFT JOIN (
                 SELECT account, sum(delta) AS sum FROM (
                     SELECT credit_account AS account, amount AS delta FROM transfers
                     UNION ALL SELECT debit_account, -amount FROM transfers) AS moved
                  GROUP BY account) AS moved ON moved.account = accounts.id
              WHERE balance <> coalesce(sum, 0)",
        ),
        ("collections too many or too few", "SELECT count(*) - {due} FROM activity"),
        ("orders collected for twice", "SELECT count(*) - count(DISTINCT subject_id) FROM activity"),
        ("orders left outstanding", "SELECT count(*) FROM arrears_outstanding"),
    ],
};

/// Their six months without activity ended yesterday; every tenth is already hidden.
pub const HIDE_ORDER: Load = Load {
    kind: "hide-order",
    policy: r#"
        [[policy]]
        on = "order.recorded"
        task = "hide-order"
        after = "6 months"
    "#,
    make: &[
        CUSTOMERS,
        "INSERT INTO orders (id, code, customer_id, status, delivering_since, received_at, parcel_recorded_at, goods_due, shipping_due,
                             service_due, created_at, updated_at, hidden_at)
         SELECT id, 'BG-' || upper(left(replace(id::text, '-', ''), 16)), customers.ids[1 + floor(random() * 5000)::int], 'received',
                heard - interval '14 days', heard, heard - interval '16 days', 500000 + n % 2000 * 1000, 30000 + n % 90 * 1000, 25000,
                heard - interval '30 days', heard, CASE WHEN n % 10 = 0 THEN now() - interval '12 hours' END
           FROM (SELECT gen_random_uuid() AS id, n, now() - interval '6 months 4 days' - random() * interval '1 day' AS heard
                   FROM generate_series(1, {count}) n) AS new,
                (SELECT array_agg(id) AS ids FROM customers) AS customers",
        "INSERT INTO order_status_history (order_id, from_status, to_status, reason, at)
         SELECT id, status.gone, status.come, 'x', received_at - status.before
           FROM orders, (VALUES ('in_warehouse', 'delivering', interval '14 days'), ('delivering', 'received', interval '0')) AS status (gone, come, before)",
        "INSERT INTO order_messages (order_id, author, body, at)
         SELECT id, 'khách', 'Bao giờ hàng về đến nơi ạ?', received_at - said * interval '1 day' FROM orders, generate_series(1, 3) said",
        // With explicit ids, so that the sequence counts only effects. The rows exist because PostgreSQL plans full scans of an empty table.
        "INSERT INTO activity (id, at, actor_kind, action, subject_kind, subject_id) OVERRIDING SYSTEM VALUE
         SELECT -row_number() OVER (), received_at - done * interval '1 day', 'staff', 'order.noted', 'order', id FROM orders, generate_series(1, 2) done",
        "INSERT INTO accounts (kind) VALUES ('outside')",
        "INSERT INTO accounts (kind, customer_id) SELECT 'wallet', id FROM customers",
        "INSERT INTO accounts (kind, order_id, balance)
         SELECT kind, id, due FROM orders
                CROSS JOIN LATERAL (VALUES ('goods', goods_due), ('shipping', shipping_due), ('service', service_due)) AS part (kind, due)",
        PAID,
    ],
    record: "activity",
    record_is: "action = 'order.hidden'",
    table: "orders",
    wrong: &[
        ("orders that were due and are on line", "SELECT count(*) FROM orders WHERE hidden_at IS NULL"),
        ("hidings too many or too few", "SELECT count(*) - {due} FROM activity WHERE action = 'order.hidden'"),
        (
            "hidden orders without a record of that moment",
            "SELECT count(*) - {due} FROM orders JOIN activity ON activity.subject_id = orders.id AND activity.at = orders.hidden_at",
        ),
        ("orders hidden before that were touched", "SELECT count(*) - {stale} FROM orders WHERE hidden_at < now() - interval '6 hours'"),
    ],
};

/// A transaction that has emptied every table, with triggers and foreign keys disabled, so that even insert-only tables can be emptied.
/// This is the bench's own database, and the whole ledger is checked afterwards.
pub async fn emptied(sandbox: &Sandbox) -> Result<DatabaseTransaction> {
    let tx = sandbox.db.begin().await?;
    tx.execute_unprepared("SET LOCAL session_replication_role = replica").await?;
    tx.execute_unprepared(
        "TRUNCATE customers, order_status_history, activity, activity_seals, outbox, set_aside, swept RESTART IDENTITY CASCADE",
    )
    .await?;
    Ok(tx)
}

impl Load {
    /// Empties every table and makes `count` subjects, due and stale ones. Returns their ids in random order.
    pub async fn make(&self, sandbox: &Sandbox, count: usize) -> Result<Vec<Uuid>> {
        let tx = emptied(sandbox).await?;
        for sql in self.make {
            tx.execute_unprepared(&sql.replace("{count}", &count.to_string())).await.with_context(|| (*sql).to_owned())?;
        }
        tx.commit().await?;
        self.ids(sandbox).await
    }

    async fn ids(&self, sandbox: &Sandbox) -> Result<Vec<Uuid>> {
        let sql = format!("SELECT id FROM {} ORDER BY random()", self.table);
        let rows = sandbox.db.query_all_raw(statement(&sql, [])).await?;
        rows.iter().map(|row| Ok(row.try_get_by_index(0)?)).collect()
    }

    /// Checks that of `count` subjects every due one has its effect once, and that no other was touched.
    pub async fn check(&self, sandbox: &Sandbox, count: usize) -> Result<()> {
        let (due, stale) = (due_of(count).to_string(), (count - due_of(count)).to_string());
        for (what, sql) in self.wrong {
            let wrong: i64 = ask(sandbox, &sql.replace("{due}", &due).replace("{stale}", &stale)).await?;
            ensure!(wrong == 0, "{}: {what}: {wrong}", self.kind);
        }
        Ok(())
    }

    /// A cheap estimate of the number of effects, from the sequence; some of them may not be committed yet.
    pub async fn begun(&self, sandbox: &Sandbox) -> Result<usize> {
        let sql = format!("SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('{}', 'id')), 0)", self.record);
        Ok(usize::try_from(ask::<i64>(sandbox, &sql).await?)?)
    }

    /// The number of committed effects.
    pub async fn applied(&self, sandbox: &Sandbox) -> Result<usize> {
        let sql = format!("SELECT count(*) FROM {} WHERE {}", self.record, self.record_is);
        Ok(usize::try_from(ask::<i64>(sandbox, &sql).await?)?)
    }
}

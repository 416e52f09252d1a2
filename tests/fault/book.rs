//! The book of expectations: the expected result of every subject, written in the same transaction as what decides it. The checker compares
//! the fleet's records with the book and with nothing else.

use anyhow::{Context, Result};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use shared::database::statement;

/// Customers share wallets, so that charges of different orders meet.
const CUSTOMERS: i64 = 400;
/// In đồng, enough for every charge.
const WEALTH: i64 = 100_000_000_000;

/// `part` distinguishes the effects of one task: for arrears the component that is charged, or `restored`. `amount` is the sum over all
/// times.
const TABLES: &str = "
    CREATE TABLE fault_book (
        subject uuid PRIMARY KEY, situation text NOT NULL, acted boolean NOT NULL DEFAULT false,
        at timestamptz NOT NULL DEFAULT now(), final text);
    CREATE INDEX ON fault_book (situation, at) WHERE NOT acted;
    CREATE TABLE fault_expected (
        kind text, part text, subject uuid, times int NOT NULL CHECK (times >= 0), amount bigint,
        PRIMARY KEY (subject, kind, part));
    CREATE TABLE fault_slices (slice bigint, situation text, PRIMARY KEY (slice, situation));
    INSERT INTO accounts (kind) VALUES ('outside');
    CREATE FUNCTION fault_wallet(of_order uuid) RETURNS uuid LANGUAGE sql STABLE AS $$
        SELECT accounts.id FROM accounts JOIN orders ON orders.customer_id = accounts.customer_id
         WHERE orders.id = of_order AND accounts.kind = 'wallet' $$;
    CREATE FUNCTION fault_account(of_kind text, of_order uuid) RETURNS uuid LANGUAGE sql STABLE AS $$
        SELECT id FROM accounts WHERE order_id = of_order AND kind = of_kind $$;
    CREATE FUNCTION fault_customer(n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
        SELECT md5('customer:' || n)::uuid $$;";

const WALLETS: &str = "
    WITH made AS (
        INSERT INTO customers (id, full_name, phone, email, address)
        SELECT fault_customer(n), 'Nguyễn Thị Mẫu', '0901234567', 'mau@example.vn', 'Hà Nội' FROM generate_series(0, $1::bigint - 1) n
        RETURNING id
    ), wallets AS (
        INSERT INTO accounts (kind, customer_id) SELECT 'wallet', id FROM made RETURNING id
    )
    INSERT INTO transfers (debit_account, credit_account, amount, reason, idempotency_key)
    SELECT (SELECT id FROM accounts WHERE kind = 'outside'), id, $2::bigint, 'nạp ví', 'top-up:' || id FROM wallets";

/// Creates an empty book and the customers' wallets.
pub async fn open(db: &DatabaseConnection) -> Result<()> {
    db.execute_unprepared(TABLES).await.context("the book's tables")?;
    db.execute_raw(statement(WALLETS, [CUSTOMERS.into(), WEALTH.into()])).await.context("customers")?;
    Ok(())
}

/// How the rows of a situation start.
pub enum SituationStart {
    Order {
        status: &'static str,
        /// The status before.
        before: &'static str,
        parcel: bool,
        /// The shortfalls of goods, shipping and service, as SQL on `n`.
        short: [&'static str; 3],
        event: &'static str,
        /// Whether the shortfalls are to be charged.
        charged: bool,
        /// The status to be restored.
        restored: Option<&'static str>,
        confirmed: bool,
        /// The final status.
        last: &'static str,
    },
    CartItem,
}

pub struct FaultSituation {
    pub name: &'static str,
    /// Its share of all subjects, in 50ths.
    pub share: i64,
    pub make: SituationStart,
}

const PAID: [&str; 3] = ["0", "0", "0"];
const REFUNDED: [&str; 3] = ["1500000", "0", "0"];

const fn delivering(short: [&'static str; 3]) -> SituationStart {
    SituationStart::Order {
        status: "delivering",
        before: "in_warehouse",
        parcel: true,
        short,
        event: "order.shipped",
        charged: true,
        restored: None,
        confirmed: true,
        last: "received",
    }
}

/// The situations, with their results without any act; `acts` changes some.
pub static SITUATIONS: &[FaultSituation] = &[
    FaultSituation { name: "paid", share: 9, make: delivering(PAID) },
    FaultSituation { name: "short", share: 8, make: delivering(["100000 + n % 97 * 1000", "n % 2 * 7000", "0"]) },
    FaultSituation {
        name: "wrongly-out",
        share: 4,
        make: SituationStart::Order {
            status: "out_of_stock",
            before: "in_warehouse",
            parcel: true,
            short: REFUNDED,
            event: "order.out_of_stock",
            charged: true,
            restored: Some("in_warehouse"),
            confirmed: false,
            last: "in_warehouse",
        },
    },
    FaultSituation {
        name: "wrongly-out-while-delivering",
        share: 2,
        make: SituationStart::Order {
            status: "out_of_stock",
            before: "delivering",
            parcel: true,
            short: REFUNDED,
            event: "order.out_of_stock",
            charged: true,
            restored: Some("delivering"),
            confirmed: true,
            last: "received",
        },
    },
    FaultSituation {
        name: "really-out",
        share: 3,
        make: SituationStart::Order {
            status: "out_of_stock",
            before: "purchased",
            parcel: false,
            short: REFUNDED,
            event: "order.out_of_stock",
            charged: false,
            restored: None,
            confirmed: false,
            last: "out_of_stock",
        },
    },
    FaultSituation { name: "confirms-himself", share: 5, make: delivering(PAID) },
    FaultSituation { name: "cancels", share: 3, make: delivering(["90000 + n % 89 * 1000", "0", "0"]) },
    FaultSituation { name: "in-cart", share: 12, make: SituationStart::CartItem },
    FaultSituation { name: "ordered-from-cart", share: 4, make: SituationStart::CartItem },
];

impl FaultSituation {
    /// SQL that makes the subjects with the numbers `$1` to `$2`: rows, money, expectations and events. `$3` is the seed of their ids.
    pub fn sql(&self) -> String {
        let new = format!(
            "new AS (SELECT n, md5($3::text || ':{}:' || n)::uuid AS id, fault_customer(n % {CUSTOMERS}) AS customer
               FROM generate_series($1::bigint, $2::bigint) n)",
            self.name
        );
        match &self.make {
            SituationStart::CartItem => format!(
                "WITH {new}, made AS (
                     INSERT INTO cart_items (id, customer_id, product_ref, product_name, quantity)
                     SELECT id, customer, 'sp-' || n, 'Áo khoác', 1 + n % 3 FROM new RETURNING id
                 ), booked AS (
                     INSERT INTO fault_book (subject, situation) SELECT id, '{}' FROM made
                 ), expected AS (
                     INSERT INTO fault_expected (kind, part, subject, times) SELECT 'purge-cart-item', '', id, 1 FROM made
                 )
                 INSERT INTO outbox (event_type, subject_id) SELECT 'cart.item_added', id FROM made",
                self.name
            ),
            order @ SituationStart::Order { .. } => self.order_sql(&new, order),
        }
    }

    fn order_sql(&self, new: &str, order: &SituationStart) -> String {
        let SituationStart::Order { status, before, parcel, short, event, charged, restored, confirmed, last } = order else {
            return String::new();
        };
        let due = [1_500_000, 120_000, 45_000];
        let parts: Vec<String> = ["goods", "shipping", "service"]
            .into_iter()
            .zip(due)
            .zip(short)
            .map(|((kind, due), short)| format!("('{kind}', {due}::bigint, ({short})::bigint)"))
            .collect();
        let (restored, began) = (restored.unwrap_or(""), *status == "delivering" || *before == "delivering");
        format!(
            "WITH {new}, parts AS (
                 SELECT id, part.* FROM new CROSS JOIN LATERAL (VALUES {parts}) AS part (kind, due, short)
             ), made AS (
                 INSERT INTO orders (id, code, customer_id, status, delivering_since, out_of_stock_since, parcel_recorded_at,
                                     goods_due, shipping_due, service_due)
                 SELECT id, 'BG-' || id, customer, '{status}', CASE WHEN {began} THEN now() END,
                        CASE WHEN '{status}' = 'out_of_stock' THEN now() END, CASE WHEN {parcel} THEN now() END,
                        {goods}, {shipping}, {service} FROM new
             ), history AS (
                 INSERT INTO order_status_history (order_id, from_status, to_status, reason)
                 SELECT id, '{before}', '{status}', 'nhân viên' FROM new
             ), booked AS (
                 INSERT INTO fault_book (subject, situation, final) SELECT id, '{name}', '{last}' FROM new
             ), expected AS (
                 INSERT INTO fault_expected (kind, part, subject, times, amount)
                 SELECT 'collect-arrears', kind, id, 1, short FROM parts WHERE short > 0 AND {charged}
                 UNION ALL SELECT 'collect-arrears', 'restored', id, 1, NULL FROM new WHERE '{restored}' <> ''
                 UNION ALL SELECT 'confirm-receipt', '', id, 1, NULL FROM new WHERE {confirmed}
             ), opened AS (
                 INSERT INTO accounts (kind, order_id) SELECT kind, id FROM parts RETURNING id, kind, order_id
             ), told AS (
                 INSERT INTO outbox (event_type, subject_id) SELECT '{event}', id FROM new
             )
             INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key)
             SELECT wallet.id, opened.id, parts.due - parts.short, 'thanh toán', parts.id, 'payment:' || opened.id
               FROM parts JOIN new ON new.id = parts.id JOIN opened ON opened.order_id = parts.id AND opened.kind = parts.kind
                    JOIN accounts AS wallet ON wallet.customer_id = new.customer AND wallet.kind = 'wallet'
              WHERE parts.due > parts.short",
            parts = parts.join(", "),
            goods = due[0],
            shipping = due[1],
            service = due[2],
            name = self.name,
        )
    }
}

//! The population: customers with Vietnamese names, their orders and cart items, and an order system that works on them while the fleet
//! runs. The outbox triggers turn its changes into events.

use anyhow::{Context, Result};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use shared::database::{
    failure::{Trouble, trouble},
    statement,
};

use crate::situations::{DemoSituation, OLD_ON_DAY, OrderMoney, RowStart, SITUATIONS};

/// How many rows one transaction makes or acts on.
const CHUNK: u32 = 100;
/// The wallet balance of a wealthy customer, in đồng: enough for every order.
const WEALTH: i64 = 100_000_000;

/// The demo's own table of each row's situation, and of the order system's progress with it.
const PREPARE: &str = "
    CREATE TABLE demo (subject uuid PRIMARY KEY, situation text NOT NULL, step int NOT NULL DEFAULT 0,
                       made_at timestamptz NOT NULL DEFAULT now());
    CREATE INDEX ON demo (situation, step);
    INSERT INTO accounts (kind) VALUES ('outside');
    CREATE FUNCTION demo_account(of_kind text, of_order uuid) RETURNS uuid LANGUAGE sql STABLE AS $$
        SELECT id FROM accounts WHERE order_id = of_order AND kind = of_kind $$;
    CREATE FUNCTION demo_wallet(of_order uuid) RETURNS uuid LANGUAGE sql STABLE AS $$
        SELECT accounts.id FROM accounts JOIN orders ON orders.customer_id = accounts.customer_id
         WHERE orders.id = of_order AND accounts.kind = 'wallet' $$;
    GRANT SELECT, INSERT, UPDATE ON demo TO kyhan_order_system, kyhan_owner;
";

/// SQL: makes `$1` customers with `$2` đồng in their wallets.
const CUSTOMERS: &str = "
    WITH made AS (
        INSERT INTO customers (id, full_name, phone, email, address, created_at)
        SELECT gen_random_uuid(),
               (ARRAY['Nguyễn','Trần','Lê','Phạm','Hoàng','Huỳnh','Phan','Vũ','Võ','Đặng','Bùi','Đỗ'])[1 + floor(random() * 12)::int] || ' ' ||
               (ARRAY['Thị','Văn','Hữu','Ngọc','Minh','Thanh','Quốc','Thùy'])[1 + floor(random() * 8)::int] || ' ' ||
               (ARRAY['An','Bình','Châu','Dung','Giang','Hà','Hương','Khánh','Lan','Long','Mai','Nam','Phương','Quân','Trang','Tú'])
                   [1 + floor(random() * 16)::int],
               '09' || lpad(floor(random() * 100000000)::text, 8, '0'),
               'khach' || floor(random() * 1000000) || '@example.vn',
               (ARRAY['Hà Nội','Đà Nẵng','TP. Hồ Chí Minh','Hải Phòng','Cần Thơ','Huế'])[1 + floor(random() * 6)::int],
               clock_timestamp()
          FROM generate_series(1, $1::bigint) RETURNING id
    ), wallets AS (
        INSERT INTO accounts (kind, customer_id) SELECT 'wallet', id FROM made RETURNING id, customer_id
    ), paid_in AS (
        INSERT INTO transfers (debit_account, credit_account, amount, reason, idempotency_key)
        SELECT (SELECT id FROM accounts WHERE kind = 'outside'), id, $2::bigint, 'nạp ví', 'top-up:' || id FROM wallets
    )
    SELECT array_agg(id) AS customers FROM made";

/// The connections of the population.
#[derive(Clone)]
pub struct Actors {
    pub order_system: DatabaseConnection,
    /// As the tables' owner: one statement acts on the carts of many customers, which no session of the order system may.
    pub carts: DatabaseConnection,
}

impl Actors {
    const fn of(&self, situation: &DemoSituation) -> &DatabaseConnection {
        if matches!(situation.make, RowStart::CartItem) { &self.carts } else { &self.order_system }
    }

    pub async fn close(self) -> Result<()> {
        self.order_system.close().await?;
        Ok(self.carts.close().await?)
    }
}

/// Creates the demo's own tables.
pub async fn prepare(db: &DatabaseConnection) -> Result<()> {
    db.execute_unprepared(PREPARE).await.context("preparing the demo")?;
    Ok(())
}

/// Makes the whole population in chunks that alternate between the situations, so that all of them run at the same time.
pub async fn populate(actors: &Actors, orders: u32) -> Result<()> {
    let mut left: Vec<u32> = SITUATIONS.iter().map(|situation| (orders / 100 * situation.share).max(1)).collect();
    while left.iter().any(|left| *left > 0) {
        for (situation, left) in SITUATIONS.iter().zip(&mut left) {
            let count = CHUNK.min(*left);
            *left -= count;
            if count > 0 {
                make(actors.of(situation), situation, count).await.with_context(|| format!("making {}", situation.name))?;
            }
        }
    }
    Ok(())
}

async fn make(db: &DatabaseConnection, situation: &DemoSituation, count: u32) -> Result<()> {
    let (customers, wallet) = match situation.make {
        RowStart::OrderOfPoorCustomer { wallet, .. } => (count, wallet),
        RowStart::Order { .. } | RowStart::OldOrder { .. } | RowStart::CartItem => ((count / 3).max(1), WEALTH),
        RowStart::Nothing => (0, WEALTH),
    };
    // Make the customers first, because deadlines count from the time of the order.
    let row = db.query_one_raw(statement(CUSTOMERS, [i64::from(customers).into(), wallet.into()])).await?.context("no row")?;
    let customers: Option<Vec<uuid::Uuid>> = row.try_get("", "customers")?;
    let sql = match &situation.make {
        RowStart::Order { status, parcel, money } => order(&new_order(status, *parcel), "now()", money),
        RowStart::OrderOfPoorCustomer { money, .. } => order(&new_order("delivering", true), "now()", money),
        RowStart::OldOrder { on_hold, money } => order(&old_order(*on_hold), "made.created_at", money),
        RowStart::CartItem => CART_ITEM.to_owned(),
        RowStart::Nothing => NOTHING.to_owned(),
    };
    db.execute_raw(statement(&sql, [situation.name.into(), i64::from(count).into(), customers.unwrap_or_default().into()]))
        .await?;
    Ok(())
}

/// The further columns of an order and their values: it begins now, and has messages.
fn new_order(status: &str, parcel: bool) -> Begins {
    Begins {
        columns: "status, delivering_since, received_at, parcel_recorded_at",
        values: format!(
            "'{status}', CASE WHEN '{status}' IN ('delivering', 'received') THEN now() END,
             CASE WHEN '{status}' = 'received' THEN now() END, CASE WHEN {parcel} THEN now() END"
        ),
        talked_about: true,
    }
}

/// Recorded, delivered and received more than half a year ago, without activity since.
fn old_order(on_hold: bool) -> Begins {
    let received = format!(
        "((now() + interval '{OLD_ON_DAY} s') AT TIME ZONE 'Asia/Ho_Chi_Minh' - interval '6 months') AT TIME ZONE 'Asia/Ho_Chi_Minh'"
    );
    Begins {
        columns: "status, on_hold, created_at, parcel_recorded_at, delivering_since, received_at, updated_at",
        values: format!(
            "'received', {on_hold}, {received} - interval '30 days', {received} - interval '16 days', {received} - interval '14 days',
             {received}, {received}"
        ),
        talked_about: false,
    }
}

struct Begins {
    columns: &'static str,
    values: String,
    talked_about: bool,
}

/// SQL: makes `$2` orders of the customers `$3` in the situation `$1`, with their accounts and first payments.
fn order(Begins { columns, values, talked_about }: &Begins, paid_at: &str, OrderMoney { due, paid }: &OrderMoney) -> String {
    let parts = ["goods", "shipping", "service"].into_iter().zip(paid).map(|(kind, paid)| format!("('{kind}', {paid}::bigint)"));
    let parts = parts.collect::<Vec<_>>().join(", ");
    format!(
        "WITH made AS (
             INSERT INTO orders (id, code, customer_id, goods_due, shipping_due, service_due, {columns})
             SELECT id, 'BG-' || upper(left(replace(id::text, '-', ''), 12)), ($3::uuid[])[1 + n % cardinality($3::uuid[])],
                    {goods}, {shipping}, {service}, {values}
               FROM (SELECT gen_random_uuid() AS id, n FROM generate_series(1, $2::bigint) n) AS new
             RETURNING id, customer_id, created_at
         ), booked AS (
             INSERT INTO demo (subject, situation) SELECT id, $1 FROM made
         ), talked AS (
             INSERT INTO order_messages (order_id, author, body) SELECT id, 'khách', 'Bao giờ hàng về đến nơi ạ?' FROM made WHERE {talked_about}
         ), opened AS (
             INSERT INTO accounts (kind, order_id) SELECT kind, made.id FROM made, (VALUES {parts}) part (kind, paid) RETURNING id, kind, order_id
         )
         INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key, at)
         SELECT wallet.id, opened.id, part.paid, 'thanh toán', opened.order_id, 'payment:' || opened.id, {paid_at}
           FROM opened JOIN (VALUES {parts}) part (kind, paid) ON part.kind = opened.kind JOIN made ON made.id = opened.order_id
                JOIN accounts AS wallet ON wallet.customer_id = made.customer_id AND wallet.kind = 'wallet'
          WHERE part.paid > 0",
        goods = due[0],
        shipping = due[1],
        service = due[2],
    )
}

const CART_ITEM: &str = "
    WITH made AS (
        INSERT INTO cart_items (id, customer_id, product_ref, product_name, quantity)
        SELECT gen_random_uuid(), ($3::uuid[])[1 + n % cardinality($3::uuid[])], 'sp-' || n,
               (ARRAY['Áo khoác nữ','Tai nghe','Giày thể thao','Ốp lưng','Nồi chiên'])[1 + floor(random() * 5)::int], 1 + n % 3
          FROM generate_series(1, $2::int) n RETURNING id)
    INSERT INTO demo (subject, situation) SELECT id, $1 FROM made";

const NOTHING: &str = "
    WITH made AS (
        INSERT INTO demo (subject, situation) SELECT gen_random_uuid(), $1 FROM generate_series(1, $2::bigint) WHERE cardinality($3::uuid[]) = 0
        RETURNING subject)
    INSERT INTO outbox (event_type, subject_id) SELECT 'order.shipped', subject FROM made";

/// Runs the later acts of the order system, its staff and its customers.
pub async fn go_on(actors: &Actors) -> Result<()> {
    for situation in SITUATIONS {
        let db = actors.of(situation);
        for (step, act) in situation.acts.iter().enumerate() {
            let sql = format!(
                "WITH chosen AS MATERIALIZED (
                     SELECT d.subject FROM demo d LEFT JOIN orders o ON o.id = d.subject LEFT JOIN cart_items i ON i.id = d.subject
                      WHERE d.situation = $1 AND d.step = $2 AND {} ORDER BY d.subject LIMIT {CHUNK}
                 ), {}
                 UPDATE demo SET step = step + 1 FROM chosen WHERE demo.subject = chosen.subject",
                act.when, act.what
            );
            loop {
                match db.execute_raw(statement(&sql, [situation.name.into(), i32::try_from(step)?.into()])).await {
                    Ok(done) if done.rows_affected() == 0 => break,
                    Ok(_) => {}
                    // A worker was changing the same rows: retry, as every client of a database must.
                    Err(error) if trouble(&error) == Trouble::Conflict => {}
                    Err(error) => return Err(error).with_context(|| format!("{}, step {step}", situation.name)),
                }
            }
        }
    }
    Ok(())
}

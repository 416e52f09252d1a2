//! The situations of the policy: how a row gets into one, what the order system does to it later, the expected result, and when it was due.

use anyhow::{Context, Result};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use shared::database::statement;

/// Đồng for goods, shipping (PVC) and service.
pub struct OrderMoney {
    pub due: [i64; 3],
    pub paid: [i64; 3],
}

/// How a row begins.
pub enum RowStart {
    /// An order of a wealthy customer, whose status begins now.
    Order {
        status: &'static str,
        parcel: bool,
        money: OrderMoney,
    },
    /// An order of its own customer with the given wallet balance.
    OrderOfPoorCustomer {
        wallet: i64,
        money: OrderMoney,
    },
    /// An order whose six months without activity end on day 20; its last activity was that it was received.
    OldOrder {
        on_hold: bool,
        money: OrderMoney,
    },
    CartItem,
    /// No row at all: an event about an order that does not exist.
    Nothing,
}

/// The day on which the six months of an old order end.
pub const OLD_ON_DAY: u32 = 20;

pub struct DemoSituation {
    /// The name, in the words of Baogam's staff.
    pub name: &'static str,
    /// How many per hundred orders.
    pub share: u32,
    pub make: RowStart,
    /// The later acts of the order system.
    pub acts: &'static [DemoAct],
    /// The expected result, for the report.
    pub expected: &'static str,
    /// SQL: whether the result is as expected. `d`: the demo's own table; `o`: the order or `i`: the item, null if there is none.
    pub right: &'static str,
    /// SQL: when it was done minus when it was due, as an interval; null if nothing was to be done.
    pub late: &'static str,
}

/// One act of the order system.
pub struct DemoAct {
    /// SQL on `o` or `i`: the time from which the act happens.
    pub when: &'static str,
    /// SQL: CTEs over the `chosen (subject)` of one step.
    pub what: &'static str,
}

/// 1.5 million for goods, 120,000 for shipping, 45,000 for service, all paid.
const PAID: OrderMoney = OrderMoney { due: [1_500_000, 120_000, 45_000], paid: [1_500_000, 120_000, 45_000] };

const BY_ITSELF: &str = "(SELECT count(*) FROM order_status_history h WHERE h.order_id = o.id AND h.reason = 'confirm-receipt')";
const COLLECTED: &str = "(SELECT coalesce(sum(amount), 0) FROM transfers t WHERE t.order_id = o.id AND t.reason = 'arrears')";

/// When the six months of an old order end. `greatest` is needed because months differ in length: on the 31st of August and a few other
/// days, the computed end lies before the order was made.
const OLD: &str = "greatest(d.made_at,
    (o.received_at AT TIME ZONE 'Asia/Ho_Chi_Minh' + interval '6 months') AT TIME ZONE 'Asia/Ho_Chi_Minh')";

/// Expands the recurring conditions in a statement.
pub fn spelled(sql: &str) -> String {
    sql.replace("{by_itself}", BY_ITSELF)
        .replace("{collected}", COLLECTED)
        .replace("{paid}", "(SELECT bool_and(a.balance = part.due) FROM (VALUES ('goods', o.goods_due), ('shipping', o.shipping_due), ('service', o.service_due)) part (kind, due) JOIN accounts a ON a.order_id = o.id AND a.kind = part.kind)")
        .replace("{received}", "o.status = 'received' AND {by_itself} = 1 AND o.received_at >= o.delivering_since + interval '14 s'".replace("{by_itself}", BY_ITSELF).as_str())
        .replace("{late_receipt}", "o.received_at - (o.delivering_since + interval '14 s')")
        .replace("{old}", OLD)
        .replace("{first_charge}", "(SELECT min(at) FROM transfers t WHERE t.order_id = o.id AND t.reason = 'arrears')")
}

pub static SITUATIONS: &[DemoSituation] = &[
    DemoSituation {
        name: "Đang giao, khách không xác nhận",
        share: 25,
        make: RowStart::Order { status: "delivering", parcel: true, money: PAID },
        acts: &[],
        expected: "«Khách nhận hàng» on day 14, nothing collected",
        right: "{received} AND {collected} = 0",
        late: "{late_receipt}",
    },
    DemoSituation {
        name: "Đang giao, khách tự xác nhận ngày 5",
        share: 12,
        make: RowStart::Order { status: "delivering", parcel: true, money: PAID },
        acts: &[DemoAct {
            when: "o.delivering_since < now() - interval '5 s'",
            what: "confirmed AS (UPDATE orders SET status = 'received', received_at = now(), updated_at = now() FROM chosen
                    WHERE id = subject AND status = 'delivering' RETURNING id),
                   noted AS (INSERT INTO order_status_history (order_id, from_status, to_status, reason)
                    SELECT id, 'delivering', 'received', 'khách xác nhận' FROM confirmed)",
        }],
        expected: "left as the customer confirmed it",
        right: "o.status = 'received' AND {by_itself} = 0 AND o.received_at < o.delivering_since + interval '14 s' AND {collected} = 0",
        late: "NULL::interval",
    },
    DemoSituation {
        name: "Đang giao, hủy ngày 3",
        share: 4,
        make: RowStart::Order { status: "delivering", parcel: true, money: PAID },
        acts: &[DemoAct {
            when: "o.delivering_since < now() - interval '3 s'",
            what: "cancelled AS (UPDATE orders SET status = 'cancelled', updated_at = now() FROM chosen WHERE id = subject)",
        }],
        expected: "left «Đã hủy»",
        right: "o.status = 'cancelled' AND {by_itself} = 0 AND {collected} = 0",
        late: "NULL::interval",
    },
    DemoSituation {
        name: "Giao lại từ ngày 7",
        share: 5,
        make: RowStart::Order { status: "delivering", parcel: true, money: PAID },
        acts: &[DemoAct {
            when: "o.delivering_since < now() - interval '7 s'",
            what: "again AS (UPDATE orders SET delivering_since = now(), updated_at = now() FROM chosen WHERE id = subject)",
        }],
        expected: "«Khách nhận hàng» 14 days after the second start",
        right: "d.step = 1 AND {received}",
        late: "{late_receipt}",
    },
    DemoSituation {
        name: "Thiếu tiền hàng",
        share: 8,
        make: RowStart::Order {
            status: "delivering",
            parcel: true,
            money: OrderMoney { due: [1_500_000, 120_000, 45_000], paid: [900_000, 120_000, 45_000] },
        },
        acts: &[],
        expected: "600.000 ₫ of goods collected a day later, received on day 14",
        right: "{collected} = 600000 AND {paid} AND {received}",
        late: "{first_charge} - (o.delivering_since + interval '1 s')",
    },
    DemoSituation {
        name: "Cân lại ngày 2, thiếu PVC",
        share: 6,
        make: RowStart::Order { status: "delivering", parcel: true, money: PAID },
        acts: &[DemoAct {
            when: "o.delivering_since < now() - interval '2 s'",
            what: "weighed AS (UPDATE orders SET shipping_due = shipping_due + 85000, fees_changed_at = now() FROM chosen WHERE id = subject)",
        }],
        expected: "85.000 ₫ of shipping collected a day after the change",
        right: "{collected} = 85000 AND {paid} AND {received}",
        late: "{first_charge} - (o.fees_changed_at + interval '1 s')",
    },
    DemoSituation {
        name: "Phí dịch vụ tăng, khách trả một nửa",
        share: 5,
        make: RowStart::Order { status: "delivering", parcel: true, money: PAID },
        acts: &[DemoAct {
            when: "o.delivering_since < now() - interval '2 s'",
            what: "raised AS (UPDATE orders SET service_due = service_due + 80000, fees_changed_at = now() FROM chosen WHERE id = subject RETURNING id),
                   half AS (INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key)
                    SELECT demo_wallet(id), demo_account('service', id), 40000, 'khách trả', id, 'half:' || id FROM raised)",
        }],
        expected: "the other 40.000 ₫ of service collected",
        right: "{collected} = 40000 AND {paid} AND {received}",
        late: "{first_charge} - (o.fees_changed_at + interval '1 s')",
    },
    DemoSituation {
        name: "Đã nhận, đủ tiền",
        share: 10,
        make: RowStart::Order { status: "received", parcel: true, money: PAID },
        acts: &[],
        expected: "nothing",
        right: "o.status = 'received' AND {by_itself} = 0 AND {collected} = 0 AND {paid}",
        late: "NULL::interval",
    },
    DemoSituation {
        name: "Chuyển nhầm Hết hàng, đã hoàn tiền",
        share: 4,
        make: RowStart::Order { status: "in_warehouse", parcel: true, money: PAID },
        acts: &[DemoAct { when: "o.created_at < now() - interval '2 s'", what: OUT_OF_STOCK }],
        expected: "back to «Về kho VN», the refund of 1.500.000 ₫ collected",
        right: "d.step = 1 AND o.status = 'in_warehouse' AND {collected} = 1500000 AND {paid}",
        late: "{first_charge} - ((SELECT max(at) FROM order_status_history h WHERE h.order_id = o.id AND h.to_status = 'out_of_stock') + interval '1 s')",
    },
    DemoSituation {
        name: "Chuyển nhầm Hết hàng khi đang giao",
        share: 3,
        make: RowStart::Order { status: "delivering", parcel: true, money: PAID },
        acts: &[DemoAct { when: "o.created_at < now() - interval '2 s'", what: OUT_OF_STOCK }],
        expected: "back to «Đang giao», the refund collected, received on day 14",
        right: "d.step = 1 AND {received} AND {collected} = 1500000 AND {paid}",
        late: "{late_receipt}",
    },
    DemoSituation {
        name: "Hết hàng thật, đã hoàn tiền",
        share: 4,
        make: RowStart::Order { status: "in_warehouse", parcel: false, money: PAID },
        acts: &[DemoAct { when: "o.created_at < now() - interval '2 s'", what: OUT_OF_STOCK }],
        expected: "left «Hết hàng», nothing collected",
        right: "d.step = 1 AND o.status = 'out_of_stock' AND {collected} = 0",
        late: "NULL::interval",
    },
    DemoSituation {
        name: "Hết hàng nhầm, nhân viên sửa ngay",
        share: 2,
        make: RowStart::Order { status: "in_warehouse", parcel: true, money: PAID },
        acts: &[
            DemoAct {
                when: "o.created_at < now() - interval '2 s'",
                what: "out AS (UPDATE orders SET status = 'out_of_stock', out_of_stock_since = now() FROM chosen WHERE id = subject)",
            },
            DemoAct {
                when: "true",
                what: "back AS (UPDATE orders SET status = 'in_warehouse', out_of_stock_since = NULL FROM chosen WHERE id = subject)",
            },
        ],
        expected: "nothing",
        right: "d.step = 2 AND o.status = 'in_warehouse' AND {collected} = 0
                AND NOT EXISTS (SELECT FROM order_status_history h WHERE h.order_id = o.id AND h.wakeup_id IS NOT NULL)",
        late: "NULL::interval",
    },
    DemoSituation {
        name: "Ví chạm mức sàn",
        share: 2,
        make: RowStart::OrderOfPoorCustomer { wallet: 100_000, money: OrderMoney { due: [1_000_000, 0, 0], paid: [0, 0, 0] } },
        acts: &[],
        expected: "600.000 ₫ collected, 400.000 ₫ outstanding and tried again",
        right: "{collected} = 600000 AND (SELECT balance FROM accounts WHERE id = demo_wallet(o.id)) = -500000
                AND (SELECT outstanding FROM arrears_outstanding a WHERE a.order_id = o.id) = 400000 AND {received}",
        late: "{first_charge} - (o.delivering_since + interval '1 s')",
    },
    DemoSituation {
        name: "Ví chạm mức sàn, khách nạp ngày 6",
        share: 2,
        make: RowStart::OrderOfPoorCustomer { wallet: 100_000, money: OrderMoney { due: [1_000_000, 0, 0], paid: [0, 0, 0] } },
        acts: &[DemoAct {
            when: "o.delivering_since < now() - interval '6 s'",
            what: "paid_in AS (INSERT INTO transfers (debit_account, credit_account, amount, reason, idempotency_key)
                    SELECT (SELECT id FROM accounts WHERE kind = 'outside'), demo_wallet(subject), 2000000, 'nạp ví', 'more:' || subject FROM chosen)",
        }],
        expected: "600.000 ₫ first, the other 400.000 ₫ once paid in",
        right: "d.step = 1 AND {collected} = 1000000 AND {paid} AND NOT EXISTS (SELECT FROM arrears_outstanding a WHERE a.order_id = o.id) AND {received}",
        late: "{late_receipt}",
    },
    DemoSituation {
        name: "Sự kiện gửi ba lần",
        share: 3,
        make: RowStart::Order { status: "delivering", parcel: true, money: PAID },
        acts: &[DemoAct {
            when: "true",
            what: "again AS (INSERT INTO outbox (event_type, subject_id) SELECT 'order.shipped', subject FROM chosen, generate_series(1, 2))",
        }],
        expected: "«Khách nhận hàng» on day 14, once",
        right: "{received} AND {collected} = 0",
        late: "{late_receipt}",
    },
    DemoSituation {
        name: "Sáu tháng không có tin gì",
        share: 3,
        make: RowStart::OldOrder { on_hold: false, money: PAID },
        acts: &[],
        expected: "off the views on day 20, and whole",
        right: "o.hidden_at >= {old} AND o.status = 'received' AND {paid} AND {collected} = 0
                AND NOT EXISTS (SELECT FROM orders_online WHERE orders_online.id = o.id)
                AND (SELECT count(*) FROM activity a WHERE a.subject_id = o.id AND a.action = 'order.hidden') = 1",
        late: "o.hidden_at - {old}",
    },
    DemoSituation {
        name: "Sáu tháng, còn khiếu nại",
        share: 1,
        make: RowStart::OldOrder { on_hold: true, money: PAID },
        acts: &[],
        expected: "kept on line",
        right: "o.hidden_at IS NULL AND EXISTS (SELECT FROM orders_online WHERE orders_online.id = o.id)",
        late: "NULL::interval",
    },
    DemoSituation {
        name: "Sáu tháng, khách hỏi lại ngày 10",
        share: 1,
        make: RowStart::OldOrder { on_hold: false, money: PAID },
        acts: &[DemoAct {
            when: "d.made_at < now() - interval '10 s'",
            what: "asked AS (INSERT INTO order_messages (order_id, author, body) SELECT subject, 'khách', 'Cho hỏi lại đơn này ạ' FROM chosen)",
        }],
        expected: "on line for six months more",
        right: "d.step = 1 AND o.hidden_at IS NULL",
        late: "NULL::interval",
    },
    DemoSituation {
        name: "Sự kiện của đơn không tồn tại",
        share: 1,
        make: RowStart::Nothing,
        acts: &[],
        expected: "set aside with a reason",
        right: "(SELECT count(*) FROM set_aside s WHERE s.subject_id = d.subject) = 1",
        late: "NULL::interval",
    },
    DemoSituation {
        name: "Trong giỏ 30 ngày, không đặt",
        share: 20,
        make: RowStart::CartItem,
        acts: &[],
        expected: "deleted on day 30, recorded once",
        right: "i.id IS NULL AND (SELECT count(*) FROM activity a WHERE a.subject_id = d.subject AND a.action = 'cart_item.purged') = 1",
        late: "(SELECT a.at - ((a.detail ->> 'added_at')::timestamptz + interval '30 s') FROM activity a WHERE a.subject_id = d.subject)",
    },
    DemoSituation {
        name: "Trong giỏ, đặt hàng ngày 10",
        share: 8,
        make: RowStart::CartItem,
        acts: &[DemoAct {
            when: "i.added_at < now() - interval '10 s'",
            what: "ordered AS (UPDATE cart_items SET order_id = (SELECT id FROM orders LIMIT 1) FROM chosen WHERE id = subject)",
        }],
        expected: "kept",
        right: "i.id IS NOT NULL",
        late: "NULL::interval",
    },
    DemoSituation {
        name: "Trong giỏ, khách tự xóa ngày 4",
        share: 5,
        make: RowStart::CartItem,
        acts: &[DemoAct {
            when: "i.added_at < now() - interval '4 s'",
            what: "gone AS (DELETE FROM cart_items USING chosen WHERE id = subject)",
        }],
        expected: "nothing to delete, nothing recorded",
        right: "i.id IS NULL AND NOT EXISTS (SELECT FROM activity a WHERE a.subject_id = d.subject)",
        late: "NULL::interval",
    },
];

/// Staff set the order to out of stock and refund its goods, in one transaction.
const OUT_OF_STOCK: &str = "noted AS (INSERT INTO order_status_history (order_id, from_status, to_status, reason)
     SELECT id, status, 'out_of_stock', 'nhân viên' FROM orders JOIN chosen ON id = subject),
    out AS (UPDATE orders SET status = 'out_of_stock', out_of_stock_since = now(), updated_at = now() FROM chosen WHERE id = subject RETURNING id),
    refunded AS (INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key)
     SELECT demo_account('goods', id), demo_wallet(id), 1500000, 'hoàn tiền', id, 'refund:' || id FROM out)";

/// The rows of a situation, each with its order or item.
const ROWS: &str =
    "FROM demo d LEFT JOIN orders o ON o.id = d.subject LEFT JOIN cart_items i ON i.id = d.subject WHERE d.situation = $1";

/// The results of a situation's rows.
pub struct CheckedRows {
    pub all: i64,
    pub right: i64,
    /// Some of the wrong rows.
    pub wrong: Vec<String>,
}

impl DemoSituation {
    pub async fn check(&self, db: &DatabaseConnection) -> Result<CheckedRows> {
        let right = format!("coalesce(({}), false)", spelled(self.right));
        let sql = format!(
            "SELECT count(*) AS all, count(*) FILTER (WHERE {right}) AS right,
                    (array_agg(d.subject::text) FILTER (WHERE NOT {right}))[1:3] AS wrong {ROWS}"
        );
        let row = db.query_one_raw(statement(&sql, [self.name.into()])).await.context(self.name)?.context("no row")?;
        let wrong: Option<Vec<String>> = row.try_get("", "wrong")?;
        Ok(CheckedRows { all: row.try_get("", "all")?, right: row.try_get("", "right")?, wrong: wrong.unwrap_or_default() })
    }

    /// SQL: a subquery of the rows' lateness in milliseconds.
    pub fn lateness_sql(&self) -> String {
        let rows = ROWS.replace("$1", &format!("'{}'", self.name));
        format!("SELECT extract(epoch FROM {})::float8 * 1000 AS late {rows}", spelled(self.late))
    }
}

/// Whether every row of every situation is right.
pub async fn all_right(db: &DatabaseConnection) -> Result<bool> {
    for situation in SITUATIONS {
        let found = situation.check(db).await?;
        if found.right != found.all {
            return Ok(false);
        }
    }
    Ok(true)
}

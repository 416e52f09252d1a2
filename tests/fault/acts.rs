//! The acts of the order system, its staff and its customers on the rows while the fleet works on them. Each act locks its rows, and then
//! changes them and the book in one transaction, so the book is right in either order of act and fleet.

use anyhow::Result;
use sea_orm::{ConnectionTrait, DatabaseConnection, TransactionTrait};
use shared::database::statement;
use uuid::Uuid;

/// How many rows one transaction acts on.
const CHUNK: i64 = 100;

pub struct FaultAct {
    /// The table of the rows.
    situations: &'static [&'static str],
    table: &'static str,
    /// SQL that changes the rows `$1`, which are locked, and the book.
    sql: &'static str,
}

/// Acts that happen once to every row of their situation, a second after it was made.
pub static MEANWHILE: &[FaultAct] = &[
    FaultAct {
        situations: &["confirms-himself"],
        table: "orders",
        sql: "WITH done AS (
                  UPDATE orders SET status = 'received', received_at = now(), updated_at = now()
                   WHERE id = ANY($1) AND status = 'delivering' RETURNING id
              ), noted AS (
                  INSERT INTO order_status_history (order_id, from_status, to_status, reason)
                  SELECT id, 'delivering', 'received', 'khách xác nhận' FROM done
              ), told AS (
                  INSERT INTO outbox (event_type, subject_id) SELECT 'order.received', id FROM done
              )
              UPDATE fault_expected SET times = 0 FROM done WHERE subject = done.id AND kind = 'confirm-receipt'",
    },
    FaultAct {
        situations: &["cancels"],
        table: "orders",
        // Staff do not cancel orders whose arrears are already collected.
        sql: "WITH done AS (
                  UPDATE orders SET status = 'cancelled', updated_at = now()
                   WHERE id = ANY($1) AND status = 'delivering'
                     AND NOT EXISTS (SELECT FROM transfers WHERE transfers.order_id = orders.id AND reason = 'arrears')
                  RETURNING id
              ), noted AS (
                  INSERT INTO order_status_history (order_id, from_status, to_status, reason)
                  SELECT id, 'delivering', 'cancelled', 'khách hủy' FROM done
              ), booked AS (
                  UPDATE fault_book SET final = 'cancelled' FROM done WHERE subject = done.id
              )
              UPDATE fault_expected SET times = 0, amount = NULL FROM done WHERE subject = done.id",
    },
    FaultAct {
        situations: &["ordered-from-cart"],
        table: "cart_items",
        sql: "WITH done AS (
                  UPDATE cart_items SET order_id = (SELECT id FROM orders LIMIT 1) WHERE id = ANY($1) AND order_id IS NULL RETURNING id
              )
              UPDATE fault_expected SET times = 0 FROM done WHERE subject = done.id",
    },
];

/// Acts that happen repeatedly, to rows chosen at random.
pub static BUSY: &[FaultAct] = &[
    // The service fee is raised. An existing shortfall of it is collected in one charge together with the rise.
    FaultAct {
        situations: &["paid", "short"],
        table: "orders",
        sql: "WITH pending AS (
                  SELECT id, service_due > (SELECT balance FROM accounts WHERE order_id = orders.id AND kind = 'service') AS short
                    FROM orders WHERE id = ANY($1) AND status IN ('delivering', 'received')
              ), done AS (
                  UPDATE orders SET service_due = service_due + 10000, fees_changed_at = now(), updated_at = now()
                    FROM pending WHERE orders.id = pending.id RETURNING orders.id, pending.short
              ), told AS (
                  INSERT INTO outbox (event_type, subject_id) SELECT 'order.fees_changed', id FROM done
              )
              INSERT INTO fault_expected (kind, part, subject, times, amount) SELECT 'collect-arrears', 'service', id, 1, 10000 FROM done
              ON CONFLICT (subject, kind, part) DO UPDATE SET amount = fault_expected.amount + 10000,
                  times = fault_expected.times + CASE WHEN (SELECT short FROM done WHERE id = fault_expected.subject) THEN 0 ELSE 1 END",
    },
    // The customer pays the shortfall of goods.
    FaultAct {
        situations: &["short", "wrongly-out"],
        table: "orders",
        sql: "WITH done AS (
                  INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key)
                  SELECT fault_wallet(orders.id), account.id, goods_due - balance, 'khách trả', orders.id, 'paid:' || orders.id
                    FROM orders JOIN accounts AS account ON account.order_id = orders.id AND account.kind = 'goods'
                   WHERE orders.id = ANY($1) AND goods_due > balance RETURNING order_id, amount
              ), told AS (
                  INSERT INTO outbox (event_type, subject_id) SELECT 'order.fees_changed', order_id FROM done
              )
              UPDATE fault_expected SET times = times - 1, amount = nullif(fault_expected.amount - done.amount, 0)
                FROM done WHERE subject = order_id AND kind = 'collect-arrears' AND part = 'goods'",
    },
    // A parcel is recorded for an order that was out of stock by mistake.
    FaultAct {
        situations: &["really-out"],
        table: "orders",
        sql: "WITH done AS (
                  UPDATE orders SET parcel_recorded_at = now(), updated_at = now()
                   WHERE id = ANY($1) AND parcel_recorded_at IS NULL RETURNING id
              ), told AS (
                  INSERT INTO outbox (event_type, subject_id) SELECT 'order.out_of_stock', id FROM done
              ), booked AS (
                  UPDATE fault_book SET final = 'purchased' FROM done WHERE subject = done.id
              )
              INSERT INTO fault_expected (kind, part, subject, times, amount)
              SELECT 'collect-arrears', 'goods', id, 1, 1500000 FROM done UNION ALL
              SELECT 'collect-arrears', 'restored', id, 1, NULL FROM done",
    },
];

impl FaultAct {
    /// The situations whose rows it changes.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.situations.iter().map(|name| (*name).to_owned())
    }

    /// Acts once on each of some rows that are a second old; returns whether there were any.
    pub async fn meanwhile(&self, db: &DatabaseConnection) -> Result<bool> {
        let choose = "SELECT coalesce(array_agg(subject), '{}') AS chosen FROM (
                          SELECT subject FROM fault_book
                           WHERE situation = ANY($1) AND NOT acted AND at < clock_timestamp() - interval '1 s'
                           ORDER BY at, subject LIMIT $2) AS picked";
        self.act(db, choose, &[CHUNK.into()]).await
    }

    /// Acts on some rows chosen by `turn`.
    pub async fn busily(&self, db: &DatabaseConnection, turn: u32) -> Result<bool> {
        let choose = "SELECT coalesce(array_agg(subject), '{}') AS chosen FROM (
                          SELECT subject FROM fault_book WHERE situation = ANY($1) ORDER BY md5(subject::text || $2) LIMIT 20) AS picked";
        self.act(db, choose, &[turn.to_string().into()]).await
    }

    async fn act(&self, db: &DatabaseConnection, choose: &str, more: &[sea_orm::Value]) -> Result<bool> {
        let situations: Vec<String> = self.names().collect();
        let tx = db.begin().await?;
        let values = std::iter::once(situations.into()).chain(more.iter().cloned());
        let row = tx.query_one_raw(statement(choose, values)).await?;
        let chosen: Vec<Uuid> = row.map(|row| row.try_get("", "chosen")).transpose()?.unwrap_or_default();
        if chosen.is_empty() {
            return Ok(false);
        }
        // A separate statement locks the rows, so that the next one sees the changes that it waited for. The accounts follow the orders.
        let lock = format!("SELECT 1 FROM {} WHERE id = ANY($1) ORDER BY id FOR UPDATE", self.table);
        tx.execute_raw(statement(&lock, [chosen.clone().into()])).await?;
        tx.execute_raw(statement(self.sql, [chosen.clone().into()])).await?;
        tx.execute_raw(statement("UPDATE fault_book SET acted = true WHERE subject = ANY($1)", [chosen.into()])).await?;
        tx.commit().await?;
        Ok(true)
    }
}

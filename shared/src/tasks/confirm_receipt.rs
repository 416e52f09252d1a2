//! `confirm-receipt`: an order still «Đang giao» two weeks after its delivery began becomes «Khách nhận hàng» (policy point 1).
//! It only corrects the status: nothing else in the order, and nothing said about it, changes.

use crate::{
    event::EventType,
    task::{Examples, Task, Terms},
};

pub struct ConfirmReceipt;

impl Task for ConfirmReceipt {
    fn kind(&self) -> &'static str {
        "confirm-receipt"
    }

    fn table(&self) -> &'static str {
        "orders"
    }

    fn counts_from(&self) -> &'static [EventType] {
        &[EventType::OrderShipped]
    }

    fn candidates(&self) -> &'static str {
        r#"SELECT id, delivering_since AS "order.shipped" FROM orders WHERE status = 'delivering'"#
    }

    fn effect(&self, terms: &Terms<'_>) -> String {
        format!(
            "WITH asked AS (
                SELECT * FROM unnest($1::uuid[], $2::uuid[]) AS asked (id, wakeup_id)
            ), due AS (
                SELECT asked.id, asked.wakeup_id, due.due_at FROM asked JOIN {due} AS due ON due.id = asked.id
            ), received AS (
                UPDATE orders SET status = 'received', received_at = now(), updated_at = now()
                  FROM due WHERE orders.id = due.id AND orders.status = 'delivering' AND due.due_at <= now()
                RETURNING orders.id, due.wakeup_id
            ), recorded AS (
                INSERT INTO order_status_history (order_id, from_status, to_status, reason, wakeup_id)
                SELECT id, 'delivering', 'received', 'confirm-receipt', wakeup_id FROM received
            ), raised AS (
                INSERT INTO outbox (event_type, subject_id) SELECT 'order.received', id FROM received WHERE {wanted}
            )
            SELECT asked.id, received.id IS NOT NULL AS applied, due.due_at, now() AS checked_at, clock_timestamp() AS now
              FROM asked LEFT JOIN due ON due.id = asked.id LEFT JOIN received ON received.id = asked.id",
            due = terms.due(self),
            wanted = terms.wants(EventType::OrderReceived),
        )
    }

    fn examples(&self) -> Examples {
        Examples {
            due:
                "INSERT INTO orders (id, code, customer_id, status, delivering_since)
                  VALUES ($1, 'BG-' || $1::text, '00000000-0000-4000-8000-000000000001', 'delivering', now() - interval '1 year')",
            moot: "UPDATE orders SET status = 'received', received_at = now() WHERE id = $1",
            effects: "SELECT (SELECT count(*) FROM orders WHERE id = $1 AND status = 'received' AND received_at IS NOT NULL),
                             (SELECT count(*) FROM order_status_history WHERE order_id = $1 AND to_status = 'received')",
        }
    }
}

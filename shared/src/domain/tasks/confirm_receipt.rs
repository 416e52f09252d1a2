//! `confirm-receipt`: an order still «Đang giao» two weeks after its delivery began becomes «Khách nhận hàng» (policy point
//! 1). It only corrects the status: nothing else in the order, and no message about it, changes.

use crate::{domain::{event::EventType, order, task::{Check, Exampled, Examples, RecordedRows, Shown, Task, EffectTerms}}};

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

    fn effect(&self, terms: &EffectTerms) -> String {
        format!(
            "received AS (
                UPDATE orders SET status = 'received', received_at = now(), updated_at = now()
                  FROM due WHERE orders.id = due.id AND orders.status = 'delivering' AND due.due_at <= now()
                RETURNING orders.id, due.wakeup_id
            ), recorded AS (
                INSERT INTO order_status_history (order_id, from_status, to_status, reason, wakeup_id)
                SELECT id, 'delivering', 'received', 'confirm-receipt', wakeup_id FROM received
            ), raised AS (
                INSERT INTO outbox (event_type, subject_id) SELECT 'order.received', id FROM received WHERE {wanted}
            ), outcome AS (
                SELECT asked.id, received.id IS NOT NULL AS applied, due.due_at
                  FROM asked LEFT JOIN due ON due.id = asked.id LEFT JOIN received ON received.id = asked.id
            )",
            wanted = terms.wants(EventType::OrderReceived),
        )
    }
}

impl Shown for ConfirmReceipt {
    fn known_by(&self) -> Option<&'static str> {
        Some("code")
    }

    fn applies_to(&self) -> &'static str {
        "orders that are delivering"
    }

    fn shown(&self) -> &'static str {
        order::SHOWN
    }

    fn recorded(&self) -> RecordedRows {
        RecordedRows { table: "order_status_history", rows: "reason = 'confirm-receipt'" }
    }

    fn checks(&self) -> &'static [Check] {
        &[
            Check {
                // The effect sets both moments to the same now(), in an order that existed before; an order system that does
                // the same should write history. An order that was changed since cannot be recognized as ours.
                name: "received orders whose history does not say so",
                sql: "SELECT count(*) FROM orders
                       WHERE status = 'received' AND received_at = updated_at AND created_at < received_at
                         AND NOT EXISTS (SELECT FROM order_status_history AS history
                                          WHERE history.order_id = orders.id AND history.to_status = 'received'
                                            AND history.at >= coalesce(orders.delivering_since, '-infinity'))",
            },
            Check {
                // No foreign key prevents them, only triggers, which a superuser can disable.
                name: "history rows of orders that do not exist",
                sql: "SELECT count(*) FROM order_status_history AS history
                       WHERE NOT EXISTS (SELECT FROM orders WHERE orders.id = history.order_id)",
            },
            Check {
                // Staff may set an order to delivering again. So two of our rows count only if one transaction wrote both, or
                // if the history records when delivery began and does not record it again between them.
                name: "receipts recorded twice for one delivery",
                sql: "SELECT count(*)
                        FROM (SELECT order_id, id, at, lag(id) OVER earlier AS before, lag(at) OVER earlier AS before_at
                                FROM order_status_history WHERE reason = 'confirm-receipt' AND to_status = 'received'
                              WINDOW earlier AS (PARTITION BY order_id ORDER BY id)) AS ours
                             JOIN orders ON orders.id = ours.order_id
                       WHERE at = before_at
                          OR (before IS NOT NULL AND delivering_since <= before_at
                              AND EXISTS (SELECT FROM order_status_history AS history
                                           WHERE history.order_id = ours.order_id AND history.to_status = 'delivering'
                                             AND history.id < before)
                              AND NOT EXISTS (SELECT FROM order_status_history AS history
                                               WHERE history.order_id = ours.order_id AND history.to_status = 'delivering'
                                                 AND history.id BETWEEN before AND ours.id))",
            },
        ]
    }
}

impl Exampled for ConfirmReceipt {
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

//! `hide-order`: an order with no activity for six months is hidden from the active views, and stays whole (policy point 4).
//! It is never hidden a second earlier, nor while anything about it is open: its status must be final, its money settled, and
//! no hold may be on it.
//!
//! While something is open, the order counts from the current moment. So its wake-up is postponed by six months each time,
//! and still waits when the order is settled; no wake-up is needed for each status in which an order may end.

use crate::{domain::{event::EventType, order, span::Span, task::{Check, Exampled, Examples, RecordedRows, Shown, Task, EffectTerms}}};

pub struct HideOrder;

impl Task for HideOrder {
    fn kind(&self) -> &'static str {
        "hide-order"
    }

    fn table(&self) -> &'static str {
        "orders"
    }

    /// From the latest activity about the order, which is at least its recording; later activity restarts the span.
    fn counts_from(&self) -> &'static [EventType] {
        &[EventType::OrderRecorded]
    }

    fn candidates(&self) -> &'static str {
        r#"SELECT id, since, CASE WHEN settled THEN newest_at ELSE now() END AS "order.recorded"
             FROM order_retention WHERE hidden_at IS NULL"#
    }

    /// «Tối thiểu 06 tháng»: policy point 4.
    fn shortest(&self) -> Option<Span> {
        Some(Span::Months(6))
    }

    fn not_before(&self) -> Option<&'static str> {
        Some("since")
    }

    /// A transaction that writes something about an order holds a foreign key's lock on it, and this lock waits for that one.
    fn lock(&self) -> &'static str {
        "FOR UPDATE"
    }

    fn effect(&self, _: &EffectTerms) -> String {
        // No other column changes: the order, and when its latest activity was, stay as they were.
        "hidden AS (
            UPDATE orders SET hidden_at = now()
              FROM due WHERE orders.id = due.id AND orders.hidden_at IS NULL AND due.due_at <= now()
            RETURNING orders.id, due.wakeup_id
        ), recorded AS (
            INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail)
            SELECT 'system', 'order.hidden', 'order', id, jsonb_build_object('wakeup_id', wakeup_id) FROM hidden
        ), outcome AS (
            SELECT asked.id, hidden.id IS NOT NULL AS applied, due.due_at
              FROM asked LEFT JOIN due ON due.id = asked.id LEFT JOIN hidden ON hidden.id = asked.id
        )"
        .to_owned()
    }
}

impl Shown for HideOrder {
    fn known_by(&self) -> Option<&'static str> {
        Some("code")
    }

    fn applies_to(&self) -> &'static str {
        "orders in the active views; one that is not final, owes money or is on hold counts from now, and so is never due"
    }

    fn shown(&self) -> &'static str {
        order::SHOWN
    }

    fn recorded(&self) -> RecordedRows {
        RecordedRows { table: "activity", rows: "action = 'order.hidden' AND actor_kind = 'system'" }
    }

    /// An effect and its record have the same moment, that of their transaction.
    fn checks(&self) -> &'static [Check] {
        &[
            Check {
                name: "hidden orders whose activity does not say so",
                sql: "SELECT count(*) FROM orders
                       WHERE hidden_at > (SELECT since FROM activity_kept)
                         AND NOT EXISTS (SELECT FROM activity
                                          WHERE activity.subject_id = orders.id AND activity.action = 'order.hidden'
                                            AND activity.at = orders.hidden_at)",
            },
            Check {
                name: "orders hidden by record and on line without a record that they were put back",
                sql: "SELECT count(*)
                        FROM (SELECT DISTINCT ON (subject_id) subject_id, action FROM activity
                               WHERE action IN ('order.hidden', 'order.unhidden') ORDER BY subject_id, id DESC) AS last
                             JOIN orders ON orders.id = last.subject_id
                       WHERE last.action = 'order.hidden' AND orders.hidden_at IS NULL",
            },
        ]
    }
}

impl Exampled for HideOrder {
    fn examples(&self) -> Examples {
        Examples {
            due: "INSERT INTO orders (id, code, customer_id, status, delivering_since, received_at, created_at, updated_at)
                  SELECT $1, 'BG-' || $1::text, '00000000-0000-4000-8000-000000000001', 'received', ago, ago, ago, ago
                    FROM (SELECT now() - interval '1 year' AS ago) AS moment",
            moot: "DELETE FROM orders WHERE id = $1",
            effects: "SELECT (SELECT count(*) FROM orders WHERE id = $1 AND hidden_at IS NOT NULL),
                             (SELECT count(*) FROM activity WHERE subject_id = $1 AND action = 'order.hidden')",
        }
    }
}

//! `purge-cart-item`: a product that stays in the cart for 30 days without an order is deleted (policy point 2). The activity
//! that records it names neither the product nor where it is bought.

use crate::{domain::{event::EventType, task::{Check, Exampled, Examples, RecordedRows, Shown, Task, EffectTerms}}};

pub struct PurgeCartItem;

impl Task for PurgeCartItem {
    fn kind(&self) -> &'static str {
        "purge-cart-item"
    }

    fn table(&self) -> &'static str {
        "cart_items"
    }

    fn counts_from(&self) -> &'static [EventType] {
        &[EventType::CartItemAdded]
    }

    fn candidates(&self) -> &'static str {
        r#"SELECT id, added_at AS "cart.item_added" FROM cart_items WHERE order_id IS NULL"#
    }

    fn effect(&self, _: &EffectTerms) -> String {
        "purged AS (
            DELETE FROM cart_items USING due
             WHERE cart_items.id = due.id AND cart_items.order_id IS NULL AND due.due_at <= now()
            RETURNING cart_items.id, cart_items.customer_id, cart_items.quantity, cart_items.added_at, due.wakeup_id
        ), recorded AS (
            INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail)
            SELECT 'system', 'cart_item.purged', 'cart_item', id, jsonb_build_object(
                       'customer_id', customer_id, 'quantity', quantity, 'added_at', added_at, 'wakeup_id', wakeup_id)
              FROM purged
        ), outcome AS (
            SELECT asked.id, purged.id IS NOT NULL AS applied, due.due_at
              FROM asked LEFT JOIN due ON due.id = asked.id LEFT JOIN purged ON purged.id = asked.id
        )"
        .to_owned()
    }
}

impl Shown for PurgeCartItem {
    fn applies_to(&self) -> &'static str {
        "items that were not ordered"
    }

    fn shown(&self) -> &'static str {
        "SELECT jsonb_build_object(
                    'values', jsonb_build_object('quantity', quantity, 'order_id', order_id),
                    'moments', jsonb_build_object('added_at', added_at),
                    'money', '{}'::jsonb)
           FROM cart_items WHERE id = $1"
    }

    fn recorded(&self) -> RecordedRows {
        RecordedRows { table: "activity", rows: "action = 'cart_item.purged' AND actor_kind = 'system'" }
    }

    fn checks(&self) -> &'static [Check] {
        &[
            Check {
                // An item put back under its old id has a later `added_at`.
                name: "items purged by record and still there",
                sql: "SELECT count(*) FROM cart_items
                       WHERE EXISTS (SELECT FROM activity
                                      WHERE activity.subject_id = cart_items.id AND activity.action = 'cart_item.purged'
                                        AND activity.actor_kind = 'system' AND activity.at >= cart_items.added_at)",
            },
            Check {
                // Only within one stay in the cart, hence `added_at`; our sessions write moments in UTC, so their texts can
                // be compared.
                name: "items whose purge is recorded twice",
                sql: "SELECT count(*)
                        FROM (SELECT FROM activity_operations WHERE action = 'cart_item.purged' AND actor_kind = 'system'
                               GROUP BY subject_id, detail -> 'added_at' HAVING count(*) > 1) AS twice",
            },
        ]
    }
}

impl Exampled for PurgeCartItem {
    fn examples(&self) -> Examples {
        Examples {
            due: "INSERT INTO cart_items (id, customer_id, product_ref, product_name, quantity, added_at)
                  VALUES ($1, '00000000-0000-4000-8000-000000000001', 'ref', 'name', 1, now() - interval '1 year')",
            moot: "DELETE FROM cart_items WHERE id = $1",
            effects: "SELECT (SELECT count(*) FROM activity WHERE subject_id = $1 AND action = 'cart_item.purged')
                             * (SELECT 1 - count(*) FROM cart_items WHERE id = $1)",
        }
    }
}

//! `collect-arrears`: money still missing for goods, shipping (PVC) or service, or refunded by a wrong «Hết hàng», is
//! collected from the customer's wallet (policy point 3). Amounts come only from rows locked in the same transaction, so no
//! concurrent payment, refund or change of fees can make one wrong.

use crate::{domain::{event::EventType, order, task::{Check, Exampled, Examples, RecordedRows, Shown, Task, EffectTerms}}};

pub struct CollectArrears;

impl Task for CollectArrears {
    fn kind(&self) -> &'static str {
        "collect-arrears"
    }

    fn table(&self) -> &'static str {
        "orders"
    }

    fn counts_from(&self) -> &'static [EventType] {
        &[EventType::OrderShipped, EventType::OrderReceived, EventType::OrderOutOfStock, EventType::OrderFeesChanged]
    }

    /// Delivered or being delivered and short of money; or short of money in any status but cancelled or out of stock, while
    /// a try that a wallet's floor cut short is outstanding; or wrongly «Hết hàng», which is corrected even if no money is
    /// missing. A payment, and such a try, count as changes like a change of fees.
    fn candidates(&self) -> &'static str {
        r#"SELECT orders.id,
                  delivering_since AS "order.shipped",
                  received_at AS "order.received",
                  CASE WHEN status = 'out_of_stock' THEN out_of_stock_since END AS "order.out_of_stock",
                  greatest(fees_changed_at,
                           (SELECT max(at) FROM transfers WHERE transfers.order_id = orders.id),
                           (SELECT tried_at FROM arrears_outstanding WHERE arrears_outstanding.order_id = orders.id)
                  ) AS "order.fees_changed"
             FROM orders
            WHERE (status = 'out_of_stock' AND parcel_recorded_at IS NOT NULL)
               OR (status NOT IN ('out_of_stock', 'cancelled')
                   AND (status IN ('delivering', 'received')
                        OR EXISTS (SELECT FROM arrears_outstanding WHERE arrears_outstanding.order_id = orders.id))
                   AND EXISTS (
                      SELECT FROM (VALUES ('goods', goods_due), ('shipping', shipping_due), ('service', service_due)) AS part (kind, due)
                             LEFT JOIN accounts ON accounts.order_id = orders.id AND accounts.kind = part.kind
                       WHERE part.due > coalesce(accounts.balance, 0)))"#
    }

    /// Measured: docs/performance.md.
    fn batches_at_once(&self) -> Option<u16> {
        Some(2)
    }

    fn locks(&self, skip: &str) -> Vec<String> {
        // By status, which is locked by now, and not by the shortfall, which is not: an order to be left alone gets no
        // account, and an order that a concurrent refund makes short has all the accounts that it needs.
        let chargeable = "orders.id = ANY($1) AND (
                          status IN ('delivering', 'received')
                          OR (status = 'out_of_stock' AND parcel_recorded_at IS NOT NULL)
                          OR (status <> 'cancelled' AND EXISTS (
                                 SELECT FROM arrears_outstanding WHERE arrears_outstanding.order_id = orders.id)))";
        vec![
            // A component never paid into and a wallet never used have no account yet.
            format!(
                "INSERT INTO accounts (kind, order_id)
                 SELECT part.kind, orders.id
                   FROM orders CROSS JOIN LATERAL (
                            VALUES ('goods', goods_due), ('shipping', shipping_due), ('service', service_due)) AS part (kind, due)
                  WHERE {chargeable} AND part.due > 0
                    AND NOT EXISTS (SELECT FROM accounts WHERE accounts.order_id = orders.id AND accounts.kind = part.kind)
                  ORDER BY orders.id, part.kind
                 ON CONFLICT DO NOTHING"
            ),
            format!(
                "INSERT INTO accounts (kind, customer_id)
                 SELECT DISTINCT 'wallet', orders.customer_id FROM orders
                  WHERE {chargeable}
                    AND NOT EXISTS (SELECT FROM accounts WHERE accounts.customer_id = orders.customer_id AND accounts.kind = 'wallet')
                  ORDER BY orders.customer_id
                 ON CONFLICT DO NOTHING"
            ),
            // In id order, as the ledger's own trigger locks them. An array is computed once; a join would run again for each
            // wallet that another batch has changed in the meantime.
            format!(
                "WITH wanted AS MATERIALIZED (
                     SELECT id, order_id AS subject FROM accounts WHERE order_id = ANY($1)
                     UNION ALL
                     SELECT wallet.id, orders.id FROM orders JOIN accounts AS wallet
                               ON wallet.customer_id = orders.customer_id AND wallet.kind = 'wallet'
                      WHERE orders.id = ANY($1)
                 ), held AS MATERIALIZED (
                     SELECT id FROM accounts WHERE id = ANY (ARRAY(SELECT id FROM wanted)) ORDER BY id FOR NO KEY UPDATE {skip}
                 )
                 SELECT array_agg(DISTINCT subject) AS busy FROM wanted WHERE id NOT IN (SELECT id FROM held)"
            ),
        ]
    }

    fn effect(&self, terms: &EffectTerms) -> String {
        // What a wallet can still pay, after this statement's own charges for earlier deadlines.
        let amount = terms.wallet_floor.map_or("short".to_owned(), |floor| {
            format!(
                "least(short, greatest(0, wallet_balance - ({floor}) - coalesce(sum(short) OVER (
                     PARTITION BY wallet ORDER BY due_at, id, rank ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)))::bigint"
            )
        });
        let again = terms
            .span(EventType::OrderFeesChanged)
            .map_or("NULL::timestamptz".to_owned(), |span| span.sql_after("now()"));
        format!(
            include_str!("collect_arrears.sql"),
            amount = amount,
            again = again,
            wants_shipped = terms.wants(EventType::OrderShipped),
            wants_received = terms.wants(EventType::OrderReceived),
        )
    }
}

impl Shown for CollectArrears {
    fn known_by(&self) -> Option<&'static str> {
        Some("code")
    }

    fn applies_to(&self) -> &'static str {
        "orders that are short of money and delivering, received or tried before, and orders out of stock with a parcel on record"
    }

    /// The shortfalls, per component, as numerics, so that no amount written by an order system can overflow the total. How
    /// much of them a wallet's floor would leave outstanding is known only when they are collected.
    fn stake(&self) -> Option<&'static str> {
        Some(
            "SELECT orders.id, sum(part.due::numeric - coalesce(accounts.balance, 0)) AS amount
               FROM orders CROSS JOIN LATERAL (
                        VALUES ('goods', goods_due), ('shipping', shipping_due), ('service', service_due)) AS part (kind, due)
                    LEFT JOIN accounts ON accounts.order_id = orders.id AND accounts.kind = part.kind
              WHERE part.due > coalesce(accounts.balance, 0)
              GROUP BY orders.id",
        )
    }

    fn shown(&self) -> &'static str {
        order::SHOWN
    }

    fn recorded(&self) -> RecordedRows {
        RecordedRows { table: "activity", rows: "action = 'order.arrears_collected'" }
    }

    /// An effect and its records have the same moment, that of their transaction.
    fn checks(&self) -> &'static [Check] {
        &[
            Check {
                name: "charges without an activity",
                sql: "SELECT count(*) FROM transfers
                       WHERE reason = 'arrears' AND at > (SELECT since FROM activity_kept)
                         AND NOT EXISTS (SELECT FROM activity
                                          WHERE activity.subject_id = transfers.order_id AND activity.at = transfers.at
                                            AND activity.action = 'order.arrears_collected')",
            },
            Check {
                name: "activities whose amounts differ from their charges",
                sql: "SELECT count(*)
                        FROM activity_operations AS activity LEFT JOIN (
                                 SELECT order_id, at, jsonb_object_agg(kind, amount) AS amounts
                                   FROM (SELECT transfers.order_id, transfers.at, accounts.kind, sum(amount) AS amount
                                           FROM transfers JOIN accounts ON accounts.id = transfers.credit_account
                                          WHERE reason = 'arrears' AND transfers.order_id IS NOT NULL
                                          GROUP BY transfers.order_id, transfers.at, accounts.kind) AS component
                                  GROUP BY order_id, at) AS charged
                             ON charged.order_id = activity.subject_id AND charged.at = activity.at
                       WHERE action = 'order.arrears_collected' AND actor_kind = 'system'
                         AND coalesce(charged.amounts, '{}') IS DISTINCT FROM detail -> 'collected'",
            },
            Check {
                // The unique key prevents a second charge for a deadline only if it names the right order and component.
                name: "charges whose key names another order or component",
                sql: "SELECT count(*) FROM transfers JOIN accounts ON accounts.id = transfers.credit_account
                       WHERE reason = 'arrears'
                         AND NOT coalesce(
                                 accounts.order_id = transfers.order_id
                                 AND starts_with(idempotency_key, 'collect-arrears:' || transfers.order_id || ':' || accounts.kind || ':'),
                                 false)",
            },
            Check {
                name: "charges that another customer's wallet paid",
                sql: "SELECT count(*)
                        FROM transfers JOIN orders ON orders.id = transfers.order_id
                             JOIN accounts ON accounts.id = transfers.debit_account
                       WHERE reason = 'arrears'
                         AND NOT (accounts.kind = 'wallet' AND accounts.customer_id IS NOT DISTINCT FROM orders.customer_id)",
            },
            Check {
                // Only where nothing was due in another way at the time: no later change of the order is known.
                name: "charges beyond what was due",
                sql: "SELECT count(*)
                        FROM transfers AS charge JOIN orders ON orders.id = charge.order_id
                             JOIN accounts AS part ON part.id = charge.credit_account
                       WHERE charge.reason = 'arrears'
                         AND greatest(orders.updated_at, orders.changed_at, orders.fees_changed_at) <= charge.at
                         AND part.balance - coalesce((
                                 SELECT sum(CASE part.id WHEN later.credit_account THEN later.amount
                                                         WHEN later.debit_account THEN -later.amount END)
                                   FROM transfers AS later WHERE later.order_id = charge.order_id AND later.at > charge.at), 0)
                             > CASE part.kind WHEN 'goods' THEN orders.goods_due WHEN 'shipping' THEN orders.shipping_due
                                              WHEN 'service' THEN orders.service_due ELSE 0 END",
            },
            Check {
                name: "orders put back by history or by activity alone",
                sql: "SELECT count(*)
                        FROM (SELECT order_id AS id, at, to_status FROM order_status_history
                               WHERE from_status = 'out_of_stock' AND reason = 'collect-arrears: parcel on record') AS history
                             FULL JOIN (
                                 SELECT subject_id AS id, at, detail ->> 'restored_to' AS to_status FROM activity_operations
                                  WHERE action = 'order.arrears_collected' AND actor_kind = 'system'
                                    AND detail ->> 'restored_to' IS NOT NULL) AS recorded
                             USING (id, at, to_status)
                       WHERE (history.id IS NULL OR recorded.id IS NULL) AND at > (SELECT since FROM activity_kept)
                         AND NOT EXISTS (SELECT FROM deleted_orders WHERE deleted_orders.id = coalesce(history.id, recorded.id))",
            },
        ]
    }
}

impl Exampled for CollectArrears {
    fn examples(&self) -> Examples {
        Examples {
            due: "WITH made AS (
                      INSERT INTO orders (id, code, customer_id, status, out_of_stock_since, parcel_recorded_at, goods_due, service_due)
                      VALUES ($1, 'BG-' || $1::text, '00000000-0000-4000-8000-000000000001', 'out_of_stock',
                              now() - interval '1 year', now() - interval '1 year', 1500000, 75000)
                      RETURNING id)
                  INSERT INTO order_status_history (order_id, from_status, to_status, reason)
                  SELECT id, 'in_warehouse', 'out_of_stock', 'by mistake' FROM made",
            moot: "UPDATE orders SET status = 'cancelled' WHERE id = $1",
            effects: "SELECT (SELECT count(*) FROM transfers JOIN accounts ON accounts.id = credit_account
                               WHERE transfers.order_id = $1 AND accounts.kind = 'goods' AND amount = 1500000),
                             (SELECT count(*) FROM transfers JOIN accounts ON accounts.id = credit_account
                               WHERE transfers.order_id = $1 AND accounts.kind = 'service' AND amount = 75000),
                             (SELECT count(*) FROM orders WHERE id = $1 AND status = 'in_warehouse'),
                             (SELECT count(*) FROM order_status_history WHERE order_id = $1 AND to_status = 'in_warehouse'),
                             (SELECT count(*) FROM activity WHERE subject_id = $1 AND action = 'order.arrears_collected')",
        }
    }
}

//! `collect-arrears`: money still missing for goods, shipping (PVC) or service, or lost to a wrong «Hết hàng», is collected
//! from the customer's wallet (policy point 3). Amounts come only from rows locked in the same transaction, so no payment,
//! refund or change of fees beside it can make one wrong.

use crate::{
    event::EventType,
    order,
    task::{Check, Examples, Recorded, Task, Terms, locked},
};

pub struct CollectArrears;

impl Task for CollectArrears {
    fn kind(&self) -> &'static str {
        "collect-arrears"
    }

    fn table(&self) -> &'static str {
        "orders"
    }

    fn known_by(&self) -> Option<&'static str> {
        Some("code")
    }

    fn applies_to(&self) -> &'static str {
        "orders that are short of money and delivering, received or tried before, and orders out of stock with a parcel on record"
    }

    fn counts_from(&self) -> &'static [EventType] {
        &[EventType::OrderShipped, EventType::OrderReceived, EventType::OrderOutOfStock, EventType::OrderFeesChanged]
    }

    /// Delivered or being delivered and short of money; in any status, while a try that a wallet's floor cut short is
    /// outstanding; or wrongly «Hết hàng», which is put right even where no money is missing. A payment, and such a try, are
    /// changes like that of a fee.
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

    /// The shortfalls, each component's for itself, as numerics: no amount that an order system wrote can end a count of all. How
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

    /// Measured: docs/performance.md.
    fn batches_at_once(&self) -> Option<u16> {
        Some(2)
    }

    fn locks(&self) -> Vec<String> {
        // By status, which is locked by now, and not by what is short, which is not: an order that is to be left alone gets no
        // account, and one that a refund makes short at this moment has all that it needs.
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
            // In id order, as the ledger's own trigger locks them. An array is found once; a join would be run again for each wallet that
            // another batch has changed in the meantime.
            locked(
                "SELECT accounts.id FROM accounts
                  WHERE accounts.id = ANY (ARRAY(
                            SELECT id FROM accounts WHERE order_id = ANY($1)
                            UNION ALL
                            SELECT wallet.id FROM orders JOIN accounts AS wallet
                                      ON wallet.customer_id = orders.customer_id AND wallet.kind = 'wallet'
                             WHERE orders.id = ANY($1)))
                  ORDER BY accounts.id FOR NO KEY UPDATE",
            ),
        ]
    }

    fn effect(&self, terms: &Terms<'_>) -> String {
        // What a wallet can still give, after what this statement already takes from it for earlier deadlines.
        let amount = terms.wallet_floor.map_or("short".to_owned(), |floor| {
            format!(
                "least(short, greatest(0, wallet_balance - ({floor}) - coalesce(sum(short) OVER (
                     PARTITION BY wallet ORDER BY due_at, id, rank ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)))::bigint"
            )
        });
        let again = terms
            .policy
            .span(self, EventType::OrderFeesChanged)
            .map_or("NULL::timestamptz".to_owned(), |span| span.sql_after("now()"));
        format!(
            "ripe AS MATERIALIZED (
                SELECT due.*, orders.customer_id, orders.status, orders.goods_due, orders.shipping_due, orders.service_due,
                       orders.delivering_since
                  FROM due JOIN orders ON orders.id = due.id WHERE due.due_at <= now()
            ), owed AS (
                SELECT ripe.id, ripe.wakeup_id, ripe.due_at, part.kind, part.rank, part.due - coalesce(account.balance, 0) AS short,
                       account.id AS account, wallet.id AS wallet, wallet.balance AS wallet_balance
                  FROM ripe CROSS JOIN LATERAL (VALUES
                           ('goods', ripe.goods_due, 1), ('shipping', ripe.shipping_due, 2), ('service', ripe.service_due, 3)
                       ) AS part (kind, due, rank)
                       -- Both are there, see the locks; if one were not, the money is outstanding and not collected.
                       LEFT JOIN accounts AS account ON account.order_id = ripe.id AND account.kind = part.kind
                       LEFT JOIN accounts AS wallet ON wallet.customer_id = ripe.customer_id AND wallet.kind = 'wallet'
                 WHERE part.due > coalesce(account.balance, 0)
            ), charge AS MATERIALIZED (
                SELECT owed.*, CASE WHEN account IS NULL OR wallet IS NULL THEN 0 ELSE {amount} END AS amount FROM owed
            ), charged AS (
                INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key)
                SELECT wallet, account, amount, 'arrears', id,
                       -- One charge per component and deadline: a second one is refused by the key itself.
                       'collect-arrears:' || id || ':' || kind || ':' || to_char(due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US')
                  FROM charge WHERE amount > 0
            ), result AS MATERIALIZED (
                SELECT ripe.id, ripe.wakeup_id, ripe.status, ripe.delivering_since,
                       coalesce(sum(charge.amount), 0)::bigint AS collected,
                       coalesce(sum(charge.short - charge.amount), 0)::bigint AS outstanding,
                       jsonb_object_agg(charge.kind, charge.amount) FILTER (WHERE charge.amount > 0) AS amounts
                  FROM ripe LEFT JOIN charge ON charge.id = ripe.id
                 GROUP BY ripe.id, ripe.wakeup_id, ripe.status, ripe.delivering_since
            ), mistake AS MATERIALIZED (
                SELECT result.id, result.wakeup_id, result.delivering_since, coalesce(
                           (SELECT from_status FROM order_status_history AS history
                             WHERE history.order_id = result.id AND history.to_status = 'out_of_stock'
                               AND history.from_status NOT IN ('out_of_stock', 'cancelled')
                             ORDER BY history.id DESC LIMIT 1),
                           -- No history: a parcel on record says that the goods reached the warehouse.
                           'in_warehouse') AS before
                  FROM result WHERE result.status = 'out_of_stock'
            ), restored AS (
                UPDATE orders SET
                       -- Being delivered needs the moment it began; without one the goods are in the warehouse.
                       status = CASE WHEN mistake.before = 'delivering' AND orders.delivering_since IS NULL
                                     THEN 'in_warehouse' ELSE mistake.before END,
                       out_of_stock_since = NULL, updated_at = now()
                  FROM mistake WHERE orders.id = mistake.id AND orders.status = 'out_of_stock'
                RETURNING orders.id, orders.status, orders.delivering_since, orders.received_at, mistake.wakeup_id
            ), history AS (
                INSERT INTO order_status_history (order_id, from_status, to_status, reason, wakeup_id)
                SELECT id, 'out_of_stock', status, 'collect-arrears: parcel on record', wakeup_id FROM restored
            ), raised AS (
                -- What its old wake-ups found out of stock has to be woken again, counted from the old moments.
                INSERT INTO outbox (event_type, subject_id, occurred_at)
                SELECT 'order.shipped', id, delivering_since FROM restored WHERE status = 'delivering' AND {wants_shipped}
                UNION ALL
                SELECT 'order.received', id, coalesce(received_at, now()) FROM restored WHERE status = 'received' AND {wants_received}
            ), outstanding AS (
                INSERT INTO arrears_outstanding (order_id, outstanding, tried_at)
                SELECT id, outstanding, now() FROM result WHERE outstanding > 0
                ON CONFLICT (order_id) DO UPDATE SET outstanding = EXCLUDED.outstanding, tried_at = EXCLUDED.tried_at
            ), settled AS (
                -- Collected now, or paid, refunded or cancelled by others meanwhile: no candidate any more.
                DELETE FROM arrears_outstanding USING asked
                 WHERE arrears_outstanding.order_id = asked.id
                   AND (NOT EXISTS (SELECT FROM due WHERE due.id = asked.id)
                        OR EXISTS (SELECT FROM result WHERE result.id = asked.id AND result.outstanding = 0))
            ), recorded AS (
                INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail)
                SELECT 'system', 'order.arrears_collected', 'order', result.id, jsonb_build_object(
                           'collected', coalesce(result.amounts, '{{}}'), 'outstanding', result.outstanding,
                           'restored_to', restored.status, 'wakeup_id', result.wakeup_id)
                  FROM result LEFT JOIN restored ON restored.id = result.id
                 WHERE result.collected > 0 OR restored.id IS NOT NULL
            ), outcome AS (
                SELECT asked.id, result.id IS NOT NULL AND result.outstanding = 0 AS applied,
                       CASE WHEN result.outstanding > 0 THEN {again} ELSE due.due_at END AS due_at
                  FROM asked LEFT JOIN due ON due.id = asked.id LEFT JOIN result ON result.id = asked.id
            )",
            wants_shipped = terms.wants(EventType::OrderShipped),
            wants_received = terms.wants(EventType::OrderReceived),
        )
    }

    fn shown(&self) -> &'static str {
        order::SHOWN
    }

    fn recorded(&self) -> Recorded {
        Recorded { table: "activity", rows: "action = 'order.arrears_collected'" }
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
                // The key is unique, so what it says of order and component is what keeps a deadline from being charged twice.
                name: "charges whose key names another order or component",
                sql: "SELECT count(*) FROM transfers JOIN accounts ON accounts.id = transfers.credit_account
                       WHERE reason = 'arrears'
                         AND NOT coalesce(
                                 accounts.order_id = transfers.order_id
                                 AND starts_with(idempotency_key, 'collect-arrears:' || transfers.order_id || ':' || accounts.kind || ':'),
                                 false)",
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

-- The effect of collect-arrears, which follows `asked` and `due`. collect_arrears.rs fills in the names in single braces; a
-- brace of SQL is doubled.
ripe AS MATERIALIZED (
    SELECT due.*, orders.customer_id, orders.status, orders.goods_due, orders.shipping_due, orders.service_due,
           orders.delivering_since
      FROM due JOIN orders ON orders.id = due.id WHERE due.due_at <= now()
), owed AS (
    SELECT ripe.id, ripe.wakeup_id, ripe.due_at, part.kind, part.rank, part.due - coalesce(account.balance, 0) AS short,
           account.id AS account, wallet.id AS wallet, wallet.balance AS wallet_balance
      FROM ripe CROSS JOIN LATERAL (VALUES
               ('goods', ripe.goods_due, 1), ('shipping', ripe.shipping_due, 2), ('service', ripe.service_due, 3)
           ) AS part (kind, due, rank)
           -- Both exist, see the locks; without one of them, the money is outstanding and not collected.
           LEFT JOIN accounts AS account ON account.order_id = ripe.id AND account.kind = part.kind
           LEFT JOIN accounts AS wallet ON wallet.customer_id = ripe.customer_id AND wallet.kind = 'wallet'
     WHERE part.due > coalesce(account.balance, 0)
), charge AS MATERIALIZED (
    SELECT owed.*, CASE WHEN account IS NULL OR wallet IS NULL THEN 0 ELSE {amount} END AS amount FROM owed
), charged AS (
    INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key)
    SELECT wallet, account, amount, 'arrears', id,
           -- One charge per component and deadline: the unique key refuses a second one.
           'collect-arrears:' || id || ':' || kind || ':' || to_char(due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US')
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
               -- No history: a parcel on record means that the goods reached the warehouse.
               'in_warehouse') AS before
      FROM result WHERE result.status = 'out_of_stock'
), restored AS (
    UPDATE orders SET
           -- An order being delivered needs the moment delivery began; without one the goods are in the warehouse.
           status = CASE WHEN mistake.before = 'delivering' AND orders.delivering_since IS NULL
                         THEN 'in_warehouse' ELSE mistake.before END,
           out_of_stock_since = NULL, updated_at = now()
      FROM mistake WHERE orders.id = mistake.id AND orders.status = 'out_of_stock'
    RETURNING orders.id, orders.status, orders.delivering_since, orders.received_at, mistake.wakeup_id
), history AS (
    INSERT INTO order_status_history (order_id, from_status, to_status, reason, wakeup_id)
    SELECT id, 'out_of_stock', status, 'collect-arrears: parcel on record', wakeup_id FROM restored
), raised AS (
    -- The old wake-ups found the order out of stock, so its events are raised again, with the old moments.
    INSERT INTO outbox (event_type, subject_id, occurred_at)
    SELECT 'order.shipped', id, delivering_since FROM restored WHERE status = 'delivering' AND {wants_shipped}
    UNION ALL
    SELECT 'order.received', id, coalesce(received_at, now()) FROM restored WHERE status = 'received' AND {wants_received}
), outstanding AS (
    INSERT INTO arrears_outstanding (order_id, outstanding, tried_at)
    SELECT id, outstanding, now() FROM result WHERE outstanding > 0
    ON CONFLICT (order_id) DO UPDATE SET outstanding = EXCLUDED.outstanding, tried_at = EXCLUDED.tried_at
), settled AS (
    -- Collected now, or paid, refunded or cancelled by others meanwhile: no longer a candidate.
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
)

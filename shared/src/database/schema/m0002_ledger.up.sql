-- The ledger: double entry, insert only. A correction is a new transfer, never an update.

CREATE TABLE accounts (
    id           uuid   PRIMARY KEY DEFAULT gen_random_uuid(),
    kind         text   NOT NULL CHECK (kind IN ('wallet', 'goods', 'shipping', 'service', 'outside')),
    customer_id  uuid   REFERENCES customers (id),
    order_id     uuid   REFERENCES orders (id),
    balance      bigint NOT NULL DEFAULT 0,
    CHECK (CASE kind
               WHEN 'wallet'  THEN customer_id IS NOT NULL AND order_id IS NULL
               WHEN 'outside' THEN customer_id IS NULL     AND order_id IS NULL
               ELSE                order_id IS NOT NULL
           END)
);
-- One wallet a customer, one account a component an order. They are also how a task finds them.
CREATE UNIQUE INDEX accounts_wallet_idx ON accounts (customer_id) WHERE kind = 'wallet';
CREATE UNIQUE INDEX accounts_component_idx ON accounts (order_id, kind) WHERE order_id IS NOT NULL;

CREATE TABLE transfers (
    id               uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    debit_account    uuid        NOT NULL REFERENCES accounts (id),
    credit_account   uuid        NOT NULL REFERENCES accounts (id),
    amount           bigint      NOT NULL CHECK (amount > 0),
    reason           text        NOT NULL,
    order_id         uuid        REFERENCES orders (id),
    idempotency_key  text        NOT NULL UNIQUE,
    at               timestamptz NOT NULL DEFAULT now(),
    CHECK (debit_account <> credit_account)
);
-- When an order's payments last changed is part of when its arrears fall due.
CREATE INDEX transfers_order_at_idx ON transfers (order_id, at) WHERE order_id IS NOT NULL;

-- balance = credits - debits, kept in the statement that inserts the transfers, whoever inserts them.
-- Accounts are locked in id order first, so two statements over the same accounts wait instead of deadlocking.
CREATE FUNCTION kyhan_keep_balances() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM accounts
     WHERE id IN (SELECT debit_account FROM added UNION SELECT credit_account FROM added)
     ORDER BY id FOR NO KEY UPDATE;
    UPDATE accounts a SET balance = a.balance + m.delta
      FROM (SELECT account, sum(delta)::bigint AS delta
              FROM (SELECT credit_account AS account, amount AS delta FROM added
                    UNION ALL
                    SELECT debit_account, -amount FROM added) AS moved
             GROUP BY account) AS m
     WHERE a.id = m.account AND m.delta <> 0;
    RETURN NULL;
END $$;
CREATE TRIGGER transfers_keep_balances AFTER INSERT ON transfers
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_keep_balances();

-- Insert only. A trigger binds every role, superusers and owners included; grants come on top of it.
CREATE FUNCTION kyhan_insert_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is insert only: % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'insufficient_privilege', HINT = 'Record a correction as a new row.';
END $$;
CREATE TRIGGER transfers_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transfers
    FOR EACH STATEMENT EXECUTE FUNCTION kyhan_insert_only();

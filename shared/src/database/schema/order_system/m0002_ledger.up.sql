-- The ledger: double entry, insert only. A correction is a new transfer, never an update.

CREATE TABLE accounts (
    id           uuid   PRIMARY KEY DEFAULT gen_random_uuid(),
    kind         text   NOT NULL CHECK (kind IN ('wallet', 'goods', 'shipping', 'service', 'outside')),
    customer_id  uuid   REFERENCES customers (id),
    -- Refers to orders. Triggers check this instead of a foreign key, because accounts outlive their order: m0004_guards.
    order_id     uuid,
    balance      bigint NOT NULL DEFAULT 0,
    CHECK (CASE kind
               WHEN 'wallet'  THEN customer_id IS NOT NULL AND order_id IS NULL
               WHEN 'outside' THEN customer_id IS NULL     AND order_id IS NULL
               ELSE                order_id IS NOT NULL
           END)
);
-- One wallet per customer, one account per component of an order. Tasks find accounts by these indexes.
CREATE UNIQUE INDEX accounts_wallet_idx ON accounts (customer_id) WHERE kind = 'wallet';
CREATE UNIQUE INDEX accounts_component_idx ON accounts (order_id, kind) WHERE order_id IS NOT NULL;

CREATE TABLE transfers (
    id               uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    debit_account    uuid        NOT NULL REFERENCES accounts (id),
    credit_account   uuid        NOT NULL REFERENCES accounts (id),
    amount           bigint      NOT NULL CHECK (amount > 0),
    reason           text        NOT NULL,
    -- As accounts.order_id.
    order_id         uuid,
    idempotency_key  text        NOT NULL UNIQUE,
    at               timestamptz NOT NULL DEFAULT now(),
    -- The login that made it.
    made_by          text        NOT NULL DEFAULT session_user,
    CHECK (debit_account <> credit_account)
);
-- The due time of an order's arrears depends on when its payments last changed.
CREATE INDEX transfers_order_at_idx ON transfers (order_id, at) WHERE order_id IS NOT NULL;

-- balance = credits - debits, updated by every statement that inserts transfers. It runs with the owner's rights, so no role needs the
-- right to change a balance. It locks the accounts in id order first, so that two statements over the same accounts wait for each other
-- instead of deadlocking.
CREATE FUNCTION kyhan_keep_balances() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
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
REVOKE EXECUTE ON FUNCTION kyhan_keep_balances() FROM PUBLIC;
CREATE TRIGGER transfers_keep_balances AFTER INSERT ON transfers
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_keep_balances();

-- made_by is always the login of the session.
CREATE FUNCTION kyhan_transfers_are_signed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM added WHERE made_by <> session_user) THEN
        RAISE EXCEPTION 'made_by must be the login of the session' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER transfers_are_signed AFTER INSERT ON transfers
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_transfers_are_signed();

-- Rejects updates and deletes. A trigger applies to every role, superusers and owners included; grants restrict further.
CREATE FUNCTION kyhan_insert_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is insert only: % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'insufficient_privilege', HINT = 'Record a correction as a new row.';
END $$;
CREATE TRIGGER transfers_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transfers
    FOR EACH STATEMENT EXECUTE FUNCTION kyhan_insert_only();

-- A transfer to or from an order's account is news about that order, so a transfer without an order gets that one.
CREATE FUNCTION kyhan_transfers_name_their_order() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    NEW.order_id := (SELECT order_id FROM accounts WHERE id IN (NEW.debit_account, NEW.credit_account) AND order_id IS NOT NULL
                      ORDER BY id LIMIT 1);
    RETURN NEW;
END $$;
REVOKE EXECUTE ON FUNCTION kyhan_transfers_name_their_order() FROM PUBLIC;
CREATE TRIGGER transfers_name_their_order BEFORE INSERT ON transfers FOR EACH ROW WHEN (NEW.order_id IS NULL)
    EXECUTE FUNCTION kyhan_transfers_name_their_order();

-- An account's owner and purpose never change. A role that may lock accounts needs the right to update one of their columns; this
-- trigger limits that right to locking.
CREATE FUNCTION kyhan_accounts_keep_their_owner() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'an account cannot change its owner' USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER accounts_keep_their_owner BEFORE UPDATE OF id, kind, customer_id, order_id ON accounts FOR EACH ROW
    WHEN ((OLD.id, OLD.kind, OLD.customer_id, OLD.order_id) IS DISTINCT FROM (NEW.id, NEW.kind, NEW.customer_id, NEW.order_id))
    EXECUTE FUNCTION kyhan_accounts_keep_their_owner();

-- Orders that were deleted after a long time hidden. The ledger still refers to their ids.
CREATE TABLE deleted_orders (
    id          uuid        PRIMARY KEY,
    deleted_at  timestamptz NOT NULL DEFAULT now()
);

-- The order system's tables: a reference schema. Names and columns are a contract with the order system.
-- A deployment with its own tables provides views with these names, or edits the tasks' SQL.

-- For whom a session works: 'order_system' (also the tables' owner and superusers), 'worker', 'operator' or 'other'. It follows from the
-- roles of the session's login alone. No setting and no SET ROLE changes it.
CREATE FUNCTION kyhan_session_role() RETURNS text LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    -- A role that does not exist on this server is null, and so is the answer about it.
    IF pg_has_role(session_user, to_regrole('kyhan_order_system'), 'MEMBER') OR pg_has_role(session_user, to_regrole('kyhan_owner'), 'MEMBER') THEN
        RETURN 'order_system';
    ELSIF pg_has_role(session_user, to_regrole('kyhan_worker'), 'MEMBER') THEN
        RETURN 'worker';
    ELSIF pg_has_role(session_user, to_regrole('kyhan_ops'), 'MEMBER') THEN
        RETURN 'operator';
    ELSIF pg_has_role(session_user, (SELECT relowner FROM pg_class WHERE oid = 'orders'::regclass), 'MEMBER') THEN
        -- A database without our roles.
        RETURN 'order_system';
    END IF;
    RETURN 'other';
END $$;

CREATE TABLE customers (
    id          uuid        PRIMARY KEY,
    full_name   text        NOT NULL,
    phone       text        NOT NULL,
    email       text        NOT NULL,
    address     text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    -- When the customer's personal data was erased.
    erased_at   timestamptz
);

CREATE TABLE orders (
    id                  uuid        PRIMARY KEY,
    code                text        NOT NULL UNIQUE,
    customer_id         uuid        NOT NULL REFERENCES customers (id),
    status              text        NOT NULL CHECK (status IN (
                            'awaiting_deposit', 'deposited', 'purchased', 'in_transit', 'in_warehouse',
                            'delivering', 'received', 'out_of_stock', 'cancelled')),
    delivering_since    timestamptz,
    received_at         timestamptz,
    out_of_stock_since  timestamptz,
    parcel_recorded_at  timestamptz,
    goods_due           bigint      NOT NULL DEFAULT 0 CHECK (goods_due >= 0),
    shipping_due        bigint      NOT NULL DEFAULT 0 CHECK (shipping_due >= 0),
    service_due         bigint      NOT NULL DEFAULT 0 CHECK (service_due >= 0),
    fees_changed_at     timestamptz,
    on_hold             boolean     NOT NULL DEFAULT false,
    hidden_at           timestamptz,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    -- Kept by kyhan_changes_are_dated(). No role may set it.
    changed_at          timestamptz,
    -- The moments that the policy counts from. A status without its moment would never fall due.
    CHECK (status <> 'delivering' OR delivering_since IS NOT NULL),
    CHECK (status <> 'out_of_stock' OR out_of_stock_since IS NOT NULL)
-- Each page keeps room for new versions of a few orders that change at once.
) WITH (fillfactor = 85);
-- A receipt changes an order's status and moments. No index below contains these, not even in its predicate, so PostgreSQL writes the
-- new version of the row beside the old one and updates no index (heap-only tuples). Measured: docs/decisions/0017.
--
-- For the sweep of confirm-receipt. A receipt leaves delivering_since as it is.
CREATE INDEX orders_shipped_idx ON orders (delivering_since) WHERE delivering_since IS NOT NULL;
CREATE INDEX orders_online_idx ON orders (created_at) WHERE hidden_at IS NULL;
CREATE INDEX orders_hidden_idx ON orders (hidden_at) WHERE hidden_at IS NOT NULL;
CREATE INDEX orders_customer_idx ON orders (customer_id);

-- Every change of an order is news about it, even if the client does not set updated_at or its clock is wrong. A change that sets
-- updated_at to the database's time dates itself, as the fleet's effects do; if a writer sets it back later, the change is dated then.
CREATE FUNCTION kyhan_changes_are_dated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.changed_at := now();
    RETURN NEW;
END $$;
CREATE TRIGGER changes_are_dated BEFORE UPDATE ON orders FOR EACH ROW
    WHEN (NEW.updated_at < OLD.updated_at
          OR (OLD.status, OLD.on_hold, OLD.goods_due, OLD.shipping_due, OLD.service_due, OLD.delivering_since, OLD.received_at,
           OLD.out_of_stock_since, OLD.parcel_recorded_at, OLD.fees_changed_at)
              IS DISTINCT FROM
          (NEW.status, NEW.on_hold, NEW.goods_due, NEW.shipping_due, NEW.service_due, NEW.delivering_since, NEW.received_at,
           NEW.out_of_stock_since, NEW.parcel_recorded_at, NEW.fees_changed_at)
          AND NEW.updated_at IS DISTINCT FROM now())
    EXECUTE FUNCTION kyhan_changes_are_dated();

-- The orders that are not hidden. Hidden orders stay complete in `orders`. Without changed_at, which only order_retention needs.
CREATE VIEW orders_online AS
SELECT id, code, customer_id, status, delivering_since, received_at, out_of_stock_since, parcel_recorded_at, goods_due, shipping_due,
       service_due, fees_changed_at, on_hold, hidden_at, created_at, updated_at
  FROM orders WHERE hidden_at IS NULL;

CREATE TABLE order_status_history (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Refers to orders. Triggers check this instead of a foreign key: m0004_guards.
    order_id     uuid        NOT NULL,
    from_status  text        NOT NULL,
    to_status    text        NOT NULL,
    reason       text        NOT NULL,
    wakeup_id    uuid,
    at           timestamptz NOT NULL DEFAULT now()
);
-- For finding an order's status before a mistake: by order, newest first.
CREATE INDEX order_status_history_order_idx ON order_status_history (order_id, id);

CREATE TABLE order_messages (
    id        uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    order_id  uuid        NOT NULL REFERENCES orders (id),
    author    text        NOT NULL,
    body      text        NOT NULL,
    at        timestamptz NOT NULL DEFAULT now(),
    -- Removed with the text when the customer is erased.
    salt      uuid        DEFAULT gen_random_uuid(),
    CHECK (salt IS NOT NULL OR (author = '' AND body = ''))
);
CREATE INDEX order_messages_order_idx ON order_messages (order_id);

-- A salted digest of a message. It detects a changed text, and does not allow an erased text to be guessed.
CREATE FUNCTION kyhan_message_digest(message order_messages) RETURNS text LANGUAGE sql STABLE STRICT PARALLEL SAFE AS $$
    SELECT encode(sha256(uuid_send(message.salt) || convert_to(jsonb_build_array(
               message.id, message.order_id, message.author, message.body, extract(epoch FROM message.at)::text)::text, 'UTF8')), 'hex')
$$;
REVOKE EXECUTE ON FUNCTION kyhan_message_digest(order_messages) FROM PUBLIC;

CREATE TABLE cart_items (
    id            uuid        PRIMARY KEY,
    customer_id   uuid        NOT NULL REFERENCES customers (id),
    product_ref   text        NOT NULL,
    product_name  text        NOT NULL,
    quantity      integer     NOT NULL CHECK (quantity > 0),
    added_at      timestamptz NOT NULL DEFAULT now(),
    -- Set once the item was ordered.
    order_id      uuid        REFERENCES orders (id)
);
-- A product identifies its source; the row counts of EXPLAIN would reveal how often it is bought.
ALTER TABLE cart_items ALTER COLUMN product_ref SET STATISTICS 0, ALTER COLUMN product_name SET STATISTICS 0;
-- The candidates of purge-cart-item, oldest first.
CREATE INDEX cart_items_added_at_idx ON cart_items (added_at) WHERE order_id IS NULL;
CREATE INDEX cart_items_customer_idx ON cart_items (customer_id);
CREATE INDEX cart_items_order_idx ON cart_items (order_id) WHERE order_id IS NOT NULL;

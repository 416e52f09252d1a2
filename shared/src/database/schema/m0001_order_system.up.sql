-- The order system's own tables, a reference schema: names and columns are a contract with it.
-- A deployment that has its own tables gives views of these names or edits the tasks' SQL.

CREATE TABLE customers (
    id          uuid        PRIMARY KEY,
    full_name   text        NOT NULL,
    phone       text        NOT NULL,
    email       text        NOT NULL,
    address     text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
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
    -- The moments the policy counts from. A status without its moment would never fall due.
    CHECK (status <> 'delivering' OR delivering_since IS NOT NULL),
    CHECK (status <> 'out_of_stock' OR out_of_stock_since IS NOT NULL)
);
-- confirm-receipt's candidates, oldest first; only orders under way are in it.
CREATE INDEX orders_delivering_since_idx ON orders (delivering_since) WHERE status = 'delivering';
-- collect-arrears' wrongly «Hết hàng»: few, so the index is small.
CREATE INDEX orders_wrongly_out_of_stock_idx ON orders (out_of_stock_since)
    WHERE status = 'out_of_stock' AND parcel_recorded_at IS NOT NULL;

CREATE TABLE order_status_history (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id     uuid        NOT NULL REFERENCES orders (id),
    from_status  text        NOT NULL,
    to_status    text        NOT NULL,
    reason       text        NOT NULL,
    wakeup_id    uuid,
    at           timestamptz NOT NULL DEFAULT now()
);
-- What an order was before a mistake is looked up by order, newest first.
CREATE INDEX order_status_history_order_idx ON order_status_history (order_id, id);

CREATE TABLE order_messages (
    id        uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    order_id  uuid        NOT NULL REFERENCES orders (id),
    author    text        NOT NULL,
    body      text        NOT NULL,
    at        timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX order_messages_order_idx ON order_messages (order_id);

CREATE TABLE order_sources (
    order_id       uuid PRIMARY KEY REFERENCES orders (id),
    supplier_name  text NOT NULL,
    supplier_url   text NOT NULL,
    note           text
);

CREATE TABLE cart_items (
    id            uuid        PRIMARY KEY,
    customer_id   uuid        NOT NULL REFERENCES customers (id),
    product_ref   text        NOT NULL,
    product_name  text        NOT NULL,
    quantity      integer     NOT NULL CHECK (quantity > 0),
    added_at      timestamptz NOT NULL DEFAULT now(),
    order_id      uuid        REFERENCES orders (id)
);
-- purge-cart-item's candidates, oldest first.
CREATE INDEX cart_items_added_at_idx ON cart_items (added_at) WHERE order_id IS NULL;

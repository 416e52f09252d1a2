-- Where goods come from and who the customers are (policy points 6 and 7): docs/confidentiality.md. These rules apply to every role;
-- roles/grants.sql says what each role may do.

-- The customer for whom a session acts: the setting kyhan.customer_id, which the order system sets after its own authentication.
-- Null if it is not set.
CREATE FUNCTION kyhan_customer() RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT nullif(current_setting('kyhan.customer_id', true), '')::uuid $$;

CREATE TABLE order_sources (
    order_id       uuid PRIMARY KEY REFERENCES orders (id),
    supplier_name  text NOT NULL,
    supplier_url   text NOT NULL,
    note           text
);
-- The planner's statistics would reveal to any session that may query the table, by the row counts of EXPLAIN, how many orders a supplier has.
ALTER TABLE order_sources
    ALTER COLUMN supplier_name SET STATISTICS 0, ALTER COLUMN supplier_url SET STATISTICS 0, ALTER COLUMN note SET STATISTICS 0;
-- Every role with the right to insert may write sources. Only a session of the order's customer sees, changes or deletes them.
-- FORCE: this includes the tables' owner. It excludes superusers, whom no row-level security restricts.
ALTER TABLE order_sources ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY sources_are_written ON order_sources FOR INSERT
    WITH CHECK (kyhan_customer() IS NULL
                OR EXISTS (SELECT FROM orders WHERE orders.id = order_sources.order_id AND orders.customer_id = kyhan_customer()));
CREATE POLICY sources_are_the_customers ON order_sources FOR SELECT
    USING (EXISTS (SELECT FROM orders WHERE orders.id = order_sources.order_id AND orders.customer_id = kyhan_customer()));
CREATE POLICY sources_change_for_the_customer ON order_sources FOR UPDATE
    USING (EXISTS (SELECT FROM orders WHERE orders.id = order_sources.order_id AND orders.customer_id = kyhan_customer()));
CREATE POLICY sources_go_for_the_customer ON order_sources FOR DELETE
    USING (EXISTS (SELECT FROM orders WHERE orders.id = order_sources.order_id AND orders.customer_id = kyhan_customer()));

-- A customer's own import history. Only a session of that customer sees it.
CREATE VIEW own_imports WITH (security_barrier) AS
SELECT orders.id AS order_id, orders.code, orders.status, orders.created_at, orders.received_at, orders.goods_due,
       source.supplier_name, source.supplier_url, source.note,
       (SELECT jsonb_agg(jsonb_build_object('product', item.product_name, 'ref', item.product_ref, 'quantity', item.quantity)
                         ORDER BY item.added_at, item.id)
          FROM cart_items AS item WHERE item.order_id = orders.id) AS products
  FROM orders LEFT JOIN order_sources AS source ON source.order_id = orders.id
 WHERE orders.customer_id = kyhan_customer() AND orders.hidden_at IS NULL;

-- Masks leave enough to recognise a person who is already known.
CREATE FUNCTION kyhan_masked_name(name text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT CASE cardinality(words) WHEN 0 THEN '***' WHEN 1 THEN left(words[1], 1) || '***'
                ELSE left(words[1], CASE WHEN length(words[1]) > 3 THEN 2 ELSE 1 END) || '*** ' || upper(left(words[cardinality(words)], 1)) || '.' END
      FROM (SELECT array_remove(regexp_split_to_array(normalize(name, NFC), '\s+'), '') AS words) AS split
$$;
CREATE FUNCTION kyhan_masked_phone(phone text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT CASE WHEN length(digits) < 8 THEN '****' ELSE left(digits, 2) || '****' || right(digits, 3) END
      FROM (SELECT regexp_replace(phone, '[^0-9]', '', 'g') AS digits) AS dialled
$$;
CREATE FUNCTION kyhan_masked_email(email text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT CASE WHEN position('@' IN email) > 1 THEN left(email, 1) || '***@***' ELSE '***' END
$$;
-- Customers as staff may see them.
CREATE VIEW customers_masked WITH (security_barrier) AS
SELECT id, kyhan_masked_name(full_name) AS name, kyhan_masked_phone(phone) AS phone, kyhan_masked_email(email) AS email, created_at,
       erased_at
  FROM customers;

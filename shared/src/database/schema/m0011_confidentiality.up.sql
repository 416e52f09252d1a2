-- Whose goods come from where, and who the customers are (policy points 6 and 7): docs/confidentiality.md. Which role may do what is
-- in roles/grants.sql; here is what holds for every role.

-- The customer in whose name a session acts: the setting kyhan.customer_id, which the order system sets from its own authentication.
-- Null where it is not set.
CREATE FUNCTION kyhan_customer() RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT nullif(current_setting('kyhan.customer_id', true), '')::uuid $$;

-- Sources are written by whoever may write them at all, and seen, changed and removed only in the name of the order's own customer.
-- FORCE: the tables' owner is no exception. Superusers are, as no row-level security binds them.
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

-- A customer's own import history, in that customer's session and in no other.
CREATE VIEW own_imports WITH (security_barrier) AS
SELECT orders.id AS order_id, orders.code, orders.status, orders.created_at, orders.received_at, orders.goods_due,
       source.supplier_name, source.supplier_url, source.note,
       (SELECT jsonb_agg(jsonb_build_object('product', item.product_name, 'ref', item.product_ref, 'quantity', item.quantity)
                         ORDER BY item.added_at, item.id)
          FROM cart_items AS item WHERE item.order_id = orders.id) AS products
  FROM orders LEFT JOIN order_sources AS source ON source.order_id = orders.id
 WHERE orders.customer_id = kyhan_customer() AND orders.hidden_at IS NULL;

-- What a person may be recognised by, if one knows them already.
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

-- When a customer's personal data was erased.
ALTER TABLE customers ADD COLUMN erased_at timestamptz;
-- Customers as staff may see them.
CREATE VIEW customers_masked WITH (security_barrier) AS
SELECT id, kyhan_masked_name(full_name) AS name, kyhan_masked_phone(phone) AS phone, kyhan_masked_email(email) AS email, created_at,
       erased_at
  FROM customers;

-- What the system and operators recorded, whole; of what customers did, activity itself tells everybody else only that they did it.
CREATE VIEW activity_operations WITH (security_barrier) AS SELECT * FROM activity WHERE actor_kind <> 'customer';

-- What is said about an order is recorded as it is said (policy point 5): activity keeps a digest of it, salted, so that the text can
-- be erased, but neither guessed from what remains nor changed unseen.
ALTER TABLE order_messages ADD COLUMN salt uuid DEFAULT gen_random_uuid();
ALTER TABLE order_messages ADD CHECK (salt IS NOT NULL OR (author = '' AND body = ''));
CREATE FUNCTION kyhan_message_digest(message order_messages) RETURNS text LANGUAGE sql STABLE STRICT PARALLEL SAFE AS $$
    SELECT encode(sha256(uuid_send(message.salt) || convert_to(jsonb_build_array(
               message.id, message.order_id, message.author, message.body, extract(epoch FROM message.at)::text)::text, 'UTF8')), 'hex')
$$;
CREATE FUNCTION kyhan_messages_recorded() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO activity (actor_kind, actor_id, action, subject_kind, subject_id, detail)
    SELECT CASE WHEN kyhan_customer() IS NULL THEN 'staff' ELSE 'customer' END, kyhan_customer(),
           'order.message_recorded', 'order', message.order_id,
           jsonb_build_object('message_id', message.id, 'sha256', kyhan_message_digest(message))
      FROM (SELECT added::order_messages AS message FROM added) AS row_of, LATERAL (SELECT (row_of.message).*) AS message;
    RETURN NULL;
END $$;
CREATE TRIGGER messages_are_recorded AFTER INSERT ON order_messages
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_messages_recorded();
-- Messages of before are recorded as of when they were said: else every order would have news.
INSERT INTO activity (at, actor_kind, action, subject_kind, subject_id, detail)
SELECT message.at, 'system', 'order.message_recorded', 'order', message.order_id,
       jsonb_build_object('message_id', message.id, 'sha256', kyhan_message_digest(message), 'afterwards', true)
  FROM order_messages AS message ORDER BY message.at, message.id;
-- Nobody but these two records a message.
CREATE FUNCTION kyhan_messages_record_themselves() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_user <> (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = TG_RELID) THEN
        RAISE EXCEPTION 'a message is recorded by its own trigger' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER messages_record_themselves BEFORE INSERT ON activity FOR EACH ROW WHEN (NEW.action = 'order.message_recorded')
    EXECUTE FUNCTION kyhan_messages_record_themselves();

-- Who was erased stays so: whoever was about to write something personal while it happened waits for it, and is refused afterwards.
CREATE FUNCTION kyhan_customers_stay_erased() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.full_name, NEW.phone, NEW.email, NEW.address, NEW.erased_at) IS DISTINCT FROM ('', '', '', '', OLD.erased_at) THEN
        RAISE EXCEPTION 'this customer was erased' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER customers_stay_erased BEFORE UPDATE ON customers FOR EACH ROW WHEN (OLD.erased_at IS NOT NULL)
    EXECUTE FUNCTION kyhan_customers_stay_erased();
CREATE FUNCTION kyhan_the_erased_stay_erased() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    whose uuid[];
BEGIN
    CASE TG_ARGV[0]
        WHEN 'orders' THEN
            whose := (SELECT array_agg(DISTINCT customer_id) FROM added);
        WHEN 'cart_items' THEN
            whose := (SELECT array_agg(DISTINCT customer_id) FROM added WHERE (product_ref, product_name) <> ('', ''));
        WHEN 'order_messages' THEN
            whose := (SELECT array_agg(DISTINCT customer_id) FROM orders
                       WHERE id IN (SELECT order_id FROM added WHERE (author, body) <> ('', '')));
        ELSE
            whose := (SELECT array_agg(DISTINCT customer_id) FROM orders WHERE id IN (SELECT order_id FROM added));
    END CASE;
    -- Locked first, so that an erasure that is under way is over when it is looked.
    PERFORM FROM customers WHERE id = ANY (whose) ORDER BY id FOR KEY SHARE;
    IF EXISTS (SELECT FROM customers WHERE id = ANY (whose) AND erased_at IS NOT NULL) THEN
        RAISE EXCEPTION 'this customer was erased' USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER the_erased_order_nothing AFTER INSERT ON orders
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_the_erased_stay_erased('orders');
CREATE TRIGGER the_erased_buy_nothing AFTER INSERT ON cart_items
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_the_erased_stay_erased('cart_items');
CREATE TRIGGER the_erased_bought_nothing AFTER UPDATE ON cart_items
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_the_erased_stay_erased('cart_items');
CREATE TRIGGER the_erased_say_nothing AFTER INSERT ON order_messages
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_the_erased_stay_erased('order_messages');
CREATE TRIGGER the_erased_said_nothing AFTER UPDATE ON order_messages
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_the_erased_stay_erased('order_messages');
CREATE TRIGGER the_erased_have_no_source AFTER INSERT ON order_sources
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_the_erased_stay_erased('order_sources');
CREATE TRIGGER the_erased_get_no_source AFTER UPDATE ON order_sources
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION kyhan_the_erased_stay_erased('order_sources');

-- Market statistics: each closed month is published once and never again, each order in one group and no totals beside them, so that
-- nothing can be told by subtracting one publication from another.
CREATE TABLE published_statistics (
    month          date    NOT NULL,
    price_band     text    NOT NULL,
    orders         bigint  NOT NULL,
    -- Sums of what an order system wrote, whatever that is.
    quantity       numeric NOT NULL,
    value          numeric NOT NULL,
    -- How many customers there were, and the largest share of one of them in any of the three figures.
    customers      bigint  NOT NULL,
    largest_share  numeric NOT NULL,
    PRIMARY KEY (month, price_band)
);
CREATE TABLE published_months (
    month         date        PRIMARY KEY,
    published_at  timestamptz NOT NULL DEFAULT now()
);
-- What is asked of a group today; a stricter rule also hides what was published before.
CREATE TABLE statistics_rule (
    is_the_only_row  boolean PRIMARY KEY DEFAULT true CHECK (is_the_only_row),
    min_customers    integer NOT NULL DEFAULT 5 CHECK (min_customers >= 3),
    max_share        numeric NOT NULL DEFAULT 0.5 CHECK (max_share > 0 AND max_share < 1)
);
INSERT INTO statistics_rule DEFAULT VALUES;
CREATE VIEW market_statistics WITH (security_barrier) AS
SELECT month, price_band, published.orders, quantity, value
  FROM published_statistics AS published, statistics_rule AS rule
 WHERE published.customers >= rule.min_customers AND published.largest_share <= rule.max_share;

-- Publishes the oldest month that is to be: over for a whole month, so that its orders have taken their course. It goes by this rule,
-- which must not be laxer than the one above allows at all. The month, or null when none is to go.
CREATE FUNCTION kyhan_publish_statistics(min_customers integer, max_share numeric) RETURNS date
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    this_month timestamp := date_trunc('month', now() AT TIME ZONE 'Asia/Ho_Chi_Minh');
    chosen date;
BEGIN
    UPDATE statistics_rule AS rule SET min_customers = $1, max_share = $2
     WHERE (rule.min_customers, rule.max_share) IS DISTINCT FROM ($1, $2);
    SELECT (CASE WHEN last.month IS NULL
                 THEN (SELECT date_trunc('month', min(created_at) AT TIME ZONE 'Asia/Ho_Chi_Minh') FROM orders
                        WHERE created_at BETWEEN '2000-01-01' AND now())
                 ELSE last.month + interval '1 month' END)::date
      INTO chosen FROM (SELECT max(month) AS month FROM published_months) AS last;
    IF chosen IS NULL OR chosen + interval '2 months' > this_month THEN
        RETURN NULL;
    END IF;
    -- Of two that publish at once the second waits here, and finds that it is done.
    INSERT INTO published_months (month) VALUES (chosen) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    INSERT INTO published_statistics (month, price_band, orders, quantity, value, customers, largest_share)
    SELECT chosen, band, sum(of_one.orders), sum(of_one.quantity), sum(of_one.value), count(*),
           greatest(max(of_one.orders) / sum(of_one.orders), max(of_one.quantity) / nullif(sum(of_one.quantity), 0),
                    max(of_one.value) / nullif(sum(of_one.value), 0))
      FROM (SELECT customer_id, -- of all their orders in one band
                   CASE WHEN goods_due < 500000 THEN 'under 500.000 ₫' WHEN goods_due < 2000000 THEN '500.000 to 2.000.000 ₫'
                        WHEN goods_due < 10000000 THEN '2.000.000 to 10.000.000 ₫' ELSE '10.000.000 ₫ and more' END AS band,
                   count(*)::numeric AS orders,
                   coalesce(sum(bought.quantity), 0)::numeric AS quantity,
                   sum(goods_due)::numeric AS value
              FROM orders CROSS JOIN LATERAL (
                       SELECT sum(item.quantity) AS quantity FROM cart_items AS item WHERE item.order_id = orders.id) AS bought
             WHERE created_at >= chosen::timestamp AT TIME ZONE 'Asia/Ho_Chi_Minh'
               AND created_at < (chosen + interval '1 month') AT TIME ZONE 'Asia/Ho_Chi_Minh'
               AND status NOT IN ('awaiting_deposit', 'cancelled', 'out_of_stock')
             GROUP BY customer_id, band) AS of_one
     GROUP BY band
    HAVING count(*) >= $1
       AND greatest(max(of_one.orders) / sum(of_one.orders), max(of_one.quantity) / nullif(sum(of_one.quantity), 0),
                    max(of_one.value) / nullif(sum(of_one.value), 0)) <= $2;
    RETURN chosen;
END $$;

REVOKE EXECUTE ON FUNCTION kyhan_messages_recorded(), kyhan_message_digest(order_messages), kyhan_the_erased_stay_erased(),
    kyhan_publish_statistics(integer, numeric) FROM PUBLIC;
DO $$
DECLARE
    place text := (SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
                    WHERE pg_class.oid = 'orders'::regclass);
BEGIN
    EXECUTE format('ALTER FUNCTION kyhan_the_erased_stay_erased() SET search_path = %I, pg_temp', place);
    EXECUTE format('ALTER FUNCTION kyhan_messages_recorded() SET search_path = %I, pg_temp', place);
    EXECUTE format('ALTER FUNCTION kyhan_publish_statistics(integer, numeric) SET search_path = %I, pg_temp', place);
END $$;

-- Market statistics. Each closed month is published once. Each order is in one group, and no totals are published, so subtracting one
-- publication from another reveals nothing.
CREATE TABLE published_statistics (
    month          date    NOT NULL,
    price_band     text    NOT NULL,
    orders         bigint  NOT NULL,
    -- Sums of what the order system wrote, unchecked.
    quantity       numeric NOT NULL,
    value          numeric NOT NULL,
    -- How many customers there were, and the largest share of a single customer in any of the three figures.
    customers      bigint  NOT NULL,
    largest_share  numeric NOT NULL,
    PRIMARY KEY (month, price_band)
);
CREATE TABLE published_months (
    month         date        PRIMARY KEY,
    published_at  timestamptz NOT NULL DEFAULT now()
);
-- What a group must meet today to be shown. It may be stricter than what kyhan_hides_contributors() requires, and then also hides what
-- was published before. A worker may set it, so it decides about nothing that could not be set back.
CREATE TABLE statistics_rule (
    is_the_only_row  boolean PRIMARY KEY DEFAULT true CHECK (is_the_only_row),
    min_customers    integer NOT NULL DEFAULT 5 CHECK (min_customers >= 5),
    max_share        numeric NOT NULL DEFAULT 0.5 CHECK (max_share > 0 AND max_share <= 0.5)
);
INSERT INTO statistics_rule DEFAULT VALUES;
CREATE VIEW market_statistics WITH (security_barrier) AS
SELECT month, price_band, published.orders, quantity, value
  FROM published_statistics AS published, statistics_rule AS rule
 WHERE published.customers >= rule.min_customers AND published.largest_share <= rule.max_share;

-- Whether a sum over customers reveals little about each of them, given one figure per customer. The usual rules of statistical
-- disclosure control: at least five contributors; none has more than half; and by the p% rule with p = 10, the second largest, who can
-- subtract their own figure from the sum, learns the largest no better than to a tenth, because the others together have at least that.
-- They stand here, and not in a setting, because a published month stays published.
CREATE FUNCTION kyhan_hides_contributors(figures numeric[]) RETURNS boolean LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT count(*) >= 5 AND max(figure) <= 0.5 * sum(figure)
           AND sum(figure) - sum(figure) FILTER (WHERE place <= 2) >= 0.1 * max(figure)
      FROM (SELECT figure, row_number() OVER (ORDER BY figure DESC) AS place FROM unnest(figures) AS figure) AS ranked
$$;

-- Publishes the oldest unpublished month that ended at least a month ago, so that its orders are complete: every group that hides its
-- contributors. It stores the given rule, which only decides what is shown. Returns the month, or null if there is none to publish.
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
    -- If two sessions publish at once, the second one waits here and then finds the month published.
    INSERT INTO published_months (month) VALUES (chosen) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    INSERT INTO published_statistics (month, price_band, orders, quantity, value, customers, largest_share)
    SELECT chosen, band, sum(of_one.orders), sum(of_one.quantity), sum(of_one.value), count(*),
           greatest(max(of_one.orders) / sum(of_one.orders), max(of_one.quantity) / nullif(sum(of_one.quantity), 0),
                    max(of_one.value) / nullif(sum(of_one.value), 0))
      FROM (SELECT customer_id, -- all orders of a customer in one band
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
    HAVING kyhan_hides_contributors(array_agg(of_one.orders)) AND kyhan_hides_contributors(array_agg(of_one.quantity))
       AND kyhan_hides_contributors(array_agg(of_one.value));
    RETURN chosen;
END $$;
REVOKE EXECUTE ON FUNCTION kyhan_publish_statistics(integer, numeric), kyhan_hides_contributors(numeric[]) FROM PUBLIC;

DROP FUNCTION kyhan_publish_statistics(integer, numeric);
DROP VIEW market_statistics;
DROP TABLE statistics_rule, published_months, published_statistics;

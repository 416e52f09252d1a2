DROP FUNCTION kyhan_publish_statistics(integer, numeric), kyhan_hides_contributors(numeric[]);
DROP VIEW market_statistics;
DROP TABLE statistics_rule, published_months, published_statistics;

-- Where a deployment wants old records deleted (retention.mode = "delete"), workers may ask for it. What may go the functions judge for
-- themselves. Run after grants.sql, which takes it.
GRANT EXECUTE ON FUNCTION kyhan_delete_hidden_orders(timestamptz, integer), kyhan_remove_activity(timestamptz, integer) TO kyhan_worker;

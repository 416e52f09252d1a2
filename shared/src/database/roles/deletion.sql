-- Lets workers delete old records, for a deployment with retention.mode = "delete". The functions themselves check what may
-- be deleted. Run after grants.sql, which revokes this.
GRANT EXECUTE ON FUNCTION kyhan_delete_hidden_orders(timestamptz, integer, integer), kyhan_remove_activity(timestamptz, integer) TO kyhan_worker;

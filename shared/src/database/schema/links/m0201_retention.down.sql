DROP FUNCTION kyhan_forget_set_aside(timestamptz, integer), kyhan_remove_activity(timestamptz, integer), kyhan_delete_hidden_orders(timestamptz, integer, integer);
DROP VIEW activity_online, transfers_online;
DROP TABLE records_retention;
DROP FUNCTION kyhan_records_are_hidden_in_time();
DROP VIEW order_retention;
DROP TABLE arrears_outstanding, retention_holds;

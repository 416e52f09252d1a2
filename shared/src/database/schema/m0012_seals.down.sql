DROP FUNCTION kyhan_messages_altered();
DROP FUNCTION kyhan_remove_activity(timestamptz, integer);
DROP TRIGGER activity_goes_by_range ON activity;
DROP FUNCTION kyhan_activity_goes_by_range();
DROP TRIGGER activity_insert_only ON activity;
CREATE TRIGGER activity_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON activity
    FOR EACH STATEMENT EXECUTE FUNCTION kyhan_insert_only();
DROP FUNCTION kyhan_seal_activity(bigint, integer);
DROP VIEW activity_kept;
DROP TABLE activity_removals, activity_seals;
DROP FUNCTION kyhan_removals_are_old();
DROP FUNCTION kyhan_seal_hash(bytea, bigint, bigint, bigint, bigint, bytea, timestamptz), kyhan_seal_holds(bigint), kyhan_activity_digest(bigint, bigint, uuid);

DROP VIEW activity_kept, activity_operations;
DROP FUNCTION kyhan_seal_activity(bigint, integer), kyhan_activity_writers();
DROP TABLE activity_closing, activity_removals, activity_seals, activity;
DROP FUNCTION kyhan_activity_goes_by_range(), kyhan_removals_are_old(),
    kyhan_seal_hash(bytea, bigint, bigint, bigint, bigint, bytea, timestamptz), kyhan_seal_holds(bigint),
    kyhan_activity_digest(bigint, bigint, uuid);

DROP TABLE replay_plan_letters, replay_plans, dead_letters, dead_letter_bodies;
DROP FUNCTION kyhan_drop_bodies(), kyhan_body_hash(bytea, bytea);

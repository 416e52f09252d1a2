DROP TABLE pauses;
DROP TABLE replay_plan_letters;
DROP TABLE replay_plans;
DROP TABLE dead_letters;

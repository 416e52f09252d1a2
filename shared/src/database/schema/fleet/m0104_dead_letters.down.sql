DROP TABLE replay_plan_letters, replay_plans, dead_letters;

-- Gives the schema and all that the migrations made in it to kyhan_owner, whoever made it. Again is no harm.
DO $$
DECLARE
    ours record;
    -- Whoever has made the tables so far.
    former name := (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass('orders'));
BEGIN
    EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %I TO kyhan_owner', current_schema());
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO kyhan_producer, kyhan_worker, kyhan_ops, kyhan_order_system', current_schema());
    -- As PostgreSQL 15 has it from the beginning: who may make a table here may put it before ours.
    EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', current_schema());
    FOR ours IN
        SELECT oid::regclass AS name FROM pg_class
         WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'v') AND relowner <> 'kyhan_owner'::regrole
           AND relname IN (
               'customers', 'orders', 'order_status_history', 'order_messages', 'order_sources', 'cart_items', 'accounts', 'transfers',
               'outbox', 'set_aside', 'activity', 'arrears_outstanding', 'rungs', 'swept', 'rebuilds', 'canaries', 'dead_letters',
               'replay_plans', 'replay_plan_letters', 'pauses', 'policies', 'retention_holds', 'deleted_orders', 'records_retention',
               'published_statistics', 'published_months', 'statistics_rule', 'activity_seals', 'activity_removals',
               'orders_online', 'transfers_online', 'activity_online', 'order_retention', 'own_imports',
               'customers_masked', 'activity_operations', 'activity_kept', 'market_statistics', 'seaql_migrations') LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO kyhan_owner', ours.name);
    END LOOP;
    FOR ours IN
        SELECT oid::regprocedure AS name, pg_get_userbyid(proowner) AS owner FROM pg_proc
         WHERE pronamespace = current_schema()::regnamespace AND proname LIKE 'kyhan\_%' AND proowner <> 'kyhan_owner'::regrole LOOP
        -- Given to the owner, a function of somebody else's would run with its rights.
        IF NOT pg_has_role(ours.owner, former, 'USAGE') OR former IS NULL THEN
            RAISE EXCEPTION 'the function % belongs to %, who did not make these tables: drop it, or change its owner', ours.name, ours.owner;
        END IF;
        EXECUTE format('ALTER FUNCTION %s OWNER TO kyhan_owner', ours.name);
    END LOOP;
END $$;

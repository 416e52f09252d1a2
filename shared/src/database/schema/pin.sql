-- Pins the search_path of every function of ours in the current schema that has none yet to the present one, in which temporary tables are
-- last: a session with another search_path would find another program's tables, or none. Run after each migration and after the triggers
-- are installed.
DO $$
DECLARE
    loose regprocedure;
BEGIN
    FOR loose IN
        SELECT oid FROM pg_proc
         WHERE pronamespace = current_schema()::regnamespace AND proname LIKE 'kyhan\_%' AND pg_has_role(proowner, 'USAGE')
           AND NOT EXISTS (SELECT FROM unnest(proconfig) AS setting WHERE setting LIKE 'search_path=%') LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path FROM CURRENT', loose);
    END LOOP;
END $$;

-- Pins the search_path of every function of ours that has none yet to the schema in which it is, with temporary tables last: a session
-- with another search_path would find another program's tables, or none. Run after each migration and after the triggers are installed.
DO $$
DECLARE
    loose regprocedure;
BEGIN
    FOR loose IN
        SELECT oid FROM pg_proc
         WHERE pronamespace = current_schema()::regnamespace AND proname LIKE 'kyhan\_%' AND pg_has_role(proowner, 'USAGE')
           AND NOT EXISTS (SELECT FROM unnest(proconfig) AS setting WHERE setting LIKE 'search_path=%') LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', loose, current_schema());
    END LOOP;
END $$;

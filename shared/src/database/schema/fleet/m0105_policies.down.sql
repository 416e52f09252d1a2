-- Without this table each process uses its own settings. An operator must not cause that by accident.
DO $$
BEGIN
    IF EXISTS (SELECT FROM policies) THEN
        RAISE EXCEPTION 'a policy was applied to this database, which would no longer be active'
            USING HINT = 'Lay what `ops policy show` prints into the kyhan.toml of every process, then delete the rows of policies.';
    END IF;
END $$;
DROP TABLE pauses, policies;

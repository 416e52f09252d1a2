-- Which role may do what: everything is revoked, then exactly this is granted. The owner of the tables runs it in one
-- transaction, so a running fleet never sees it half done. Idempotent. docs/confidentiality.md lists the promise behind each
-- line.
--
-- kyhan_producer      the relay and the library for Rust callers
-- kyhan_worker        the fleet
-- kyhan_ops           operators: what a worker may, to replay what died, and the tables they decide by
-- kyhan_order_system  the order system; the only one that may read personal data, and sources only in their customer's name
-- kyhan_owner         owns everything, for migrations alone
--
-- What a right allows a worker or an operator is narrower than the right: the triggers of m0205_fleet allow only what the tasks do. A
-- login that is also a member of kyhan_order_system or kyhan_owner is free of them.
--
-- To lock a row (FOR UPDATE, FOR NO KEY UPDATE), PostgreSQL requires the right to change some column of it. A line whose
-- right serves only this is marked "to lock".

-- First, all rights on the owner's tables in both schemas are revoked from these roles, and those on functions that run with
-- its rights from every other role.
DO $$
DECLARE
    ours record;
BEGIN
    FOR ours IN SELECT oid::regclass AS name FROM pg_class
                 WHERE relnamespace = ANY (current_schemas(false)::text[]::regnamespace[]) AND relkind IN ('r', 'p', 'v', 'm')
                   AND relowner = 'kyhan_owner'::regrole LOOP
        EXECUTE format('REVOKE ALL ON TABLE %s FROM PUBLIC, kyhan_producer, kyhan_worker, kyhan_ops, kyhan_order_system', ours.name);
    END LOOP;
    FOR ours IN SELECT pg_proc.oid::regprocedure AS name,
                       string_agg(DISTINCT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END, ', ') AS others
                  FROM pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner))) AS acl
                 WHERE pronamespace = ANY (current_schemas(false)::text[]::regnamespace[]) AND prosecdef AND proowner = 'kyhan_owner'::regrole
                   AND acl.grantee <> proowner
                 GROUP BY pg_proc.oid LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM %s', ours.name, ours.others);
    END LOOP;
END $$;

-- The applied migrations, the active policy, the pauses, the rungs.
GRANT SELECT ON kyhan_migrations TO kyhan_producer, kyhan_worker, kyhan_ops, kyhan_order_system;
GRANT SELECT ON policies TO kyhan_producer, kyhan_worker, kyhan_ops;
GRANT SELECT ON pauses TO kyhan_producer, kyhan_worker, kyhan_ops;
GRANT INSERT ON rungs TO kyhan_producer, kyhan_worker, kyhan_ops;

-- The relay. It moves an event's data from one table to the other within the database, which requires the right to read it.
GRANT SELECT, DELETE ON outbox TO kyhan_producer;
GRANT UPDATE (occurred_at) ON outbox TO kyhan_producer; -- to lock
GRANT INSERT ON set_aside TO kyhan_producer;
GRANT SELECT (event_id, reason) ON set_aside TO kyhan_producer;
GRANT SELECT (id) ON orders, cart_items TO kyhan_producer;

-- Effects. An order's state, without the messages about it and its sources; of a product in the cart, not which product it
-- is.
GRANT SELECT (id, code, customer_id, status, delivering_since, received_at, out_of_stock_since, parcel_recorded_at, goods_due,
              shipping_due, service_due, fees_changed_at, on_hold, hidden_at, created_at, updated_at)
   ON orders TO kyhan_worker, kyhan_ops;
GRANT SELECT (changed_at) ON orders TO kyhan_ops; -- for ops audit
GRANT UPDATE (status, received_at, out_of_stock_since, hidden_at, updated_at) ON orders TO kyhan_worker, kyhan_ops;
GRANT SELECT, INSERT (order_id, from_status, to_status, reason, wakeup_id) ON order_status_history TO kyhan_worker, kyhan_ops;
GRANT SELECT (id, customer_id, quantity, added_at, order_id), DELETE ON cart_items TO kyhan_worker, kyhan_ops;
GRANT UPDATE (added_at) ON cart_items TO kyhan_worker, kyhan_ops; -- to lock
GRANT SELECT, INSERT (kind, customer_id, order_id) ON accounts TO kyhan_worker, kyhan_ops;
GRANT UPDATE (kind) ON accounts TO kyhan_worker, kyhan_ops; -- to lock: a trigger refuses any change
GRANT SELECT, INSERT (debit_account, credit_account, amount, reason, order_id, idempotency_key) ON transfers
   TO kyhan_worker, kyhan_ops;
GRANT SELECT, INSERT, UPDATE, DELETE ON arrears_outstanding TO kyhan_worker, kyhan_ops;
GRANT INSERT (event_type, subject_id, occurred_at) ON outbox TO kyhan_worker, kyhan_ops;
GRANT SELECT ON order_retention TO kyhan_worker, kyhan_ops;

-- The record: the database sets its moment, and no role may change it.
GRANT INSERT (actor_kind, action, subject_kind, subject_id, detail) ON activity TO kyhan_worker, kyhan_ops;
GRANT SELECT (id, at, actor_kind, action, subject_kind, subject_id) ON activity TO kyhan_worker, kyhan_ops;

-- The rows that a role may use, by table. A policy that exists as defined here and was not altered stays untouched, because
-- changing one locks the table; its comment stores both its definition and its state. Any other is dropped.
--
-- activity: in whose name a role may record. The fleet for the system; operators also for themselves, by their login; the order
-- system for customers and staff, and as an operator, who is named by `by` or `login`, only under its own login. Functions that
-- run with the owner's rights record for the customer concerned.
--
-- cart_items: a product identifies its source. As for sources, the order system sees, changes and deletes only those of
-- the customer for whom its session acts. The fleet sees no product by its grants. FORCE, as for sources: the owner's policy
-- serves its functions.
DO $$
DECLARE
    wanted text[] := ARRAY[
        ['activity', 'activity_is_read', 'FOR SELECT USING (true)'],
        ['activity', 'activity_of_the_fleet', $policy$FOR INSERT TO kyhan_worker WITH CHECK (actor_kind = 'system')$policy$],
        ['activity', 'activity_of_operators', $policy$FOR INSERT TO kyhan_ops
             WITH CHECK (actor_kind = 'system' OR (actor_kind = 'staff' AND detail ->> 'login' = session_user))$policy$],
        ['activity', 'activity_of_the_order_system', $policy$FOR INSERT TO kyhan_order_system
             WITH CHECK (actor_kind IN ('customer', 'staff')
                         AND (NOT coalesce(detail ?| ARRAY['by', 'login'], false) OR detail ->> 'login' = session_user))$policy$],
        ['cart_items', 'cart_items_of_the_fleet', 'FOR ALL TO kyhan_owner, kyhan_producer, kyhan_worker, kyhan_ops USING (true)'],
        ['cart_items', 'cart_items_are_written', $policy$FOR INSERT TO kyhan_order_system
             WITH CHECK (kyhan_customer() IS NULL OR customer_id = kyhan_customer())$policy$],
        ['cart_items', 'cart_items_are_the_customers', 'FOR SELECT TO kyhan_order_system USING (customer_id = kyhan_customer())'],
        ['cart_items', 'cart_items_change_for_the_customer', 'FOR UPDATE TO kyhan_order_system USING (customer_id = kyhan_customer())'],
        ['cart_items', 'cart_items_go_for_the_customer', 'FOR DELETE TO kyhan_order_system USING (customer_id = kyhan_customer())']];
    named text[];
    stray record;
    -- A policy as PostgreSQL stores it.
    made constant text := $made$concat_ws(' ', polcmd, polpermissive, polroles, pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))$made$;
    asis boolean;
    remembers text;
BEGIN
    FOR stray IN SELECT polrelid::regclass AS name, polname FROM pg_policy
                  WHERE polrelid IN ('activity'::regclass, 'cart_items'::regclass)
                    AND polname NOT IN (SELECT wanted[n][2] FROM generate_subscripts(wanted, 1) AS n) LOOP
        EXECUTE format('DROP POLICY %I ON %s', stray.polname, stray.name);
    END LOOP;
    IF NOT (SELECT relrowsecurity FROM pg_class WHERE oid = 'activity'::regclass) THEN
        ALTER TABLE activity ENABLE ROW LEVEL SECURITY;
    END IF;
    IF NOT (SELECT relrowsecurity AND relforcerowsecurity FROM pg_class WHERE oid = 'cart_items'::regclass) THEN
        ALTER TABLE cart_items ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    END IF;
    FOREACH named SLICE 1 IN ARRAY wanted LOOP
        EXECUTE format('SELECT obj_description(oid, ''pg_policy'') = $3 || E''\n'' || %s FROM pg_policy
                         WHERE polrelid = $1::regclass AND polname = $2', made)
           INTO asis USING named[1], named[2], named[3];
        IF asis IS NOT TRUE THEN
            EXECUTE format('DROP POLICY IF EXISTS %I ON %I', named[2], named[1]);
            EXECUTE format('CREATE POLICY %I ON %I %s', named[2], named[1], named[3]);
            EXECUTE format('SELECT format(''COMMENT ON POLICY %%I ON %%I IS %%L'', $2, $1, $3 || E''\n'' || %s) FROM pg_policy
                             WHERE polrelid = $1::regclass AND polname = $2', made)
               INTO remembers USING named[1], named[2], named[3];
            EXECUTE remembers;
        END IF;
    END LOOP;
END $$;

-- The sweep's leader.
GRANT SELECT, INSERT, UPDATE, DELETE ON swept, canaries, dead_letters TO kyhan_worker;
GRANT SELECT, INSERT, DELETE ON dead_letter_bodies TO kyhan_worker;
GRANT UPDATE (hash) ON dead_letter_bodies TO kyhan_worker; -- to lock
GRANT SELECT ON records_retention TO kyhan_worker;
GRANT UPDATE (hidden_before) ON records_retention TO kyhan_worker;
GRANT SELECT, INSERT (instance), UPDATE (instance, since, beat_at) ON leader TO kyhan_worker;
GRANT SELECT ON activity_closing TO kyhan_worker;
GRANT EXECUTE ON FUNCTION kyhan_seal_activity(bigint, integer), kyhan_publish_statistics(integer, numeric),
                          kyhan_forget_set_aside(timestamptz, integer) TO kyhan_worker;

-- Operators.
GRANT SELECT, INSERT, UPDATE ON dead_letters, rebuilds TO kyhan_ops;
GRANT SELECT ON dead_letter_bodies TO kyhan_ops;
GRANT INSERT, DELETE ON pauses, retention_holds TO kyhan_ops;
GRANT SELECT ON swept, canaries, rungs, retention_holds, records_retention, leader, activity_closing TO kyhan_ops;
GRANT DELETE ON rungs, rebuilds, canaries TO kyhan_ops;
-- Plans and policies change only through functions, which compare logins.
GRANT SELECT ON replay_plans, replay_plan_letters, policy_proposals, operators, operator_charges TO kyhan_ops;
GRANT EXECUTE ON FUNCTION
    kyhan_approval_above(), kyhan_plan_digest(uuid),
    kyhan_plan_make(text, text, jsonb, integer, integer, bigint, bigint, uuid[], text[], text[], bigint[]),
    kyhan_plan_approve(uuid, text, text), kyhan_plan_begin(uuid, uuid, text), kyhan_plan_hold(uuid, uuid, uuid),
    kyhan_plan_note(uuid, uuid, uuid, text, text, bigint), kyhan_plan_end(uuid, uuid, text),
    kyhan_policy_needs_approval(jsonb), kyhan_policy_propose(jsonb, integer, text, text),
    kyhan_policy_apply(jsonb, text, text, bigint)
   TO kyhan_ops;
GRANT UPDATE (scheduled_to, scheduled_at, went_on_at) ON policies TO kyhan_ops;
GRANT SELECT (id, event_id, event_type, subject_id, occurred_at, waiting_since) ON outbox TO kyhan_ops;
GRANT SELECT (id, event_id, event_type, subject_id, occurred_at, reason, set_aside_at) ON set_aside TO kyhan_ops;
GRANT EXECUTE ON FUNCTION kyhan_retry_set_aside(boolean, bigint[]), kyhan_discard_set_aside(boolean, bigint[]) TO kyhan_ops;
GRANT EXECUTE ON FUNCTION kyhan_seal_holds(bigint), kyhan_messages_altered() TO kyhan_ops, kyhan_order_system;
GRANT SELECT (number, first_id, last_id, rows, digest, sealed_at, hash) ON activity_seals TO kyhan_ops;
GRANT SELECT ON activity_seals TO kyhan_order_system;
GRANT SELECT ON activity_removals, activity_operations TO kyhan_ops, kyhan_order_system;
GRANT SELECT ON activity_kept, customers_masked, market_statistics, deleted_orders TO kyhan_ops;

-- The order system. It cannot hide, delete or undo anything that the policy keeps.
GRANT SELECT, INSERT (id, full_name, phone, email, address, created_at) ON customers TO kyhan_order_system;
GRANT UPDATE (full_name, phone, email, address, erased_at) ON customers TO kyhan_order_system;
GRANT SELECT ON orders TO kyhan_order_system;
GRANT INSERT (id, code, customer_id, status, delivering_since, received_at, out_of_stock_since, parcel_recorded_at, goods_due,
              shipping_due, service_due, fees_changed_at, on_hold, created_at, updated_at)
   ON orders TO kyhan_order_system;
GRANT UPDATE (status, delivering_since, received_at, out_of_stock_since, parcel_recorded_at, goods_due, shipping_due, service_due,
              fees_changed_at, on_hold, updated_at)
   ON orders TO kyhan_order_system;
GRANT SELECT, INSERT (order_id, from_status, to_status, reason, at) ON order_status_history TO kyhan_order_system;
GRANT SELECT (id, order_id, author, body, at, salt), INSERT (id, order_id, author, body) ON order_messages TO kyhan_order_system;
GRANT UPDATE (author, body, salt) ON order_messages TO kyhan_order_system; -- to erase; any other change is detected
GRANT SELECT, INSERT, UPDATE, DELETE ON order_sources TO kyhan_order_system; -- row by row: see its policies
GRANT SELECT, INSERT, UPDATE, DELETE ON cart_items TO kyhan_order_system; -- row by row: see its policies
GRANT SELECT, INSERT (id, kind, customer_id, order_id) ON accounts TO kyhan_order_system;
GRANT UPDATE (kind) ON accounts TO kyhan_order_system; -- to lock: a trigger refuses any change
GRANT SELECT, INSERT (id, debit_account, credit_account, amount, reason, order_id, idempotency_key, at) ON transfers TO kyhan_order_system;
GRANT SELECT ON arrears_outstanding, retention_holds, order_retention TO kyhan_order_system;
GRANT SELECT, INSERT (event_type, subject_id, occurred_at, data), UPDATE (data) ON outbox TO kyhan_order_system;
GRANT SELECT, UPDATE (event_type, data) ON set_aside TO kyhan_order_system; -- to erase
GRANT SELECT (id, state, kind, subject_id, reason, last_failed_at) ON dead_letters TO kyhan_order_system;
GRANT INSERT (actor_kind, actor_id, action, subject_kind, subject_id, detail) ON activity TO kyhan_order_system;
GRANT SELECT ON activity TO kyhan_order_system;
GRANT SELECT ON orders_online, transfers_online, activity_online, own_imports, customers_masked, market_statistics
   TO kyhan_order_system;

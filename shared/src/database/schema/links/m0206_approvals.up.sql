-- Two persons for what moves much money. An operator is a login of their own: the database takes it from the session, and no role writes
-- it. Plans of replays and policies change only through the functions below, which run with the owner's rights and check for themselves.

-- Logins that `ops roles add-operator` made. They stay here after they are removed, so that what they did can be attributed.
CREATE TABLE operators (
    login       text        PRIMARY KEY,
    added_at    timestamptz NOT NULL DEFAULT now(),
    added_by    text        NOT NULL,
    removed_at  timestamptz
);

-- Policies that wait for a second operator.
CREATE TABLE policy_proposals (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Its lines and safeguards. What it releases is decided when it is applied.
    policy          jsonb       NOT NULL,
    -- How many rows of a kind are released per second.
    rate            integer     NOT NULL CHECK (rate > 0),
    -- The number of the policy that it was compared with. Null: none was applied.
    base            bigint,
    made_at         timestamptz NOT NULL DEFAULT now(),
    made_by         text        NOT NULL,
    made_login      text        NOT NULL DEFAULT session_user,
    why             text        NOT NULL,
    approved_by     text,
    approved_login  text        CHECK (approved_login <> made_login),
    applied_as      bigint      REFERENCES policies (id),
    CHECK (num_nulls(approved_by, approved_login, applied_as) IN (0, 3))
);

-- Whether a login is one person's. Several people know the password of a role.
CREATE FUNCTION kyhan_is_personal(login text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT login NOT IN ('kyhan_producer', 'kyhan_worker', 'kyhan_ops', 'kyhan_order_system', 'kyhan_owner')
$$;

-- Above which amount a second operator is needed, by the active policy; null: never. A policy that says nothing about it counts as 0, and
-- a database without a policy has the published default.
CREATE FUNCTION kyhan_approval_above() RETURNS bigint LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
DECLARE
    active jsonb := (SELECT policy FROM policies ORDER BY id DESC LIMIT 1);
BEGIN
    RETURN CASE WHEN active IS NULL THEN 10000000 WHEN active ? 'safeguards' THEN (active #>> '{safeguards,approval_above}')::bigint ELSE 0 END;
END $$;

-- What is approved: the plan, and each of its letters with its subject, verdict and amount.
CREATE FUNCTION kyhan_plan_digest(asked uuid) RETURNS text LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT encode(sha256(convert_to(jsonb_build_array(
               plan.id, plan.made_login, plan.policy, plan.amount, plan.tolerance_letters, plan.tolerance_amount, (
                   SELECT jsonb_agg(jsonb_build_array(line.position, line.letter_id, letter.kind, letter.subject_id, line.verdict, line.amount)
                                    ORDER BY line.position)
                     FROM replay_plan_letters AS line LEFT JOIN dead_letters AS letter ON letter.id = line.letter_id
                    WHERE line.plan_id = plan.id))::text, 'UTF8')), 'hex')
      FROM replay_plans AS plan WHERE plan.id = asked
$$;

-- Stores a plan under the active policy, and decides whether it needs approval: its amount, and as much more as it tolerates.
CREATE FUNCTION kyhan_plan_make(
    by_name text, reason text, selection jsonb, payers integer, most_letters integer, most_amount bigint, under bigint,
    letters uuid[], verdicts text[], whys text[], amounts bigint[]
) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    made uuid := gen_random_uuid();
    total numeric := coalesce((SELECT sum(amount) FROM unnest(amounts) AS amount), 0);
BEGIN
    IF under IS DISTINCT FROM (SELECT max(id) FROM policies) OR under IS NULL THEN
        RAISE EXCEPTION 'a replay plan must name the active policy' USING ERRCODE = 'check_violation', TABLE = 'replay_plans';
    END IF;
    INSERT INTO replay_plans (id, made_by, made_login, why, filter, policy, amount, customers, tolerance_letters, tolerance_amount, needs_approval)
    VALUES (made, by_name, session_user, reason, selection, under, total, payers, most_letters, most_amount,
            coalesce(total + most_amount > kyhan_approval_above(), false));
    INSERT INTO replay_plan_letters (plan_id, letter_id, position, verdict, why, amount)
    SELECT made, letter, place, verdict, nullif(why, ''), amount
      FROM unnest(letters, verdicts, whys, amounts) WITH ORDINALITY AS line (letter, verdict, why, amount, place);
    UPDATE replay_plans SET digest = kyhan_plan_digest(made) WHERE id = made;
    RETURN made;
END $$;

-- Approves a plan as its approver saw it.
CREATE FUNCTION kyhan_plan_approve(asked uuid, by_name text, seen text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    plan replay_plans;
BEGIN
    SELECT * INTO plan FROM replay_plans WHERE id = asked FOR UPDATE;
    IF plan.id IS NULL OR plan.state = 'done' OR plan.approved_login IS NOT NULL THEN
        RAISE EXCEPTION 'this plan cannot be approved' USING ERRCODE = 'check_violation', TABLE = 'replay_plans';
    END IF;
    IF plan.made_login = session_user OR NOT kyhan_is_personal(session_user) OR NOT kyhan_is_personal(plan.made_login) THEN
        RAISE EXCEPTION 'a plan must be approved by another operator, and both need personal logins'
            USING ERRCODE = 'insufficient_privilege', TABLE = 'replay_plans';
    END IF;
    IF seen IS DISTINCT FROM plan.digest OR seen IS DISTINCT FROM kyhan_plan_digest(asked) THEN
        RAISE EXCEPTION 'the lines of this plan have changed' USING ERRCODE = 'check_violation', TABLE = 'replay_plans';
    END IF;
    UPDATE replay_plans SET approved_by = by_name, approved_login = session_user, approved_at = now(), approved_digest = seen WHERE id = asked;
END $$;

-- Takes over a plan, and marks the letters that it does not replay. Returns how many these are.
CREATE FUNCTION kyhan_plan_begin(asked uuid, token uuid, by_name text) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    plan replay_plans;
    marked bigint;
BEGIN
    SELECT * INTO plan FROM replay_plans WHERE id = asked FOR UPDATE;
    IF plan.id IS NULL OR plan.state = 'done' THEN
        RAISE EXCEPTION 'this plan cannot be run' USING ERRCODE = 'check_violation', TABLE = 'replay_plans';
    END IF;
    IF plan.policy IS DISTINCT FROM (SELECT max(id) FROM policies) THEN
        RAISE EXCEPTION 'this plan was made under another policy than the active one' USING ERRCODE = 'check_violation', TABLE = 'replay_plans';
    END IF;
    IF plan.digest IS DISTINCT FROM kyhan_plan_digest(asked) OR (plan.needs_approval AND plan.approved_digest IS DISTINCT FROM plan.digest) THEN
        RAISE EXCEPTION 'this plan differs from the one that was approved' USING ERRCODE = 'insufficient_privilege', TABLE = 'replay_plans';
    END IF;
    UPDATE replay_plans SET state = 'running', run = token, run_by = by_name, run_login = session_user,
                            started_at = coalesce(started_at, now()), stopped_why = NULL
     WHERE id = asked;
    UPDATE replay_plan_letters SET result = 'left', result_why = coalesce(why, verdict), at = now()
     WHERE plan_id = asked AND result IS NULL AND verdict NOT IN ('applies', 'moot');
    GET DIAGNOSTICS marked = ROW_COUNT;
    RETURN marked;
END $$;

-- Locks a plan and one of its lines. Null: another run has taken the plan over; otherwise whether the line is still to be done.
CREATE FUNCTION kyhan_plan_hold(asked uuid, token uuid, letter uuid) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    PERFORM FROM replay_plans WHERE id = asked AND run = token AND state = 'running' AND run_login = session_user FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM FROM replay_plan_letters WHERE plan_id = asked AND letter_id = letter AND result IS NULL FOR UPDATE;
    RETURN FOUND;
END $$;

-- Writes a line's result, once.
CREATE FUNCTION kyhan_plan_note(asked uuid, token uuid, letter uuid, did text, did_why text, moved bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    planned bigint;
BEGIN
    IF kyhan_plan_hold(asked, token, letter) IS NOT TRUE THEN
        RAISE EXCEPTION 'this line of the plan is not open' USING ERRCODE = 'check_violation', TABLE = 'replay_plan_letters';
    END IF;
    UPDATE replay_plan_letters SET result = did, result_why = did_why, result_amount = moved, at = now()
     WHERE plan_id = asked AND letter_id = letter RETURNING amount INTO planned;
    IF did IN ('applied', 'moot') AND moved <> planned
       AND (SELECT sum(abs(result_amount - amount)) FROM replay_plan_letters WHERE plan_id = asked AND result IN ('applied', 'moot'))
           > (SELECT tolerance_amount FROM replay_plans WHERE id = asked) THEN
        RAISE EXCEPTION 'the result would differ from the plan by more than its tolerance' USING ERRCODE = 'check_violation', TABLE = 'replay_plan_letters';
    END IF;
END $$;

-- Ends a run: done, or stopped and why. False: another run has taken the plan over.
CREATE FUNCTION kyhan_plan_end(asked uuid, token uuid, stopped text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    UPDATE replay_plans SET state = CASE WHEN stopped IS NULL THEN 'done' ELSE 'stopped' END, stopped_why = stopped,
                            finished_at = CASE WHEN stopped IS NULL THEN now() END
     WHERE id = asked AND run = token AND run_login = session_user;
    RETURN FOUND;
END $$;

-- What operators' logins charged. Each charge belongs to a line of a plan that its login is running; that is checked at the commit, so
-- that a trial, which is rolled back, needs no plan.
CREATE TABLE operator_charges (
    transfer_id  uuid   PRIMARY KEY REFERENCES transfers (id),
    login        text   NOT NULL DEFAULT session_user
);
CREATE FUNCTION kyhan_operators_charge() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO operator_charges (transfer_id) SELECT id FROM added;
    RETURN NULL;
END $$;
CREATE TRIGGER transfers_of_operators AFTER INSERT ON transfers
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT
    WHEN (kyhan_session_role() = 'operator')
    EXECUTE FUNCTION kyhan_operators_charge();
CREATE FUNCTION kyhan_charges_are_planned() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    charged uuid := (SELECT order_id FROM transfers WHERE id = NEW.transfer_id);
BEGIN
    -- The transaction's moment is also that of its transfers and of its line.
    IF NOT EXISTS (
        SELECT FROM dead_letters AS letter
               JOIN replay_plan_letters AS line ON line.letter_id = letter.id AND line.at = now() AND line.result = 'applied'
               JOIN replay_plans AS plan ON plan.id = line.plan_id AND plan.state = 'running' AND plan.run_login = session_user
         WHERE letter.subject_id = charged
           AND line.result_amount = (SELECT sum(amount) FROM transfers
                                      WHERE order_id = charged AND at = now() AND reason = 'arrears')) THEN
        RAISE EXCEPTION 'operators may collect arrears only through a running replay plan'
            USING ERRCODE = 'insufficient_privilege', TABLE = 'transfers', HINT = 'Use ops dead replay.';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER charges_are_planned AFTER INSERT ON operator_charges DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    EXECUTE FUNCTION kyhan_charges_are_planned();

-- Whether a second operator is needed to apply a policy: it changes the safeguards, or it changes when arrears are collected while orders
-- are short of more than the limit in all. The most that a policy can make due at once is what orders are short of.
CREATE FUNCTION kyhan_policy_needs_approval(asked jsonb) RETURNS boolean LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
DECLARE
    active jsonb := (SELECT policy FROM policies ORDER BY id DESC LIMIT 1);
    about constant jsonpath := '$.lines[*] ? (@.task == "collect-arrears")';
    was jsonb := coalesce(jsonb_path_query_array(active, about), '[]');
    becomes jsonb := jsonb_path_query_array(asked, about);
    release jsonb := asked #> '{releases,collect-arrears}';
BEGIN
    IF active IS NOT NULL AND active -> 'safeguards' IS DISTINCT FROM asked -> 'safeguards' THEN
        RETURN true;
    END IF;
    -- Containment both ways: the order of the lines is no difference. A release can make rows due earlier, too; unless it is the one that
    -- is in progress, it is a change.
    IF active IS NOT NULL AND was @> becomes AND becomes @> was
       AND (release IS NULL OR release IS NOT DISTINCT FROM active #> '{releases,collect-arrears}') THEN
        RETURN false;
    END IF;
    RETURN coalesce((
        SELECT sum(part.due::numeric - coalesce(accounts.balance, 0)) > kyhan_approval_above()
          FROM orders CROSS JOIN LATERAL (
                   VALUES ('goods', goods_due), ('shipping', shipping_due), ('service', service_due)) AS part (kind, due)
               LEFT JOIN accounts ON accounts.order_id = orders.id AND accounts.kind = part.kind
         WHERE orders.status <> 'cancelled' AND (orders.status <> 'out_of_stock' OR orders.parcel_recorded_at IS NOT NULL)
           AND part.due > coalesce(accounts.balance, 0)), false);
END $$;

CREATE FUNCTION kyhan_policy_propose(asked jsonb, per_second integer, by_name text, reason text) RETURNS bigint
LANGUAGE sql SECURITY DEFINER AS $$
    INSERT INTO policy_proposals (policy, rate, base, made_by, why)
    VALUES (asked, per_second, (SELECT max(id) FROM policies), by_name, reason) RETURNING id
$$;

-- Makes a policy the active one. `proposal`: the one that the session's operator approves hereby.
CREATE FUNCTION kyhan_policy_apply(asked jsonb, by_name text, reason text, proposal bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    proposed policy_proposals;
    number bigint;
BEGIN
    -- As `ops` does: one policy after the other.
    PERFORM pg_advisory_xact_lock(30251311726198787);
    IF proposal IS NULL THEN
        IF kyhan_session_role() <> 'order_system' AND kyhan_policy_needs_approval(asked) THEN
            RAISE EXCEPTION 'a second operator must approve this policy' USING ERRCODE = 'insufficient_privilege', TABLE = 'policies';
        END IF;
    ELSE
        SELECT * INTO proposed FROM policy_proposals WHERE id = proposal FOR UPDATE;
        IF proposed.id IS NULL OR proposed.applied_as IS NOT NULL OR proposed.base IS DISTINCT FROM (SELECT max(id) FROM policies)
           OR proposed.policy - 'releases' IS DISTINCT FROM asked - 'releases' THEN
            RAISE EXCEPTION 'this proposal cannot be applied' USING ERRCODE = 'check_violation', TABLE = 'policy_proposals';
        END IF;
        IF proposed.made_login = session_user OR NOT kyhan_is_personal(session_user) OR NOT kyhan_is_personal(proposed.made_login) THEN
            RAISE EXCEPTION 'a policy must be approved by another operator, and both need personal logins'
                USING ERRCODE = 'insufficient_privilege', TABLE = 'policy_proposals';
        END IF;
    END IF;
    INSERT INTO policies (policy, applied_by, applied_login, why) VALUES (asked, by_name, session_user, reason) RETURNING id INTO number;
    UPDATE policy_proposals SET approved_by = by_name, approved_login = session_user, applied_as = number WHERE id = proposal;
    RETURN number;
END $$;

REVOKE EXECUTE ON FUNCTION
    kyhan_approval_above(), kyhan_plan_digest(uuid),
    kyhan_plan_make(text, text, jsonb, integer, integer, bigint, bigint, uuid[], text[], text[], bigint[]),
    kyhan_plan_approve(uuid, text, text), kyhan_plan_begin(uuid, uuid, text), kyhan_plan_hold(uuid, uuid, uuid),
    kyhan_plan_note(uuid, uuid, uuid, text, text, bigint), kyhan_plan_end(uuid, uuid, text),
    kyhan_operators_charge(), kyhan_charges_are_planned(), kyhan_policy_needs_approval(jsonb),
    kyhan_policy_propose(jsonb, integer, text, text), kyhan_policy_apply(jsonb, text, text, bigint)
    FROM PUBLIC;

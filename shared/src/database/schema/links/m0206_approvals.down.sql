DROP TRIGGER transfers_of_operators ON transfers;
DROP TABLE operator_charges, policy_proposals, operators;
DROP FUNCTION kyhan_operators_charge(), kyhan_charges_are_planned(), kyhan_policy_needs_approval(jsonb),
    kyhan_policy_propose(jsonb, integer, text, text), kyhan_policy_apply(jsonb, text, text, bigint),
    kyhan_plan_make(text, text, jsonb, integer, integer, bigint, bigint, uuid[], text[], text[], bigint[]),
    kyhan_plan_approve(uuid, text, text), kyhan_plan_begin(uuid, uuid, text), kyhan_plan_note(uuid, uuid, uuid, text, text, bigint),
    kyhan_plan_hold(uuid, uuid, uuid), kyhan_plan_end(uuid, uuid, text), kyhan_plan_digest(uuid), kyhan_approval_above(),
    kyhan_is_personal(text);

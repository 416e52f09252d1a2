//! Operators' decisions about dead letters: with a reason and a record, once, and only about the letters they select.

use serde_json::json;
use uuid::Uuid;

use crate::{
    harness::{Harness, QUICK, with_harness},
    letters::{StoredLetter, at_a_terminal, json, ops},
};

/// The number of letters in a state.
async fn in_state(harness: &Harness, state: &str) -> i64 {
    harness.ask(&format!("SELECT count(*) FROM dead_letters WHERE state = '{state}'")).await
}

async fn activities(harness: &Harness, action: &str) -> i64 {
    harness.ask(&format!("SELECT count(*) FROM activity WHERE action = '{action}' AND actor_kind = 'staff'")).await
}

/// A running plan that contains this letter.
async fn running_with(harness: &Harness, letter: Uuid) -> Uuid {
    let plan = Uuid::new_v4();
    let sql = "INSERT INTO replay_plans (id, state, made_by, why, filter, amount, customers, tolerance_letters, tolerance_amount,
                                         needs_approval, started_at)
               VALUES ($1, 'running', 'lan', 'fixed', '{}', 0, 0, 0, 0, false, now())";
    harness.run(sql, [plan.into()]).await;
    let sql = "INSERT INTO replay_plan_letters (plan_id, letter_id, position, verdict) VALUES ($1, $2, 1, 'applies')";
    harness.run(sql, [plan.into(), letter.into()]).await;
    plan
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_discarded_with_a_reason_and_a_record_and_only_those_that_are_meant() {
    with_harness(QUICK, async |harness| {
        for number in 0..3 {
            let cause = format!("port scan {number}");
            StoredLetter { kind: None, reason: "malformed", cause: &cause, group: "port scan ?", ..StoredLetter::default() }.store(harness).await;
        }
        let other = StoredLetter { subject: Some(Uuid::new_v4()), ..StoredLetter::default() }.store(harness).await;
        let done = ops(harness, &["--as", "lan", "dead", "discard", "--reason", "malformed", "--why", " a port scan ", "--yes"]).await;
        assert_eq!((done.code, done.out.trim()), (0, "3 dead letters discarded"), "{done:?}");
        let recorded = "SELECT count(*) FROM dead_letters AS letter JOIN activity ON activity.subject_id = letter.id
                         WHERE letter.state = 'discarded' AND decided_by = 'lan' AND decided_why = 'a port scan' AND decided_at = activity.at
                           AND action = 'dead_letter.discarded' AND subject_kind = 'dead_letter'
                           AND detail - 'login' = '{\"by\": \"lan\", \"why\": \"a port scan\", \"changed\": {\"state\": [\"open\", \"discarded\"]}}'";
        assert_eq!(harness.ask::<i64>(recorded).await, 3);
        assert_eq!((in_state(harness, "open").await, activities(harness, "dead_letter.discarded").await), (1, 3));

        let again = ops(harness, &["dead", "discard", "--reason", "malformed", "--why", "again", "--yes"]).await;
        assert!(again.code == 1 && again.err.contains("no open dead letters match"), "{again:?}");
        let one = harness.ask::<Uuid>("SELECT id FROM dead_letters WHERE state = 'discarded' LIMIT 1").await.to_string();
        let other = other.to_string();
        let twice = ops(harness, &["dead", "discard", "--id", &one, "--id", &other, "--why", "again", "--yes"]).await;
        assert!(twice.code == 1 && twice.err.contains("is already discarded, by lan at"), "{twice:?}");
        assert_eq!((in_state(harness, "open").await, activities(harness, "dead_letter.discarded").await), (1, 3));
        let all = ops(harness, &["dead", "discard", "--all", "--why", "the rest", "--yes"]).await;
        assert_eq!((all.code, all.out.trim()), (0, "1 dead letter discarded"), "{all:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_discarded_without_a_reason_a_choice_and_a_yes() {
    with_harness(QUICK, async |harness| {
        let id = StoredLetter::default().store(harness).await.to_string();
        for (arguments, said) in [
            (&["--id", &id, "--yes"][..], "--why"),
            (&["--id", &id, "--yes", "--why", "  "], "must be 1 to 500 characters on one line"),
            (&["--id", &id, "--yes", "--why", "a\nb"], "must be 1 to 500 characters on one line"),
            (&["--id", &id, "--why", "noise"], "Discard 1 dead letter for good? There is no terminal to ask at; pass --yes"),
            (&["--why", "noise", "--yes"], "or pass --all"),
            (&["--state", "all", "--why", "noise", "--yes"], "only open dead letters"),
            (&["--all", "--id", &id, "--why", "noise", "--yes"], "or pass --all"),
        ] {
            let refused = ops(harness, &[&["dead", "discard"][..], arguments].concat()).await;
            assert!(refused.code == 2 && refused.err.contains(said), "{arguments:?}: {refused:?}");
        }
        let unnamed = ops(harness, &["--as", " ", "dead", "discard", "--id", &id, "--why", "noise", "--yes"]).await;
        assert!(unnamed.code == 2 && unnamed.err.contains("--as NAME"), "{unnamed:?}");

        let plan = running_with(harness, id.parse().expect("an id")).await.to_string();
        StoredLetter::default().store(harness).await;
        let running = ops(harness, &["dead", "discard", "--all", "--why", "noise", "--yes"]).await;
        assert!(running.code == 1 && running.err.contains(&plan) && running.err.contains(&id), "{running:?}");
        assert_eq!((in_state(harness, "open").await, harness.ask::<i64>("SELECT count(*) FROM activity").await), (2, 0));
        harness.run("UPDATE replay_plans SET state = 'done', finished_at = now()", []).await;
        assert_eq!(ops(harness, &["dead", "discard", "--all", "--why", "noise", "--yes"]).await.code, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_who_discard_the_same_letters_leave_one_record_of_each() {
    with_harness(QUICK, async |harness| {
        for _ in 0..50 {
            StoredLetter::default().store(harness).await;
        }
        let arguments = ["dead", "discard", "--all", "--why", "noise", "--yes"];
        let (one, other) = tokio::join!(ops(harness, &arguments), ops(harness, &arguments));
        assert!(one.code == 0 || other.code == 0, "{one:?} {other:?}");
        assert_eq!((in_state(harness, "discarded").await, activities(harness, "dead_letter.discarded").await), (50, 50));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_keeps_the_original_and_links_the_letter_that_takes_its_place() {
    with_harness(QUICK, async |harness| {
        let (wrong, right) = (harness.delivering().await, harness.delivering().await);
        let body = b"bytes \xff\x00";
        let headers = br#"{"mine":{"LongInt":1}}"#;
        let id = StoredLetter { subject: Some(wrong), body, headers, ..StoredLetter::default() }.store(harness).await.to_string();
        let subject = right.to_string();
        let done =
            ops(harness, &["--as", "lan", "dead", "repair", &id[..8], "--subject", &subject, "--why", "orders mixed up", "--yes"]).await;
        assert_eq!(done.code, 0, "{done:?}");
        let same = "SELECT count(*) FROM dead_letters AS old JOIN dead_letters AS new ON new.repaired_from = old.id
                     WHERE old.state = 'resolved' AND new.state = 'open' AND old.subject_id <> new.subject_id AND old.kind = new.kind
                       AND old.decided_by = 'lan' AND old.decided_why = 'repaired as ' || new.id || ': orders mixed up'
                       AND (old.wakeup_id, old.reason, old.cause, old.cause_group, old.attempts, old.first_failed_at, old.last_failed_at,
                            old.worker, old.trace_id, old.queue, old.routing_key, old.body_hash)
                         = (new.wakeup_id, new.reason, new.cause, new.cause_group, new.attempts, new.first_failed_at, new.last_failed_at,
                            new.worker, new.trace_id, new.queue, new.routing_key, new.body_hash)";
        assert_eq!(harness.ask::<i64>(same).await, 1);
        let new = harness.ask::<Uuid>("SELECT id FROM dead_letters WHERE repaired_from IS NOT NULL").await.to_string();
        assert!(done.out.contains(&new), "{done:?}");
        let recorded = harness.ask::<serde_json::Value>("SELECT detail - 'login' FROM activity WHERE action = 'dead_letter.repaired'").await;
        let changed = json!({
            "state": ["open", "resolved"], "repaired_as": new,
            "kind": ["confirm-receipt", "confirm-receipt"], "subject_id": [wrong, right],
        });
        assert_eq!(recorded, json!({ "by": "lan", "why": "orders mixed up", "changed": changed }));
        let (old, new_shown) = (ops(harness, &["dead", "show", &id]).await.out, json(harness, &["dead", "show", &new, "--json"]).await);
        assert!(old.contains(&format!("repaired as         {new}")), "{old}");
        assert_eq!((&new_shown["letter"]["repaired_from"], &new_shown["stands"]["standing"]), (&json!(id), &json!("due")));

        // The same command a second time.
        let again = ops(harness, &["dead", "repair", &id, "--subject", &subject, "--why", "orders mixed up", "--yes"]).await;
        assert!(again.code == 1 && again.err.contains(&format!("is already repaired, as {new}")), "{again:?}");
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM dead_letters").await, 2);

        // The repaired letter can be repaired as well, for example when the subject was wrong.
        let (first, item) = (wrong.to_string(), harness.in_cart().await.to_string());
        assert_eq!(ops(harness, &["dead", "repair", &new, "--subject", &first, "--why", "no, not mixed up", "--yes"]).await.code, 0);
        let newest = harness.ask::<Uuid>("SELECT id FROM dead_letters WHERE state = 'open'").await.to_string();
        let kind = ["dead", "repair", &newest, "--kind", "purge-cart-item", "--subject", &item, "--why", "renamed", "--yes"];
        assert_eq!(ops(harness, &kind).await.code, 0);
        assert_eq!((in_state(harness, "resolved").await, in_state(harness, "open").await), (3, 1));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_kind_and_a_subject_that_make_sense_can_be_repaired() {
    with_harness(QUICK, async |harness| {
        let (order, item) = (harness.delivering().await.to_string(), harness.in_cart().await.to_string());
        let id = StoredLetter { subject: order.parse().ok(), ..StoredLetter::default() }.store(harness).await.to_string();
        let garbage =
            StoredLetter { kind: None, reason: "malformed", ..StoredLetter::default() }.store(harness).await.to_string();
        let renamed = StoredLetter { kind: Some("receipt"), subject: order.parse().ok(), ..StoredLetter::default() }
            .store(harness)
            .await
            .to_string();
        let gone = Uuid::new_v4().to_string();
        for (letter, arguments, code, said) in [
            (&id, &["--amount", "500000"][..], 2, "--amount"),
            (&id, &["--subject", &item, "--goods-due", "1"], 2, "--goods-due"),
            (&id, &["--cause", "none"], 2, "--cause"),
            (&id, &[], 2, "required"),
            (&id, &["--kind", "make-coffee"], 2, "must be one of confirm-receipt"),
            (&id, &["--subject", "BG-17"], 2, "BG-17"),
            (&id, &["--subject", &gone], 1, "there is no row"),
            (&id, &["--kind", "purge-cart-item"], 1, "purge-cart-item is about rows of cart_items, and there is no row"),
            (&id, &["--kind", "confirm-receipt"], 1, "already has this kind and subject"),
            (&garbage, &["--kind", "confirm-receipt"], 1, "both --kind and --subject"),
            (&garbage, &["--subject", &order], 1, "both --kind and --subject"),
            (&renamed, &["--subject", &item], 1, "unknown task \"receipt\""),
            (&gone, &["--subject", &order], 1, "no dead letter's id begins with"),
        ] {
            let whole = [&["dead", "repair", letter.as_str(), "--why", "a test", "--yes"][..], arguments].concat();
            let refused = ops(harness, &whole).await;
            assert!(refused.code == code && refused.err.contains(said), "{arguments:?}: {refused:?}");
        }
        let unasked =
            ops(harness, &["dead", "repair", &garbage, "--kind", "confirm-receipt", "--subject", &order, "--why", "x"]).await;
        assert!(unasked.code == 2 && unasked.err.contains("kind - becomes confirm-receipt, subject - becomes"), "{unasked:?}");
        let plan = running_with(harness, garbage.parse().expect("an id")).await.to_string();
        let whole = ["dead", "repair", &garbage, "--kind", "confirm-receipt", "--subject", &order, "--why", "x", "--yes"];
        let running = ops(harness, &whole).await;
        assert!(running.code == 1 && running.err.contains(&plan), "{running:?}");
        assert_eq!((in_state(harness, "open").await, harness.ask::<i64>("SELECT count(*) FROM activity").await), (3, 0));

        harness.run("UPDATE replay_plans SET state = 'stopped'", []).await;
        assert_eq!(ops(harness, &whole).await.code, 0);
        assert_eq!(
            ops(harness, &["dead", "repair", &renamed, "--kind", "confirm-receipt", "--why", "renamed", "--yes"]).await.code,
            0
        );
        let discarded = ops(harness, &["dead", "discard", "--id", &id, "--why", "noise", "--yes"]).await;
        assert_eq!(discarded.code, 0, "{discarded:?}");
        let late = ops(harness, &["dead", "repair", &id, "--kind", "collect-arrears", "--why", "late", "--yes"]).await;
        assert!(late.code == 1 && late.err.contains("is already discarded, by"), "{late:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repairs_of_one_letter_at_the_same_time_make_one_letter() {
    with_harness(QUICK, async |harness| {
        let (wrong, right) = (harness.delivering().await, harness.delivering().await.to_string());
        let id = StoredLetter { subject: Some(wrong), ..StoredLetter::default() }.store(harness).await.to_string();
        let press = ["dead", "repair", &id, "--subject", &right, "--why", "a double press", "--yes"];
        let presses = tokio::join!(ops(harness, &press), ops(harness, &press), ops(harness, &press));
        let mut codes = [presses.0.code, presses.1.code, presses.2.code];
        codes.sort_unstable();
        assert_eq!(codes, [0, 1, 1], "{presses:?}");
        assert_eq!((in_state(harness, "open").await, in_state(harness, "resolved").await), (1, 1));
        assert_eq!(activities(harness, "dead_letter.repaired").await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_at_a_terminal_is_asked_and_only_a_yes_counts() {
    with_harness(QUICK, async |harness| {
        StoredLetter::default().store(harness).await;
        for (keys, code, open) in [("\r", 1, 1), ("n\r", 1, 1), ("x\r", 1, 1), ("yn\r", 1, 1), ("y\r", 0, 0)] {
            assert_eq!(
                at_a_terminal(harness, "dead discard --all --why noise", "Discard 1 dead letter for good?", keys).await,
                code,
                "{keys:?}"
            );
            assert_eq!(in_state(harness, "open").await, open, "{keys:?}");
        }
    })
    .await;
}

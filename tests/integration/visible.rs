//! Text that others wrote into the database reaches no terminal as it is: every command that prints such text is run on rows full of
//! escape sequences, bidirectional overrides and line ends.

use tests::fleet;
use uuid::Uuid;

use crate::{
    harness::{Harness, QUICK, with_harness},
    letters::{StoredLetter, ops},
};

/// An escape sequence, a right-to-left override, a C1 control, and a second line.
const HOSTILE: &str = "x\u{1b}[31m\u{202e}\u{9b}2J\u{200b}\nFORGED";

/// Commands with the placeholders of their subjects.
const RUN: [&str; 41] = [
    "status",
    "status --json",
    "explain {order}",
    "explain {order} --json",
    "forecast",
    "forecast --json",
    "policy show",
    "policy show --json",
    "policy preview {policy}",
    "policy preview {policy} --json",
    "policy proposals",
    "policy proposals --json",
    "policy approve {proposal} --yes",
    "policy apply {policy} --why x --yes",
    "set-aside list",
    "set-aside list --json",
    "dead list --state all",
    "dead list --json",
    "dead list --csv",
    "dead list --groups",
    "dead list --groups --json",
    "dead show {letter}",
    "dead show {letter} --json",
    "dead plans",
    "dead plans --json",
    "dead plans {plan}",
    "dead plans {plan} --json",
    "dead replay --run {plan} --yes",
    "dead approve {plan} --yes --why x",
    "retention list",
    "retention list --json",
    "pause confirm-receipt --why x",
    "pause confirm-receipt --why x --json",
    "activity verify",
    "activity verify --json",
    "customer show {customer}",
    "customer erase {customer} --why x --yes",
    "topology show",
    "topology prune",
    "audit",
    "rebuild --dry-run",
];

/// Commands that print only ids and numbers of their own.
const SILENT: [&str; 20] = [
    "help",
    "migrate up",
    "migrate down",
    "migrate status",
    "roles install",
    "roles remove",
    "roles add-operator",
    "roles remove-operator",
    "triggers install",
    "triggers remove",
    "topology declare",
    "completions",
    "resume",
    "retention hold",
    "retention release",
    "retention unhide",
    "set-aside retry",
    "set-aside discard",
    "dead discard",
    "dead repair",
];

/// Its purpose is to hand out the data as it is, and its JSON is covered by the unit test of `visible`.
const HANDS_OUT: &str = "customer export";

/// Fills every free text of the database with the hostile one; returns the placeholders' values.
async fn fill(harness: &Harness) -> Vec<(&'static str, String)> {
    let (order, plan) = (harness.delivering().await, Uuid::new_v4());
    let group = StoredLetter { subject: Some(order), reason: HOSTILE, cause: HOSTILE, group: HOSTILE, ..StoredLetter::default() };
    let letter = group.store(harness).await;
    for sql in [
        "WITH kept AS (
             INSERT INTO dead_letter_bodies (hash, headers, body)
             SELECT kyhan_body_hash(text, text), text, text FROM convert_to($1, 'UTF8') AS text RETURNING hash
         ), updated AS (UPDATE dead_letters SET worker = $1, trace_id = $1, queue = $1, routing_key = $1, body_hash = hash FROM kept)
         INSERT INTO dead_letters (id, state, reason, cause, cause_group, attempts, last_failed_at, queue, routing_key, body_hash,
                                   kind, decided_at, decided_by, decided_why)
         SELECT gen_random_uuid(), 'discarded', $1, $1, $1, 1, now(), $1, $1, hash, $1, now(), $1, $1 FROM kept",
        "INSERT INTO policy_proposals (policy, rate, base, made_by, made_login, why)
         SELECT policy, 1, id, $1, $1, $1 FROM policies",
        "INSERT INTO set_aside (event_id, event_type, subject_id, occurred_at, reason) VALUES (gen_random_uuid(), $1, gen_random_uuid(), now(), $1)",
        "INSERT INTO pauses (kind, paused_by, why) VALUES ('confirm-receipt', $1, $1)",
        "INSERT INTO order_status_history (order_id, from_status, to_status, reason) SELECT id, $1, $1, $1 FROM orders",
        "INSERT INTO retention_holds (order_id, held_by, why) SELECT id, $1, $1 FROM orders",
        "INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail)
         SELECT 'staff', $1, $1, id, jsonb_build_object('by', $1::text, 'why', $1::text, 'login', $1::text) FROM orders",
        "INSERT INTO rungs (queue, exchange) VALUES ($1, $1)",
        "INSERT INTO leader (instance) VALUES ($1)",
        "UPDATE customers SET full_name = $1, phone = $1, email = $1",
        "UPDATE orders SET code = $1",
    ] {
        harness.run(sql, [HOSTILE.into()]).await;
    }
    let sql = "INSERT INTO replay_plans (id, made_by, why, filter, amount, customers, tolerance_letters, tolerance_amount, needs_approval,
                                         state, run, run_by, started_at, stopped_why)
               VALUES ($1, $2, $2, jsonb_build_object('cause', $2::text), 0, 0, 0, 0, true, 'stopped', $1, $2, now(), $2)";
    harness.run(sql, [plan.into(), HOSTILE.into()]).await;
    let sql = "INSERT INTO replay_plan_letters (plan_id, letter_id, position, verdict, why, result, result_why, at)
               VALUES ($1, $2, 1, 'fails', $3, 'failed', $3, now())";
    harness.run(sql, [plan.into(), letter.into(), HOSTILE.into()]).await;
    let policy = std::env::temp_dir().join(format!("{plan}.toml"));
    std::fs::write(&policy, QUICK).expect("a file");
    let customer: Uuid = harness.ask("SELECT id FROM customers LIMIT 1").await;
    let proposal: i64 = harness.ask("SELECT id FROM policy_proposals").await;
    vec![
        ("{order}", order.to_string()),
        ("{letter}", letter.to_string()),
        ("{plan}", plan.to_string()),
        ("{proposal}", proposal.to_string()),
        ("{customer}", customer.to_string()),
        ("{policy}", policy.to_string_lossy().into_owned()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_prints_what_controls_a_terminal_or_imitates_a_line() {
    with_harness(QUICK, async |harness| {
        let places = fill(harness).await;
        let mut shown = 0;
        for line in RUN {
            let line = places.iter().fold(line.to_owned(), |line, (place, value)| line.replace(place, value));
            let said = ops(harness, &line.split(' ').collect::<Vec<_>>()).await;
            let text = format!("{}{}", said.out, said.err);
            assert!(!text.trim().is_empty(), "{line} says nothing: {said:?}");
            let control = |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{202e}' | '\u{200b}');
            assert!(!text.contains(control), "{line}: {text:?}");
            // CSV keeps line ends, within quotes.
            assert!(line.contains("--csv") || !text.lines().any(|line| line.starts_with("FORGED")), "{line}: {text}");
            shown += usize::from(text.contains("FORGED"));
            assert!(
                !line.contains("--json")
                    || said.out.trim().is_empty()
                    || serde_json::from_str::<serde_json::Value>(&said.out).is_ok()
            );
        }
        assert!(shown > 20, "only {shown} commands showed the text");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_is_among_those_whose_output_is_checked_or_prints_nothing_of_others() {
    with_harness(QUICK, async |harness| {
        let mut paths = vec![String::new()];
        while let Some(path) = paths.pop() {
            let words = path.split(' ').filter(|word| !word.is_empty()).chain(["--help"]).collect::<Vec<_>>();
            let help = fleet::output(fleet::command("ops", &harness.sandbox.env, words).expect("built")).await.expect("help");
            let list = help.split_once("\nCommands:\n").map_or("", |(_, list)| list);
            let names = list.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.strip_prefix("  "));
            let below: Vec<_> = names.filter(|line| !line.starts_with(' ')).filter_map(|line| line.split(' ').next()).collect();
            paths.extend(below.iter().filter(|name| **name != "help").map(|name| format!("{path} {name}").trim().to_owned()));
            let known = path.is_empty() || !below.is_empty() || path == HANDS_OUT || SILENT.contains(&path.as_str());
            assert!(known || RUN.iter().any(|line| line.starts_with(&path)), "`ops {path}` is in none of the lists");
        }
    })
    .await;
}

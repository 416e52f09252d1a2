//! What moves much money needs two persons, and a person is a login of PostgreSQL. The database compares them, over a digest of what is
//! approved; a name on the command line, an environment and an operator's own SQL change nothing about it.

use sea_orm::{ConnectionTrait, DatabaseConnection, TransactionTrait};
use shared::database::failure::is_refused;
use tests::fleet;
use uuid::Uuid;

use crate::{
    harness::{Harness, with_harness},
    letters::{json, ops},
    policies::{File, SHORTER, short},
};

/// Four orders short of 100,000 ₫ with a dead letter each, under a policy that asks for approval above 199,999 ₫.
async fn population(harness: &Harness) {
    harness.kept_body(b"{}", b"").await;
    for sql in [
        "INSERT INTO orders (id, code, customer_id, status, delivering_since, goods_due)
         SELECT gen_random_uuid(), 'S-' || n, id, 'delivering', now() - interval '1 year', 100000 FROM customers, generate_series(1, 4) AS n",
        "INSERT INTO dead_letters (id, kind, subject_id, reason, cause, cause_group, attempts, last_failed_at, queue, routing_key, body_hash)
         SELECT gen_random_uuid(), 'collect-arrears', id, 'attempts-exhausted', 'obstacle', 'obstacle', 6, now(), 'dead', '', (SELECT hash FROM dead_letter_bodies) FROM orders",
    ] {
        harness.run(sql, []).await;
    }
}

const FILE: &str = "[dead_letters]\napproval_above = 199_999\n";

async fn plan(harness: &Harness, more: &[&str]) -> String {
    let planning = ["--as", "lan", "dead", "replay", "--all", "--plan", "--why", "mended", "--json"];
    let said = json(harness, &[&planning[..], more].concat()).await;
    said["plan"]["id"].as_str().expect("an id").to_owned()
}

async fn charged(harness: &Harness) -> i64 {
    harness.ask("SELECT coalesce(sum(amount), 0)::bigint FROM transfers").await
}

/// Runs `ops` with the login of one operator under the name of another, and more variables.
async fn disguised(harness: &Harness, login: &str, arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = fleet::command("ops", &harness.sandbox.env, arguments).expect("built");
    let url = tests::sandbox::url_as_operator(&harness.sandbox.env["KYHAN_DATABASE_URL"], login).expect("a URL");
    let done = command.env("KYHAN_DATABASE_URL", url).envs(variables.iter().copied()).output().await.expect("run");
    (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
}

async fn refused(db: &DatabaseConnection, sql: &str) {
    let error = db.execute_unprepared(sql).await.map(|_| ()).expect_err(sql);
    assert!(is_refused(&error), "{sql}: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_login_under_two_names_approves_nothing() {
    with_harness(FILE, async |harness| {
        population(harness).await;
        let id = plan(harness, &[]).await;
        for name in ["hoa", "LAN", "lan ", "\u{ff4c}an"] {
            let (code, said) = disguised(harness, "lan", &["--as", name, "dead", "approve", &id, "--yes"], &[]).await;
            assert!(code == Some(1) && said.contains("lan made this plan, with this login"), "{name}: {said}");
        }
        let (code, said) = disguised(harness, "lan", &["--as", "lan\u{200b}", "dead", "approve", &id, "--yes"], &[]).await;
        assert!(code == Some(2) && said.contains("--as"), "{said}");
        // The runner's own settings remove nothing.
        let own = [("KYHAN_DEAD_LETTERS_APPROVAL_ABOVE", "none"), ("KYHAN_ARREARS_WALLET_FLOOR", "none")];
        let (code, said) = disguised(harness, "lan", &["--as", "hoa", "dead", "replay", "--run", &id, "--yes"], &own).await;
        assert!(code == Some(1) && said.contains("must approve it"), "{said}");
        let planned = ["--as", "lan", "dead", "replay", "--all", "--plan", "--why", "x"];
        assert_eq!(disguised(harness, "lan", &planned, &own).await.0, Some(0));
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM replay_plans WHERE needs_approval").await, 2);
        // The tolerance counts as well, as money that may move.
        harness.run("UPDATE dead_letters SET state = 'resolved', decided_at = now(), decided_by = 'x', decided_why = 'x'
                      WHERE id <> (SELECT id FROM dead_letters LIMIT 1)", []).await;
        plan(harness, &[]).await;
        plan(harness, &["--tolerance-amount", "100000"]).await;
        let needs = "SELECT array_agg(needs_approval ORDER BY made_at) FROM replay_plans";
        assert_eq!(harness.ask::<Vec<bool>>(needs).await, [true, true, false, true]);
        assert_eq!(charged(harness).await, 0);
        // Another person, whatever name they give.
        let (code, said) = disguised(harness, "hoa", &["--as", "lan", "dead", "approve", &id, "--yes"], &[]).await;
        assert_eq!(code, Some(0), "{said}");
        let logins = "SELECT made_login LIKE 'kyhan\\_%\\_operator\\_lan' AND approved_login LIKE 'kyhan\\_%\\_operator\\_hoa' FROM replay_plans WHERE approved_at IS NOT NULL";
        assert!(harness.ask::<bool>(logins).await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_several_people_use_approves_nothing() {
    with_harness(FILE, async |harness| {
        population(harness).await;
        let id = plan(harness, &[]).await;
        // As a session with the password of kyhan_ops.
        let tx = harness.sandbox.db.begin().await.expect("a transaction");
        tx.execute_unprepared("SET LOCAL SESSION AUTHORIZATION kyhan_ops").await.expect("a superuser may");
        let sql = format!("SELECT kyhan_plan_approve('{id}', 'hoa', (SELECT digest FROM replay_plans WHERE id = '{id}'))");
        let error = tx.execute_unprepared(&sql).await.map(|_| ()).expect_err("shared");
        assert!(is_refused(&error), "{error}");
        tx.rollback().await.expect("rolled back");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_own_sql_changes_no_plan_and_a_changed_line_voids_the_approval() {
    with_harness(FILE, async |harness| {
        population(harness).await;
        let id = plan(harness, &[]).await;
        let lan = harness.sandbox.connect_as_operator("lan").await.expect("a login");
        for sql in [
            "UPDATE replay_plans SET approved_by = 'hoa', approved_login = 'hoa'",
            "UPDATE replay_plans SET needs_approval = false",
            "UPDATE replay_plan_letters SET amount = 1",
            "DELETE FROM replay_plan_letters",
            "INSERT INTO replay_plan_letters (plan_id, letter_id, position, verdict) SELECT plan_id, letter_id, 99, 'applies' FROM replay_plan_letters LIMIT 1",
            "INSERT INTO policies (policy, applied_by, why) VALUES ('{}', 'x', 'x')",
            "INSERT INTO policy_proposals (policy, rate, made_by, made_login, why) VALUES ('{}', 1, 'x', 'hoa', 'x')",
            "UPDATE policy_proposals SET made_login = 'hoa'",
            &format!("SELECT kyhan_plan_begin('{id}', gen_random_uuid(), 'lan')"),
            &format!("SELECT kyhan_plan_approve('{id}', 'hoa', (SELECT digest FROM replay_plans WHERE id = '{id}'))"),
        ] {
            refused(&lan, sql).await;
        }
        ops(harness, &["--as", "hoa", "dead", "approve", &id, "--yes"]).await;
        let run = ["--as", "lan", "dead", "replay", "--run", &id, "--yes"];
        // Even an administrator's change of what was approved: a line's amount, its subject, a line more.
        for (change, back) in [
            ("UPDATE replay_plan_letters SET amount = amount + 1 WHERE position = 1", "UPDATE replay_plan_letters SET amount = amount - 1 WHERE position = 1"),
            ("UPDATE replay_plans SET tolerance_amount = 1000000000", "UPDATE replay_plans SET tolerance_amount = 0"),
            ("UPDATE dead_letters SET kind = 'confirm-receipt'", "UPDATE dead_letters SET kind = 'collect-arrears'"),
        ] {
            harness.run(change, []).await;
            let said = ops(harness, &run).await;
            assert!(said.code == 1 && said.err.contains("the plan was changed after it was made"), "{change}: {said:?}");
            // The database itself says so, too.
            refused(&lan, &format!("SELECT kyhan_plan_begin('{id}', gen_random_uuid(), 'lan')")).await;
            harness.run(back, []).await;
        }
        assert_eq!(charged(harness).await, 0);
        let ran = ops(harness, &run).await;
        assert!(ran.code == 0 && charged(harness).await == 400_000, "{ran:?}");
        lan.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_replayed_without_an_applied_policy_or_under_another_one_than_planned() {
    with_harness(FILE, async |harness| {
        harness.without_policy().await;
        let none = ["--as", "lan", "dead", "replay", "--all", "--plan", "--why", "x"];
        harness.run("INSERT INTO dead_letters (id, kind, subject_id, reason, cause, cause_group, attempts, last_failed_at, queue, routing_key, body_hash)
                     VALUES ($1, 'collect-arrears', $1, 'x', 'x', 'x', 1, now(), 'x', '', $2)", [Uuid::new_v4().into(), harness.kept_body(b"{}", b"").await.into()]).await;
        let said = ops(harness, &none).await;
        assert!(said.code == 1 && said.err.contains("no policy was applied"), "{said:?}");
        harness.sandbox.apply(&harness.settings().policy).await.expect("applied");
        population(harness).await;
        let id = plan(harness, &["--limit", "2"]).await;
        assert_eq!(harness.ask::<i64>("SELECT policy FROM replay_plans").await, 2);
        harness.sandbox.apply(&harness.settings().policy).await.expect("applied");
        let said = ops(harness, &["--as", "lan", "dead", "replay", "--run", &id, "--yes"]).await;
        assert!(said.code == 1 && said.err.contains("another policy is active"), "{said:?}");
        assert_eq!(charged(harness).await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_may_move_much_money_or_loosens_a_safeguard_is_applied_by_a_second_operator() {
    with_harness(FILE, async |harness| {
        short(harness, 30).await;
        // What the orders are short of, 465,030 ₫, is above the limit.
        let shorter = File::new(&format!("{SHORTER}{FILE}"));
        let apply = |file: &File| ["--as", "lan", "policy", "apply", file.path(), "--why", "the board", "--yes", "--json"].map(str::to_owned);
        let run = async |words: &[String]| json(harness, &words.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let proposed = run(&apply(&shorter)).await;
        assert_eq!(proposed["proposal"], 1, "{proposed}");
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM policies").await, 1);
        let lan = harness.sandbox.connect_as_operator("lan").await.expect("a login");
        refused(&lan, "SELECT kyhan_policy_apply((SELECT policy FROM policy_proposals), 'lan', 'x', NULL)").await;
        refused(&lan, "SELECT kyhan_policy_apply((SELECT policy FROM policy_proposals), 'hoa', 'x', 1)").await;
        let own = ops(harness, &["--as", "lan", "policy", "approve", "1", "--yes"]).await;
        assert!(own.code == 1 && own.err.contains("another operator must approve this policy"), "{own:?}");
        let listed = ops(harness, &["policy", "proposals"]).await.out;
        assert!(listed.contains("the board"), "{listed}");
        let approved = json(harness, &["--as", "hoa", "policy", "approve", "1", "--yes", "--json"]).await;
        assert_eq!(approved["number"], 2, "{approved}");
        let again = ops(harness, &["--as", "hoa", "policy", "approve", "1", "--yes"]).await;
        assert!(again.code == 1 && again.err.contains("was applied as policy 2"), "{again:?}");

        // Without a limit or with a deeper floor: also where no money is at stake.
        harness.run("UPDATE orders SET goods_due = 0, service_due = 0", []).await;
        for (number, safeguard) in ["[dead_letters]\napproval_above = \"none\"\n", "[dead_letters]\napproval_above = 199_999\n[arrears]\nwallet_floor = -5\n"].into_iter().enumerate() {
            let proposed = run(&apply(&File::new(&format!("{SHORTER}{safeguard}")))).await;
            assert_eq!(proposed["proposal"], number + 2, "{safeguard}: {proposed}");
        }
        // Where nothing is at stake and no safeguard changes, one operator is enough.
        let alone = run(&apply(&File::new(&format!("{}{FILE}", SHORTER.replace("6h", "5h"))))).await;
        assert_eq!(alone["number"], 3, "{alone}");
        // A release can make rows due earlier; without changed lines it is not the operator's to invent.
        harness.run("UPDATE orders SET goods_due = 1000000", []).await;
        let forged = "SELECT kyhan_policy_apply(jsonb_set(policy, '{releases,collect-arrears}', '{}'), 'lan', 'x', NULL) FROM policies ORDER BY id DESC LIMIT 1";
        refused(&lan, forged).await;
        lan.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_login_is_added_used_and_removed_and_stays_known() {
    with_harness(FILE, async |harness| {
        let login = format!("op_{}", harness.sandbox.database().rsplit('_').next().expect("a suffix"));
        let roles = async |command: &str, name: &str, password: &str| {
            let mut command = fleet::command("ops", &harness.sandbox.env, ["--as", "admin", "roles", command, name, "--json"]).expect("built");
            command.env("KYHAN_ROLES_OPERATOR_PASSWORD", password);
            let done = command.output().await.expect("run");
            (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
        };
        for (name, password, why) in [
            ("kyhan_ops", "x", "begins with a letter"),
            ("Lan", "x", "begins with a letter"),
            (login.as_str(), "", "must not be empty"),
        ] {
            let (code, said) = roles("add-operator", name, password).await;
            assert!(code != Some(0) && said.contains(why), "{name}: {said}");
        }
        assert_eq!(roles("add-operator", &login, "geheim 1").await, (Some(0), String::new()));
        assert_eq!(roles("add-operator", &login, "geheim 2").await.0, Some(0), "a new password");
        let member = format!("SELECT pg_has_role('{login}', 'kyhan_ops', 'USAGE') AND rolcanlogin AND NOT rolsuper FROM pg_roles WHERE rolname = '{login}'");
        assert!(harness.ask::<bool>(&member).await);
        let (code, said) = roles("remove-operator", &login, "x").await;
        assert_eq!((code, said.as_str()), (Some(0), ""));
        assert!(roles("remove-operator", &login, "x").await.1.contains("no operator has the login"));
        let known = format!("SELECT removed_at IS NOT NULL AND added_by = 'admin' FROM operators WHERE login = '{login}'");
        assert!(harness.ask::<bool>(&known).await);
        assert_eq!(harness.ask::<i64>(&format!("SELECT count(*) FROM pg_roles WHERE rolname = '{login}'")).await, 0);
    })
    .await;
}

//! Replays of dead letters: planned, approved and run. Despite kills, races and changes in between, no letter is applied twice,
//! none is lost, and the money matches the plan.

use std::time::Duration;

use shared::domain::task::EXAMPLE_CUSTOMER;
use tests::fleet;
use uuid::Uuid;

use crate::{
    harness::{Harness, with_harness},
    letters::at_a_terminal,
};

/// The default policy. The letters are inserted by SQL, and no worker runs.
const DEFAULTS: &str = "";

/// The amount that each order is short, in đồng.
const SHORT: i64 = 100_000;

/// A letter about a subject.
async fn letter(harness: &Harness, kind: Option<&str>, subject: Option<Uuid>) -> Uuid {
    let id = Uuid::new_v4();
    let sql = "INSERT INTO dead_letters (id, kind, subject_id, reason, cause, cause_group, attempts, last_failed_at, queue, routing_key, body_hash)
               VALUES ($1, $2, $3, 'attempts-exhausted', 'obstacle', 'obstacle', 6, clock_timestamp(), 'dead', '', $4)";
    let body = harness.kept_body(b"{}", b"\xff\0").await;
    harness.run(sql, [id.into(), kind.map(ToOwned::to_owned).into(), subject.into(), body.into()]).await;
    id
}

/// An order that has been on its way for a year, short of [`SHORT`], of a new customer or of the given one.
async fn short(harness: &Harness, customer: Option<Uuid>) -> Uuid {
    let id = Uuid::new_v4();
    let customer = if let Some(customer) = customer {
        customer
    } else {
        let sql = "INSERT INTO customers (id, full_name, phone, email, address) VALUES ($1, 'Trần Văn Kín', '0909', 'kin@example.vn', 'Huế')";
        harness.run(sql, [id.into()]).await;
        id
    };
    let sql = "INSERT INTO orders (id, code, customer_id, status, delivering_since, goods_due)
               VALUES ($1, 'BG-' || $1::text, $2, 'delivering', now() - interval '1 year', $3)";
    harness.run(sql, [id.into(), customer.into(), SHORT.into()]).await;
    id
}

/// That many orders short of [`SHORT`], in order, each with a customer of its own and a letter about it.
async fn many_short(harness: &Harness, count: i64) {
    harness.kept_body(b"{}", b"").await;
    for sql in [
        "INSERT INTO customers (id, full_name, phone, email, address)
         SELECT gen_random_uuid(), 'Trần Văn Kín', '0909', 'kin@example.vn', 'Huế' FROM generate_series(1, $1::bigint)",
        "INSERT INTO orders (id, code, customer_id, status, delivering_since, goods_due)
         SELECT gen_random_uuid(), 'BG-' || id, id, 'delivering', now() - interval '1 year', 100000 FROM customers
          WHERE full_name = 'Trần Văn Kín' AND NOT EXISTS (SELECT FROM orders WHERE customer_id = customers.id) LIMIT $1",
        "INSERT INTO dead_letters (id, kind, subject_id, reason, cause, cause_group, attempts, last_failed_at, queue, routing_key, body_hash)
         SELECT gen_random_uuid(), 'collect-arrears', id, 'attempts-exhausted', 'obstacle', 'obstacle', 6, now(), 'dead', '', kyhan_body_hash('{}', '')
           FROM orders WHERE NOT EXISTS (SELECT FROM dead_letters WHERE subject_id = orders.id) LIMIT $1",
    ] {
        harness.run(sql, [count.into()]).await;
    }
}

/// Plans all open letters as Lan, and returns the plan's id.
async fn plan(harness: &Harness, more: &[&str]) -> Uuid {
    let mut arguments = vec!["--as", "lan", "dead", "replay", "--all", "--plan", "--why", "mended", "--json"];
    arguments.extend(more);
    let said = harness.ops(&arguments).await.expect("a plan");
    let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    said["plan"]["id"].as_str().expect("an id").parse().expect("a uuid")
}

/// Runs a plan as Minh.
async fn run(harness: &Harness, plan: Uuid, more: &[&str]) -> anyhow::Result<String> {
    let plan = plan.to_string();
    let mut arguments = vec!["--as", "minh", "dead", "replay", "--run", &plan, "--yes", "--rate", "10000"];
    arguments.extend(more);
    harness.ops(&arguments).await
}

async fn charged(harness: &Harness) -> i64 {
    harness.ask("SELECT coalesce(sum(amount), 0)::bigint FROM transfers WHERE reason = 'arrears'").await
}

async fn letters(harness: &Harness, state: &str) -> i64 {
    harness.ask(&format!("SELECT count(*) FROM dead_letters WHERE state = '{state}'")).await
}

/// Every order was charged exactly once, every letter replayed, and the ledger's sum is zero.
async fn all_charged_once(harness: &Harness, count: i64) {
    assert_eq!(charged(harness).await, count * SHORT);
    let once = "SELECT count(*) FROM (SELECT order_id FROM transfers GROUP BY order_id HAVING count(*) = 1) AS once";
    assert_eq!(harness.ask::<i64>(once).await, count);
    assert_eq!(letters(harness, "replayed").await, count);
    assert_eq!(harness.ask::<i64>("SELECT coalesce(sum(balance), 0)::bigint FROM accounts").await, 0);
    let recorded = "SELECT count(*) FROM activity WHERE action = 'dead_letter.replayed'";
    assert_eq!(harness.ask::<i64>(recorded).await, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_shows_what_would_happen_and_changes_nothing() {
    with_harness(DEFAULTS, async |harness| {
        let mut orders = Vec::new();
        for _ in 0..7 {
            orders.push(short(harness, None).await);
        }
        harness.run("UPDATE orders SET status = 'cancelled' WHERE id = $1", [orders[3].into()]).await;
        harness.run("UPDATE orders SET fees_changed_at = now() WHERE id = $1", [orders[4].into()]).await;
        let none = harness.ops(&["--as", "lan", "dead", "replay", "--all", "--plan", "--why", "none"]).await;
        assert!(none.expect_err("no letters yet").to_string().contains("no open dead letters match"));
        let fails = format!("ALTER TABLE orders ADD CONSTRAINT obstacle CHECK (id <> '{}' OR status <> 'received') NOT VALID", orders[5]);
        harness.run(&fails, []).await;
        for order in &orders[..5] {
            letter(harness, Some("collect-arrears"), Some(*order)).await;
        }
        letter(harness, Some("confirm-receipt"), Some(orders[5])).await;
        letter(harness, Some("confirm-receipt"), Some(orders[6])).await;
        // A second letter about the first order, one about a deleted order, one of an old kind, and garbage.
        letter(harness, Some("collect-arrears"), Some(orders[0])).await;
        letter(harness, Some("collect-arrears"), Some(Uuid::new_v4())).await;
        letter(harness, Some("make-coffee"), Some(orders[0])).await;
        letter(harness, None, None).await;
        let rows = "SELECT md5(string_agg(orders::text || orders.xmin::text, ',' ORDER BY id)) FROM orders";
        let before: String = harness.ask(rows).await;
        let id = plan(harness, &[]).await;
        assert_eq!(harness.ask::<String>(rows).await, before, "rows were touched");
        assert_eq!((charged(harness).await, letters(harness, "open").await), (0, 11));
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM accounts").await, 0);
        let verdicts: Vec<String> = harness
            .ask("SELECT array_agg(verdict || ' ' || amount ORDER BY position) FROM replay_plan_letters")
            .await;
        let planned = ["applies 100000"; 3].into_iter().chain([
            "moot 0", "waits 0", "fails 0", "applies 0", "moot 0", "moot 0", "unreadable 0", "unreadable 0",
        ]);
        assert_eq!(verdicts, planned.collect::<Vec<_>>());
        let shown = harness.ops(&["dead", "plans", &id.to_string()]).await.expect("a plan");
        for said in ["takes 300.000 ₫ from the wallets of 3 customers", "obstacle", "made by lan", "mended"] {
            assert!(shown.contains(said), "{said}: {shown}");
        }
        assert!(!shown.contains("Kín") && !shown.contains("0909"), "{shown}");

        let said = run(harness, id, &[]).await.expect("a run");
        assert!(said.contains("4 replayed, 300.000 ₫ moved; 3 moot and closed; 0 failed"), "{said}");
        assert_eq!(charged(harness).await, 3 * SHORT);
        assert_eq!((letters(harness, "replayed").await, letters(harness, "resolved").await, letters(harness, "open").await), (4, 3, 4));
        let decided = "SELECT count(*) FROM dead_letters WHERE state <> 'open' AND decided_by = 'minh' AND decided_why <> ''";
        assert_eq!(harness.ask::<i64>(decided).await, 7);
        let again = run(harness, id, &[]).await.expect_err("a plan is run once").to_string();
        assert!(again.contains("the plan is already done"), "{again}");
        let kinds = "SELECT string_agg(action || ' ' || (detail ->> 'by'), ', ' ORDER BY id) FROM activity WHERE subject_kind = 'replay_plan'";
        assert_eq!(harness.ask::<String>(kinds).await, "replay.planned lan, replay.started minh, replay.finished minh");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_racing_one_plan_charge_once() {
    const COUNT: i64 = 400;
    with_harness(DEFAULTS, async |harness| {
        many_short(harness, COUNT).await;
        let id = plan(harness, &["--tolerance-letters", "1000", "--tolerance-amount", "1.000.000.000"]).await;
        harness.ops(&["--as", "hoa", "dead", "approve", &id.to_string(), "--yes"]).await.expect("approved");
        let racing: [_; 4] = std::array::from_fn(|_| run(harness, id, &[]));
        let ran = futures::future::join_all(racing).await;
        assert_eq!(ran.iter().filter(|ran| ran.is_ok()).count(), 1, "{ran:?}");
        for refused in ran.into_iter().filter_map(Result::err) {
            let refused = refused.to_string();
            assert!(refused.contains("another process") || refused.contains("the plan is already done"), "{refused}");
        }
        all_charged_once(harness, COUNT).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_killed_at_random_goes_on_where_it_was_and_charges_once() {
    const COUNT: i64 = 500;
    with_harness(DEFAULTS, async |harness| {
        many_short(harness, COUNT).await;
        let before: i64 = harness.ask("SELECT count(*) FROM replay_plans").await;
        let planning = ["--as", "lan", "dead", "replay", "--all", "--plan", "--why", "killed"];
        for pause in [100, 400] {
            let mut ops = fleet::command("ops", &harness.sandbox.env, planning).expect("built").spawn().expect("started");
            tokio::time::sleep(Duration::from_millis(pause)).await;
            ops.kill().await.expect("killed");
        }
        assert_eq!((before, charged(harness).await), (0, 0));
        let id = plan(harness, &["--tolerance-letters", "1"]).await;
        harness.ops(&["--as", "hoa", "dead", "approve", &id.to_string(), "--yes"]).await.expect("approved");
        let id_text = id.to_string();
        let mut kills = 0;
        let mut moved = -1;
        while letters(harness, "replayed").await < COUNT / 2 {
            let arguments = ["--as", "minh", "dead", "replay", "--run", &id_text, "--yes", "--rate", "10000"];
            let mut ops = fleet::command("ops", &harness.sandbox.env, arguments).expect("built").spawn().expect("started");
            // At a random time after it has begun.
            let pause = rand::random_range(1..200);
            let begun = charged(harness).await;
            tests::sandbox::eventually("it replays", crate::harness::SOON, async || Ok(charged(harness).await > begun)).await;
            tokio::time::sleep(Duration::from_millis(pause)).await;
            ops.kill().await.expect("killed");
            kills += 1;
            let now = charged(harness).await;
            assert!(now >= moved, "money went back");
            moved = now;
        }
        assert!(kills > 0);
        // The session of the killed process may live for a moment.
        tests::sandbox::eventually("the rest is replayed", crate::harness::SOON, async || {
            Ok(run(harness, id, &[]).await.is_ok() || letters(harness, "replayed").await == COUNT)
        })
        .await;
        all_charged_once(harness, COUNT).await;
        assert_eq!(harness.ask::<String>("SELECT state FROM replay_plans").await, "done");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_refused_when_the_rows_have_moved_further_than_it_tolerates() {
    with_harness(DEFAULTS, async |harness| {
        let orders = [short(harness, None).await, short(harness, None).await, short(harness, None).await];
        for order in orders {
            letter(harness, Some("collect-arrears"), Some(order)).await;
        }
        let strict = plan(harness, &[]).await;
        let tolerant = plan(harness, &["--tolerance-letters", "2", "--tolerance-amount", "150000"]).await;
        // One order now owes more, and one nothing.
        harness.run("UPDATE orders SET goods_due = goods_due + 50000 WHERE id = $1", [orders[0].into()]).await;
        harness.run("UPDATE orders SET goods_due = 0 WHERE id = $1", [orders[1].into()]).await;
        let refused = run(harness, strict, &[]).await.expect_err("refused").to_string();
        for said in [
            "2 letters would now differ from the plan",
            "by 150.000 ₫ in all",
            "planned applies, 100.000 ₫; now applies, 150.000 ₫",
            "now moot",
        ] {
            assert!(refused.contains(said), "{said}: {refused}");
        }
        assert_eq!((charged(harness).await, letters(harness, "open").await), (0, 3));
        let done = run(harness, tolerant, &[]).await.expect("tolerated");
        assert!(done.contains("2 replayed, 250.000 ₫ moved; 1 moot and closed"), "{done}");
        let refused = run(harness, strict, &[]).await.expect_err("refused").to_string();
        assert!(refused.contains("3 letters"), "{refused}");
        assert_eq!(charged(harness).await, 250_000);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_money_stops_a_run_at_the_last_dong_that_it_allows() {
    with_harness(DEFAULTS, async |harness| {
        many_short(harness, 10).await;
        let id = plan(harness, &[]).await;
        for (most, moved) in [("349.999", 3), ("100000", 4), ("99999", 4), ("299.999 ₫", 6)] {
            let stopped = run(harness, id, &["--amount-max", most]).await.expect_err("stopped").to_string();
            assert!(stopped.contains("exit status: 1"), "{stopped}");
            assert_eq!(charged(harness).await, moved * SHORT, "at most {most}");
            assert_eq!(harness.ask::<String>("SELECT state FROM replay_plans").await, "stopped");
        }
        run(harness, id, &["--letters-max", "1"]).await.expect_err("stopped");
        assert_eq!(charged(harness).await, 7 * SHORT);
        run(harness, id, &[]).await.expect("the rest");
        all_charged_once(harness, 10).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn above_an_amount_another_operator_has_to_approve() {
    with_harness("[dead_letters]\napproval_above = 199_999\n", async |harness| {
        many_short(harness, 1).await;
        let small = plan(harness, &[]).await;
        many_short(harness, 1).await;
        let large = plan(harness, &[]).await;
        let refused = run(harness, large, &[]).await.expect_err("refused").to_string();
        assert!(refused.contains("an operator other than lan must approve it"), "{refused}");
        let approve = async |who: &str| {
            harness.ops(&["--as", who, "dead", "approve", &large.to_string(), "--yes", "--why", "checked"]).await
        };
        let own = approve("lan").await.expect_err("one's own").to_string();
        assert!(own.contains("lan made this plan"), "{own}");
        let unasked = harness.ops(&["--as", "hoa", "dead", "approve", &large.to_string()]).await;
        assert!(unasked.is_err(), "there was no terminal for the question");
        assert_eq!(charged(harness).await, 0);
        approve("hoa").await.expect("approved");
        let twice = approve("minh").await.expect_err("twice").to_string();
        assert!(twice.contains("the plan is already approved, by hoa"), "{twice}");
        run(harness, large, &[]).await.expect("approved");
        assert_eq!(charged(harness).await, 2 * SHORT);
        let late = run(harness, small, &[]).await.expect_err("its letter was replayed by the other plan").to_string();
        assert!(late.contains("now moot"), "{late}");
        all_charged_once(harness, 2).await;
        let unknown = run(harness, Uuid::nil(), &[]).await.expect_err("unknown").to_string();
        assert!(unknown.contains("no plan has the id"), "{unknown}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_again_is_left_open_and_stops_a_run_that_fails_too_often() {
    with_harness(DEFAULTS, async |harness| {
        many_short(harness, 6).await;
        let id = plan(harness, &["--tolerance-letters", "6", "--tolerance-amount", "600000"]).await;
        let strict = plan(harness, &[]).await;
        // Only at the commit.
        for sql in [
            "CREATE FUNCTION obstacle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'an obstacle'; END $$",
            "CREATE CONSTRAINT TRIGGER obstacle AFTER INSERT ON activity DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
                 WHEN (NEW.action = 'order.arrears_collected') EXECUTE FUNCTION obstacle()",
        ] {
            harness.run(sql, []).await;
        }
        let refused = run(harness, strict, &[]).await.expect_err("seen before it begins").to_string();
        assert!(refused.contains("6 letters would now differ from the plan") && refused.contains("obstacle() line 1 at RAISE"), "{refused}");
        let stopped = run(harness, id, &["--failures-max", "2"]).await;
        assert!(stopped.is_err());
        assert_eq!((charged(harness).await, letters(harness, "open").await), (0, 6));
        let failed = "SELECT count(*) FROM replay_plan_letters WHERE result = 'failed' AND result_why LIKE '%PL/pgSQL function obstacle()%'";
        assert_eq!(harness.ask::<i64>(failed).await, 2);
        harness.run("DROP TRIGGER obstacle ON activity", []).await;
        run(harness, id, &[]).await.expect("the rest");
        assert_eq!((charged(harness).await, letters(harness, "open").await), (4 * SHORT, 2));
        run(harness, plan(harness, &[]).await, &[]).await.expect("those that failed, planned anew");
        all_charged_once(harness, 6).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_that_draw_on_one_wallet_are_counted_together() {
    with_harness("[arrears]\nwallet_floor = -150000\n", async |harness| {
        let orders = [short(harness, Some(EXAMPLE_CUSTOMER)).await, short(harness, Some(EXAMPLE_CUSTOMER)).await];
        for order in orders {
            letter(harness, Some("collect-arrears"), Some(order)).await;
        }
        let id = plan(harness, &[]).await;
        assert_eq!(harness.ask::<i64>("SELECT amount FROM replay_plans").await, 150_000);
        assert_eq!(harness.ask::<i32>("SELECT customers FROM replay_plans").await, 1);
        run(harness, id, &[]).await.expect("a run");
        assert_eq!(charged(harness).await, 150_000);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_money_moves_the_amount_has_to_be_typed() {
    with_harness(DEFAULTS, async |harness| {
        many_short(harness, 2).await;
        let run = format!("--as minh dead replay --run {}", plan(harness, &[]).await);
        for (keys, code, taken) in [("\r", 1, 0), ("y\r", 1, 0), ("100.000 ₫\r", 1, 0), ("200.000 ₫\r", 0, 2 * SHORT)] {
            assert_eq!(at_a_terminal(harness, &run, "Type 200.000 ₫ to continue", keys).await, code, "{keys:?}");
            assert_eq!(charged(harness).await, taken, "{keys:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_about_an_order_that_is_hidden_or_deleted_is_moot_and_no_money_moves() {
    with_harness(DEFAULTS, async |harness| {
        many_short(harness, 3).await;
        let ids = harness.order_ids().await;
        // One was settled by hand and hidden since; the other was deleted.
        let paid = "INSERT INTO accounts (id, kind, order_id) VALUES (gen_random_uuid(), 'goods', $1)";
        harness.run(paid, [ids[0].into()]).await;
        let transfer = "INSERT INTO transfers (id, debit_account, credit_account, amount, reason, order_id, idempotency_key)
                        SELECT gen_random_uuid(), outside.id, goods.id, $2, 'payment', $1, 'paid at the door'
                          FROM accounts AS goods, accounts AS outside
                         WHERE goods.order_id = $1 AND goods.kind = 'goods' AND outside.kind = 'outside'";
        harness.run("INSERT INTO accounts (id, kind) SELECT gen_random_uuid(), 'outside' WHERE NOT EXISTS (SELECT FROM accounts WHERE kind = 'outside')", []).await;
        assert_eq!(harness.run(transfer, [ids[0].into(), SHORT.into()]).await, 1);
        // The test cannot wait for it.
        let hidden = "UPDATE orders SET status = 'received', received_at = now() - interval '7 months', hidden_at = now()";
        harness.as_superuser(&format!("{hidden} WHERE id = '{}'", ids[0])).await;
        harness.run("DELETE FROM orders WHERE id = $1", [ids[1].into()]).await;
        let id = plan(harness, &[]).await;
        let verdicts = "SELECT array_agg(verdict || ' ' || amount ORDER BY verdict, amount) FROM replay_plan_letters";
        assert_eq!(harness.ask::<Vec<String>>(verdicts).await, ["applies 100000", "moot 0", "moot 0"]);
        run(harness, id, &[]).await.expect("replayed");
        assert_eq!((charged(harness).await, letters(harness, "resolved").await, letters(harness, "replayed").await), (SHORT, 2, 1));
        assert_eq!(harness.ask::<i64>("SELECT coalesce(sum(balance), 0)::bigint FROM accounts").await, 0);
    })
    .await;
}

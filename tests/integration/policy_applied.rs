//! `ops policy apply`: another policy becomes active while the fleet runs, and what it makes due immediately is released
//! gradually, even if processes are killed meanwhile.

use std::{num::NonZeroU32, time::Duration};

use ops::{
    actor::Operator,
    preview,
    rollout::{self, LEAD, Rollout, RolloutError},
};
use shared::{
    database::active_policy::{self, Governed},
    domain::{
        due,
        policy::{Policy, Release},
        tasks,
    },
    settings::Settings,
};
use tests::sandbox::{always, eventually};
use tokio_util::sync::CancellationToken;

use crate::{
    harness::{Harness, SOON, with_harness},
    letters::{at_a_terminal, json, ops},
    policies::{File, SHORTER, delivering, in_cart, short},
};

/// The published policy, with no sweep: only wake-ups cause effects.
const FILE: &str = "[sweep]\n every_ms = 3600000\n[relay]\n poll_ms = 100";

fn lan() -> Operator {
    Operator::new(Some("lan")).expect("a name")
}

fn settings(harness: &Harness, file: &str) -> Settings {
    let file = File::new(file);
    Settings::read(Some(&file.0), harness.sandbox.env.clone()).expect("settings")
}

async fn governed(harness: &Harness) -> Governed {
    active_policy::of(harness.sandbox.db.clone(), harness.settings()).await.expect("what holds")
}

/// Applies a policy that releases that many subjects of a kind per second, with or without its wake-ups.
async fn activate(
    harness: &Harness,
    under: &Governed,
    policy: &Policy,
    rate: u32,
) -> Result<active_policy::Applied, RolloutError> {
    let preview = preview::preview(&harness.sandbox.db, &under.settings, policy).await.expect("a preview");
    let rate = NonZeroU32::new(rate).expect("a rate");
    let rollout =
        Rollout { policy: policy.clone(), preview: &preview, rate, lead: Duration::ZERO, why: "a test", proposal: None };
    rollout::activate(under, &lan(), rollout).await
}

fn receipts() -> &'static dyn shared::domain::task::Shown {
    tasks::find("confirm-receipt").expect("the kind")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_fleet_releases_little_by_little_what_another_policy_makes_due_at_once() {
    with_harness(FILE, async |harness| {
        // With a week instead of two, 30 of them are due immediately; with 6 hours instead of a day, 14 of the arrears.
        let sql = "INSERT INTO orders (id, code, customer_id, status, delivering_since)
                   SELECT gen_random_uuid(), 'W-' || n, id, 'delivering', now() - interval '7 days' - n * interval '1 hour'
                     FROM customers, generate_series(1, 30) AS n";
        harness.run(sql, []).await;
        delivering(harness, 3).await;
        short(harness, 20).await;
        in_cart(harness, 3).await;
        let (worker, relay) = (harness.worker(), harness.relay());
        let file = File::new(SHORTER);
        let apply = ["--as", "lan", "policy", "apply", file.path(), "--why", "the board", "--rate", "6", "--yes", "--json"];
        let applied = json(harness, &apply).await;
        assert_eq!((applied["number"].as_i64(), applied["scheduled"].as_u64()), (Some(2), Some(30 + 3 + 20 + 3)), "{applied}");

        // An order shipped from now on waits in the new policy's rung: the relay uses the new policy.
        let fresh = uuid::Uuid::new_v4();
        let sql = "INSERT INTO orders (id, code, customer_id, status, delivering_since) SELECT $1, 'F', id, 'delivering', now() FROM customers";
        harness.run(sql, [fresh.into()]).await;
        let (broker, rung) = (harness.sandbox.broker().await.expect("a broker"), format!("{}7d", harness.topology().rung_prefix()));
        let waiting = async || broker.observe(&rung).await.expect("a look").map_or(0, |seen| seen.messages);
        let before = waiting().await;
        eventually("it waits there", SOON, async || {
            harness.event("order.shipped", fresh).await;
            Ok(waiting().await > before)
        })
        .await;

        harness.until("SELECT count(*) = 30 FROM order_status_history WHERE reason = 'confirm-receipt'").await;
        harness.until("SELECT count(DISTINCT order_id) = 14 FROM transfers WHERE reason = 'arrears'").await;
        let applied = active_policy::read(&harness.sandbox.db).await.expect("an answer").expect("a policy");
        let release = applied.policy.release(receipts()).expect("a release");
        assert_eq!((release.over_ms, release.from - applied.at), (5_000, chrono::TimeDelta::from_std(LEAD).expect("a lead")));
        // Each at its time, never earlier, and by its own wake-up.
        let sql = format!(
            "SELECT array_agg(extract(epoch FROM at - {moment})::float8)
               FROM order_status_history JOIN orders ON orders.id = order_id WHERE order_status_history.reason = 'confirm-receipt'",
            moment = release.sql_moment("orders.id")
        );
        let late = harness.ask::<Vec<f64>>(&sql).await;
        assert!(late.iter().all(|late| *late >= 0.0), "{late:?}");
        assert!(late.iter().all(|late| *late < 10.0), "{late:?}");
        let spread = "SELECT extract(epoch FROM max(at) - min(at))::float8 FROM order_status_history WHERE reason = 'confirm-receipt'";
        assert!(harness.ask::<f64>(spread).await > 2.5, "30 rows at 6 a second");
        let rest = "SELECT count(*) = 4 FROM orders WHERE status = 'delivering'";
        always("the others wait", Duration::from_millis(500), async || Ok(harness.ask::<bool>(rest).await)).await;

        // The arrears after these receipts are due only in 6 hours; nothing is off meanwhile.
        let again = ops(harness, &apply).await;
        assert!(again.code == 0 && again.err.contains("applied by lan") && again.err.contains("nothing was changed"), "{again:?}");
        let recorded = "SELECT detail ->> 'by' || ': ' || (detail ->> 'why') FROM activity WHERE action = 'policy.applied'";
        assert_eq!(harness.ask::<String>(recorded).await, "lan: the board");
        let status = json(harness, &["status", "--json"]).await;
        assert_eq!(status["policy"]["number"], 2);
        assert_eq!((&status["policy"]["scheduled"], &status["policy"]["settings_differ"]), (&true.into(), &true.into()), "{status}");
        let shown = ops(harness, &["policy", "show"]).await.out;
        assert!(shown.contains("applied") && shown.contains("by lan: the board") && shown.contains("after = \"6h\""), "{shown}");
        let again = settings(harness, &shown).policy;
        assert!(again.is_equivalent(&applied.policy), "what is shown is a file of settings");
        worker.stop().await;
        relay.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_that_was_interrupted_goes_on_and_only_one_of_two_operators_applies() {
    with_harness(FILE, async |harness| {
        delivering(harness, 13).await;
        let before = governed(harness).await;
        let new = settings(harness, SHORTER).policy;
        let (one, other) = futures::join!(activate(harness, &before, &new, 10), activate(harness, &before, &new, 10));
        let (applied, refused) = if one.is_ok() { (one, other) } else { (other, one) };
        let applied = applied.expect("one of them");
        assert!(matches!(refused, Err(RolloutError::Changed { .. })), "{refused:?}");
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM activity WHERE action = 'policy.applied'").await, 1);

        // The first apply is interrupted before it makes any wake-up.
        let (broker, stop) = (harness.sandbox.broker().await.expect("a broker"), CancellationToken::new());
        stop.cancel();
        let whole = rollout::schedule(&harness.sandbox.db, &broker, harness.settings(), &applied, &stop, |_| ()).await;
        assert!(!whole.expect("no failure"));
        harness.run("UPDATE policies SET went_on_at = now() - interval '1 hour'", []).await;
        let troubled = ops(harness, &["status"]).await;
        assert!(
            troubled.code == 1 && troubled.out.contains("some wake-ups of rows that are due earlier are missing"),
            "{troubled:?}"
        );
        // Another policy is applied first, for carts only. It makes its own wake-ups and those of the first.
        let file =
            File::new(&SHORTER.replace("after = \"7d\"", "after = \"1d\"").replacen("after = \"1d\"", "after = \"7d\"", 1));
        let gone_on = json(harness, &["policy", "apply", file.path(), "--why", "carts, too", "--yes", "--json"]).await;
        assert_eq!((&gone_on["number"], &gone_on["scheduled"]), (&(applied.number + 1).into(), &13.into()), "{gone_on}");
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM policies WHERE scheduled_at IS NULL").await, 0);
        let carried_over = governed(harness).await.settings.policy.release(receipts()).cloned();
        assert_eq!(carried_over.as_ref(), applied.policy.release(receipts()), "what is not changed goes on");
        let calm = ops(harness, &["status"]).await;
        assert!(!calm.out.contains("some wake-ups"), "{calm:?}");
        let worker = harness.worker();
        harness.until("SELECT count(*) = 6 FROM order_status_history WHERE reason = 'confirm-receipt'").await;
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_middle_of_a_release_sweep_and_forecast_know_what_is_released() {
    const SWEPT: &str = "[sweep]\n every_ms = 100\n grace_ms = 10\n lookback_ms = 60000";
    with_harness(SWEPT, async |harness| {
        delivering(harness, 13).await;
        let sql = "INSERT INTO orders (id, code, customer_id, status, delivering_since)
                   SELECT gen_random_uuid(), 'S-' || n, id, 'delivering', now() - interval '8 days' FROM customers, generate_series(1, 200) AS n";
        harness.run(sql, []).await;
        // Under the previous policy these are due soon, some of them before they are released.
        let sql = "INSERT INTO orders (id, code, customer_id, status, delivering_since)
                   SELECT gen_random_uuid(), 'L-' || n, id, 'delivering', now() - interval '14 days' + interval '30 minutes'
                     FROM customers, generate_series(1, 50) AS n";
        harness.run(sql, []).await;
        // A release over two hours is half over, and its wake-ups have not been made. Nothing falls due during the test.
        let now = shared::database::now(&harness.sandbox.db).await.expect("a moment");
        let hours = chrono::TimeDelta::hours;
        let release = |before: &Policy, ago| Release {
            before: before.of_kind("confirm-receipt", now),
            since: now - hours(ago),
            from: now - hours(ago),
            over_ms: 7_200_000,
        };
        let policy = |after: &str| settings(harness, &SHORTER.replace("7d", after)).policy;
        let before = &harness.settings().policy;
        let released = policy("7d").releasing("confirm-receipt", release(before, 1));
        let moment = released.release(receipts()).expect("a release").sql_moment("orders.id");
        harness.run(&format!("DELETE FROM orders WHERE abs(extract(epoch FROM {moment} - now())) < 120"), []).await;
        let earliest = format!("least(delivering_since + interval '14 days', {moment})");
        let due = due::query(receipts(), &released);
        let never_later = format!(
            "SELECT array[count(*) FILTER (WHERE due_at <> {earliest}), count(*) FILTER (WHERE due_at < {moment}), count(*)]
               FROM {due} AS due JOIN orders USING (id) WHERE delivering_since < now() - interval '7 days'"
        );
        let [wrong, before_release, all] = harness.ask::<Vec<i64>>(&never_later).await[..] else { panic!("three counts") };
        assert!(wrong == 0 && before_release > 5 && all > before_release, "{wrong} {before_release} {all}");
        let earlier = format!("SELECT array_agg(id ORDER BY id) FROM orders WHERE delivering_since < now() - interval '7 days' AND {earliest} < now()");
        let earlier = harness.ask::<Vec<uuid::Uuid>>(&earlier).await;
        assert!((50..150).contains(&earlier.len()), "{}", earlier.len());

        // Until the first is released, nothing becomes due that was not, including subjects due under the previous policy in that
        // time.
        let first = Release { since: now, from: now + hours(1), ..release(before, 0) };
        let soon = due::query(receipts(), &policy("7d").releasing("confirm-receipt", first));
        assert_eq!(harness.ask::<i64>(&format!("SELECT count(*) FROM {soon} AS due WHERE due_at <= now()")).await, 0);

        // The bounded query returns exactly the rows of the full one, also with a release within another one, a kind that was
        // never due before, and calendar months.
        let policies = [
            released.clone(),
            policy("5d").releasing("confirm-receipt", release(&released, 0)),
            policy("7d").releasing("confirm-receipt", release(&Policy::default(), 1)),
            policy("7d").releasing("confirm-receipt", release(&policy("1 month"), 1)),
        ];
        for policy in &policies {
            let (after, until) = ("now() - interval '40 minutes'", "now() + interval '30 minutes'");
            let between = due::query_between(receipts(), policy, after, until).expect("an index helps");
            let ids = |due: &str| format!("SELECT array_agg(id ORDER BY id) FROM {due} AS due WHERE due_at > {after} AND due_at <= {until}");
            let asked = harness.ask::<Vec<uuid::Uuid>>(&ids(&between)).await;
            assert_eq!(asked, harness.ask::<Vec<uuid::Uuid>>(&ids(&due::query(receipts(), policy))).await);
            assert!(asked.len() > 20, "{}", asked.len());
        }

        active_policy::apply(&harness.sandbox.db, &released, "lan", "a test", None).await.expect("applied");
        let released = earlier;
        let worker = harness.worker();
        let count = released.len();
        harness.until(&format!("SELECT count(*) = {count} FROM order_status_history WHERE reason = 'confirm-receipt'")).await;
        let received = "SELECT array_agg(id ORDER BY id) FROM orders WHERE status = 'received'";
        let still = async || Ok(harness.ask::<Vec<uuid::Uuid>>(received).await == released);
        always("exactly what is released is swept", Duration::from_millis(800), still).await;
        worker.stop().await;
        let overdue = json(harness, &["forecast", "--json"]).await["kinds"][0]["overdue"]["subjects"].as_i64();
        assert_eq!(overdue, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_taken_back_in_the_middle_of_its_release_releases_nothing_more() {
    with_harness(FILE, async |harness| {
        delivering(harness, 13).await;
        let (published, shorter) = (harness.settings().policy.clone(), settings(harness, SHORTER).policy);
        let due = async |policy: &Policy| {
            let overdue = format!("SELECT count(*) FROM {} AS due WHERE due_at <= now()", due::query(receipts(), policy));
            harness.ask::<i64>(&overdue).await
        };
        let in_a_day = |policy: &Policy| {
            let slowly = |(kind, release): (&'static str, &Release)| (kind, Release { over_ms: 86_400_000, ..release.clone() });
            let slowly: Vec<_> = policy.releases().map(slowly).collect();
            slowly.into_iter().fold(policy.clone(), |policy, (kind, release)| policy.releasing(kind, release))
        };
        let first = activate(harness, &governed(harness).await, &shorter, 1).await.expect("applied");
        // Over a day, so that practically nothing is released within the test.
        let slowly = in_a_day(&first.policy);
        active_policy::apply(&harness.sandbox.db, &slowly, "lan", "slower", None).await.expect("applied");
        assert_eq!((due(&shorter).await, due(&slowly).await), (6, 0));
        // Nine days are more than seven, yet earlier for subjects not yet released: four rows, one per second.
        let longer = settings(harness, &SHORTER.replace("\"7d\"", "\"9d\"")).policy;
        let longer = activate(harness, &governed(harness).await, &longer, 1).await.expect("applied");
        assert_eq!(longer.policy.release(receipts()).map(|release| release.over_ms), Some(4_000));
        active_policy::apply(&harness.sandbox.db, &slowly, "lan", "slower", None).await.expect("applied");
        let back = activate(harness, &governed(harness).await, &published, 1).await.expect("applied");
        assert_eq!((back.policy.releases().count(), due(&back.policy).await), (0, 0));
        // Ever shorter: each release lies within the one before, up to the limit.
        let mut policy = slowly;
        let refused = loop {
            active_policy::apply(&harness.sandbox.db, &policy, "lan", "slower", None).await.expect("applied");
            let depth = policy.release(receipts()).expect("a release").depth(receipts());
            assert!(depth <= 3);
            let next = settings(harness, &SHORTER.replace("\"7d\"", &format!("\"{}d\"", 6 - depth))).policy;
            match activate(harness, &governed(harness).await, &next, 1).await {
                Ok(applied) => policy = in_a_day(&applied.policy),
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, RolloutError::Busy { .. }), "{refused}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_policy_is_applied_that_was_not_agreed_to_or_is_invalid() {
    with_harness(FILE, async |harness| {
        delivering(harness, 13).await;
        let (file, bad) = (File::new(SHORTER), File::new(&SHORTER.replace("\"7d\"", "\"a week\"")));
        let asked = ops(harness, &["policy", "apply", file.path(), "--why", "no terminal"]).await;
        assert!(
            asked.code == 2
                && asked.err.contains("There is no terminal to ask at")
                && asked.out.contains("6 rows fall due at once"),
            "{asked:?}"
        );
        let refused = ops(harness, &["policy", "apply", bad.path(), "--why", "a mistake", "--yes"]).await;
        assert!(refused.code == 2 && refused.err.contains("policy[0].after"), "{refused:?}");
        let unreasoned = ops(harness, &["policy", "apply", file.path(), "--yes"]).await;
        assert_eq!(unreasoned.code, 2, "{unreasoned:?}");
        let nothing = "SELECT (SELECT count(*) FROM policies) + (SELECT count(*) FROM activity)";
        assert_eq!(harness.ask::<i64>(nothing).await, 1);
        // If money will move, `--yes` is not enough.
        short(harness, 7).await;
        let (apply, question) = (format!("policy apply {} --why why", file.path()), "Type 7.001 ₫ to continue");
        assert_eq!(at_a_terminal(harness, &apply, question, "y\r").await, 1);
        assert_eq!(harness.ask::<i64>(nothing).await, 1);
        assert_eq!(at_a_terminal(harness, &apply, question, "7.001 ₫\r").await, 0);
        assert_eq!(harness.ask::<i64>(nothing).await, 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_of_policies_are_not_removed_under_an_active_one() {
    with_harness(FILE, async |harness| {
        let down = ops(harness, &["migrate", "down", "--steps", "99"]).await;
        assert!(down.code == 1 && down.err.contains("which would no longer be active"), "{down:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_applied_any_more_by_a_policy_that_was_replaced() {
    with_harness(FILE, async |harness| {
        let worker = harness.worker();
        let (one, wakes) = (harness.delivering().await, |order| vec![harness.wakeup("confirm-receipt", &[order])]);
        harness.publish(wakes(one)).await;
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        // The worker has not loaded it when the next wake-up arrives.
        let longer = settings(harness, &SHORTER.replace("7d", "9 years")).policy;
        active_policy::apply(&harness.sandbox.db, &longer, "lan", "nine years", None).await.expect("applied");
        let other = harness.delivering().await;
        harness.publish(wakes(other)).await;
        let waits = async || Ok(harness.ask::<i64>("SELECT count(*) FROM orders WHERE status = 'received'").await == 1);
        always("it waits", active_policy::LOOK_EVERY + Duration::from_secs(2), waits).await;
        let totals = worker.stop().await;
        assert_eq!((totals.applied, totals.postponed, totals.retried), (1, 1, 0), "{totals:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_of_a_later_version_is_refused_by_name_and_not_guessed() {
    with_harness(FILE, async |harness| {
        let sql = r#"INSERT INTO policies (policy, applied_by, why)
                     VALUES ('{"lines":[{"on":"order.shipped","task":"make-coffee","after":"1d"}]}', 'lan', 'later')"#;
        harness.run(sql, []).await;
        let said = ops(harness, &["forecast"]).await;
        assert!(
            said.code == 1 && said.err.contains("the applied policy 2 cannot be read") && said.err.contains("make-coffee"),
            "{said:?}"
        );
        let shutdown = CancellationToken::new();
        let worker = worker::run(harness.settings(), &shared::process::health::Health::new(), shutdown).await;
        assert!(worker.is_err_and(|error| error.to_string().contains("make-coffee")));
    })
    .await;
}

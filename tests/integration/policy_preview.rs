//! `ops policy preview`: its output matches what a fleet with the new policy does.

use std::{path::PathBuf, time::Duration};

use serde_json::Value;
use shared::settings::Settings;
use tests::{fleet, sandbox::always};

use crate::{
    harness::{Harness, with_harness},
    policies::{File, SHORTER, delivering, in_cart, short},
};

/// The published policy, with a sweep as soon as a worker leads.
const FILE: &str = "[sweep]\n every_ms = 100\n grace_ms = 10\n";

async fn previewed(harness: &Harness, file: &File) -> Value {
    let preview = harness.ops(&["policy", "preview", file.path(), "--json"]).await.expect("a preview");
    serde_json::from_str(&preview).expect("JSON")
}

fn kind<'a>(preview: &'a Value, kind: &str) -> &'a Value {
    preview["kinds"].as_array().expect("kinds").iter().find(|one| one["kind"] == kind).expect("the kind")
}

fn numbers<const N: usize>(kind: &Value, names: [&str; N]) -> [i64; N] {
    names.map(|name| kind[name].as_i64().unwrap_or_else(|| panic!("{name} in {kind}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_falls_due_at_once_is_what_a_worker_with_the_new_policy_applies() {
    with_harness(FILE, async |harness| {
        // Already overdue: 2 orders of 16 days (15 and 16), none of the arrears, no items.
        delivering(harness, 16).await;
        short(harness, 20).await;
        in_cart(harness, 20).await;
        let file = File::new(SHORTER);
        let preview = previewed(harness, &file).await;
        let names = ["candidates", "earlier", "later", "same", "appear", "vanish", "never", "due_before", "due_after", "at_once"];
        // Of 16, those of at least 8 days are due; of 20 hours, those of at least 7; of 20 days, those of at least 8.
        assert_eq!(numbers(kind(&preview, "confirm-receipt"), names), [16, 16, 0, 0, 0, 0, 0, 2, 9, 7], "{preview}");
        assert_eq!(numbers(kind(&preview, "collect-arrears"), names), [20, 20, 0, 0, 0, 0, 0, 0, 14, 14], "{preview}");
        assert_eq!(numbers(kind(&preview, "purge-cart-item"), names), [20, 20, 0, 0, 0, 0, 0, 0, 13, 13], "{preview}");
        let amount = kind(&preview, "collect-arrears")["at_once_amount"].as_i64().expect("an amount");
        assert_eq!(amount, (7..=20).map(|n| n * 1000 + 1).sum::<i64>());
        assert_eq!(kind(&preview, "confirm-receipt")["at_once_amount"], Value::Null);
        let untouched = "SELECT (SELECT count(*) FROM orders WHERE updated_at > created_at)
                              + (SELECT count(*) FROM transfers) + (SELECT count(*) FROM activity)";
        assert_eq!(harness.ask::<i64>(untouched).await, 0, "a preview changes nothing");

        // The same settings with the new policy.
        let both = File::new(&format!("{FILE}{SHORTER}"));
        let shorter = Settings::read(Some(&both.0), harness.sandbox.env.clone()).expect("settings");
        harness.sandbox.apply(&shorter.policy).await.expect("applied");
        let worker = harness.worker();
        let applied = "SELECT ARRAY[(SELECT count(*) FROM order_status_history WHERE reason = 'confirm-receipt'),
                                    (SELECT count(DISTINCT order_id) FROM transfers WHERE reason = 'arrears'),
                                    (SELECT count(*) FROM activity WHERE action = 'cart_item.purged')]";
        harness.until(&format!("SELECT ({applied}) = ARRAY[9, 14, 13]::bigint[]")).await;
        let enough = async || Ok(harness.ask::<Vec<i64>>(applied).await == [9, 14, 13]);
        always("and nothing more", Duration::from_millis(800), enough).await;
        worker.stop().await;
        assert_eq!(harness.ask::<i64>("SELECT sum(amount)::bigint FROM transfers WHERE reason = 'arrears'").await, amount);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_appears_vanishes_stays_and_moves_is_counted_and_so_are_rungs() {
    with_harness(FILE, async |harness| {
        delivering(harness, 3).await;
        short(harness, 2).await;
        in_cart(harness, 4).await;
        let file = File::new(
            r#"
            [[policy]]
            on = "order.shipped"
            task = "confirm-receipt"
            after = "20d"
            [[policy]]
            on = "order.shipped"
            task = "collect-arrears"
            after = "24h"
            "#,
        );
        let preview = previewed(harness, &file).await;
        let moves = ["earlier", "later", "same", "appear", "vanish", "never"];
        assert_eq!(numbers(kind(&preview, "confirm-receipt"), moves), [0, 3, 0, 0, 0, 0], "{preview}");
        assert_eq!(
            numbers(kind(&preview, "collect-arrears"), moves),
            [0, 0, 2, 0, 0, 0],
            "a moment without a line counts: {preview}"
        );
        assert_eq!(numbers(kind(&preview, "purge-cart-item"), moves), [0, 0, 0, 0, 4, 0], "{preview}");
        let prefix = harness.topology().rung_prefix();
        assert_eq!(preview["rungs_new"], serde_json::json!([format!("{prefix}20d")]));
        assert_eq!(preview["rungs_forgotten"], serde_json::json!([format!("{prefix}14d")]));
        let day = "SELECT ((now() + interval '19 days 30 minutes') AT TIME ZONE 'Asia/Ho_Chi_Minh')::date::text";
        let busiest = &kind(&preview, "confirm-receipt")["busiest_after"];
        assert_eq!(busiest["subjects"], 1);
        assert!(
            busiest["day"].as_str().expect("a day") <= harness.ask::<String>(day).await.as_str(),
            "of as busy ones the first"
        );
        let shown = harness.ops(&["policy", "preview", file.path()]).await.expect("a preview");
        for said in ["14d", "20d", "no longer due", "New rungs", "ops topology prune"] {
            assert!(shown.contains(said), "{said}: {shown}");
        }
        let at_once =
            harness.ops(&["policy", "preview", File::new(&SHORTER.replace("\"7d\"", "\"1d\"")).path()]).await.expect("a preview");
        assert!(at_once.contains("fall due at once"), "{at_once}");

        // In the other direction subjects appear: a fleet whose policy does not have carts yet.
        let now = Settings::read(Some(&file.0), harness.sandbox.env.clone()).expect("settings");
        harness.sandbox.apply(&now.policy).await.expect("applied");
        let back = previewed(harness, &File::new(&harness.settings().policy.to_string())).await;
        assert_eq!(numbers(kind(&back, "purge-cart-item"), moves), [0, 0, 0, 4, 0, 0], "{back}");
        assert_eq!(kind(&back, "purge-cart-item")["lines"][0]["before"], Value::Null);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_hold_is_refused_with_every_mistake() {
    with_harness(FILE, async |harness| {
        let bad = SHORTER.replace("\"7d\"", "\"a week\"").replace("collect-arrears", "collect-arears");
        let files = [
            (
                File::new(&bad),
                vec!["policy[0].after", "policy[1].task: unknown task \"collect-arears\"", "policy[2].after", "3 mistakes"],
            ),
            (File::new("[worker]\nbatch_max = 10"), vec!["contains no [[policy]]"]),
            (File::new(&format!("[worker]\nbatch_mx = 10\n{SHORTER}")), vec!["worker.batch_mx", "did you mean worker.batch_max"]),
            (File::new("policy = 3"), vec!["policy"]),
            (File::new("[[policy"), vec!["kyhan-policy-"]),
            (File(PathBuf::from("/nonexistent.toml")), vec!["/nonexistent.toml"]),
        ];
        for (file, complaints) in files {
            let run = fleet::command("ops", &harness.sandbox.env, ["policy", "preview", file.path()])
                .expect("built")
                .output()
                .await
                .expect("run");
            let complaint = String::from_utf8_lossy(&run.stderr).into_owned();
            assert_eq!(run.status.code(), Some(2), "{complaint}");
            for said in complaints {
                assert!(complaint.contains(said), "{said}: {complaint}");
            }
        }
    })
    .await;
}

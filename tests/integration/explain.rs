//! `ops explain`: a subject's whole life in order of time, where its wake-up waits, and no personal data.

use serde_json::Value;
use shared::domain::task::EXAMPLE_CUSTOMER;
use tests::fleet;
use uuid::Uuid;

use crate::harness::{Harness, QUICK, with_harness};

/// The published policy, with no sweep.
const FILE: &str = "[sweep]\n every_ms = 3600000";

async fn explained(harness: &Harness, name: &str) -> Value {
    let explanation = harness.ops(&["explain", name, "--json"]).await.expect("an explanation");
    serde_json::from_str(&explanation).expect("JSON")
}

/// The only subject that matches a name.
async fn subject(harness: &Harness, name: &str) -> Value {
    let explanation = explained(harness, name).await;
    let subjects = explanation["subjects"].as_array().expect("subjects");
    assert_eq!(subjects.len(), 1, "{explanation}");
    subjects[0].clone()
}

fn kind<'a>(subject: &'a Value, kind: &str) -> &'a Value {
    subject["kinds"].as_array().expect("kinds").iter().find(|one| one["kind"] == kind).expect("the kind")
}

/// An order with this code whose delivery began that long ago.
async fn delivering(harness: &Harness, code: &str, ago: &str) -> Uuid {
    let id = Uuid::new_v4();
    let sql = "INSERT INTO orders (id, code, customer_id, status, delivering_since, created_at, updated_at)
               VALUES ($1, $2, $3, 'delivering', now() - $4::text::interval, now() - interval '60 days', now() - interval '60 days')";
    harness.run(sql, [id.into(), code.into(), EXAMPLE_CUSTOMER.into(), ago.into()]).await;
    id
}

/// A letter about a receipt and the decision on it, as the store and an operator would write them.
async fn letter(harness: &Harness, order: Uuid, state: &str, cause: &str) -> Uuid {
    let id = Uuid::new_v4();
    let sql = "INSERT INTO dead_letters (id, state, kind, subject_id, wakeup_id, reason, cause, cause_group, attempts, first_failed_at,
                                         last_failed_at, worker, queue, routing_key, body_hash, decided_at, decided_by, decided_why)
               VALUES ($1, $3, 'confirm-receipt', $2, gen_random_uuid(), 'attempts-exhausted', $4, $4, 6, now() - interval '3 hours',
                       now() - interval '2 hours', 'worker-1', 'kyhan.dead', 'confirm-receipt.0', $5,
                       CASE WHEN $3 <> 'open' THEN now() - interval '1 hour' END, CASE WHEN $3 <> 'open' THEN 'lan' END,
                       CASE WHEN $3 <> 'open' THEN 'the constraint is gone' END)";
    let body = harness.kept_body(b"SECRET headers", b"SECRET body").await;
    harness.run(sql, [id.into(), order.into(), state.into(), cause.into(), body.into()]).await;
    id
}

/// Moves money from an order's account into its customer's wallet, as a refund by the order system does.
async fn refund(harness: &Harness, order: Uuid, amount: i64) {
    let sql = "INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key)
               SELECT goods.id, wallet.id, $2, 'refund', $1, gen_random_uuid()::text
                 FROM accounts AS goods, accounts AS wallet
                WHERE goods.order_id = $1 AND goods.kind = 'goods' AND wallet.kind = 'wallet' AND wallet.customer_id = $3";
    assert_eq!(harness.run(sql, [order.into(), amount.into(), EXAMPLE_CUSTOMER.into()]).await, 1);
}

async fn history(harness: &Harness, order: Uuid, from: &str, to: &str, ago: &str) {
    let sql = "INSERT INTO order_status_history (order_id, from_status, to_status, reason, at)
               VALUES ($1, $2, $3, 'staff', now() - $4::text::interval)";
    harness.run(sql, [order.into(), from.into(), to.into(), ago.into()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orders_whole_life_is_one_timeline_in_order_of_time() {
    with_harness(QUICK, async |harness| {
        let order = delivering(harness, "BG-1", "20 days").await;
        history(harness, order, "in_warehouse", "delivering", "20 days").await;
        harness.run("UPDATE orders SET goods_due = 900000, fees_changed_at = now() - interval '10 days'", []).await;
        let letter = letter(harness, order, "replayed", "error returned from database: \"obstacle\"").await;
        let plan = "INSERT INTO replay_plans (state, made_at, made_by, why, filter, amount, customers, tolerance_letters, tolerance_amount,
                                              needs_approval, approved_by, approved_at)
                    VALUES ('planned', now() - interval '100 minutes', 'minh', 'the fault is mended', '{}', 0, 0, 0, 0, true, 'lan',
                            now() - interval '90 minutes')";
        harness.run(plan, []).await;
        let line = "INSERT INTO replay_plan_letters (plan_id, letter_id, position, verdict, result, at)
                    SELECT id, $1, 1, 'applies', 'applied', now() - interval '1 hour' FROM replay_plans";
        harness.run(line, [letter.into()]).await;

        let worker = harness.worker();
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
        harness.until("SELECT status = 'received' FROM orders").await;
        harness.publish(vec![harness.wakeup("collect-arrears", &[order])]).await;
        harness.until("SELECT count(*) = 1 FROM transfers").await;
        // By mistake, because its parcel is recorded. The refund is collected again.
        harness.run("UPDATE orders SET status = 'out_of_stock', out_of_stock_since = now(), parcel_recorded_at = now()", []).await;
        history(harness, order, "received", "out_of_stock", "0").await;
        refund(harness, order, 900_000).await;
        harness.publish(vec![harness.wakeup("collect-arrears", &[order])]).await;
        harness.until("SELECT status = 'received' FROM orders").await;
        worker.stop().await;
        harness.event("order.fees_changed", order).await;
        let swept = "INSERT INTO swept VALUES ('collect-arrears', $1, now(), clock_timestamp(), 2)";
        harness.run(swept, [order.into()]).await;

        let subject = subject(harness, "BG-1").await;
        assert_eq!((&subject["table"], &subject["id"]), (&"orders".into(), &order.to_string().into()));
        let timeline = subject["timeline"].as_array().expect("a timeline");
        let moments: Vec<chrono::DateTime<chrono::Utc>> =
            timeline.iter().map(|entry| entry["at"].as_str().expect("a moment").parse().expect("a moment")).collect();
        assert!(moments.is_sorted(), "{subject}");
        let lines: Vec<String> = timeline
            .iter()
            .map(|entry| {
                let detail = &entry["detail"];
                let of = ["to", "amount", "goods", "operator", "by", "event"].iter().filter_map(|key| detail.get(key));
                let of = of.map(|value| value.to_string().replace('"', "")).collect::<Vec<_>>().join(" ");
                format!("{} {of}", entry["what"].as_str().expect("a text")).trim().to_owned()
            })
            .filter(|entry| entry != "updated at")
            .collect();
        assert_eq!(
            lines,
            [
                "created at",
                "delivering since",
                "status delivering",
                "fees changed at",
                "first failure",
                "dead letter",
                "replay planned minh",
                "replay approved lan",
                "dead letter replayed lan",
                "replay: applied",
                "received at",
                // One event of the receipt, and one of the order that was put back, which counts from then.
                "event, waits in the outbox order.received",
                "event, waits in the outbox order.received",
                "status received",
                "transfer goods 900000",
                "activity by the system 900000",
                "parcel recorded at",
                "changed at",
                "status out_of_stock",
                "transfer wallet 900000",
                "status received",
                "transfer goods 900000",
                "activity by the system 900000",
                "event, waits in the outbox order.fees_changed",
                "woken by the sweep",
            ],
            "{subject}"
        );
        let receipt = timeline.iter().find(|entry| entry["detail"]["reason"] == "confirm-receipt").expect("the receipt");
        let wakeup = "SELECT wakeup_id::text FROM order_status_history WHERE reason = 'confirm-receipt'";
        assert_eq!(receipt["detail"]["wakeup"], harness.ask::<String>(wakeup).await);
        let shown = harness.ops(&["explain", &order.to_string()]).await.expect("an explanation");
        for said in ["BG-1", "900.000 ₫", "\"obstacle\"", "the constraint is gone", "+07", "not a candidate: it applies to orders"] {
            assert!(shown.contains(said), "{said}: {shown}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_personal_and_no_source_of_goods_is_shown() {
    with_harness(FILE, async |harness| {
        harness.run("UPDATE customers SET full_name = 'SECRET name', phone = '0987SECRET', email = 'SECRET@example.vn', address = 'SECRET street'", []).await;
        let order = delivering(harness, "BG-2", "3 days").await;
        let item = harness.in_cart().await;
        harness.run("UPDATE cart_items SET product_name = 'SECRET coat', product_ref = 'taobao/SECRET'", []).await;
        harness.run("INSERT INTO order_messages (order_id, author, body) VALUES ($1, 'SECRET', 'SECRET')", [order.into()]).await;
        harness.run("INSERT INTO order_sources VALUES ($1, 'SECRET shop', 'https://SECRET.example', 'SECRET')", [order.into()]).await;
        let free = "INSERT INTO order_status_history (order_id, from_status, to_status, reason) VALUES ($1, 'SECRET', 'delivering', 'SECRET called')";
        harness.run(free, [order.into()]).await;
        let paid = "WITH wallet AS (INSERT INTO accounts (kind, customer_id) VALUES ('wallet', $2) RETURNING id),
                         goods AS (INSERT INTO accounts (kind, order_id) VALUES ('goods', $1) RETURNING id)
                    INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key)
                    SELECT wallet.id, goods.id, 5, 'paid by SECRET', $1, 'SECRET' FROM wallet, goods";
        harness.run(paid, [order.into(), EXAMPLE_CUSTOMER.into()]).await;
        for subject in [order, item] {
            for actor in ["customer", "staff", "system"] {
                let detail = r#"{"by": "SECRET", "why": "SECRET", "said": "SECRET", "restored_to": "SECRET", "collected": {"goods": "SECRET"}}"#;
                let sql = "INSERT INTO activity (actor_kind, action, subject_kind, subject_id, detail) VALUES ($1, $2, 'SECRET', $3, $4::text::jsonb)";
                for action in ["order.noted", "SECRET called"] {
                    harness.run(sql, [actor.into(), action.into(), subject.into(), detail.into()]).await;
                }
            }
            let event = "INSERT INTO outbox (event_type, subject_id, data) VALUES ($1, $2, '{\"said\": \"SECRET\"}')";
            harness.run(event, ["order.shipped".into(), subject.into()]).await;
            let aside = "INSERT INTO set_aside (event_id, event_type, subject_id, occurred_at, data, reason)
                         VALUES (gen_random_uuid(), 'SECRET', $1, now(), '{\"said\": \"SECRET\"}', 'unknown event type \"SECRET\"; known are x')";
            harness.run(aside, [subject.into()]).await;
        }
        letter(harness, order, "open", "error returned from database: obstacle").await;

        let policy = std::env::temp_dir().join(format!("kyhan-explain-{order}.toml"));
        std::fs::write(&policy, "[[policy]]\non = \"order.shipped\"\ntask = \"confirm-receipt\"\nafter = \"1d\"").expect("a file");
        let (order, item, policy_file) = (order.to_string(), item.to_string(), policy.to_str().expect("a path"));
        for asked in [&["explain", "BG-2"][..], &["explain", &order], &["explain", &item], &["forecast"], &["policy", "preview", policy_file]] {
            for json in [&[][..], &["--json"]] {
                let shown = harness.ops(&[asked, json].concat()).await.expect("an answer");
                assert!(!shown.contains("SECRET"), "{asked:?}: {shown}");
            }
        }
        std::fs::remove_file(&policy).expect("removed");
        // The output marks redacted text.
        let shown = harness.ops(&["explain", "BG-2"]).await.expect("an answer");
        assert!(shown.contains("(redacted: free text)") && shown.contains("order.noted") && shown.contains("obstacle"), "{shown}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wakeup_waits_in_the_rung_that_the_ladder_gives_it() {
    let receipts_after = |span: &str| {
        format!(
            "{FILE}\n[[policy]]\non = \"order.shipped\"\ntask = \"confirm-receipt\"\nafter = \"{span}\"
             [topology]\nladder = [\"1h\", \"7d\", \"30d\"]"
        )
    };
    for (file, days) in [(FILE, 14), (&receipts_after("40d"), 40)] {
        with_harness(file, async |harness| {
            delivering(harness, "BG-3", "3 days").await;
            let receipt = kind(&subject(harness, "BG-3").await, "confirm-receipt").clone();
            let queue = format!("{}{days}d", harness.topology().rung_prefix());
            assert_eq!((&receipt["wakeup"]["waits"], &receipt["wakeup"]["queue"]), (&"rung".into(), &queue.into()), "{receipt}");
            assert_eq!(receipt["wakeup"]["then"], serde_json::json!([]), "one hop");
            let until = receipt["wakeup"]["until"].as_str().expect("a moment");
            let sql = format!(
                "SELECT abs(extract(epoch FROM timestamptz '{until}' - delivering_since - interval '{days} days')) < 1 FROM orders"
            );
            assert!(harness.ask::<bool>(&sql).await, "{receipt}");
            assert_eq!((&receipt["counts"][0]["event"], &receipt["counts"][0]["decides"]), (&"order.shipped".into(), &true.into()));
        })
        .await;
    }
    // No rung is as long as calendar months: the wake-up goes through hops of 30 days and is in the second one.
    with_harness(&receipts_after("3 months"), async |harness| {
        delivering(harness, "BG-4", "40 days").await;
        let receipt = kind(&subject(harness, "BG-4").await, "confirm-receipt").clone();
        assert_eq!(receipt["wakeup"]["queue"], format!("{}30d", harness.topology().rung_prefix()), "{receipt}");
        assert_eq!(receipt["counts"][0]["after"], "3 months");
        assert!(!receipt["wakeup"]["then"].as_array().expect("hops").is_empty(), "{receipt}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_not_yet_made_paused_or_none_is_said_to_be() {
    with_harness(FILE, async |harness| {
        let order = delivering(harness, "BG-5", "20 days").await;
        let open = letter(harness, order, "open", "obstacle").await;
        harness.run("INSERT INTO pauses (kind, paused_by, why) VALUES ('confirm-receipt', 'lan', 'the bank is shut')", []).await;
        let due = subject(harness, "BG-5").await;
        let receipt = kind(&due, "confirm-receipt");
        assert_eq!(receipt["wakeup"]["waits"], "lane", "{receipt}");
        assert_eq!(receipt["wakeup"]["queue"], harness.topology().lane("confirm-receipt", 0));
        assert_eq!((&receipt["open_letters"][0], &receipt["paused"]["by"]), (&open.to_string().into(), &"lan".into()));
        let arrears = kind(&due, "collect-arrears");
        let why = arrears["wakeup"]["why"].as_str().expect("a reason");
        assert!(why.starts_with("not a candidate: it applies to orders that are short of money"), "{arrears}");
        let shown = harness.ops(&["explain", "BG-5"]).await.expect("an explanation");
        for said in ["PAUSED", "the bank is shut", "is open: see `ops dead show", "from", "the sweep publishes it again"] {
            assert!(shown.contains(said), "{said}: {shown}");
        }

        let fresh = delivering(harness, "BG-6", "1 minute").await;
        harness.event("order.shipped", fresh).await;
        let receipt = kind(&subject(harness, "BG-6").await, "confirm-receipt").clone();
        assert_eq!((&receipt["wakeup"]["waits"], &receipt["wakeup"]["event"]), (&"outbox".into(), &"order.shipped".into()));
    })
    .await;
    let one = format!("{FILE}\n[[policy]]\non = \"cart.item_added\"\ntask = \"purge-cart-item\"\nafter = \"30d\"");
    with_harness(&one, async |harness| {
        delivering(harness, "BG-7", "1 day").await;
        let receipt = kind(&subject(harness, "BG-7").await, "confirm-receipt").clone();
        assert_eq!(receipt["wakeup"]["why"], "no line of the policy names this kind");
        assert_eq!((&receipt["due_at"], &receipt["counts"][0]["after"]), (&Value::Null, &Value::Null));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_looks_like_an_id_is_found_and_an_unknown_one_is_an_error() {
    with_harness(FILE, async |harness| {
        let code = Uuid::new_v4().to_string();
        let order = delivering(harness, &code, "1 day").await;
        assert_eq!(subject(harness, &code).await["id"], order.to_string());
        for odd in ["--BG 1", "BG/'1' \"x\"", "%", "1e3", "đơn 1"] {
            let order = delivering(harness, odd, "1 day").await;
            let explanation = harness.ops(&["explain", "--json", "--", odd]).await.expect("an explanation");
            assert!(explanation.contains(&order.to_string()), "{explanation}");
        }
        // If a code is also another order's id, both orders match, and each is explained separately.
        let other = delivering(harness, "BG-8", "1 day").await;
        let named = delivering(harness, &other.to_string(), "1 day").await;
        let both = explained(harness, &other.to_string()).await;
        let ids: Vec<_> = both["subjects"].as_array().expect("subjects").iter().map(|subject| subject["id"].clone()).collect();
        assert_eq!(ids, [named.to_string(), other.to_string()]);

        for unknown in ["BG-9", &Uuid::new_v4().to_string(), ""] {
            let done =
                fleet::command("ops", &harness.sandbox.env, ["explain", unknown]).expect("built").output().await.expect("run");
            let complaint = String::from_utf8_lossy(&done.stderr).into_owned();
            assert_eq!(done.status.code(), Some(1), "{complaint}");
            assert!(complaint.contains("no order has the code or id") && done.stdout.is_empty(), "{complaint}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_is_explained_from_the_records() {
    with_harness(QUICK, async |harness| {
        let item = harness.in_cart().await;
        let worker = harness.worker();
        harness.publish(vec![harness.wakeup("purge-cart-item", &[item])]).await;
        harness.until("SELECT count(*) = 0 FROM cart_items").await;
        worker.stop().await;
        let gone = subject(harness, &item.to_string()).await;
        assert_eq!(gone["table"], Value::Null);
        assert_eq!(gone["timeline"][0]["detail"]["activity"], "cart_item.purged", "{gone}");
        assert_eq!(kind(&gone, "purge-cart-item")["wakeup"]["why"], "not a candidate: cart_items has no row with this id");

        // Infinite timestamps are shown as infinite.
        let order = harness.delivering().await;
        harness.run("UPDATE orders SET delivering_since = '-infinity', fees_changed_at = 'infinity'", []).await;
        let shown = harness.ops(&["explain", &order.to_string()]).await.expect("an explanation");
        assert!(shown.contains("1970-01-01 07:00:00 +07") && shown.contains("9999-12-31 07:00:00 +07"), "{shown}");
    })
    .await;
}

//! Dead letters found, grouped and explained: an operator sees every matching letter, no others, and no personal data.

use std::collections::{BTreeMap, BTreeSet};

use sea_orm::Value;
use serde_json::json;
use shared::{
    domain::{
        task::{EXAMPLE_CUSTOMER, Exampled},
        tasks,
    },
    message::outgoing::Outgoing,
};
use uuid::Uuid;

use crate::{
    harness::{Harness, QUICK, exampled, with_harness},
    letters::{StoredLetter, json, ops},
};

/// The ids in a list.
async fn listed(harness: &Harness, arguments: &[&str]) -> BTreeSet<Uuid> {
    let all = [&["dead", "list", "--json"][..], arguments].concat();
    let found = json(harness, &all).await;
    found["letters"].as_array().expect("letters").iter().map(|letter| id_of(&letter["id"])).collect()
}

fn id_of(value: &serde_json::Value) -> Uuid {
    value.as_str().expect("a text").parse().expect("an id")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_filter_finds_what_it_says_and_hostile_values_find_nothing_more() {
    with_harness(QUICK, async |harness| {
        let (first, second, item) = (harness.delivering().await, harness.delivering().await, harness.in_cart().await);
        harness.run("UPDATE orders SET code = 'BG-17' WHERE id = $1", [second.into()]).await;
        let obstacle = StoredLetter { subject: Some(first), failed: Some("2025-11-20T03:00:00Z"), ..StoredLetter::default() };
        let percent = StoredLetter {
            kind: Some("collect-arrears"),
            subject: Some(second),
            cause: "100% of wallet_floor",
            group: "?% of wallet_floor",
            // 24 November, 00:30 in Asia/Ho_Chi_Minh.
            failed: Some("2025-11-23T17:30:00Z"),
            ..StoredLetter::default()
        };
        let stuck = StoredLetter {
            kind: Some("purge-cart-item"),
            subject: Some(item),
            reason: "delivery-limit",
            cause: "it's STUCK",
            group: "it's STUCK",
            failed: Some("2025-11-24T16:59:59Z"),
            ..StoredLetter::default()
        };
        let garbage = StoredLetter {
            kind: None,
            reason: "malformed",
            cause: "no JSON",
            group: "no JSON",
            failed: Some("2025-11-24T17:00:00Z"),
            ..StoredLetter::default()
        };
        let stranger =
            StoredLetter { kind: Some("make-coffee"), subject: Some(first), reason: "unrouted", ..StoredLetter::default() };
        let decided = StoredLetter { subject: Some(first), failed: Some("2025-11-20T03:00:00Z"), ..StoredLetter::default() };
        let (obstacle, percent, stuck) =
            (obstacle.store(harness).await, percent.store(harness).await, stuck.store(harness).await);
        let (garbage, stranger, decided) =
            (garbage.store(harness).await, stranger.store(harness).await, decided.store(harness).await);
        let discard =
            "UPDATE dead_letters SET state = 'discarded', decided_at = now(), decided_by = 'lan', decided_why = 'a test'
                        WHERE id = $1";
        harness.run(discard, [decided.into()]).await;
        let groups = json(harness, &["dead", "list", "--groups", "--json"]).await;
        let group = groups["groups"].as_array().expect("groups").iter().find(|group| group["cause"] == "no JSON");
        let group = group.expect("its group")["group"].as_str().expect("an id").to_owned();

        let (ids, first, second) = ([obstacle, percent].map(|id| id.to_string()), first.to_string(), second.to_string());
        let cases: &[(&[&str], &[Uuid])] = &[
            (&[], &[obstacle, percent, stuck, garbage, stranger]),
            (&["--state", "all"], &[obstacle, percent, stuck, garbage, stranger, decided]),
            (&["--state", "discarded"], &[decided]),
            (&["--state", "replayed"], &[]),
            (&["--id", &ids[0], "--id", &ids[1]], &[obstacle, percent]),
            (&["--kind", "confirm-receipt"], &[obstacle]),
            (&["--kind", "confirm-receipt", "--kind", "purge-cart-item"], &[obstacle, stuck]),
            (&["--kind", "confirm-receipt", "--reason", "malformed"], &[]),
            (&["--reason", "delivery-limit", "--reason", "malformed"], &[stuck, garbage]),
            (&["--subject", &first], &[obstacle, stranger]),
            (&["--subject", &second, "--kind", "collect-arrears"], &[percent]),
            (&["--order", "BG-17"], &[percent]),
            (&["--order", "bg-17"], &[]),
            (&["--cause", "stuck"], &[stuck]),
            (&["--cause", "CONSTRAINT \"obstacle\""], &[obstacle, stranger]),
            (&["--group", &group], &[garbage]),
            (&["--group", "0000000000"], &[]),
            (&["--unreadable"], &[garbage, stranger]),
            (&["--unreadable", "--kind", "confirm-receipt"], &[]),
            // A day is a calendar day in Asia/Ho_Chi_Minh.
            (&["--since", "2025-11-24", "--until", "2025-11-24"], &[percent, stuck]),
            (&["--since", "2025-11-25", "--until", "2025-11-25"], &[garbage]),
            (&["--until", "2025-11-23"], &[obstacle]),
            (&["--since", "2025-11-23T17:30:00Z", "--until", "2025-11-24T23:59:59+07:00"], &[percent]),
            (&["--since", "2h"], &[stranger]),
            (&["--since", "2h", "--until", "50m"], &[stranger]),
            (&["--until", "2h"], &[obstacle, percent, stuck, garbage]),
            (&["--until", "1 month"], &[obstacle, percent, stuck, garbage]),
            // Special characters are matched literally.
            (&["--cause", "%"], &[percent]),
            (&["--cause", "_"], &[percent]),
            (&["--cause", "'"], &[stuck]),
            (&["--cause", "\\"], &[]),
            (&["--cause", "%' OR true --"], &[]),
            (&["--cause", "$1"], &[]),
            (&["--reason", "malformed' OR 'x' = 'x"], &[]),
            (&["--reason", "%"], &[]),
            (&["--reason", "{malformed,unrouted}"], &[]),
            (&["--order", "%"], &[]),
            (&["--order", "BG-17') OR true; DROP TABLE dead_letters; --"], &[]),
        ];
        for (arguments, expected) in cases {
            assert_eq!(listed(harness, arguments).await, expected.iter().copied().collect(), "{arguments:?}");
        }
        for wrong in
            [&["--kind", "make-coffee"][..], &["--id", "5f0c"], &["--since", "soon"], &["--cause", ""], &["--json", "--csv"]]
        {
            let said = ops(harness, &[&["dead", "list"][..], wrong].concat()).await;
            assert_eq!(said.code, 2, "{wrong:?}: {said:?}");
        }
        let unknown = ops(harness, &["dead", "list", "--kind", "make-coffee"]).await.err;
        assert!(
            unknown.contains("confirm-receipt, purge-cart-item, collect-arrears") && unknown.contains("--unreadable"),
            "{unknown}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_through_ten_thousand_letters_show_each_once_whatever_comes_and_goes_meanwhile() {
    with_harness(QUICK, async |harness| {
        // Mixed causes, and hundreds of letters that failed at the same time.
        let sql = "INSERT INTO dead_letters (id, kind, subject_id, reason, cause, cause_group, attempts, last_failed_at, queue,
                                             routing_key, body_hash)
                   SELECT gen_random_uuid(), (ARRAY['confirm-receipt', 'purge-cart-item', 'collect-arrears', NULL])[1 + n % 4],
                          gen_random_uuid(), (ARRAY['malformed', 'attempts-exhausted', 'delivery-limit'])[1 + n % 3],
                          'cause ' || n, 'cause ' || n % 7, n % 9, timestamptz '2026-01-01 00:00:00.000001Z' + (n % 40) * interval '1 us',
                          'kyhan.dead', 'x.0', $1
                     FROM generate_series(1, 10000) n";
        harness.run(sql, [harness.kept_body(b"{}", b"").await.into()]).await;
        let mut seen = BTreeSet::new();
        let (mut after, mut pages) = (None::<String>, 0);
        loop {
            let mut arguments = vec!["dead", "list", "--json", "--limit", "900"];
            if let Some(after) = &after {
                arguments.extend(["--after", after]);
            }
            let page = json(harness, &arguments).await;
            for letter in page["letters"].as_array().expect("letters") {
                assert!(seen.insert(id_of(&letter["id"])), "twice: {letter}");
            }
            pages += 1;
            let Some(next) = page["next"].as_str() else { break };
            if pages == 3 {
                // The last letter of the page is decided, and a letter arrives that failed before all of them.
                let last = id_of(&page["letters"].as_array().expect("letters").last().expect("one")["id"]);
                let sql = "UPDATE dead_letters SET state = 'resolved', decided_at = now(), decided_by = 'x', decided_why = 'x' WHERE id = $1";
                harness.run(sql, [last.into()]).await;
                StoredLetter { failed: Some("2025-01-01T00:00:00Z"), ..StoredLetter::default() }.store(harness).await;
            }
            after = Some(next.to_owned());
        }
        assert_eq!((seen.len(), pages), (10_000, 12));

        let table = ops(harness, &["dead", "list", "--limit", "2"]).await.out;
        let last = table.trim_end().lines().last().expect("a line");
        let cursor = last.strip_prefix("next page: --after ").expect("how to go on");
        assert!(table.contains("2 of 10000 dead letters"), "{table}");
        let second = ops(harness, &["dead", "list", "--limit", "10000", "--after", cursor]).await.out;
        assert!(second.trim_end().ends_with("9998 of 10000 dead letters"), "no page follows the last one");
        let csv = ops(harness, &["dead", "list", "--limit", "10000", "--csv"]).await;
        assert_eq!((csv.out.lines().count(), csv.err.trim()), (10_001, "10000 of 10000 dead letters"));
        let groups = json(harness, &["dead", "list", "--groups", "--json"]).await;
        let of_groups = groups["groups"].as_array().expect("groups").iter().map(|group| group["letters"].as_i64().expect("a count"));
        assert_eq!((of_groups.sum::<i64>(), groups["letters"].as_i64()), (10_000, Some(10_000)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_count_letters_by_cause_and_by_how_their_rows_stand_now() {
    with_harness(QUICK, async |harness| {
        let mut expected = BTreeMap::new();
        let mut add =
            |cause: &str, standing: &str| *expected.entry((cause.to_owned(), standing.to_owned())).or_insert(0_i64) += 1;
        for task in harness.tasks() {
            for cause in ["lock timeout", "violates check"] {
                let subject = Uuid::new_v4();
                harness.run(task.examples().due, [subject.into()]).await;
                about(harness, task, subject, cause).await;
                add(cause, "due");
            }
            about(harness, task, Uuid::new_v4(), "lock timeout").await;
            add("lock timeout", "gone");
            let subject = Uuid::new_v4();
            harness.run(task.examples().due, [subject.into()]).await;
            harness.run(task.examples().moot, [subject.into()]).await;
            about(harness, task, subject, "lock timeout").await;
            // Making an example moot may delete the row.
            let there =
                harness.ask::<bool>(&format!("SELECT EXISTS (SELECT FROM {} WHERE id = '{subject}')", task.table())).await;
            add("lock timeout", if there { "moot" } else { "gone" });
        }
        let waiting = harness.delivering().await;
        harness.run("UPDATE orders SET delivering_since = now() + interval '1 hour' WHERE id = $1", [waiting.into()]).await;
        about(harness, exampled("confirm-receipt"), waiting, "violates check").await;
        add("violates check", "waits");
        let ordered = harness.in_cart().await;
        harness.run("UPDATE cart_items SET order_id = $2 WHERE id = $1", [ordered.into(), waiting.into()]).await;
        about(harness, exampled("purge-cart-item"), ordered, "violates check").await;
        add("violates check", "moot");
        for (kind, subject) in
            [(None, None), (None, Some(waiting)), (Some("confirm-receipt"), None), (Some("make-coffee"), Some(waiting))]
        {
            StoredLetter { kind, subject, cause: "no JSON", group: "no JSON", ..StoredLetter::default() }.store(harness).await;
            add("no JSON", "unreadable");
        }

        let found = json(harness, &["dead", "list", "--groups", "--json"]).await;
        let mut counted = BTreeMap::new();
        let mut ids = BTreeMap::new();
        for group in found["groups"].as_array().expect("groups") {
            let text = |name: &str| group[name].as_str().expect("a text").to_owned();
            assert_eq!(counted.insert((text("cause"), text("standing")), group["letters"].as_i64().expect("a count")), None);
            // Each cause has one id, and each id one cause.
            assert_eq!(ids.entry(text("group")).or_insert(text("cause")), &text("cause"));
        }
        assert_eq!(counted, expected);
        assert_eq!(ids.len(), 3);
        let narrowed =
            json(harness, &["dead", "list", "--groups", "--json", "--kind", "confirm-receipt", "--cause", "lock"]).await;
        assert_eq!(narrowed["letters"], json!(3));
        let table = ops(harness, &["dead", "list", "--groups"]).await.out;
        for said in ["due", "waits", "moot", "gone", "unreadable", "lock timeout"] {
            assert!(table.contains(said), "{said}: {table}");
        }
    })
    .await;
}

async fn about(harness: &Harness, task: &dyn Exampled, subject: Uuid, cause: &str) -> Uuid {
    StoredLetter { kind: Some(task.kind()), subject: Some(subject), cause, group: cause, ..StoredLetter::default() }
        .store(harness)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn show_explains_a_letter_with_its_row_as_it_is_now() {
    with_harness(QUICK, async |harness| {
        let order = harness.delivering().await;
        let dues = "UPDATE orders SET goods_due = 1234567, code = 'BG-17' WHERE id = $1";
        harness.run(dues, [order.into()]).await;
        harness.run("INSERT INTO accounts (kind, order_id, balance) VALUES ('goods', $1, 200000)", [order.into()]).await;
        let letter = StoredLetter {
            id: "5f0c1d2e-0000-4000-8000-000000000001".parse().expect("an id"),
            subject: Some(order),
            cause: "Execution Error\ncaused by: \u{1b}[2J\"obstacle\"",
            headers: br#"{"traceparent":{"LongString":[48,48,45,97]}}"#,
            ..StoredLetter::default()
        };
        let id = letter.store(harness).await.to_string();
        let shown = ops(harness, &["dead", "show", "5f0c1d2e"]).await.out;
        for said in [
            &id[..],
            &order.to_string(),
            "confirm-receipt",
            "attempts-exhausted",
            "Execution Error\\ncaused by: \\u{1b}[2J\"obstacle\"",
            "worker-7",
            "4bf92f3577b34da6a3ce929d0e0e4736",
            "traceparent: 00-a",
            "code                BG-17",
            "status              delivering",
            "goods_due           1.234.567 ₫",
            "goods_paid          200.000 ₫",
            "stands              due",
            "would apply it",
            r#"{\"v\":1}"#,
        ] {
            assert!(shown.contains(said), "{said}: {shown}");
        }
        assert!(!shown.contains('\u{1b}'), "no terminal is steered");

        harness
            .run("UPDATE orders SET status = 'received', received_at = '2026-11-24T08:04:05Z' WHERE id = $1", [order.into()])
            .await;
        let shown = ops(harness, &["dead", "show", &id]).await.out;
        for said in ["status              received", "received_at         2026-11-24 15:04:05 +07", "stands              moot"] {
            assert!(shown.contains(said), "{said}: {shown}");
        }
        let shown = json(harness, &["dead", "show", &id, "--json"]).await;
        assert_eq!((&shown["row"]["values"]["status"], &shown["stands"]["standing"]), (&json!("received"), &json!("moot")));
        assert_eq!((&shown["letter"]["id"], &shown["letter"]["body"]), (&json!(id), &json!("eyJ2IjoxfQ==")));

        let twin = StoredLetter { id: "5f0c1d2e-0000-4000-8000-000000000002".parse().expect("an id"), ..StoredLetter::default() };
        let twin = twin.store(harness).await.to_string();
        let several = ops(harness, &["dead", "show", "5f0c1d2e-0000"]).await;
        assert!(several.code == 1 && several.err.contains(&id) && several.err.contains(&twin), "{several:?}");
        let none = ops(harness, &["dead", "show", "ffffffff"]).await;
        assert!(none.code == 1 && none.err.contains("no dead letter's id begins with ffffffff"), "{none:?}");
        assert_eq!(ops(harness, &["dead", "show", "5f0c"]).await.code, 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_shown_without_harm_and_written_out_byte_by_byte() {
    with_harness(QUICK, async |harness| {
        let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let letter = StoredLetter {
            kind: None,
            reason: "malformed",
            cause: "no JSON",
            headers: b"\xff no headers \x1b[2J",
            body: &bytes,
            ..StoredLetter::default()
        };
        let id = letter.store(harness).await.to_string();
        let file = std::env::temp_dir().join(format!("kyhan-letter-{id}"));
        let shown = ops(harness, &["dead", "show", &id, "--bytes", &file.to_string_lossy()]).await;
        assert_eq!(shown.code, 0, "{shown:?}");
        let written = std::fs::read(&file).expect("a file");
        std::fs::remove_file(&file).expect("removed");
        assert!(written == bytes, "{} bytes are written", written.len());
        assert!(!shown.out.contains('\u{1b}') && shown.out.contains("\\x1b[2J"), "{}", shown.out);
        assert!(shown.out.contains("… 95904 more") && shown.out.contains("stands              unreadable"), "{}", shown.out);
        json(harness, &["dead", "show", &id, "--json"]).await;
        let lost = ops(harness, &["dead", "show", &id, "--bytes", "/no/such/folder/file"]).await;
        assert!(lost.code == 1 && lost.err.contains("/no/such/folder/file"), "{lost:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_personal_and_no_source_of_goods_is_in_any_answer_or_record() {
    const SECRETS: [&str; 9] = [
        "Trần Thị Riêng Tư",
        "0987654321",
        "rieng.tu@example.vn",
        "12 Ngõ Kín",
        "taobao/secret-ref",
        "Áo khoác bí mật",
        "Supplier Bí Mật",
        "https://secret.example.cn",
        "lời nhắn riêng",
    ];
    with_harness(QUICK, async |harness| {
        let [name, phone, email, address, product_ref, product, supplier, url, message] = SECRETS;
        let sql = "UPDATE customers SET full_name = $2, phone = $3, email = $4, address = $5 WHERE id = $1";
        let customer: Value = EXAMPLE_CUSTOMER.into();
        harness.run(sql, [customer, name.into(), phone.into(), email.into(), address.into()]).await;
        let (order, other, item) = (harness.delivering().await, harness.delivering().await, harness.in_cart().await);
        let sql = "UPDATE cart_items SET product_ref = $1, product_name = $2";
        harness.run(sql, [product_ref.into(), product.into()]).await;
        let sql = "INSERT INTO order_sources (order_id, supplier_name, supplier_url) SELECT id, $1, $2 FROM orders";
        harness.run(sql, [supplier.into(), url.into()]).await;
        let sql = "INSERT INTO order_messages (order_id, author, body) SELECT id, 'customer', $1 FROM orders";
        harness.run(sql, [message.into()]).await;

        let mut ids = Vec::new();
        for task in tasks::EXAMPLED {
            let subject = if task.table() == "orders" { order } else { item };
            ids.push(about(harness, *task, subject, "violates check").await.to_string());
        }
        let mut answers = vec![];
        for arguments in [&[][..], &["--json"], &["--csv"], &["--groups"], &["--groups", "--json"], &["--groups", "--csv"]] {
            answers.push(ops(harness, &[&["dead", "list"][..], arguments].concat()).await);
        }
        for id in &ids {
            answers.push(ops(harness, &["dead", "show", id]).await);
            answers.push(ops(harness, &["dead", "show", id, "--json"]).await);
            // The test would prove nothing if no row were shown.
            assert!(json(harness, &["dead", "show", id, "--json"]).await["row"]["moments"].is_object());
        }
        let other = other.to_string();
        answers.push(ops(harness, &["dead", "repair", &ids[0], "--subject", &other, "--why", "wrong order", "--yes"]).await);
        answers.push(ops(harness, &["dead", "discard", "--all", "--why", "a test", "--yes"]).await);
        for said in &answers {
            assert_eq!(said.code, 0, "{said:?}");
        }
        answers.push(ops(harness, &["dead", "discard", "--id", &ids[0], "--why", "a test", "--yes"]).await);
        let mut texts: Vec<String> = answers.into_iter().flat_map(|said| [said.out, said.err]).collect();
        texts.push(harness.ask::<String>("SELECT string_agg(activity::text, ' ') FROM activity").await);
        texts.push(harness.ask::<String>("SELECT string_agg(dead_letters::text, ' ') FROM dead_letters").await);
        texts.push(harness.ask::<String>("SELECT string_agg(convert_from(body, 'UTF8'), ' ') FROM dead_letter_bodies").await);
        let customer = EXAMPLE_CUSTOMER.to_string();
        for text in texts {
            for secret in SECRETS.iter().chain([&customer.as_str()]) {
                assert!(!text.contains(secret), "{secret}: {text}");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_no_lane_takes_jams_nothing() {
    with_harness(QUICK, async |harness| {
        let order = harness.delivering().await;
        let good = harness.wakeup("confirm-receipt", &[order]);
        // Both wait in the same rung, the stray one first.
        let rung = format!("{}100ms", harness.topology().rung_prefix());
        let stray = Outgoing { exchange: rung.clone(), routing_key: "make-coffee.0".into(), ..good.clone() };
        harness.publish(vec![stray]).await;
        harness.publish(vec![Outgoing { exchange: rung, ..good }]).await;
        let worker = harness.worker();
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        harness.until("SELECT count(*) = 1 FROM dead_letters WHERE reason = 'unrouted' AND cause LIKE '%make-coffee.0%'").await;
        worker.stop().await;
    })
    .await;
}

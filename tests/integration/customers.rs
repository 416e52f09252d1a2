//! One customer (policy point 7): masked for staff, exported in full for the customer, erased when nothing is open. Each access
//! is recorded.

use sea_orm::{ConnectionTrait, TransactionTrait};
use shared::{database::roles::DatabaseRole, domain::task::EXAMPLE_CUSTOMER};
use uuid::Uuid;

use crate::{
    harness::{Harness, QUICK, with_harness},
    letters::{Said, json, ops},
};

/// Personal data of the example customer, and the sources of their goods.
const PERSONAL: [&str; 10] = [
    "Nguyễn Thị Mẫu",
    "0901234567",
    "mau@example.vn",
    "Hà Nội",
    "Xưởng A",
    "example.cn",
    "Bao giờ",
    "người nói",
    "taobao",
    "Áo khoác",
];

/// Makes a customer with an order, a source, a message, products, an event with data, and money that is fully paid.
async fn furnish(harness: &Harness) -> Uuid {
    let order = Uuid::new_v4();
    let sql = "INSERT INTO orders (id, code, customer_id, status, received_at, goods_due) VALUES ($1, 'BG-1', $2, 'received', now(), 1000)";
    harness.run(sql, [order.into(), EXAMPLE_CUSTOMER.into()]).await;
    harness.run("INSERT INTO order_sources VALUES ($1, 'Xưởng A', 'https://example.cn/a', 'ghi chú')", [order.into()]).await;
    harness
        .run("INSERT INTO order_messages (order_id, author, body) VALUES ($1, 'người nói', 'Bao giờ hàng về?')", [order.into()])
        .await;
    let (ordered, _) = (harness.in_cart().await, harness.in_cart().await);
    harness.run("UPDATE cart_items SET order_id = $2 WHERE id = $1", [ordered.into(), order.into()]).await;
    // A product without a reference.
    let nameless = harness.in_cart().await;
    harness.run("UPDATE cart_items SET order_id = $2, product_ref = '' WHERE id = $1", [nameless.into(), order.into()]).await;
    let sql = "INSERT INTO set_aside (event_id, event_type, subject_id, occurred_at, reason, data)
               SELECT gen_random_uuid(), 'x', id, now(), 'x', '{\"to\": \"Nguyễn Thị Mẫu\"}' FROM cart_items WHERE order_id IS NULL";
    harness.run(sql, []).await;
    let sql = "INSERT INTO outbox (event_type, subject_id, data) VALUES ('order.received', $1, '{\"to\": \"Nguyễn Thị Mẫu\"}')";
    harness.run(sql, [order.into()]).await;
    let sql = "WITH made AS (
            INSERT INTO accounts (kind, customer_id, order_id) VALUES ('outside', NULL, NULL), ('wallet', $2, NULL), ('goods', NULL, $1)
            RETURNING id, kind)
        INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key)
        SELECT outside.id, goods.id, 1000, 'trả', $1, 'paid' FROM made outside, made goods WHERE outside.kind = 'outside' AND goods.kind = 'goods'";
    harness.run(sql, [order.into(), EXAMPLE_CUSTOMER.into()]).await;
    order
}

fn names_no_person(said: &Said) {
    for personal in PERSONAL {
        assert!(!said.out.contains(personal) && !said.err.contains(personal), "{personal}: {said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn staff_see_a_customer_masked() {
    with_harness(QUICK, async |harness| {
        furnish(harness).await;
        let id = EXAMPLE_CUSTOMER.to_string();
        for arguments in [&["customer", "show", &id][..], &["customer", "show", &id, "--json"]] {
            let said = ops(harness, arguments).await;
            assert!(said.code == 0 && said.out.contains("Ng*** M.") && said.out.contains("09****567"), "{said:?}");
            names_no_person(&said);
        }
        let unknown = ops(harness, &["customer", "show", &Uuid::new_v4().to_string()]).await;
        assert!(unknown.code == 1 && unknown.err.contains("there is no customer"), "{unknown:?}");
        // However short or unusual a name is, its mask never equals it.
        for (name, masked) in [
            ("An", "A***"),
            ("", "***"),
            ("  ", "***"),
            ("Lê A", "L*** A."),
            ("Vũ An", "V*** A."),
            ("Ngu\u{79}ê\u{303}n An", "Ng*** A."),
            ("a b", "a*** B."),
        ] {
            assert_eq!(harness.ask::<String>(&format!("SELECT kyhan_masked_name('{name}')")).await, masked, "{name}");
        }
        for (phone, masked) in [("+84 90 123 4567", "84****567"), ("1234567", "****"), ("", "****"), ("0901234123", "09****123")]
        {
            assert_eq!(harness.ask::<String>(&format!("SELECT kyhan_masked_phone('{phone}')")).await, masked);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_holds_everything_about_one_customer_and_nothing_about_another_and_is_recorded() {
    with_harness(QUICK, async |harness| {
        let order = furnish(harness).await;
        let other = Uuid::new_v4();
        harness.run("INSERT INTO customers VALUES ($1, 'Trần Văn Khác', '0911111111', 'khac@example.vn', 'Huế')", [other.into()]).await;
        let others = harness.delivering().await;
        harness.run("UPDATE orders SET customer_id = $2 WHERE id = $1", [others.into(), other.into()]).await;
        harness.run("INSERT INTO order_sources VALUES ($1, 'Xưởng B', 'https://example.cn/b', NULL)", [others.into()]).await;
        let id = EXAMPLE_CUSTOMER.to_string();
        let said = ops(harness, &["--as", "lan", "customer", "export", &id, "--why", "khách yêu cầu"]).await;
        assert_eq!(said.code, 0, "{said:?}");
        let held: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
        for personal in PERSONAL {
            assert!(said.out.contains(personal), "{personal} is missing: {held:#}");
        }
        for foreign in ["Trần Văn Khác", "Xưởng B", &others.to_string()] {
            assert!(!said.out.contains(foreign), "{foreign}");
        }
        assert_eq!(held["orders"][0]["id"], order.to_string());
        let count = |part: &str| held[part].as_array().expect("an array").len();
        assert_eq!((count("orders"), count("cart"), count("transfers"), count("events")), (1, 3, 1, 2), "{held:#}");
        assert!(count("accounts") == 2 && count("activity") >= 1, "{held:#}");
        let recorded = "SELECT string_agg(detail ->> 'by' || ' ' || (detail ->> 'why'), ',') FROM activity WHERE action = 'customer.exported'";
        assert_eq!(harness.ask::<String>(recorded).await, "lan khách yêu cầu");
        // New tables about a customer must be exported as well.
        let tables = "SELECT string_agg(DISTINCT table_name::text, ',' ORDER BY table_name::text) FROM information_schema.columns
                       WHERE table_schema IN ('kyhan', 'public') AND column_name IN ('customer_id', 'order_id')
                         AND table_name IN (SELECT tablename FROM pg_tables)";
        assert_eq!(
            harness.ask::<String>(tables).await,
            "accounts,arrears_outstanding,cart_items,order_messages,order_sources,order_status_history,orders,retention_holds,transfers"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_logins_are_refused_by_the_server_to_export_or_erase() {
    with_harness(QUICK, async |harness| {
        furnish(harness).await;
        let actor = ::ops::actor::Operator::new(Some("lan")).expect("a name");
        for role in [DatabaseRole::Ops, DatabaseRole::Worker, DatabaseRole::Producer] {
            let db = harness.sandbox.connect_as(role).await.expect("a login");
            let exported = ::ops::customer::export(&db, &actor, EXAMPLE_CUSTOMER, "x").await.map(|_| ());
            let erased = ::ops::customer::erase(&db, &actor, EXAMPLE_CUSTOMER, "x").await.map(|_| ());
            for refused in [exported, erased] {
                let said = refused.expect_err("refused").to_string();
                assert!(said.contains("may not read personal data: use one of kyhan_order_system"), "{said}");
            }
            db.close().await.expect("closed");
        }
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM customers WHERE full_name = 'Nguyễn Thị Mẫu'").await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_waits_for_money_holds_and_orders_under_way_and_leaves_nothing_personal() {
    with_harness(QUICK, async |harness| {
        let order = furnish(harness).await;
        let id = EXAMPLE_CUSTOMER.to_string();
        let erase = async || ops(harness, &["--as", "lan", "customer", "erase", &id, "--why", "khách yêu cầu", "--yes"]).await;
        let wallet = "INSERT INTO transfers (debit_account, credit_account, amount, reason, idempotency_key)
                      SELECT a.id, b.id, 500, 'x', gen_random_uuid()::text FROM accounts a, accounts b";
        let owes = format!("{wallet} WHERE a.kind = 'wallet' AND b.kind = 'outside'");
        let holds = format!("{wallet} WHERE a.kind = 'outside' AND b.kind = 'wallet'");
        for (opens, closes, why) in [
            (owes.as_str(), holds.as_str(), "the wallet holds -500"),
            (holds.as_str(), owes.as_str(), "the wallet holds 500"),
            ("UPDATE orders SET goods_due = 2000", "UPDATE orders SET goods_due = 1000", "order BG-1 is"),
            ("UPDATE orders SET on_hold = true", "UPDATE orders SET on_hold = false", "order BG-1 is"),
            ("UPDATE orders SET status = 'in_transit'", "UPDATE orders SET status = 'received'", "order BG-1 is"),
            (
                "INSERT INTO retention_holds SELECT id, now(), 'lan', 'x' FROM orders",
                "DELETE FROM retention_holds",
                "order BG-1 is",
            ),
        ] {
            harness.run(opens, []).await;
            let refused = erase().await;
            assert!(
                refused.code == 1 && refused.err.contains("nothing was erased") && refused.err.contains(why),
                "{why}: {refused:?}"
            );
            names_no_person(&refused);
            harness.run(closes, []).await;
        }
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM activity WHERE action = 'customer.erased'").await, 0);

        let before: String = harness.ask("SELECT jsonb_agg(to_jsonb(t) ORDER BY id)::text FROM transfers t").await;
        harness.run("SELECT kyhan_seal_activity(1000, 1000)", []).await;
        let erased = erase().await;
        assert_eq!(erased.code, 0, "{erased:?}");
        names_no_person(&erased);
        // No personal data is left anywhere in the database, and no digest from which it could be guessed.
        let everything: String = harness.ask("SELECT database_to_xml(true, false, '')::text").await;
        for personal in PERSONAL {
            assert!(!everything.contains(personal), "{personal} is left");
        }
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM order_messages WHERE salt IS NOT NULL").await, 0);
        // Ledger, history and seals are unchanged.
        assert_eq!(harness.ask::<String>("SELECT jsonb_agg(to_jsonb(t) ORDER BY id)::text FROM transfers t").await, before);
        let order_stays = format!("SELECT count(*) FROM orders WHERE id = '{order}' AND code = 'BG-1'");
        assert_eq!(harness.ask::<i64>(&order_stays).await, 1);
        let verified = json(harness, &["activity", "verify", "--json"]).await;
        assert_eq!(verified["faults"], serde_json::json!([]));
        let shown = json(harness, &["customer", "show", &id, "--json"]).await;
        assert!(shown["name"] == "***" && shown["erased_at"].is_string(), "{shown}");
        // Erasing again is idempotent and keeps the first time.
        let first: String = harness.ask("SELECT erased_at::text FROM customers").await;
        assert_eq!(erase().await.code, 0);
        assert_eq!(harness.ask::<String>("SELECT erased_at::text FROM customers").await, first);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_sees_an_order_that_is_just_being_made() {
    with_harness(QUICK, async |harness| {
        furnish(harness).await;
        let ordering = harness.sandbox.db.begin().await.expect("a transaction");
        let sql = format!("INSERT INTO orders (id, code, customer_id, status) VALUES (gen_random_uuid(), 'BG-2', '{EXAMPLE_CUSTOMER}', 'deposited')");
        ordering.execute_unprepared(&sql).await.expect("an order");
        let db = harness.sandbox.connect_as(DatabaseRole::OrderSystem).await.expect("a login");
        let erasing = tokio::spawn(async move {
            let actor = ::ops::actor::Operator::new(Some("lan")).expect("a name");
            let erased = ::ops::customer::erase(&db, &actor, EXAMPLE_CUSTOMER, "x").await.map(|_| ());
            db.close().await.expect("closed");
            erased
        });
        harness.until("SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").await;
        ordering.commit().await.expect("a commit");
        let said = erasing.await.expect("no panic").expect_err("refused").to_string();
        assert!(said.contains("order BG-2 is in progress"), "{said}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_erased_stays_so_also_for_those_who_were_waiting_to_write() {
    with_harness(QUICK, async |harness| {
        let order = furnish(harness).await;
        let erasing = harness.sandbox.db.begin().await.expect("a transaction");
        erasing.execute_unprepared("SELECT FROM customers FOR UPDATE").await.expect("locked");
        erasing.execute_unprepared("UPDATE customers SET full_name = '', phone = '', email = '', address = '', erased_at = now()").await.expect("erased");
        let recorded = format!("INSERT INTO activity (actor_kind, action, subject_kind, subject_id) VALUES ('staff', 'customer.erased', 'customer', '{EXAMPLE_CUSTOMER}')");
        erasing.execute_unprepared(&recorded).await.expect("recorded");
        let writes = [
            "UPDATE customers SET phone = '0909'".to_owned(),
            format!("INSERT INTO order_messages (order_id, author, body) VALUES ('{order}', 'a', 'b')"),
            format!("INSERT INTO cart_items (id, customer_id, product_ref, product_name, quantity) VALUES (gen_random_uuid(), '{EXAMPLE_CUSTOMER}', 'a', 'b', 1)"),
            "UPDATE cart_items SET product_name = 'x'".to_owned(),
            format!("INSERT INTO orders (id, code, customer_id, status) VALUES (gen_random_uuid(), 'BG-3', '{EXAMPLE_CUSTOMER}', 'deposited')"),
            format!("INSERT INTO order_sources VALUES ('{order}', 'x', 'y', 'z') ON CONFLICT (order_id) DO UPDATE SET note = 'x'"),
        ];
        let waiting: Vec<_> = writes
            .iter()
            .cloned()
            .map(|sql| {
                let db = harness.sandbox.db.clone();
                tokio::spawn(async move {
                    let tx = db.begin().await.expect("a transaction");
                    tx.execute_unprepared("SET LOCAL lock_timeout = 0").await.expect("set");
                    let done = tx.execute_unprepared(&sql).await.map(|_| sql);
                    let _ = tx.commit().await;
                    done
                })
            })
            .collect();
        let all_wait = format!(
            "SELECT count(*) = {} FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
            writes.len()
        );
        harness.until(&all_wait).await;
        erasing.commit().await.expect("a commit");
        for write in waiting {
            let refused = write.await.expect("no panic").expect_err("refused").to_string();
            assert!(refused.contains("this customer was erased"), "{refused}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_lets_no_login_erase_past_an_obstacle_or_off_the_record() {
    with_harness(QUICK, async |harness| {
        let order = furnish(harness).await;
        let db = harness.sandbox.connect_as(DatabaseRole::OrderSystem).await.expect("a login");
        let erase = "UPDATE customers SET full_name = '', phone = '', email = '', address = '', erased_at = now()";
        let tried = async |sql: &str| db.execute_unprepared(sql).await.expect_err(sql).to_string();
        for (opens, closes) in [
            ("UPDATE orders SET on_hold = true", "UPDATE orders SET on_hold = false"),
            ("UPDATE orders SET goods_due = 1001", "UPDATE orders SET goods_due = 1000"),
            ("UPDATE accounts SET balance = 1 WHERE kind = 'wallet'", "UPDATE accounts SET balance = 0 WHERE kind = 'wallet'"),
            (
                "INSERT INTO retention_holds (order_id, held_by, why) SELECT id, 'lan', 'kiện' FROM orders",
                "DELETE FROM retention_holds",
            ),
        ] {
            harness.as_superuser(opens).await;
            let said = tried(erase).await;
            assert!(said.contains("a customer cannot be erased while money is outstanding"), "{opens}: {said}");
            harness.as_superuser(closes).await;
        }
        let said = tried("UPDATE customers SET erased_at = now()").await;
        assert!(said.contains("must have no personal data"), "{said}");
        let said = tried(erase).await;
        assert!(said.contains("must be recorded in its own transaction"), "{said}");
        // Blanking a message without an erasure is detected.
        let blank = format!("UPDATE order_messages SET author = '', body = '', salt = NULL WHERE order_id = '{order}'");
        db.execute_unprepared(&blank).await.expect("may, to erase");
        let verified = ops(harness, &["activity", "verify"]).await;
        assert!(verified.code == 1 && verified.out.contains("differs from its record"), "{verified:?}");
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM customers WHERE erased_at IS NOT NULL").await, 0);
        db.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_about_an_erased_customer_keeps_no_data_however_late_it_comes() {
    with_harness(QUICK, async |harness| {
        harness.delivering().await;
        let aside = "INSERT INTO set_aside (event_id, event_type, subject_id, occurred_at, reason, data)
                     VALUES (gen_random_uuid(), 'Nguyễn Thị Mẫu', $1, now(), 'unknown event type; known are x', '{}')";
        harness.run(aside, [EXAMPLE_CUSTOMER.into()]).await;
        harness.run("DELETE FROM orders", []).await;
        let erased = ops_customer_care(harness).await;
        assert!(erased, "erased");
        let names = "SELECT count(*) FROM set_aside WHERE event_type <> 'erased' OR data IS NOT NULL";
        assert_eq!(harness.ask::<i64>(names).await, 0);
        // The order system's event, and the relay's set-aside, come after the erasure.
        harness.run(aside, [EXAMPLE_CUSTOMER.into()]).await;
        let event = "INSERT INTO outbox (event_type, subject_id, data) VALUES ('Nguyễn Thị Mẫu', $1, '{\"to\": \"Mẫu\"}')";
        harness.run(event, [EXAMPLE_CUSTOMER.into()]).await;
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM outbox WHERE data IS NOT NULL").await, 0);
        let relay = harness.relay();
        harness.until("SELECT count(*) = 3 FROM set_aside").await;
        relay.stop().await;
        assert_eq!(harness.ask::<i64>(names).await, 0);
    })
    .await;
}

/// Erases the example customer with a login of the order system.
async fn ops_customer_care(harness: &Harness) -> bool {
    let db = harness.sandbox.connect_as(DatabaseRole::OrderSystem).await.expect("a login");
    let actor = ::ops::actor::Operator::new(Some("lan")).expect("a name");
    let erased = ::ops::customer::erase(&db, &actor, EXAMPLE_CUSTOMER, "asked").await;
    db.close().await.expect("closed");
    erased.map_err(|error| eprintln!("{error}")).is_ok()
}

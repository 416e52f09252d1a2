//! What a login of the fleet may do to money, orders and carts: what the tasks do, and nothing else. PostgreSQL itself refuses the rest,
//! whatever a session sets. Each refusal is tried again with the trigger disabled, so that no other obstacle explains it.

use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, TransactionTrait};
use shared::{
    database::{
        failure::is_refused,
        roles::DatabaseRole,
        statements::{OnLocked, Statements},
    },
    domain::{task::EXAMPLE_CUSTOMER, tasks},
};
use uuid::Uuid;

use crate::harness::{Harness, QUICK, with_harness};

const FLEET: [DatabaseRole; 2] = [DatabaseRole::Worker, DatabaseRole::Ops];
const OTHER: Uuid = Uuid::from_u128(4);

/// Runs statements in one transaction that is rolled back.
async fn tried(db: &DatabaseConnection, sql: &str) -> Result<(), DbErr> {
    let tx = db.begin().await.expect("a transaction");
    let done = tx.execute_unprepared(sql).await.map(|_| ());
    let _ = tx.rollback().await;
    done
}

/// The statement is refused to every login of the fleet, also when the session sets what once freed it, and is possible without `trigger`.
async fn only_the_trigger_refuses(harness: &Harness, table: &str, trigger: &str, sql: &str) {
    let switch = async |to: &str| {
        let sql = format!("ALTER TABLE {table} {to} TRIGGER {trigger}");
        harness.sandbox.db.execute_unprepared(&sql).await.expect("switched");
    };
    for role in FLEET {
        let db = harness.sandbox.connect_as(role).await.expect("a login");
        for set in ["", "SET LOCAL kyhan.effect = on; ", "SET LOCAL search_path = pg_temp, kyhan, public; "] {
            let error = tried(&db, &format!("{set}{sql}")).await.expect_err(&format!("{role}: {set}{sql}"));
            assert!(is_refused(&error), "{role}: {set}{sql}: {error}");
        }
        switch("DISABLE").await;
        tried(&db, sql).await.unwrap_or_else(|error| panic!("{role}, without {trigger}: {sql}: {error}"));
        switch("ENABLE").await;
        db.close().await.expect("closed");
    }
}

/// An order on its way, short of 5,000 ₫ for its goods, with its accounts; and a wallet of another customer.
async fn short(harness: &Harness) -> Uuid {
    let order = harness.delivering().await;
    harness.run("UPDATE orders SET goods_due = 5000 WHERE id = $1", [order.into()]).await;
    harness.run("INSERT INTO customers VALUES ($1, 'Lê Thị Khác', '0902', 'khac@example.vn', 'Huế')", [OTHER.into()]).await;
    let accounts = "INSERT INTO accounts (kind, customer_id, order_id)
                    VALUES ('wallet', $1, NULL), ('wallet', $2, NULL), ('goods', NULL, $3), ('shipping', NULL, $3), ('outside', NULL, NULL)";
    harness.run(accounts, [EXAMPLE_CUSTOMER.into(), OTHER.into(), order.into()]).await;
    order
}

/// A transfer between two accounts, each given by an SQL condition.
fn transfer(from: &str, to: &str, amount: i64, reason: &str, key: &str) -> String {
    format!(
        "INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key)
         SELECT payer.id, payee.id, {amount}, '{reason}', payee.order_id, {key} FROM accounts AS payer, accounts AS payee
          WHERE payer.{from} AND payee.{to}"
    )
}

fn key(order: Uuid, part: &str) -> String {
    format!("'collect-arrears:{order}:{part}:2026-01-01T00:00:00.000000'")
}

fn hostile_transfers(order: Uuid) -> Vec<String> {
    let own = format!("customer_id = '{EXAMPLE_CUSTOMER}'");
    let other = format!("customer_id = '{OTHER}'");
    let (own, other) = (own.as_str(), other.as_str());
    let goods = &key(order, "goods");
    vec![
        transfer(own, other, 1_000, "adjustment", "'x'"),
        transfer(own, other, 1_000, "arrears", goods),
        // Another customer pays.
        transfer(other, "kind = 'goods'", 5_000, "arrears", goods),
        transfer("kind = 'outside'", "kind = 'goods'", 5_000, "arrears", goods),
        // More than is missing, at once and in two parts.
        transfer(own, "kind = 'goods'", 5_001, "arrears", goods),
        format!(
            "{}; {}",
            transfer(own, "kind = 'goods'", 3_000, "arrears", goods),
            transfer(own, "kind = 'goods'", 3_000, "arrears", &goods.replace("2026", "2027"))
        ),
        // A component of which nothing is missing; another reason; keys that no charge has.
        transfer(own, "kind = 'shipping'", 1, "arrears", &key(order, "shipping")),
        transfer(own, "kind = 'goods'", 5_000, "phí", goods),
        transfer(own, "kind = 'goods'", 5_000, "arrears", "'x'"),
        transfer(own, "kind = 'goods'", 5_000, "arrears", &key(order, "shipping")),
        // A refund.
        transfer("kind = 'goods'", own, 1, "arrears", goods),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_of_the_fleet_moves_no_money_but_what_an_order_is_short_of() {
    with_harness(QUICK, async |harness| {
        let order = short(harness).await;
        for sql in hostile_transfers(order) {
            only_the_trigger_refuses(harness, "transfers", "transfers_of_the_fleet", &sql).await;
        }
        let proper =
            transfer(&format!("customer_id = '{EXAMPLE_CUSTOMER}'"), "kind = 'goods'", 5_000, "arrears", &key(order, "goods"));
        for role in FLEET {
            let db = harness.sandbox.connect_as(role).await.expect("a login");
            tried(&db, &proper).await.unwrap_or_else(|error| panic!("{role}: {error}"));
            // It cannot sign for another login, nor back-date.
            for column in ["made_by", "at", "id"] {
                let signed = proper.replacen("idempotency_key)", &format!("idempotency_key, {column})"), 1);
                let value = match column {
                    "made_by" => "'somebody'",
                    "at" => "now() - interval '1 year'",
                    _ => "gen_random_uuid()",
                };
                let signed = signed.replacen(" FROM accounts", &format!(", {value} FROM accounts"), 1);
                assert!(is_refused(&tried(&db, &signed).await.expect_err(column)), "{role}: {column}");
            }
            db.close().await.expect("closed");
        }
        // An order that pays nothing pays no arrears either.
        for change in [
            "UPDATE orders SET status = 'cancelled'",
            "UPDATE orders SET status = 'out_of_stock', out_of_stock_since = now(), parcel_recorded_at = NULL",
        ] {
            harness.run(change, []).await;
            only_the_trigger_refuses(harness, "transfers", "transfers_of_the_fleet", &proper).await;
        }
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM transfers").await, 0);
        // The order system moves money as it must, and signs it.
        let db = harness.sandbox.connect_as(DatabaseRole::OrderSystem).await.expect("a login");
        let sql = transfer("kind = 'outside'", &format!("customer_id = '{OTHER}'"), 9_000, "nạp ví", "'top-up'");
        db.execute_unprepared(&sql).await.expect("moved");
        let login = "SELECT count(*) FROM transfers WHERE made_by LIKE 'kyhan\\_%\\_order\\_system'";
        assert_eq!(harness.ask::<i64>(login).await, 1);
        let signed =
            sql.replacen("idempotency_key)", "idempotency_key, made_by)", 1).replacen(" FROM accounts", ", 'x' FROM accounts", 1);
        assert!(is_refused(&tried(&db, &signed).await.expect_err("no role writes made_by")));
        assert!(is_refused(
            &tried(&harness.sandbox.db, &signed.replace("top-up", "other")).await.expect_err("nor does a superuser")
        ));
        db.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_of_the_fleet_changes_orders_and_carts_as_the_tasks_do_and_in_no_other_way() {
    with_harness(QUICK, async |harness| {
        let order = short(harness).await;
        let item = harness.in_cart().await;
        harness.run("UPDATE cart_items SET order_id = $1 WHERE id = $2", [order.into(), item.into()]).await;
        let received = "status = 'received', received_at = now(), updated_at = now()";
        for (table, trigger, sql) in [
            ("orders", "orders_of_the_fleet", "UPDATE orders SET status = 'cancelled'".to_owned()),
            ("orders", "orders_of_the_fleet", "UPDATE orders SET status = 'cancelled', updated_at = now()".to_owned()),
            ("orders", "orders_of_the_fleet", "UPDATE orders SET status = 'deposited', received_at = now(), updated_at = now()".to_owned()),
            // A receipt that is dated otherwise, or changes something else.
            ("orders", "orders_of_the_fleet", "UPDATE orders SET status = 'received', received_at = '2020-01-01', updated_at = now()".to_owned()),
            ("orders", "orders_of_the_fleet", format!("UPDATE orders SET {received}, out_of_stock_since = now()")),
            ("orders", "orders_of_the_fleet", "UPDATE orders SET status = 'received', received_at = now()".to_owned()),
            ("orders", "orders_of_the_fleet", "UPDATE orders SET updated_at = now() - interval '1 year'".to_owned()),
            ("cart_items", "cart_items_of_the_fleet", "DELETE FROM cart_items".to_owned()),
            ("cart_items", "cart_items_stay_as_they_are", "UPDATE cart_items SET added_at = '2020-01-01'".to_owned()),
            (
                "order_status_history",
                "history_of_the_fleet",
                format!("INSERT INTO order_status_history (order_id, from_status, to_status, reason) VALUES ('{order}', 'delivering', 'received', 'confirm-receipt')"),
            ),
            (
                "order_status_history",
                "history_of_the_fleet",
                format!("UPDATE orders SET {received}; INSERT INTO order_status_history (order_id, from_status, to_status, reason) VALUES ('{order}', 'purchased', 'received', 'confirm-receipt')"),
            ),
            (
                "order_status_history",
                "history_of_the_fleet",
                format!("INSERT INTO order_status_history (order_id, from_status, to_status, reason) VALUES ('{order}', 'purchased', 'out_of_stock', 'x')"),
            ),
            (
                "order_status_history",
                "history_of_the_fleet",
                "INSERT INTO order_status_history (order_id, from_status, to_status, reason) VALUES (gen_random_uuid(), 'a', 'b', 'c')".to_owned(),
            ),
            (
                "arrears_outstanding",
                "outstanding_of_the_fleet",
                format!("INSERT INTO arrears_outstanding VALUES ('{order}', 5001, now())"),
            ),
            (
                "arrears_outstanding",
                "outstanding_of_the_fleet",
                format!("INSERT INTO arrears_outstanding VALUES ('{order}', 5000, '2020-01-01')"),
            ),
        ] {
            only_the_trigger_refuses(harness, table, trigger, &sql).await;
        }
        // Wrongly out of stock: back to the status before the mistake, and to no other.
        harness
            .run(
                "INSERT INTO order_status_history (order_id, from_status, to_status, reason) VALUES ($1, 'delivering', 'out_of_stock', 'by mistake')",
                [order.into()],
            )
            .await;
        let mistaken = "UPDATE orders SET status = 'out_of_stock', out_of_stock_since = now() - interval '1 year', parcel_recorded_at = now()";
        harness.run(mistaken, []).await;
        for sql in [
            "UPDATE orders SET status = 'in_warehouse', out_of_stock_since = NULL, updated_at = now()",
            "UPDATE orders SET status = 'cancelled', out_of_stock_since = NULL, updated_at = now()",
            "UPDATE orders SET status = 'delivering', updated_at = now()",
        ] {
            only_the_trigger_refuses(harness, "orders", "orders_of_the_fleet", sql).await;
        }
        for role in FLEET {
            let db = harness.sandbox.connect_as(role).await.expect("a login");
            let back = "UPDATE orders SET status = 'delivering', out_of_stock_since = NULL, updated_at = now()";
            tried(&db, back).await.unwrap_or_else(|error| panic!("{role}: {error}"));
            db.close().await.expect("closed");
        }
        // An order that is out of stock indeed stays so.
        harness.run("UPDATE orders SET parcel_recorded_at = NULL", []).await;
        let back = "UPDATE orders SET status = 'delivering', out_of_stock_since = NULL, updated_at = now()";
        only_the_trigger_refuses(harness, "orders", "orders_of_the_fleet", back).await;
    })
    .await;
}

/// Once, a session that set `kyhan.effect` raised no events and left no news.
#[tokio::test(flavor = "multi_thread")]
async fn no_setting_hides_a_change_of_the_order_system() {
    with_harness(QUICK, async |harness| {
        shared::database::schema::triggers::install(&harness.sandbox.db).await.expect("triggers");
        let order = harness.delivering().await;
        let db = harness.sandbox.connect_as(DatabaseRole::OrderSystem).await.expect("a login");
        harness.run("DELETE FROM outbox", []).await;
        let tx = db.begin().await.expect("a transaction");
        tx.execute_unprepared("SET LOCAL kyhan.effect = on").await.expect("set");
        tx.execute_unprepared("UPDATE orders SET status = 'received', updated_at = '2020-01-01'").await.expect("received");
        let orphan = "INSERT INTO order_status_history (order_id, from_status, to_status, reason) VALUES (gen_random_uuid(), 'a', 'b', 'c')";
        assert!(tx.execute_unprepared(&format!("SAVEPOINT s; {orphan}")).await.is_err());
        tx.execute_unprepared("ROLLBACK TO s").await.expect("back");
        tx.commit().await.expect("a commit");
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM outbox WHERE event_type = 'order.received'").await, 1);
        let dated = format!("SELECT changed_at IS NOT NULL FROM orders WHERE id = '{order}'");
        assert!(harness.ask::<bool>(&dated).await);
        db.close().await.expect("closed");
    })
    .await;
}

/// A session is the fleet's by its login: the effects of each task apply, and their events come from the effect alone. An operator moves
/// money only by a plan.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_applies_what_a_worker_applies_and_charges_nothing_without_a_plan() {
    with_harness(QUICK, async |harness| {
        shared::database::schema::triggers::install(&harness.sandbox.db).await.expect("triggers");
        for role in FLEET {
            let db = harness.sandbox.connect_as(role).await.expect("a login");
            for task in harness.tasks() {
                let id = Uuid::new_v4();
                harness.run(task.examples().due, [id.into()]).await;
                harness.run("DELETE FROM outbox", []).await;
                let statements = Statements::new(tasks::find(task.kind()).expect("a task"), &harness.settings().policy, None);
                let tx = db.begin().await.expect("a transaction");
                statements
                    .apply(&tx, &[(id, Uuid::new_v4())], OnLocked::Wait)
                    .await
                    .unwrap_or_else(|error| panic!("{role}: {}: {error}", task.kind()));
                let done = tx.commit().await;
                let charges = task.kind() == "collect-arrears";
                if role == DatabaseRole::Ops && charges {
                    assert!(is_refused(&done.expect_err("no plan")), "{role}");
                    assert!(harness.effects(task, id).await.iter().all(|count| *count == 0), "{role}");
                    continue;
                }
                done.unwrap_or_else(|error| panic!("{role}: {}: {error}", task.kind()));
                assert!(harness.effects(task, id).await.iter().all(|count| *count == 1), "{role}: {}", task.kind());
                let events = "SELECT count(*) FROM outbox WHERE event_type = 'order.received'";
                assert_eq!(harness.ask::<i64>(events).await, i64::from(task.kind() == "confirm-receipt"), "{role}");
            }
            db.close().await.expect("closed");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_floor_of_the_active_policy_binds_every_login_of_the_fleet() {
    with_harness("[arrears]\nwallet_floor = -4999\n", async |harness| {
        let order = short(harness).await;
        let whole =
            transfer(&format!("customer_id = '{EXAMPLE_CUSTOMER}'"), "kind = 'goods'", 5_000, "arrears", &key(order, "goods"));
        only_the_trigger_refuses(harness, "transfers", "transfers_of_the_fleet", &whole).await;
        let db = harness.sandbox.connect_as(DatabaseRole::Worker).await.expect("a login");
        tried(&db, &whole.replacen("5000", "4999", 1)).await.expect("down to the floor");
        db.close().await.expect("closed");
    })
    .await;
}

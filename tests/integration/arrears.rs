//! `collect-arrears`: exact amounts by component, the floor, a wrong «Hết hàng», and an order system that works at the same time.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, FromQueryResult, TransactionTrait};
use shared::{
    database::{
        self, Client,
        failure::{Trouble, trouble},
        roles::DatabaseRole,
        statement,
        statements::{OnLocked, Statements},
    },
    domain::{outcome::Outcome, task::EXAMPLE_CUSTOMER, tasks},
};
use uuid::Uuid;

use crate::harness::{Harness, QUICK, with_harness};

const COMPONENTS: [&str; 3] = ["goods", "shipping", "service"];

/// What an order owes and has paid, in đồng: goods, shipping, service.
#[derive(Clone, Copy, Debug)]
struct OrderAccount {
    due: [i64; 3],
    paid: [i64; 3],
}

/// An order that got its status and its payments long ago.
async fn order(harness: &Harness, customer: Uuid, status: &str, money: OrderAccount) -> Uuid {
    let id = Uuid::new_v4();
    harness
        .run(
            "INSERT INTO orders (id, code, customer_id, status, delivering_since, received_at, out_of_stock_since,
                                 goods_due, shipping_due, service_due)
             VALUES ($1, 'BG-' || $1::text, $2, $3, now() - interval '1 year',
                     CASE WHEN $3 = 'received' THEN now() - interval '1 year' END,
                     CASE WHEN $3 = 'out_of_stock' THEN now() - interval '1 year' END, $4, $5, $6)",
            [id.into(), customer.into(), status.into(), money.due[0].into(), money.due[1].into(), money.due[2].into()],
        )
        .await;
    for (component, paid) in COMPONENTS.into_iter().zip(money.paid) {
        if paid > 0 {
            pay(harness, customer, id, component, paid).await;
        }
    }
    id
}

/// A payment from the customer's wallet, a year ago.
async fn pay(harness: &Harness, customer: Uuid, order: Uuid, component: &str, amount: i64) {
    let wallet = account(harness, "wallet", Some(customer), None).await;
    let account = account(harness, component, None, Some(order)).await;
    transfer(harness, wallet, account, amount, Some(order)).await;
}

async fn account(harness: &Harness, kind: &str, customer: Option<Uuid>, order: Option<Uuid>) -> Uuid {
    harness
        .run(
            "INSERT INTO accounts (kind, customer_id, order_id) SELECT $1, $2, $3
              WHERE NOT EXISTS (SELECT FROM accounts WHERE kind = $1 AND customer_id IS NOT DISTINCT FROM $2 AND order_id IS NOT DISTINCT FROM $3)",
            [kind.into(), customer.into(), order.into()],
        )
        .await;
    let sql =
        "SELECT id FROM accounts WHERE kind = $1 AND customer_id IS NOT DISTINCT FROM $2 AND order_id IS NOT DISTINCT FROM $3";
    let row = harness.sandbox.db.query_one_raw(statement(sql, [kind.into(), customer.into(), order.into()])).await;
    row.expect("an answer").expect("an account").try_get("", "id").expect("an id")
}

async fn transfer(harness: &Harness, debit: Uuid, credit: Uuid, amount: i64, order: Option<Uuid>) {
    harness
        .run(
            "INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key, at)
             VALUES ($1, $2, $3, 'test', $4, gen_random_uuid()::text, now() - interval '1 year')",
            [debit.into(), credit.into(), amount.into(), order.into()],
        )
        .await;
}

/// Sets a wallet to this balance.
async fn wallet(harness: &Harness, customer: Uuid, balance: i64) {
    let wallet = account(harness, "wallet", Some(customer), None).await;
    let outside = account(harness, "outside", None, None).await;
    let now: i64 = balance_of(&harness.sandbox.db, wallet).await.expect("a balance");
    match balance - now {
        0 => {}
        more if more > 0 => transfer(harness, outside, wallet, more, None).await,
        less => transfer(harness, wallet, outside, -less, None).await,
    }
}

async fn balance_of(db: &impl ConnectionTrait, account: Uuid) -> Result<i64, DbErr> {
    let row = db.query_one_raw(statement("SELECT balance FROM accounts WHERE id = $1", [account.into()])).await?;
    row.expect("an account").try_get("", "balance")
}

async fn customer(harness: &Harness) -> Uuid {
    let id = Uuid::new_v4();
    harness.run("INSERT INTO customers VALUES ($1, 'Trần Văn Mẫu', '0912', 'm@example.vn', 'Huế')", [id.into()]).await;
    id
}

/// What an order has paid: goods, shipping, service.
async fn paid(harness: &Harness, order: Uuid) -> [i64; 3] {
    let mut paid = [0; 3];
    for (component, paid) in COMPONENTS.into_iter().zip(&mut paid) {
        let sql =
            format!("SELECT coalesce((SELECT balance FROM accounts WHERE order_id = '{order}' AND kind = '{component}'), 0)");
        *paid = harness.ask(&sql).await;
    }
    paid
}

async fn sums_are_zero(harness: &Harness) {
    assert_eq!(harness.ask::<i64>("SELECT coalesce(sum(balance), 0)::bigint FROM accounts").await, 0);
    let differing = "SELECT count(*) FROM accounts a WHERE balance <>
        (SELECT coalesce(sum(amount), 0) FROM transfers WHERE credit_account = a.id) - (SELECT coalesce(sum(amount), 0) FROM transfers WHERE debit_account = a.id)";
    assert_eq!(harness.ask::<i64>(differing).await, 0, "an account differs from its transfers");
    for check in tasks::find("collect-arrears").expect("the task").checks() {
        assert_eq!(harness.ask::<i64>(check.sql).await, 0, "{}", check.name);
    }
}

/// Applies the task to these orders directly.
async fn collect(harness: &Harness, floor: Option<i64>, orders: &[Uuid]) -> HashMap<Uuid, Outcome> {
    let db = harness.sandbox.connect_as(DatabaseRole::Worker).await.expect("a database");
    let statements = Statements::new(tasks::find("collect-arrears").expect("the task"), &harness.settings().policy, floor);
    let mut asked: Vec<_> = orders.iter().map(|order| (*order, Uuid::new_v4())).collect();
    asked.sort_unstable();
    let tx = db.begin().await.expect("a transaction");
    let outcomes = statements.apply(&tx, &asked, OnLocked::Wait).await.expect("an effect").outcomes;
    tx.commit().await.expect("a commit");
    db.close().await.expect("closed");
    outcomes.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_component_is_collected_for_itself_and_exactly() {
    with_harness(QUICK, async |harness| {
        wallet(harness, EXAMPLE_CUSTOMER, 300_000).await;
        let money = OrderAccount { due: [1_000_000, 120_000, 50_000], paid: [400_000, 200_000, 0] };
        let short = order(harness, EXAMPLE_CUSTOMER, "received", money).await;
        let worker = harness.worker();
        harness.publish(vec![harness.wakeup("collect-arrears", &[short])]).await;
        harness.until("SELECT count(*) = 1 FROM activity").await;
        worker.stop().await;
        // Overpaid shipping pays for nothing else.
        assert_eq!(paid(harness, short).await, [1_000_000, 200_000, 50_000]);
        assert_eq!(
            harness.ask::<i64>("SELECT balance FROM accounts WHERE kind = 'wallet'").await,
            300_000 - 600_000 - 600_000 - 50_000
        );
        let detail: String = harness.ask("SELECT (detail - 'wakeup_id')::text FROM activity").await;
        assert_eq!(detail, r#"{"collected": {"goods": 600000, "service": 50000}, "outstanding": 0, "restored_to": null}"#);
        sums_are_zero(harness).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_collected_of_cancelled_orders_and_those_truly_out_of_stock() {
    with_harness(QUICK, async |harness| {
        let money = OrderAccount { due: [1_000_000, 1, 1], paid: [0, 0, 0] };
        let mut orders = Vec::new();
        for status in ["awaiting_deposit", "deposited", "purchased", "in_transit", "in_warehouse", "out_of_stock", "cancelled"] {
            orders.push(order(harness, EXAMPLE_CUSTOMER, status, money).await);
        }
        let outcomes = collect(harness, None, &orders).await;
        assert!(outcomes.values().all(|outcome| *outcome == Outcome::Stale), "{outcomes:?}");
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM transfers").await, 0);
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM orders WHERE status = 'out_of_stock'").await, 1);
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM accounts").await, 0, "what is left alone gets no account either");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_out_of_stock_is_put_back_to_what_it_was_and_its_refund_collected() {
    with_harness(QUICK, async |harness| {
        triggers_off(harness).await;
        for before in ["in_warehouse", "delivering", "received"] {
            let money = OrderAccount { due: [800_000, 90_000, 0], paid: [0, 90_000, 0] };
            let wrong = order(harness, EXAMPLE_CUSTOMER, "out_of_stock", money).await;
            harness.run("UPDATE orders SET parcel_recorded_at = now() - interval '2 years' WHERE id = $1", [wrong.into()]).await;
            for (from, to) in [("in_transit", "in_warehouse"), (before, "out_of_stock")] {
                let sql = "INSERT INTO order_status_history (order_id, from_status, to_status, reason) VALUES ($1, $2, $3, 'nhân viên')";
                harness.run(sql, [wrong.into(), from.into(), to.into()]).await;
            }
            let outcomes = collect(harness, None, &[wrong]).await;
            assert!(matches!(outcomes[&wrong], Outcome::Applied { .. }), "{outcomes:?}");
            let after: String = harness.ask(&format!("SELECT status FROM orders WHERE id = '{wrong}' AND out_of_stock_since IS NULL")).await;
            assert_eq!(after, before);
            assert_eq!(paid(harness, wrong).await, [800_000, 90_000, 0]);
            let raised: String = harness.ask("SELECT coalesce(string_agg(event_type, ','), '') FROM outbox").await;
            let expected = match before {
                "delivering" => "order.shipped",
                "received" => "order.received",
                _ => "",
            };
            assert_eq!(raised, expected);
            harness.run("DELETE FROM outbox", []).await;
        }
        sums_are_zero(harness).await;
    })
    .await;
}

async fn triggers_off(harness: &Harness) {
    shared::database::schema::triggers::remove(&harness.sandbox.db).await.expect("no triggers");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_beyond_the_floor_stays_outstanding_and_is_tried_again() {
    with_harness(QUICK, async |harness| {
        wallet(harness, EXAMPLE_CUSTOMER, 100).await;
        let money = OrderAccount { due: [500, 300, 0], paid: [0, 0, 0] };
        let short = order(harness, EXAMPLE_CUSTOMER, "delivering", money).await;
        harness.run("UPDATE orders SET status = 'received', received_at = delivering_since WHERE id = $1", [short.into()]).await;
        let floored = harness.sandbox.settings_with(&[("KYHAN_ARREARS_WALLET_FLOOR", "-500")]).expect("settings");
        harness.sandbox.apply(&floored.policy).await.expect("applied");
        let worker = harness.worker();
        harness.publish(vec![harness.wakeup("collect-arrears", &[short])]).await;
        harness.until("SELECT count(*) = 1 FROM arrears_outstanding WHERE outstanding = 200").await;
        assert_eq!(paid(harness, short).await, [500, 100, 0]);
        assert_eq!(harness.ask::<i64>("SELECT balance FROM accounts WHERE kind = 'wallet'").await, -500);
        // It retries after each period and takes nothing while the wallet is empty …
        let tried: String = harness.ask("SELECT tried_at::text FROM arrears_outstanding").await;
        harness.until(&format!("SELECT tried_at > '{tried}' FROM arrears_outstanding")).await;
        assert_eq!(paid(harness, short).await, [500, 100, 0]);
        // … and the rest after the customer has paid in.
        wallet(harness, EXAMPLE_CUSTOMER, 1_000).await;
        harness.until("SELECT count(*) = 0 FROM arrears_outstanding").await;
        assert_eq!(paid(harness, short).await, [500, 300, 0]);
        assert_eq!(harness.ask::<i64>("SELECT balance FROM accounts WHERE kind = 'wallet'").await, 800);
        harness.until_settled().await;
        let totals = worker.stop().await;
        assert_eq!((totals.applied, totals.retried, totals.rejected), (1, 0, 0), "{totals:?}");
        sums_are_zero(harness).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_restored_order_still_owes_stays_outstanding_in_any_status_until_it_is_paid_or_cancelled() {
    with_harness(QUICK, async |harness| {
        let mut orders = Vec::new();
        for _ in 0..3 {
            let customer = customer(harness).await;
            wallet(harness, customer, 300).await;
            let wrong = order(harness, customer, "out_of_stock", OrderAccount { due: [1_000, 0, 0], paid: [0, 0, 0] }).await;
            harness.run("UPDATE orders SET parcel_recorded_at = now() - interval '2 years' WHERE id = $1", [wrong.into()]).await;
            orders.push((customer, wrong));
        }
        let floored = harness.sandbox.settings_with(&[("KYHAN_ARREARS_WALLET_FLOOR", "0")]).expect("settings");
        harness.sandbox.apply(&floored.policy).await.expect("applied");
        let worker = harness.worker();
        let all: Vec<Uuid> = orders.iter().map(|(_, order)| *order).collect();
        harness.publish(vec![harness.wakeup("collect-arrears", &all)]).await;
        harness.until("SELECT count(*) = 3 FROM arrears_outstanding WHERE outstanding = 700").await;
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM orders WHERE status = 'in_warehouse'").await, 3);
        // One customer pays into the wallet, one pays the order, one order is cancelled.
        wallet(harness, orders[0].0, 5_000).await;
        pay(harness, orders[1].0, orders[1].1, "goods", 700).await;
        harness.run("UPDATE orders SET status = 'cancelled' WHERE id = $1", [orders[2].1.into()]).await;
        harness.until("SELECT count(*) = 0 FROM arrears_outstanding").await;
        harness.until_settled().await;
        worker.stop().await;
        let mut after = Vec::new();
        for order in all {
            after.push(paid(harness, order).await[0]);
        }
        assert_eq!(after, [1_000, 1_000, 300]);
        sums_are_zero(harness).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_paid_from_outside_and_refunded_is_collected_from_a_wallet_made_for_it() {
    with_harness(QUICK, async |harness| {
        let customer = customer(harness).await;
        let order = order(harness, customer, "received", OrderAccount { due: [100, 0, 0], paid: [0, 0, 0] }).await;
        let (outside, goods) =
            (account(harness, "outside", None, None).await, account(harness, "goods", None, Some(order)).await);
        transfer(harness, outside, goods, 100, Some(order)).await;
        // A fully paid order is left alone …
        assert_eq!(collect(harness, None, &[order]).await[&order], Outcome::Stale);
        // … until a refund that does not even name the order.
        transfer(harness, goods, outside, 100, None).await;
        assert!(matches!(collect(harness, None, &[order]).await[&order], Outcome::Applied { .. }));
        assert_eq!(paid(harness, order).await, [100, 0, 0]);
        assert_eq!(harness.ask::<i64>("SELECT balance FROM accounts WHERE kind = 'wallet'").await, -100);
        sums_are_zero(harness).await;
    })
    .await;
}

/// What should be collected: per wallet, in the order of deadlines (all equal here), then ids, then components.
fn model(mut orders: Vec<(Uuid, OrderAccount)>, mut wallet: i64, floor: Option<i64>) -> HashMap<Uuid, [i64; 3]> {
    orders.sort_by_key(|(id, _)| *id);
    let mut paid = HashMap::new();
    let mut shorter = false;
    for (id, money) in orders {
        let mut after = money.paid;
        for (due, paid) in money.due.into_iter().zip(&mut after) {
            let short = (due - *paid).max(0);
            let most = floor.map_or(i64::MAX, |floor| if shorter { 0 } else { (wallet - floor).max(0) });
            let amount = short.min(most);
            // If one deadline could not get its full amount, no later deadline gets money before it.
            shorter |= amount < short;
            *paid += amount;
            wallet -= amount;
        }
        paid.insert(id, after);
    }
    paid
}

#[tokio::test(flavor = "multi_thread")]
async fn any_orders_of_any_customers_are_collected_exactly_down_to_the_floor() {
    with_harness(QUICK, async |harness| {
        let mut runner = TestRunner::deterministic();
        let amount = || prop_oneof![Just(0i64), 1i64..2_000_000, Just(i64::from(u32::MAX) * 1000)];
        let money = (prop::array::uniform3(amount()), prop::array::uniform3(prop_oneof![Just(0i64), 1i64..2_500_000]))
            .prop_map(|(due, paid)| OrderAccount { due, paid });
        let case = (
            prop::collection::vec(prop::collection::vec(money, 1..4), 1..4),
            prop::option::of(prop_oneof![Just(0i64), -3_000_000i64..3_000_000]),
            -1_000_000i64..4_000_000,
        );
        for _ in 0..40 {
            let (customers, floor, balance) = case.new_tree(&mut runner).expect("a case").current();
            let mut expected = HashMap::new();
            let mut all = Vec::new();
            for orders in customers {
                let customer = customer(harness).await;
                let mut made = Vec::new();
                for money in orders {
                    // The same time for all, so that only the ids determine their order.
                    let id = order(harness, customer, "received", money).await;
                    harness
                        .run(
                            "UPDATE orders SET received_at = '2025-06-01', delivering_since = '2025-05-01' WHERE id = $1",
                            [id.into()],
                        )
                        .await;
                    made.push((id, money));
                    all.push(id);
                }
                wallet(harness, customer, balance).await;
                expected.extend(model(made, balance, floor));
            }
            let same = "ALTER TABLE transfers DISABLE TRIGGER transfers_insert_only";
            harness.run(same, []).await;
            harness.run("UPDATE transfers SET at = '2025-04-01' WHERE reason <> 'arrears'", []).await;
            let outcomes = collect(harness, floor, &all).await;
            for (id, paid_expected) in &expected {
                assert_eq!(paid(harness, *id).await, *paid_expected, "floor {floor:?} {outcomes:?}");
            }
        }
        sums_are_zero(harness).await;
    })
    .await;
}

/// One attempt of the order system to do something to an order, all in one transaction.
async fn act(db: &DatabaseConnection, order: Uuid, dice: u32) -> Result<(), DbErr> {
    #[derive(FromQueryResult)]
    struct Account {
        id: Uuid,
        balance: i64,
        due: i64,
    }
    let tx = db.begin().await?;
    let component = COMPONENTS[(dice % 3) as usize];
    match dice / 3 % 4 {
        // A fee changes, by any amount or not at all.
        0 => {
            let sql = format!("UPDATE orders SET {component}_due = {component}_due + $2, fees_changed_at = now() WHERE id = $1");
            tx.execute_raw(statement(&sql, [order.into(), i64::from(dice % 1000).into()])).await?;
        }
        // The customer pays part of what is missing, or gets back part of what was paid.
        pays => {
            let sql = format!(
                "SELECT a.id, a.balance, o.{component}_due AS due FROM orders o JOIN accounts a ON a.order_id = o.id AND a.kind = '{component}'
                  WHERE o.id = $1 FOR UPDATE{}",
                // Some programs lock the order, some only the account they pay into.
                if dice.is_multiple_of(2) { "" } else { " OF a" }
            );
            let Some(account) = Account::find_by_statement(statement(&sql, [order.into()])).one(&tx).await? else {
                return tx.rollback().await;
            };
            let wallet = "SELECT w.id, w.balance, 0::bigint AS due FROM orders o JOIN accounts w ON w.customer_id = o.customer_id WHERE o.id = $1";
            let wallet = Account::find_by_statement(statement(wallet, [order.into()])).one(&tx).await?.expect("a wallet");
            let (debit, credit, most) = if pays == 1 {
                (account.id, wallet.id, account.balance)
            } else {
                (wallet.id, account.id, account.due - account.balance)
            };
            let amount = most / i64::from(1 + dice % 4);
            if amount <= 0 {
                return tx.rollback().await;
            }
            let sql = "INSERT INTO transfers (debit_account, credit_account, amount, reason, order_id, idempotency_key)
                       VALUES ($1, $2, $3, 'order system', $4, gen_random_uuid()::text)";
            tx.execute_raw(statement(sql, [debit.into(), credit.into(), amount.into(), order.into()])).await?;
        }
    }
    tx.commit().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_system_that_pays_refunds_and_changes_fees_meanwhile_never_makes_an_amount_wrong() {
    const ORDERS: usize = 40;
    const HAMMERS: u64 = 4;
    // Due immediately after every change, so that the batches and the order system contend for the same rows all the time.
    let file = QUICK.replace("200ms", "1ms").replace("[\"100ms\", \"1s\"]", "[\"10ms\", \"50ms\"]");
    with_harness(&file, async |harness| {
        let mut orders = Vec::new();
        for n in 0..ORDERS {
            let customer = if n % 4 == 0 { EXAMPLE_CUSTOMER } else { customer(harness).await };
            wallet(harness, customer, 1_000_000).await;
            let money = OrderAccount { due: [100_000, 20_000, 5_000], paid: [30_000, 0, 5_000] };
            orders.push(order(harness, customer, "received", money).await);
        }
        let orders = Arc::new(orders);
        let workers = [harness.worker(), harness.worker()];
        let over = Arc::new(AtomicBool::new(false));
        let mut hammers = Vec::new();
        for seed in 0..HAMMERS {
            let (orders, over) = (Arc::clone(&orders), Arc::clone(&over));
            let db = database::connect(&harness.settings().database, Client::Producer).await.expect("a database");
            hammers.push(tokio::spawn(async move {
                let mut random = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
                let mut acted = 0u32;
                while !over.load(Ordering::Relaxed) {
                    let order = orders[rand::RngExt::random_range(&mut random, 0..orders.len())];
                    match act(&db, order, rand::RngExt::random_range(&mut random, 0..100_000)).await {
                        Ok(()) => acted += 1,
                        Err(error) => assert_eq!(trouble(&error), Trouble::Conflict, "{error}"),
                    }
                }
                acted
            }));
        }
        let until = tokio::time::Instant::now() + Duration::from_secs(8);
        while tokio::time::Instant::now() < until {
            harness.publish(vec![harness.wakeup("collect-arrears", &orders)]).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        over.store(true, Ordering::Relaxed);
        let mut acted = 0;
        for hammer in hammers {
            acted += hammer.await.expect("no panic");
        }
        // The order system has stopped. One more round, and every order is paid exactly.
        harness.publish(vec![harness.wakeup("collect-arrears", &orders)]).await;
        let unpaid = "SELECT count(*) = 0 FROM orders o CROSS JOIN LATERAL (VALUES
                          ('goods', goods_due), ('shipping', shipping_due), ('service', service_due)) part (kind, due)
                          JOIN accounts a ON a.order_id = o.id AND a.kind = part.kind WHERE a.balance <> part.due";
        harness.until(unpaid).await;
        harness.until_settled().await;
        let mut collected = 0;
        for worker in workers {
            let totals = worker.stop().await;
            assert_eq!((totals.rejected, totals.retried), (0, 0), "{totals:?}");
            collected += totals.applied;
        }
        assert!(harness.ask::<bool>(unpaid).await);
        let by_worker: i64 = harness.ask("SELECT count(*) FROM transfers WHERE reason = 'arrears'").await;
        assert!(
            acted > 200 && by_worker > 100 && collected > 50,
            "too tame: {acted} acts, {by_worker} charges, {collected} collections"
        );
        sums_are_zero(harness).await;
    })
    .await;
}

//! Dead letters, first form: listed and shown without being taken, replayed without one being lost.

use shared::broker::Outgoing;
use tests::fleet;
use uuid::Uuid;

use crate::stage::{QUICK, SOON, Stage, on_stage};

/// Orders whose receipts fail until the obstacle is removed.
async fn die(stage: &Stage, count: usize) -> Vec<Uuid> {
    let mut orders = Vec::new();
    for _ in 0..count {
        orders.push(stage.delivering().await);
    }
    stage.run("ALTER TABLE orders ADD CONSTRAINT obstacle CHECK (status <> 'received') NOT VALID", []).await;
    let worker = stage.worker();
    stage.publish(vec![stage.wakeup("confirm-receipt", &orders)]).await;
    stage.until_dead(count as u32).await;
    worker.stop().await;
    stage.run("ALTER TABLE orders DROP CONSTRAINT obstacle", []).await;
    orders
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_listed_and_shown_and_stay_where_they_are() {
    on_stage(QUICK, async |stage| {
        assert_eq!(stage.ops(&["dead", "list"]).await.expect("a list").trim(), "no dead letters");
        let orders = die(stage, 3).await;
        for _ in 0..3 {
            let list = stage.ops(&["dead", "list"]).await.expect("a list");
            assert!(list.contains("attempts-exhausted") && list.contains("confirm-receipt"), "{list}");
        }
        let list = stage.ops(&["dead", "list", "--limit", "1"]).await.expect("a list");
        assert!(list.contains("2 more"), "{list}");
        let letters = stage.dead_letters().await;
        let letter = letters.iter().find(|letter| letter.subject == Some(orders[0])).expect("its letter");
        let shown = stage.ops(&["dead", "show", &letter.id.to_string()]).await.expect("a letter");
        for said in [&orders[0].to_string(), "obstacle", "attempts     3", "routing key  confirm-receipt.0", "\\\"attempt\\\":2"]
        {
            assert!(shown.contains(said), "{said}: {shown}");
        }
        let missing = stage.ops(&["dead", "show", &Uuid::nil().to_string()]).await.expect_err("none").to_string();
        assert!(missing.contains("no dead letter has the id"), "{missing}");
        tests::sandbox::eventually("all are still there", SOON, async || Ok(stage.depth("dead").await == 3)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_letter_is_a_fresh_wakeup_of_its_subject_alone() {
    on_stage(QUICK, async |stage| {
        let orders = die(stage, 3).await;
        let letters = stage.dead_letters().await;
        let letter = letters.iter().find(|letter| letter.subject == Some(orders[1])).expect("its letter");
        let refused = stage.ops(&["dead", "replay", &letter.id.to_string(), &Uuid::nil().to_string()]).await;
        assert!(refused.expect_err("refused").to_string().contains("nothing is replayed"));
        let done = stage.ops(&["dead", "replay", &letter.id.to_string()]).await.expect("replayed");
        assert!(done.contains("1 letters replayed"), "{done}");
        let worker = stage.worker();
        stage.until(&format!("SELECT status = 'received' FROM orders WHERE id = '{}'", orders[1])).await;
        stage.until_settled().await;
        assert_eq!(worker.stop().await.applied, 1);
        assert_eq!(stage.ask::<i64>("SELECT count(*) FROM orders WHERE status = 'delivering'").await, 2);
        tests::sandbox::eventually("the others stay", SOON, async || Ok(stage.depth("dead").await == 2)).await;

        stage.ops(&["dead", "replay", "--all"]).await.expect("replayed");
        let worker = stage.worker();
        stage.until("SELECT count(*) = 3 FROM orders WHERE status = 'received'").await;
        worker.stop().await;
        assert_eq!(stage.depth("dead").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ops_killed_while_replaying_loses_no_letter() {
    const LETTERS: usize = 3_000;
    on_stage(QUICK, async |stage| {
        let orders = stage.many_delivering(3_000).await;
        // As the broker itself would bury them: the wake-ups, in the dead-letter queue.
        let dead = stage.topology().dead();
        let letters =
            orders.iter().map(|order| Outgoing { exchange: dead.clone(), ..stage.wakeup("confirm-receipt", &[*order]) });
        stage.publish(letters.collect()).await;
        for _ in 0..2 {
            let before = stage.depth("due.").await;
            let mut ops =
                fleet::command("ops", &stage.sandbox.env, ["dead", "replay", "--all"]).expect("built").spawn().expect("started");
            tests::sandbox::eventually("it replays", SOON, async || Ok(stage.depth("due.").await > before)).await;
            ops.kill().await.expect("killed");
        }
        tests::sandbox::eventually("the rest is back", SOON, async || Ok(stage.depth("dead").await > 0)).await;
        stage.ops(&["dead", "replay", "--all"]).await.expect("replayed");
        tests::sandbox::eventually("the rest is replayed", SOON, async || {
            stage.ops(&["dead", "replay", "--all"]).await?;
            Ok(stage.depth("dead").await == 0)
        })
        .await;
        let worker = stage.worker();
        stage.until(&format!("SELECT count(*) = {LETTERS} FROM orders WHERE status = 'received'")).await;
        stage.until_settled().await;
        assert_eq!(worker.stop().await.applied, LETTERS as u64);
        assert_eq!(stage.ask::<i64>("SELECT count(*) FROM order_status_history").await, LETTERS as i64);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_no_lane_takes_is_a_letter_and_jams_nothing() {
    on_stage(QUICK, async |stage| {
        let order = stage.delivering().await;
        let good = stage.wakeup("confirm-receipt", &[order]);
        // Both wait in the same rung, the stray one before the other.
        let rung = format!("{}100ms", stage.topology().rung_prefix());
        let stray = Outgoing { exchange: rung.clone(), routing_key: "make-coffee.0".into(), ..good.clone() };
        stage.publish(vec![stray]).await;
        stage.publish(vec![Outgoing { exchange: rung, ..good }]).await;
        let worker = stage.worker();
        stage.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        worker.stop().await;
        tests::sandbox::eventually("the stray message is kept", SOON, async || Ok(stage.depth("unrouted").await == 1)).await;
        let list = stage.ops(&["dead", "list"]).await.expect("a list");
        assert!(list.contains("unrouted") && list.contains("make-coffee.0"), "{list}");
    })
    .await;
}

//! The topology on a real broker: declaring again is harmless, a difference is refused, and an empty queue is pruned.

use std::time::Duration;

use lapin::types::{AMQPValue, FieldTable};
use shared::{
    broker::BrokerError,
    message::topology::{QueueRole, Topology},
};
use tests::{
    fleet,
    sandbox::{Sandbox, eventually},
};

use crate::{
    admin::{Process, readiness, until_ready, why},
    broker_users::{pair, sandbox},
    harness::{Harness, QUICK, SOON, on_harness, with_harness},
};

#[tokio::test(flavor = "multi_thread")]
async fn declaring_again_is_no_harm_and_everything_is_shown() {
    with_harness(QUICK, async |harness| {
        for _ in 0..2 {
            harness.ops(&["topology", "declare"]).await.expect("declared");
        }
        let shown = harness.ops(&["topology", "show"]).await.expect("shown");
        for queue in harness.topology().queues() {
            assert!(shown.contains(queue.name.split('.').next_back().expect("a name")), "{}: {shown}", queue.name);
        }
        assert!(shown.contains("at-least-once") && !shown.contains("missing"), "{shown}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_other_arguments_is_an_error_that_names_it_and_the_difference() {
    with_harness(QUICK, async |harness| {
        let broker = harness.sandbox.broker().await.expect("a broker");
        let lane = harness.topology().lane("confirm-receipt", 0);
        broker.delete_queue(&lane).await.expect("deleted");
        let channel = broker.channel().await.expect("a channel");
        let durable = lapin::options::QueueDeclareOptions { durable: true, ..Default::default() };
        let mut other = lapin::types::FieldTable::default();
        other.insert("x-queue-type".into(), lapin::types::AMQPValue::LongString("quorum".into()));
        other.insert("x-delivery-limit".into(), lapin::types::AMQPValue::LongLongInt(3));
        channel.queue_declare(lane.as_str().into(), durable, other).await.expect("another queue");
        let refused = broker.declare(&harness.topology()).await.expect_err("refused");
        let BrokerError::Inequivalent(differences) = &refused else { panic!("{refused}") };
        assert_eq!(differences.len(), 1);
        assert!(differences[0].name == lane && differences[0].difference.contains("x-d"), "{refused}");
        let shown = harness.ops(&["topology", "show"]).await.expect("shown");
        assert!(shown.contains("differs"), "{shown}");
        // A worker logs it and exits instead of retrying forever.
        let complaint = fleet::output(may_declare(harness)).await.expect_err("refused");
        assert!(complaint.to_string().contains(&lane), "{complaint}");
        broker.close().await;
    })
    .await;
}

/// A worker that may declare, and so detects changed arguments; see `broker_users.rs` for those that may not.
fn may_declare(harness: &Harness) -> tokio::process::Command {
    let mut command = fleet::command("worker", &harness.sandbox.env, [""; 0]).expect("built");
    command.env("KYHAN_AMQP_URL", &harness.sandbox.env["KYHAN_AMQP_URL"]);
    command
}

/// A table without one of its entries.
fn without(table: &mut FieldTable, name: &str) {
    let mut kept = FieldTable::default();
    for (key, value) in table.inner().iter().filter(|(key, _)| key.as_str() != name) {
        kept.insert(key.clone(), value.clone());
    }
    *table = kept;
}

/// A change that another program makes to the arguments of one of our objects.
type ArgumentChange = Box<dyn Fn(&mut FieldTable)>;

/// The arguments that a classic queue accepts.
fn classic(table: &mut FieldTable) {
    for name in ["x-queue-type", "x-delivery-limit", "x-dead-letter-strategy"] {
        without(table, name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_refuses_a_topology_that_could_lose_messages_and_says_what_is_at_stake() {
    with_harness(QUICK, async |harness| {
        let topology = harness.topology();
        let lane = topology.lane("confirm-receipt", 0);
        let rung = format!("{}1s", topology.rung_prefix());
        let due = topology.due_exchange();
        let text = |value: &str| AMQPValue::LongString(value.into());
        let put = |name: &'static str, value: AMQPValue| {
            move |table: &mut FieldTable| {
                table.insert(name.into(), value.clone());
            }
        };
        let drop = |name: &'static str| move |table: &mut FieldTable| without(table, name);
        let cases: Vec<(&str, ArgumentChange, &str)> = vec![
            (&rung, Box::new(drop("x-dead-letter-strategy")), "would be lost"),
            (&rung, Box::new(put("x-dead-letter-strategy", text("at-most-once"))), "would be lost"),
            (&rung, Box::new(put("x-overflow", text("drop-head"))), "would drop its head"),
            (&lane, Box::new(drop("x-overflow")), "would drop its head"),
            (&lane, Box::new(drop("x-delivery-limit")), "stops its workers"),
            (&rung, Box::new(put("x-message-ttl", AMQPValue::LongLongInt(7))), "another time"),
            (&lane, Box::new(put("x-dead-letter-exchange", text("elsewhere"))), "arrive where they should"),
            (&lane, Box::new(classic), "not be replicated"),
            (&due, Box::new(drop("alternate-exchange")), "block its rung"),
        ];
        for (name, change, stake) in cases {
            harness.replace(name, change).await;
            let refused = fleet::output(may_declare(harness)).await.expect_err("refused").to_string();
            assert!(
                refused.contains(name) && refused.contains(stake) && refused.contains("remove it when empty"),
                "{stake}: {refused}"
            );
            harness.replace(name, |_| {}).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rung_that_the_policy_forgets_is_removed_once_it_is_empty() {
    with_harness(QUICK, async |harness| {
        let naming = &harness.settings().naming;
        let more: Vec<Duration> =
            naming.ladder.iter().copied().chain([Duration::from_secs(3), Duration::from_secs(3600)]).collect();
        let before = Topology::new(&naming.prefix, naming.shards, &more, &harness.settings().policy);
        let broker = harness.sandbox.broker().await.expect("a broker");
        broker.declare(&before).await.expect("declared");
        shared::database::rungs::remember(&harness.sandbox.db, &before).await.expect("remembered");
        let order = harness.delivering().await;
        let mut waiting = harness.wakeup("confirm-receipt", &[order]);
        waiting.exchange = format!("{}3s", before.rung_prefix());
        harness.publish(vec![waiting]).await;

        // Two concurrent runs by operators do not disturb each other.
        let (first, second) = tokio::join!(harness.ops(&["topology", "prune"]), harness.ops(&["topology", "prune"]));
        let pruned = [first.expect("pruned"), second.expect("pruned")];
        assert!(pruned.iter().any(|pruned| pruned.contains("rung.1h: removed")), "{pruned:?}");
        assert!(pruned.iter().all(|pruned| pruned.contains("rung.3s: still holds 1")), "{pruned:?}");
        assert!(broker.observe(&format!("{}1h", before.rung_prefix())).await.expect("an answer").is_none());
        // The message that waited there still arrives, and then the rung is deleted as well.
        let worker = harness.worker();
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        worker.stop().await;
        let pruned = harness.ops(&["topology", "prune"]).await.expect("pruned");
        assert!(pruned.contains("rung.3s: removed"), "{pruned}");
        assert!(harness.ops(&["topology", "prune"]).await.expect("pruned").contains("uses every rung"));
        for queue in harness.topology().queues().iter().filter(|queue| queue.role == QueueRole::Rung) {
            assert!(broker.observe(&queue.name).await.expect("an answer").is_some(), "{} is used", queue.name);
        }
        broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_part_the_work_and_lose_none_of_it() {
    let file = QUICK.replace("[topology]", "[topology]\n    shards = 3");
    with_harness(&file, async |harness| {
        let (relay, worker) = (harness.relay(), harness.worker());
        for _ in 0..30 {
            let order = harness.delivering().await;
            harness.event("order.shipped", order).await;
        }
        harness.until("SELECT count(*) = 30 FROM orders WHERE status = 'received'").await;
        relay.stop().await;
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_span_that_a_policy_may_have_can_be_declared() {
    let file = format!("{QUICK}\n").replace("400ms", "9 years").replace("300ms", "3650d");
    with_harness(&file, async |harness| {
        let shown = harness.ops(&["topology", "show"]).await.expect("shown");
        assert!(!shown.contains("missing"), "{shown}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_the_broker_is_named_and_waited_for() {
    let pair = pair().await;
    on_harness(sandbox(&pair).await, async |harness| {
        let mut env = harness.sandbox.env.clone();
        let (vhost, mut url) = (harness.sandbox.database().to_owned(), url::Url::parse(&env["KYHAN_AMQP_URL"]).expect("a URL"));
        url.set_path(&vhost);
        pair.rabbitmqctl(&["add_vhost", &vhost]).await.expect("a virtual host");
        pair.rabbitmqctl(&["set_permissions", "-p", &vhost, url.username(), ".*", ".*", ".*"]).await.expect("permissions");
        pair.rabbitmqctl(&["set_vhost_limits", "-p", &vhost, r#"{"max-queues": 3}"#]).await.expect("a limit");
        env.insert("KYHAN_AMQP_URL".into(), url.into());
        let processes = [Process::start("worker", &[], &env), Process::start("producer", &["relay"], &env)];
        for process in &processes {
            let address = process.address().await;
            eventually("it says what it waits for", SOON, async || {
                let (status, report) = readiness(address)?;
                let why = why(&report, "rabbitmq").unwrap_or_default();
                Ok(status == 503 && why.contains("raise the limit") && !why.contains("exists with arguments"))
            })
            .await;
        }
        pair.rabbitmqctl(&["clear_vhost_limits", "-p", &vhost]).await.expect("no limit");
        for process in processes {
            until_ready(process.address().await).await;
            process.stop().await;
        }
        pair.rabbitmqctl(&["delete_vhost", &vhost]).await.expect("deleted");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_limits_the_length_of_queues_loses_nothing() {
    let pair = pair().await;
    on_harness(sandbox(&pair).await, async |harness| {
        harness.sandbox.declare().await.expect("declared");
        let (name, topology) = (harness.sandbox.database().to_owned(), harness.topology());
        let queues = format!("^{}$", [topology.dead(), topology.unrouted()].map(|queue| queue.replace('.', r"\.")).join("$|^"));
        let limit = ["set_policy", &name, &queues, r#"{"max-length": 5}"#, "--apply-to", "queues"];
        pair.rabbitmqctl(&limit).await.expect("a policy");
        let orders = harness.many_delivering(300).await;
        harness.run("ALTER TABLE orders ADD CONSTRAINT obstacle CHECK (status <> 'received') NOT VALID", []).await;
        let workers = [harness.worker(), harness.worker()];
        for some in orders.chunks(50) {
            harness.publish(some.iter().map(|order| harness.wakeup("confirm-receipt", &[*order])).collect()).await;
        }
        harness.until(&format!("SELECT count(*) = {} FROM dead_letters", orders.len())).await;
        for worker in workers {
            worker.stop().await;
        }
        pair.rabbitmqctl(&["clear_policy", &name]).await.expect("no policy");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_rung_holds_up_nothing_and_its_wakeups_take_a_detour() {
    let pair = pair().await;
    let one_by_one = [("KYHAN_TOPOLOGY_PACK_MAX", "1")];
    on_harness(Sandbox::on(pair.servers.clone(), "test", "", &one_by_one, None).await.expect("a sandbox"), async |harness| {
        harness.sandbox.declare().await.expect("declared");
        let (name, rung) = (harness.sandbox.database().to_owned(), format!("{}14d", harness.topology().rung_prefix()));
        let limit =
            ["set_policy", &name, &format!("^{}$", rung.replace('.', r"\.")), r#"{"max-length": 3}"#, "--apply-to", "queues"];
        pair.rabbitmqctl(&limit).await.expect("a policy");
        harness.many_delivering(20).await;
        harness.run("UPDATE orders SET delivering_since = now()", []).await;
        let relay = harness.relay();
        let waiting = async || [harness.depth("rung.14d").await, harness.depth("rung.30d").await, harness.depth("rung.7d").await];
        // Receipts wait 14 days, products in carts 30. RabbitMQ refuses messages a moment after the rung is full.
        let ship = "INSERT INTO outbox (event_type, subject_id) SELECT 'order.shipped', id FROM orders";
        harness.run(ship, []).await;
        eventually("the rung is full", SOON, async || Ok(waiting().await[0] > 3)).await;
        for _ in 0..20 {
            let item = harness.in_cart().await;
            harness.run("UPDATE cart_items SET added_at = now()", []).await;
            harness.event("cart.item_added", item).await;
        }
        harness.run(ship, []).await;
        harness.until("SELECT count(*) = 0 FROM outbox").await;
        relay.stop().await;
        let [full, carts, detour] = waiting().await;
        assert!(carts >= 20 && detour >= 20 && full + detour >= 40, "{full} {carts} {detour}");

        // A worker that sends one on finds the rung full, too.
        let worker = harness.worker();
        harness
            .publish(harness.order_ids().await.iter().map(|order| harness.wakeup("confirm-receipt", &[*order])).collect())
            .await;
        eventually("they wait", SOON, async || {
            Ok(harness.depth("due.confirm-receipt").await == 0 && waiting().await[2] >= detour + 20)
        })
        .await;
        worker.stop().await;
        pair.rabbitmqctl(&["clear_policy", &name]).await.expect("no policy");
    })
    .await;
}

//! RabbitMQ's users: each part of the fleet works with its own permissions only, and the broker itself refuses the rest. These
//! tests start servers of their own, because a shared RabbitMQ does not have these users.

use std::{
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use lapin::{
    BasicProperties, Channel, ExchangeKind,
    options::{
        BasicConsumeOptions, BasicGetOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions,
        QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
    },
    types::{AMQPValue, FieldTable},
};
use producer::{Producer, schedule::event};
use shared::{
    broker::{Broker, BrokerError, close_channel},
    domain::event::EventType,
    message::{ladder::Hop, outgoing::Outgoing, topology::QueueRole},
    settings::Settings,
};
use tests::{
    fleet,
    pair::{self, Pair},
    sandbox::{Sandbox, always, eventually},
};
use tokio::sync::Mutex;

use crate::{
    bad_input::raw,
    harness::{Harness, QUICK, SOON, on_harness, relay_with, worker_with},
    policies::File,
};

/// The AMQP reply code for a missing permission.
const ACCESS_REFUSED: u16 = 403;
/// The AMQP reply code for a queue that differs from its declaration.
const PRECONDITION_FAILED: u16 = 406;

/// The servers of these tests. Tests that run at the same time share them; the last one to end stops them.
pub async fn pair() -> Arc<Pair> {
    static SHARED: Mutex<Weak<Pair>> = Mutex::const_new(Weak::new());
    let mut shared = SHARED.lock().await;
    if let Some(pair) = shared.upgrade() {
        return pair;
    }
    let folder = pair::root().join("target/broker-users");
    std::fs::create_dir_all(&folder).expect("a folder");
    let pair = Arc::new(Pair::start(&folder).await.expect("servers"));
    *shared = Arc::downgrade(&pair);
    pair
}

/// A sandbox on these servers.
pub async fn sandbox(pair: &Pair) -> Sandbox {
    Sandbox::on(pair.servers.clone(), "test", QUICK, &[], None).await.expect("a sandbox")
}

/// The harness's settings with this RabbitMQ URL.
pub fn settings_of(harness: &Harness, url: &str) -> Settings {
    harness.sandbox.settings_with(&[("KYHAN_AMQP_URL", url)]).expect("settings")
}

pub async fn broker_of(harness: &Harness, url: &str) -> Broker {
    Broker::connect(&settings_of(harness, url).amqp, "kyhan test").await.expect("a connection")
}

/// Runs `ops` as an operator with this RabbitMQ URL.
pub async fn ops(harness: &Harness, url: &str, arguments: &[&str]) -> String {
    let mut command = fleet::command("ops", &harness.sandbox.env, arguments).expect("built");
    command.env("KYHAN_AMQP_URL", url);
    fleet::output(command).await.expect("ops")
}

async fn publish(harness: &Harness, url: &str, messages: &[Outgoing]) -> Result<(), BrokerError> {
    let broker = broker_of(harness, url).await;
    let publisher = broker.publisher().await.expect("a channel");
    let published = publisher.publish_all(messages).await;
    publisher.close().await;
    broker.close().await;
    published
}

#[tokio::test(flavor = "multi_thread")]
async fn each_part_of_the_fleet_does_its_work_with_no_more_than_its_own_permissions() {
    let pair = pair().await;
    let users = &pair.users;
    on_harness(sandbox(&pair).await, async |harness| {
        ops(harness, &users.ops, &["topology", "declare"]).await;
        let relay = relay_with(settings_of(harness, &users.producer));
        let worker = worker_with(settings_of(harness, &users.worker));

        // Through the outbox and through the library.
        let (shipped, scheduled) = (harness.delivering().await, harness.delivering().await);
        harness.run("UPDATE orders SET delivering_since = now(), goods_due = 900", []).await;
        harness.event("order.shipped", shipped).await;
        let producer = Producer::connect(&settings_of(harness, &users.producer)).await.expect("a producer");
        assert_eq!(producer.schedule(&[event(EventType::OrderShipped, scheduled)]).await.expect("confirmed"), []);
        producer.close().await;
        harness.until("SELECT count(*) = 2 FROM orders WHERE status = 'received'").await;
        let early = "SELECT bool_or(received_at < delivering_since + interval '400 ms') FROM orders";
        assert!(!harness.ask::<bool>(early).await, "two weeks are two weeks");
        harness.until("SELECT count(*) = 2 FROM transfers").await;

        // A wake-up that reaches its lane too early goes back into a rung and returns later.
        let order = harness.delivering().await;
        harness.run("UPDATE orders SET delivering_since = now() WHERE id = $1", [order.into()]).await;
        publish(harness, &users.producer, &[harness.wakeup("confirm-receipt", &[order])]).await.expect("confirmed");
        harness.until("SELECT count(*) = 3 FROM orders WHERE status = 'received'").await;

        // Quarantined subjects are applied one by one.
        let quarantined = [harness.delivering().await, harness.delivering().await];
        let packed = Outgoing { exchange: harness.topology().quarantine(), ..harness.wakeup("confirm-receipt", &quarantined) };
        publish(harness, &users.ops, &[packed]).await.expect("confirmed");
        harness.until("SELECT count(*) = 5 FROM orders WHERE status = 'received'").await;

        // The worker dead-letters one message, and the broker puts one that matches no lane into the unrouted queue; both are
        // stored.
        let unrouted = Outgoing { routing_key: "nobody.0".into(), ..raw(harness, "hello", FieldTable::default()) };
        publish(harness, &users.producer, &[raw(harness, "hello", FieldTable::default()), unrouted]).await.expect("confirmed");
        harness.until_dead(2).await;
        let reasons = "SELECT string_agg(reason, ' ' ORDER BY reason) FROM dead_letters";
        assert_eq!(harness.ask::<String>(reasons).await, "malformed unrouted");

        // Operators inspect everything and apply a policy with other rungs, and the fleet goes on with it.
        harness.until_settled().await;
        for arguments in [&["topology", "show"][..], &["audit"], &["rebuild"]] {
            ops(harness, &users.ops, arguments).await;
        }
        let slower = File::new(&QUICK.replace("400ms", "700ms"));
        ops(harness, &users.ops, &["policy", "apply", slower.path(), "--why", "a test", "--yes"]).await;
        let order = harness.delivering().await;
        harness.run("UPDATE orders SET delivering_since = now() WHERE id = $1", [order.into()]).await;
        harness.event("order.shipped", order).await;
        harness.until("SELECT count(*) = 6 FROM orders WHERE status = 'received'").await;
        harness.until_settled().await;
        let pruned = ops(harness, &users.ops, &["topology", "prune"]).await;
        assert!(pruned.contains("rung.400ms: removed"), "{pruned}");

        let report = relay.stop().await;
        let totals = worker.stop().await;
        assert_eq!((totals.malformed, totals.stored), (1, 2), "{totals:?}");
        assert!(totals.postponed >= 1 && totals.retried + totals.rejected == 0, "{totals:?}");
        assert_eq!(report.set_aside, 0, "{report:?}");
        let (broker, rung) = (broker_of(harness, &users.ops).await, format!("{}.rung.700ms", harness.settings().naming.prefix));
        broker.delete_exchange(&rung).await.expect("deleted");
        broker.delete_queue(&rung).await.expect("deleted");
        broker.close().await;
    })
    .await;
}

/// An operation to try on a channel of its own, and the broker's answer.
enum Try {
    Declare,
    Delete,
    Purge,
    Get,
    Consume,
    /// Binds the queue to this exchange.
    Bind(String),
    DeclareExchange,
    DeleteExchange,
    Publish,
}

impl Try {
    async fn on(&self, name: &str, channel: &Channel, broker: &Broker) -> Option<lapin::Error> {
        let queue = || name.into();
        match self {
            Self::Declare => {
                let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
                channel.queue_declare(queue(), durable, FieldTable::default()).await.err()
            }
            Self::Delete => channel.queue_delete(queue(), QueueDeleteOptions::default()).await.err(),
            Self::Purge => channel.queue_purge(queue(), QueuePurgeOptions::default()).await.err(),
            Self::Get => channel.basic_get(queue(), BasicGetOptions::default()).await.err(),
            Self::Consume => {
                let options = BasicConsumeOptions::default();
                channel.basic_consume(queue(), "".into(), options, FieldTable::default()).await.err()
            }
            Self::Bind(exchange) => {
                let exchange = exchange.as_str().into();
                channel.queue_bind(queue(), exchange, "#".into(), QueueBindOptions::default(), FieldTable::default()).await.err()
            }
            Self::DeclareExchange => {
                let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
                channel.exchange_declare(queue(), ExchangeKind::Fanout, durable, FieldTable::default()).await.err()
            }
            Self::DeleteExchange => channel.exchange_delete(queue(), ExchangeDeleteOptions::default()).await.err(),
            Self::Publish => {
                let publisher = broker.publisher().await.expect("a channel");
                let properties = BasicProperties::default().with_delivery_mode(2);
                let message = Outgoing { exchange: name.into(), routing_key: "x.0".into(), properties, body: b"hello".to_vec() };
                let published = publisher.publish_all(&[message]).await;
                publisher.close().await;
                match published {
                    Err(BrokerError::Protocol(error)) => Some((*error).clone()),
                    Err(error) => panic!("{name}: {error}"),
                    Ok(()) => None,
                }
            }
        }
    }

    const fn what(&self) -> &'static str {
        match self {
            Self::Declare => "declares a queue",
            Self::Delete => "deletes a queue",
            Self::Purge => "purges a queue",
            Self::Get => "gets from a queue",
            Self::Consume => "consumes from a queue",
            Self::Bind(_) => "binds a queue",
            Self::DeclareExchange => "declares an exchange",
            Self::DeleteExchange => "deletes an exchange",
            Self::Publish => "publishes into an exchange",
        }
    }
}

/// The reply code of a refusal.
fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(said) => Some(said.get_id()),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_has_no_business_with_the_broker_refuses() {
    let pair = pair().await;
    let users = &pair.users;
    on_harness(sandbox(&pair).await, async |harness| {
        ops(harness, &users.ops, &["topology", "declare"]).await;
        let order = harness.delivering().await;
        publish(harness, &users.producer, &[harness.wakeup("confirm-receipt", &[order])]).await.expect("confirmed");
        let topology = harness.topology();
        let rung = topology.rungs().next().expect("a rung").1;
        let (lane, due, dead) = (topology.lane("confirm-receipt", 0), topology.due_exchange(), topology.dead());
        let (unrouted, quarantine) = (topology.unrouted(), topology.quarantine());
        let new = format!("{}.rung.9d", harness.settings().naming.prefix);
        let (foreign, default) = ("other.due".to_owned(), String::new());
        let guard = topology.guard();

        let producer = [
            (Try::Get, &lane),
            (Try::Consume, &lane),
            (Try::Purge, &lane),
            (Try::Get, &rung),
            (Try::Get, &dead),
            (Try::Consume, &quarantine),
            (Try::Declare, &new),
            (Try::Declare, &guard),
            (Try::Delete, &rung),
            (Try::DeclareExchange, &new),
            (Try::DeleteExchange, &due),
            (Try::Bind(due.clone()), &rung),
            (Try::Publish, &dead),
            (Try::Publish, &quarantine),
            (Try::Publish, &unrouted),
            (Try::Publish, &default),
            (Try::Publish, &foreign),
        ];
        // It must consume its lanes, and RabbitMQ lets every consumer of a queue purge it.
        let worker = [
            (Try::Declare, &new),
            (Try::Declare, &lane),
            (Try::Delete, &rung),
            (Try::Delete, &lane),
            (Try::Delete, &dead),
            (Try::DeclareExchange, &new),
            (Try::DeleteExchange, &due),
            (Try::Purge, &rung),
            (Try::Get, &rung),
            (Try::Consume, &rung),
            (Try::Bind(due.clone()), &rung),
            (Try::Bind(dead.clone()), &lane),
            (Try::Publish, &unrouted),
            (Try::Publish, &default),
            (Try::Publish, &foreign),
        ];
        let operator = [
            (Try::Declare, &foreign),
            (Try::Get, &foreign),
            (Try::Purge, &foreign),
            (Try::Delete, &foreign),
            (Try::DeclareExchange, &foreign),
            (Try::Publish, &foreign),
            (Try::Publish, &default),
            (Try::Bind("amq.topic".into()), &dead),
        ];
        // A queue that belongs to another system, to which access must be refused.
        let admin = harness.sandbox.broker().await.expect("a broker");
        let channel = admin.channel().await.expect("a channel");
        assert!(Try::Declare.on(&foreign, &channel, &admin).await.is_none(), "an administrator may");
        assert!(Try::DeclareExchange.on(&foreign, &channel, &admin).await.is_none(), "an administrator may");

        for (who, url, tries) in
            [("producer", &users.producer, &producer[..]), ("worker", &users.worker, &worker), ("ops", &users.ops, &operator)]
        {
            let broker = broker_of(harness, url).await;
            for (attempt, name) in tries {
                let channel = broker.channel().await.expect("a channel");
                let refused = attempt.on(name, &channel, &broker).await;
                let said = refused.as_ref().map(ToString::to_string);
                assert_eq!(refused.as_ref().and_then(code), Some(ACCESS_REFUSED), "{who} {} {name:?}: {said:?}", attempt.what());
                close_channel(&channel).await;
            }
            broker.close().await;
            let wrong = url.replacen(&format!("kyhan_{who}:"), &format!("kyhan_{who}:wrong"), 1);
            let refused = Broker::connect(&settings_of(harness, &wrong).amqp, "kyhan test").await.err().expect("no connection");
            let BrokerError::Connect { error, .. } = &refused else { panic!("{who}: {refused}") };
            assert_eq!(code(error), Some(ACCESS_REFUSED), "{who} with a wrong password: {refused}");
        }

        // The checks of a worker before it consumes are answered, and create nothing.
        let broker = broker_of(harness, &users.worker).await;
        let (asked, mut arguments) = (broker.channel().await.expect("a channel"), FieldTable::default());
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
        let impossible = QueueDeclareOptions { durable: true, exclusive: true, ..QueueDeclareOptions::default() };
        let answer = asked.queue_declare(guard.as_str().into(), impossible, arguments).await.expect_err("no such stream");
        assert_eq!(code(&answer), Some(PRECONDITION_FAILED), "{answer}");
        broker.close().await;

        // The refused operations changed nothing.
        for queue in topology.queues() {
            let seen = admin.observe(&queue.name).await.expect("an answer").expect("a queue");
            assert_eq!((seen.messages, seen.consumers), (u32::from(queue.name == lane), 0), "{}", queue.name);
        }
        assert_eq!(admin.observe(&new).await.expect("an answer"), None);
        assert_eq!(admin.observe(&guard).await.expect("an answer"), None);
        assert!(Try::Delete.on(&foreign, &channel, &admin).await.is_none(), "an administrator may");
        assert!(Try::DeleteExchange.on(&foreign, &channel, &admin).await.is_none(), "an administrator may");
        close_channel(&channel).await;
        admin.close().await;
    })
    .await;
}

/// Every log line that names the command to run.
fn missing_logged(log: &Path) -> Vec<String> {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    log.lines().filter(|line| line.contains("run `ops topology declare` with")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_may_not_declare_says_once_what_is_missing_and_goes_on_when_it_is_there() {
    let pair = pair().await;
    let users = &pair.users;
    on_harness(sandbox(&pair).await, async |harness| {
        let nothing = Producer::connect(&settings_of(harness, &users.producer)).await.err().expect("no producer").to_string();
        assert!(nothing.contains(&harness.topology().due_exchange()) && nothing.contains("perhaps more is missing"), "{nothing}");
        ops(harness, &users.ops, &["topology", "declare"]).await;
        let topology = harness.topology();
        let rung = topology.queues().into_iter().find(|queue| queue.role == QueueRole::Rung).expect("a rung").name;
        let operator = broker_of(harness, &users.ops).await;
        operator.delete_queue(&rung).await.expect("deleted");
        let exchange = topology.exchange_of(Hop::Rung(*topology.ladder().rungs().last().expect("a rung")));
        operator.delete_exchange(&exchange).await.expect("deleted");

        let refused = Producer::connect(&settings_of(harness, &users.producer)).await.err().expect("no producer");
        assert!(matches!(refused, BrokerError::Missing(_)) && !refused.is_final(), "{refused}");
        let said = refused.to_string();
        for named in [format!("no exchange {exchange}"), format!("no queue {rung}"), "`ops topology declare`".to_owned()] {
            assert!(said.contains(&named), "{named}: {said}");
        }

        let log = |name: &str| std::env::temp_dir().join(format!("{}-{name}.log", harness.sandbox.database()));
        let start = |name: &str, arguments: &[&str], url: &str| {
            let mut command = fleet::command(name, &harness.sandbox.env, arguments).expect("built");
            command.env("KYHAN_AMQP_URL", url);
            fleet::start(command, &log(name)).expect("started")
        };
        let mut processes = [start("producer", &["relay"], &users.producer), start("worker", &[], &users.worker)];
        let order = harness.delivering().await;
        harness.event("order.shipped", order).await;
        for name in ["producer", "worker"] {
            eventually("it says what is missing", SOON, async || Ok(!missing_logged(&log(name)).is_empty())).await;
        }
        // By then they have retried more than once.
        always("both have logged it once and keep running", Duration::from_secs(3), async || {
            let once = ["producer", "worker"].iter().all(|name| missing_logged(&log(name)).len() == 1);
            Ok(once && processes.iter_mut().all(|process| matches!(process.try_wait(), Ok(None))))
        })
        .await;
        for line in ["producer", "worker"].map(|name| missing_logged(&log(name)).remove(0)) {
            assert!(line.contains(&rung) && line.contains(&exchange) && line.contains("WARN"), "{line}");
        }
        assert_eq!(operator.observe(&rung).await.expect("an answer"), None, "it is not declared");
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM orders WHERE status = 'received'").await, 0);

        ops(harness, &users.ops, &["topology", "declare"]).await;
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        operator.close().await;
        for process in &processes {
            fleet::terminate(process).await.expect("a process");
        }
        for process in &mut processes {
            assert!(process.wait().await.expect("an end").success());
        }
        for name in ["producer", "worker"] {
            let _ = std::fs::remove_file(log(name));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_waits_for_a_rung_goes_on_by_a_policy_that_needs_none() {
    let pair = pair().await;
    let users = &pair.users;
    on_harness(sandbox(&pair).await, async |harness| {
        ops(harness, &users.ops, &["topology", "declare"]).await;
        let operator = broker_of(harness, &users.ops).await;
        let [old, new] = ["400ms", "700ms"].map(|after| format!("{}.rung.{after}", harness.settings().naming.prefix));
        operator.delete_queue(&old).await.expect("deleted");
        let relay = relay_with(settings_of(harness, &users.producer));
        let worker = worker_with(settings_of(harness, &users.worker));
        let order = harness.delivering().await;
        harness.event("order.shipped", order).await;
        always("they wait", Duration::from_secs(2), async || Ok(harness.ask::<i64>("SELECT count(*) FROM outbox").await == 1))
            .await;
        let slower = File::new(&QUICK.replace("400ms", "700ms"));
        ops(harness, &users.ops, &["policy", "apply", slower.path(), "--why", "a test", "--yes"]).await;
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        assert_eq!(operator.observe(&old).await.expect("an answer"), None, "it is not declared");
        relay.stop().await;
        worker.stop().await;
        operator.delete_exchange(&new).await.expect("deleted");
        operator.delete_queue(&new).await.expect("deleted");
        operator.close().await;
    })
    .await;
}

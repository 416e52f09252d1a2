//! The test harness: a sandbox, a relay and workers in this process, rows to act on, and queries about them.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures::FutureExt;
use lapin::{
    ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use sea_orm::{ConnectionTrait, DatabaseTransaction, QueryResult, TransactionTrait, TryGetable, Value};
use shared::{
    database::{roles::DatabaseRole, statement},
    domain::{
        task::{EXAMPLE_CUSTOMER, Exampled},
        tasks,
    },
    message::{
        dead_letter::{self, DeadLetter},
        ladder::{Hop, Ladder},
        outgoing::Outgoing,
        pack::{WaitingSubject, pack},
        topology::{Argument, Arguments, QueueRole, Topology},
        wakeup::TraceContext,
    },
    process::health::Health,
    settings::Settings,
};
use tests::{
    fleet,
    sandbox::{Sandbox, as_role, eventually},
};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

/// A policy in milliseconds: deadlines of weeks pass within a test.
pub const QUICK: &str = r#"
    [[policy]]
    on = "order.shipped"
    task = "confirm-receipt"
    after = "400ms"
    [[policy]]
    on = ["order.shipped", "order.received", "order.out_of_stock", "order.fees_changed"]
    task = "collect-arrears"
    after = "200ms"
    [[policy]]
    on = "cart.item_added"
    task = "purge-cart-item"
    after = "300ms"
    [topology]
    ladder = ["100ms", "1s"]
    [worker]
    retry = ["100ms"]
    attempts_max = 3
    [relay]
    poll_ms = 50
    # Rows of long ago are made here all the time; only the sweep's own tests want them swept.
    [sweep]
    every_ms = 3600000
"#;

/// The same, plus the kind that counts in calendar months, which cannot be given in milliseconds.
pub fn every_kind(file: &str) -> String {
    format!("[[policy]]\non = \"order.recorded\"\ntask = \"hide-order\"\nafter = \"6 months\"\n{file}")
}

/// How long a test waits for something that should happen immediately.
pub const SOON: Duration = Duration::from_secs(30);

pub struct Harness {
    pub sandbox: Sandbox,
}

/// Runs a test on a harness of its own, which is always removed at the end.
pub async fn with_harness(file: &str, test: impl AsyncFnOnce(&Harness)) {
    let sandbox = Sandbox::new("test", file, &[]).await.expect("a sandbox");
    sandbox.declare().await.expect("the topology");
    on_harness(sandbox, test).await;
}

/// The same, in an existing sandbox.
pub async fn on_harness(sandbox: Sandbox, test: impl AsyncFnOnce(&Harness)) {
    let harness = Harness { sandbox };
    harness
        .run(
            "INSERT INTO customers VALUES ($1, 'Nguyễn Thị Mẫu', '0901234567', 'mau@example.vn', 'Hà Nội')",
            [EXAMPLE_CUSTOMER.into()],
        )
        .await;
    let outcome = AssertUnwindSafe(test(&harness)).catch_unwind().await;
    let removed = harness.sandbox.remove().await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    removed.expect("the harness is removed");
}

/// A worker or relay in this process.
pub struct RunningTask<T> {
    /// Stops it when dropped, also if the test fails. A fleet that kept running would declare the removed objects again.
    shutdown: DropGuard,
    handle: JoinHandle<T>,
}

impl<T> RunningTask<T> {
    /// Shuts it down and waits for its totals.
    pub async fn stop(self) -> T {
        drop(self.shutdown);
        self.handle.await.expect("no panic")
    }
}

/// A worker with its own settings.
pub fn worker_with(settings: Settings) -> RunningTask<worker::Totals> {
    let settings = as_role(settings, DatabaseRole::Worker).expect("a sandbox's settings");
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    let handle = tokio::spawn(async move { worker::run(&settings, &Health::new(), token).await.expect("a worker that works") });
    RunningTask { shutdown: shutdown.drop_guard(), handle }
}

/// A relay with its own settings.
pub fn relay_with(settings: Settings) -> RunningTask<producer::relay::RelayReport> {
    let settings = as_role(settings, DatabaseRole::Producer).expect("a sandbox's settings");
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    let handle =
        tokio::spawn(async move { producer::relay::run(&settings, &Health::new(), token).await.expect("a relay that relays") });
    RunningTask { shutdown: shutdown.drop_guard(), handle }
}

/// The task of a kind, with its examples.
pub fn exampled(kind: &str) -> &'static dyn Exampled {
    tasks::EXAMPLED.iter().copied().find(|task| task.kind() == kind).expect("a task")
}

impl Harness {
    pub fn settings(&self) -> &Settings {
        &self.sandbox.settings
    }

    pub fn topology(&self) -> Topology {
        self.settings().topology()
    }

    /// The kinds that this harness's policy uses.
    pub fn tasks(&self) -> impl Iterator<Item = &'static dyn Exampled> {
        let policy = &self.settings().policy;
        tasks::EXAMPLED.iter().copied().filter(|task| policy.lines().iter().any(|line| line.task == task.kind()))
    }

    pub fn worker(&self) -> RunningTask<worker::Totals> {
        worker_with(self.settings().clone())
    }

    pub fn relay(&self) -> RunningTask<producer::relay::RelayReport> {
        relay_with(self.settings().clone())
    }

    /// Runs a statement and returns the number of affected rows.
    pub async fn run<const N: usize>(&self, sql: &str, values: [Value; N]) -> u64 {
        self.sandbox.db.execute_raw(statement(sql, values)).await.unwrap_or_else(|error| panic!("{sql}: {error}")).rows_affected()
    }

    /// Runs SQL as a superuser, with all triggers off.
    pub async fn as_superuser(&self, sql: &str) {
        let tx = self.sandbox.db.begin().await.expect("a transaction");
        for sql in ["SET LOCAL session_replication_role = replica", sql] {
            tx.execute_unprepared(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        tx.commit().await.expect("a commit");
    }

    /// Makes the database one in which no policy was applied.
    pub async fn without_policy(&self) {
        self.as_superuser("DELETE FROM policies").await;
    }

    /// Locks a table against everything that changes its rows, or locks them, until the transaction ends.
    pub async fn locked(&self, table: &str) -> DatabaseTransaction {
        let tx = self.sandbox.db.begin().await.expect("a transaction");
        tx.execute_unprepared(&format!("LOCK TABLE {table} IN EXCLUSIVE MODE")).await.expect("a lock");
        tx
    }

    /// The single value that a query returns.
    pub async fn ask<T: TryGetable>(&self, sql: &str) -> T {
        let row = self.sandbox.db.query_one_raw(statement(sql, [])).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        row.expect("a row").try_get_by_index(0).unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    /// The counts of a task's effect on a subject and of each of its records.
    pub async fn effects(&self, task: &dyn Exampled, subject: Uuid) -> Vec<i64> {
        let row = self.sandbox.db.query_one_raw(statement(task.examples().effects, [subject.into()])).await;
        let row = row.expect("counts").expect("a row");
        (0..row.column_names().len()).map(|at| row.try_get_by_index(at).expect("a count")).collect()
    }

    /// The ids of all orders.
    pub async fn order_ids(&self) -> Vec<Uuid> {
        self.ask::<Vec<Uuid>>("SELECT array_agg(id) FROM orders").await
    }

    /// Waits until a query returns `true`.
    pub async fn until(&self, sql: &str) {
        eventually(sql, SOON, async || Ok(self.ask::<bool>(sql).await)).await;
    }

    /// Puts an event into the outbox.
    pub async fn event(&self, event_type: &str, subject: Uuid) {
        let sql = "INSERT INTO outbox (event_type, subject_id) VALUES ($1, $2)";
        self.run(sql, [event_type.into(), subject.into()]).await;
    }

    /// A wake-up that is due now, addressed to its lane.
    pub fn wakeup(&self, kind: &'static str, subjects: &[Uuid]) -> Outgoing {
        let due_at = "2026-01-01T00:00:00Z".parse().expect("a time");
        let wait = chrono::TimeDelta::zero();
        let waiting = subjects.iter().map(|subject| WaitingSubject { kind, subject: *subject, due_at, wait, attempt: 0 });
        let mut packed = pack(waiting, &Ladder::new([]), 1, 1_000, &TraceContext::default());
        assert!(packed.len() == 1 && packed[0].hop == Hop::Lane);
        Outgoing::of(&packed.remove(0), &self.topology())
    }

    /// Replaces a queue or exchange of the topology by one with changed arguments.
    pub async fn replace(&self, name: &str, change: impl Fn(&mut FieldTable)) {
        let broker = self.sandbox.broker().await.expect("a broker");
        let channel = broker.channel().await.expect("a channel");
        let topology = self.topology();
        let mut table = FieldTable::default();
        let mut fill = |arguments: &Arguments| {
            for (name, value) in arguments {
                let value = match value {
                    Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
                    Argument::Number(number) => AMQPValue::LongLongInt(*number),
                };
                table.insert((*name).into(), value);
            }
            change(&mut table);
        };
        if let Some(queue) = topology.queues().iter().find(|queue| queue.name == name) {
            fill(&queue.arguments);
            broker.delete_queue(name).await.expect("deleted");
            let durable = QueueDeclareOptions { durable: true, ..Default::default() };
            channel.queue_declare(name.into(), durable, table).await.expect("another queue");
            let (exchange, key) = (queue.exchange.as_str().into(), queue.routing_key.as_str().into());
            let bind = channel.queue_bind(name.into(), exchange, key, QueueBindOptions::default(), FieldTable::default());
            bind.await.expect("bound");
        } else {
            let exchanges = topology.exchanges();
            let exchange = exchanges.iter().find(|exchange| exchange.name == name).expect("a queue or an exchange");
            fill(&exchange.arguments);
            broker.delete_exchange(name).await.expect("deleted");
            let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
            channel.exchange_declare(name.into(), ExchangeKind::Direct, durable, table).await.expect("another exchange");
        }
        shared::broker::close_channel(&channel).await;
        broker.close().await;
    }

    /// Publishes messages and waits for their confirms.
    pub async fn publish(&self, messages: Vec<Outgoing>) {
        let broker = self.sandbox.broker().await.expect("a broker");
        let publisher = broker.publisher().await.expect("a channel");
        publisher.publish_all(&messages).await.expect("confirms");
        publisher.close().await;
        broker.close().await;
    }

    /// Waits until nothing waits, is due or in hand. Messages that a worker has in hand are in no queue and are settled within
    /// milliseconds, so the queues must be empty several times in a row.
    pub async fn until_settled(&self) {
        const TIMES: u32 = 10;
        let broker = self.sandbox.broker().await.expect("a broker");
        let mut empty = 0;
        eventually("all wake-ups are settled", SOON, async || {
            let depth = self.sandbox.depth(&broker, "rung.").await? + self.sandbox.depth(&broker, "due.").await?;
            empty = if depth == 0 { empty + 1 } else { 0 };
            Ok(empty == TIMES)
        })
        .await;
        broker.close().await;
    }

    /// Waits until workers consume every queue except the rungs.
    pub async fn until_consumed(&self) {
        let broker = self.sandbox.broker().await.expect("a broker");
        let consumed = self.topology().queues().into_iter().filter(|queue| queue.role != QueueRole::Rung).map(|queue| queue.name);
        for lane in consumed {
            eventually("the queue is consumed", SOON, async || {
                Ok(broker.observe(&lane).await?.is_some_and(|seen| seen.consumers > 0))
            })
            .await;
        }
        broker.close().await;
    }

    /// The number of messages in the queues whose names begin with this prefix.
    pub async fn depth(&self, begins: &str) -> u32 {
        let broker = self.sandbox.broker().await.expect("a broker");
        let depth = self.sandbox.depth(&broker, begins).await.expect("a depth");
        broker.close().await;
        depth
    }

    /// Waits until that many dead letters are stored and open. A worker must be running.
    pub async fn until_dead(&self, count: u32) {
        self.until(&format!("SELECT count(*) = {count} FROM dead_letters WHERE state = 'open'")).await;
    }

    /// All stored letters in every state, ordered by id.
    pub async fn dead_letters(&self) -> Vec<DeadLetter> {
        let sql = "SELECT * FROM dead_letters JOIN dead_letter_bodies ON hash = body_hash ORDER BY id";
        let rows = self.sandbox.db.query_all_raw(statement(sql, [])).await.expect("letters");
        rows.iter().map(|row| letter(row).expect("a letter")).collect()
    }

    /// Stores a message for letters that a test inserts; returns the value of their `body_hash`.
    pub async fn kept_body(&self, headers: &[u8], body: &[u8]) -> Vec<u8> {
        let sql = "INSERT INTO dead_letter_bodies AS known (hash, headers, body) VALUES (kyhan_body_hash($1, $2), $1, $2)
                   ON CONFLICT (hash) DO UPDATE SET hash = known.hash RETURNING hash";
        let values = [headers.to_vec().into(), body.to_vec().into()];
        let row = self.sandbox.db.query_one_raw(statement(sql, values)).await.expect("stored").expect("a row");
        row.try_get_by_index(0).expect("a hash")
    }

    /// The number of letters, stored or still waiting to be stored.
    pub async fn buried(&self) -> i64 {
        let stored: i64 = self.ask("SELECT count(*) FROM dead_letters").await;
        stored + i64::from(self.depth("dead").await + self.depth("unrouted").await)
    }

    /// Runs `ops` as an operator would, and returns what it printed.
    pub async fn ops(&self, arguments: &[&str]) -> anyhow::Result<String> {
        fleet::output(fleet::command("ops", &self.sandbox.env, arguments)?).await
    }

    /// That many orders that have been on their way for a year.
    pub async fn many_delivering(&self, count: i64) -> Vec<Uuid> {
        let sql = "INSERT INTO orders (id, code, customer_id, status, delivering_since)
                   SELECT gen_random_uuid(), 'BG-' || n, $1, 'delivering', now() - interval '1 year' FROM generate_series(1, $2::bigint) n";
        self.run(sql, [EXAMPLE_CUSTOMER.into(), count.into()]).await;
        self.order_ids().await
    }

    /// An order that has been on its way for a year.
    pub async fn delivering(&self) -> Uuid {
        let id = Uuid::new_v4();
        let sql = "INSERT INTO orders (id, code, customer_id, status, delivering_since)
                   VALUES ($1, 'BG-' || $1::text, $2, 'delivering', now() - interval '1 year')";
        self.run(sql, [id.into(), EXAMPLE_CUSTOMER.into()]).await;
        id
    }

    /// A product that has been in the cart for a year.
    pub async fn in_cart(&self) -> Uuid {
        let id = Uuid::new_v4();
        let sql = "INSERT INTO cart_items (id, customer_id, product_ref, product_name, quantity, added_at)
                   VALUES ($1, $2, 'taobao/1', 'Áo khoác', 2, now() - interval '1 year')";
        self.run(sql, [id.into(), EXAMPLE_CUSTOMER.into()]).await;
        id
    }
}

/// A row of `dead_letters`.
fn letter(row: &QueryResult) -> anyhow::Result<DeadLetter> {
    Ok(DeadLetter {
        id: row.try_get("", "id")?,
        reason: row.try_get("", "reason")?,
        cause: row.try_get("", "cause")?,
        attempts: u32::try_from(row.try_get::<i32>("", "attempts")?)?,
        first_failed_at: row.try_get("", "first_failed_at")?,
        died_at: row.try_get("", "last_failed_at")?,
        worker: row.try_get("", "worker")?,
        kind: row.try_get("", "kind")?,
        subject: row.try_get("", "subject_id")?,
        wakeup: row.try_get("", "wakeup_id")?,
        routing_key: row.try_get("", "routing_key")?,
        headers: dead_letter::headers_from_json(&row.try_get::<Vec<u8>>("", "headers")?)?,
        body: row.try_get("", "body")?,
        cut: None,
    })
}

//! Lateness under a steady load: each order has its own time in a fixed schedule, however long the earlier ones take. Lateness is the time
//! from the order's due time to the commit, by PostgreSQL's timestamps. The ceiling is the lateness of the broker alone: a bare consumer
//! takes messages of the same schedule through the same rung and lane.
//!
//! Both count from the planned time and not from the actual publish, so both include the lateness of the bench itself, a millisecond of its
//! timer.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use chrono::TimeDelta;
use producer::Producer;
use sea_orm::{ConnectionTrait, FromQueryResult};
use shared::{
    broker::Broker,
    database::statement,
    domain::event::{Event, EventType},
};
use tests::sandbox::Sandbox;
use tokio::{task::JoinSet, time::Instant};
use uuid::Uuid;

use crate::{
    bare::Bare,
    clock::Clock,
    figure::{Figure, FigureRound, Reach, number, quantile},
    harness::{BenchHarness, rows, settle, until},
    population::emptied,
    process::RunningProcess,
    wakeups,
};

pub const NAMES: &[&str] = &["lateness at 200/s", "lateness at 1,000/s"];
const RATES: [u32; 2] = [200, 1_000];

const POLICY: &str = r#"
    [[policy]]
    on = "order.shipped"
    task = "confirm-receipt"
    after = "5s"
"#;
const KIND: &str = "confirm-receipt";
const SPAN: Duration = Duration::from_secs(5);
/// From the making of the schedule to its first time. Meanwhile the orders are made and the worker starts.
const LEAD: Duration = Duration::from_secs(2);
/// By how much the fleet's p99 may exceed the broker's, in ms.
const MARGIN: f64 = 10.0;
/// More rounds would not change the result.
const ROUNDS: usize = 3;

/// Lateness in milliseconds.
#[derive(Clone, Copy, FromQueryResult)]
struct Late {
    p50: f64,
    p99: f64,
    max: f64,
}

pub async fn measure(harness: &BenchHarness) -> Result<Vec<Figure>> {
    let sandbox = harness.sandbox("lateness", POLICY, &[]).await?;
    let mut figures = Vec::new();
    for (name, rate) in NAMES.iter().zip(RATES).filter(|(name, _)| harness.wants(name)) {
        let count = rate * harness.of(15, 2);
        let mut lates = Vec::new();
        for round in harness.rounds(ROUNDS) {
            let fleet = fleet(&sandbox, rate, count).await?;
            let broker = broker_alone(&sandbox, rate, count).await?;
            harness.say(&format!("{name}, p99"), round, fleet.p99, Some(broker.p99), "ms");
            lates.push((fleet, broker));
        }
        let of = |what: fn(&Late) -> f64| {
            lates.iter().map(|(fleet, broker)| FigureRound { value: what(fleet), ceiling: Some(what(broker)) }).collect()
        };
        let figure = |name: String, rounds, reach| Figure { name, unit: "ms", rounds, reach };
        figures.push(figure((*name).to_owned(), of(|late| late.p99), Some(Reach::Beyond(MARGIN))));
        figures.push(figure(format!("{name}, p50"), of(|late| late.p50), None));
        figures.push(figure(format!("{name}, max"), of(|late| late.max), None));
    }
    sandbox.remove().await?;
    Ok(figures)
}

/// The scheduled times of `count` orders.
fn schedule(first: Instant, rate: u32, count: u32) -> impl Iterator<Item = Instant> {
    (0..count).map(move |n| first + Duration::from_secs(1) * n / rate)
}

async fn fleet(sandbox: &Sandbox, rate: u32, count: u32) -> Result<Late> {
    let clock = Clock::set(&sandbox.db).await?;
    let first = Instant::now() + LEAD;
    let events: Vec<(Instant, Event)> = schedule(first, rate, count)
        .map(|moment| {
            let occurred_at = clock.at(moment);
            (moment, Event { id: Uuid::new_v4(), event_type: EventType::OrderShipped, subject: Uuid::new_v4(), occurred_at })
        })
        .collect();
    make(sandbox, &events).await?;
    settle(sandbox).await?;
    let producer = Arc::new(Producer::connect(&sandbox.settings).await?);
    let worker = RunningProcess::worker(sandbox)?;
    ensure!(Instant::now() < first, "the lead was too short for what comes before the first moment");

    let mut scheduling = JoinSet::new();
    for (moment, event) in events {
        tokio::time::sleep_until(moment).await;
        let producer = Arc::clone(&producer);
        scheduling.spawn(async move { producer.schedule(&[event]).await.map(|_| ()) });
    }
    while let Some(scheduled) = scheduling.join_next().await {
        scheduled??;
    }
    let sql = "SELECT count(*) AS applied, count(DISTINCT order_id) AS orders FROM order_status_history";
    until("every order is received", Duration::from_millis(200), async || {
        let row = sandbox.db.query_one_raw(statement(sql, [])).await?.context("no row")?;
        let (applied, orders): (i64, i64) = (row.try_get("", "applied")?, row.try_get("", "orders")?);
        ensure!(applied == orders && applied <= i64::from(count), "{applied} receipts of {orders} orders");
        Ok(applied == i64::from(count))
    })
    .await?;
    worker.stop().await?;
    Arc::into_inner(producer).context("a caller is left")?.close().await;
    let sql = "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY late) AS p50, percentile_cont(0.99) WITHIN GROUP (ORDER BY late) AS p99,
                      max(late) AS max
                 FROM (SELECT extract(epoch FROM pg_xact_commit_timestamp(history.xmin) - delivering_since)::float8 * 1000 - $1 AS late
                         FROM order_status_history AS history JOIN orders ON orders.id = history.order_id) AS receipts";
    let late: Vec<Late> = rows(sandbox, statement(sql, [(SPAN.as_secs_f64() * 1_000.0).into()])).await?;
    late.into_iter().next().context("no row")
}

/// SQL that makes an order for each event, all of one customer.
async fn make(sandbox: &Sandbox, events: &[(Instant, Event)]) -> Result<()> {
    let tx = emptied(sandbox).await?;
    let (ids, since): (Vec<Uuid>, Vec<_>) = events.iter().map(|(_, event)| (event.subject, event.occurred_at)).unzip();
    let sql = "WITH customer AS (
                   INSERT INTO customers (id, full_name, phone, email, address)
                   VALUES (gen_random_uuid(), 'Trần Thị Hà', '0912345678', 'ha@example.vn', '5 Lê Lợi, Huế') RETURNING id)
               INSERT INTO orders (id, code, customer_id, status, delivering_since, goods_due)
               SELECT made.id, 'BG-' || made.id, customer.id, 'delivering', since, 900000
                 FROM customer, unnest($1::uuid[], $2::timestamptz[]) AS made (id, since)";
    tx.execute_raw(statement(sql, [ids.into(), since.into()])).await?;
    Ok(tx.commit().await?)
}

async fn broker_alone(sandbox: &Sandbox, rate: u32, count: u32) -> Result<Late> {
    let bare = Arc::new(Bare::connect(&sandbox.settings).await?);
    let now = Clock::set(&sandbox.db).await?.at(Instant::now());
    let subjects: Vec<Uuid> = (0..count).map(|_| Uuid::new_v4()).collect();
    let messages = wakeups::of(sandbox, KIND, &subjects, 1, now, TimeDelta::from_std(SPAN)?);
    let timed: Vec<_> = schedule(Instant::now() + Duration::from_millis(500), rate, count).zip(messages).collect();
    let id = |message: &lapin::BasicProperties| message.message_id().as_ref().map(ToString::to_string);
    let due: HashMap<Option<String>, Instant> =
        timed.iter().map(|(moment, message)| (id(&message.properties), *moment + SPAN)).collect();
    let publishing = tokio::spawn(Arc::clone(&bare).publish_at(timed));
    let lane = sandbox.settings.topology().lane(KIND, 0);
    let mut late = Vec::with_capacity(subjects.len());
    let see = |delivery: lapin::message::Delivery| {
        let came = Instant::now();
        let due = *due.get(&id(&delivery.properties)).context("an unknown message")?;
        // An arrival before the due time counts as punctual.
        late.push(came.saturating_duration_since(due).as_secs_f64() * 1_000.0);
        Ok(())
    };
    bare.take(&lane, subjects.len(), see).await?;
    publishing.await??;
    let broker: Broker = sandbox.broker().await?;
    let left = sandbox.depth(&broker, "").await?;
    broker.close().await;
    ensure!(left == 0, "{left} messages came twice or stayed");
    Arc::into_inner(bare).context("a publisher is left")?.close().await?;
    let at = |part| quantile(late.iter().copied(), part);
    ensure!(number(late.len()) > 0.0, "nothing came");
    Ok(Late { p50: at(0.5), p99: at(0.99), max: at(1.0) })
}

//! The scenario: a fleet of processes works on the marked population, and everything happens that can happen to a fleet. Every
//! kind is applied, found stale, postponed and retried, fails and becomes dead letters; events are set aside; a worker is killed;
//! both servers go away and come back; and every command of `ops` is run.

use lapin::BasicProperties;
use sea_orm::TransactionTrait;
use shared::{
    database::{active_policy, statement},
    domain::task::Exampled,
    message::outgoing::Outgoing,
};
use uuid::Uuid;

use super::{
    commands::{LAST, OPERATE, PREPARE, REPLAY, Runner},
    driver::MarkedProcess,
    obstacles, population,
    search::Capture,
    surroundings::Surroundings,
};
use tests::sandbox::eventually;

use crate::{
    conformance::from_now,
    harness::{Harness, SOON},
};

/// Settings with short intervals for sweeps, counts and reports, because the scenario is short.
const SETTINGS: &[(&str, &str)] = &[
    ("KYHAN_SWEEP_EVERY_MS", "500"),
    ("KYHAN_SWEEP_GRACE_MS", "200"),
    ("KYHAN_FORECAST_EVERY_MS", "1000"),
    ("KYHAN_TELEMETRY_REPORT_EVERY_MS", "500"),
    // Many processes and other tests share one server, which allows a hundred connections.
    ("KYHAN_DATABASE_MAX_CONNECTIONS", "6"),
    ("KYHAN_WORKER_CONSUMERS", "1"),
    ("KYHAN_ROLES_OPERATOR_PASSWORD", "an operator's"),
    // Some charges stay outstanding.
    ("KYHAN_ARREARS_WALLET_FLOOR", "-2000000"),
];

/// The log messages of a relay and a worker when a server is away.
const RABBITMQ_AWAY: [&str; 2] = ["the relay lost RabbitMQ", "lost RabbitMQ; unsettled wake-ups return"];
const POSTGRES_AWAY: [&str; 2] = ["the relay cannot use PostgreSQL", "PostgreSQL is away"];

/// The policy that is previewed and applied: waiting subjects fall due earlier.
fn shorter(file: &str, approval_above: i64) -> String {
    format!("{}\n[dead_letters]\napproval_above = {approval_above}\n", file.replace("1500ms", "1s"))
}

/// Above all that the orders are short of, so that one operator applies the policy; and the limit that a second one approves.
const APPROVAL_ABOVE: [i64; 2] = [1_000_000_000, 900_000_000];

/// Everything that left the database during the scenario.
pub struct Captured {
    /// No marker may be in any of it.
    pub searched: Vec<Capture>,
    /// PostgreSQL's errors, to show that they did quote the rows.
    pub complaints: Vec<Capture>,
}

/// Runs the scenario; `file` is the harness's policy.
pub async fn run(harness: &Harness, file: &str) -> Captured {
    population::assert_known(harness).await;
    population::mark_customer(harness).await;
    // Before the triggers exist that make events of them, so that only the sweep finds these rows.
    for task in harness.tasks() {
        subject(harness, task, None).await;
    }
    let surroundings = Surroundings::new(harness, SETTINGS).await;
    let path = |name: &str| surroundings.folder.join(name).to_string_lossy().into_owned();
    for (name, above) in ["shorter.toml", "guarded.toml"].into_iter().zip(APPROVAL_ABOVE) {
        std::fs::write(path(name), shorter(file, above)).expect("a file");
    }
    let above = APPROVAL_ABOVE[0].to_string();
    let more: Vec<_> = SETTINGS.iter().copied().chain([("KYHAN_DEAD_LETTERS_APPROVAL_ABOVE", above.as_str())]).collect();
    let first = harness.sandbox.settings_with(&more).expect("settings").policy;
    active_policy::apply(&harness.sandbox.db, &first, "administrator", "a test", None).await.expect("applied");
    harness.run("UPDATE policies SET scheduled_at = now()", []).await;
    let operator = format!("op_{}", harness.sandbox.database().rsplit('_').next().expect("a suffix"));
    let places = vec![
        ("{policy}", path("shorter.toml")),
        ("{guarded}", path("guarded.toml")),
        ("{file}", path("message.bin")),
        ("{operator}", operator),
    ];
    let runner = Runner { harness, surroundings: &surroundings, places };
    runner.assert_complete().await;
    let mut searched = runner.run(PREPARE).await;

    let start = |name: &str, binary: &str, arguments: &[&str]| MarkedProcess::start(&surroundings, name, binary, arguments);
    let mut relay = start("relay", "producer", &["relay"]);
    let mut worker = start("worker", "worker", &[]);
    let mut killed = start("killed-worker", "worker", &[]);
    for driver in [&mut relay, &mut worker, &mut killed] {
        driver.until_ready(true).await;
    }
    let dead = misfortunes(harness).await;
    harness.until("SELECT count(*) > 0 FROM dead_letters").await;
    killed.kill().await;
    // Each fails alone, after several attempts: many times longer than any one of them.
    let all = format!("SELECT count(DISTINCT coalesce(subject_id, id)) = {dead} FROM dead_letters");
    eventually(&all, SOON * 4, async || Ok(harness.ask::<bool>(&all).await)).await;
    harness.until("SELECT count(*) = 0 FROM outbox").await;
    harness
        .until("SELECT count(DISTINCT kind) = (SELECT count(DISTINCT kind) FROM dead_letters WHERE kind IS NOT NULL) FROM swept")
        .await;
    population::assert_marked(harness).await;

    for (server, away) in [(&surroundings.rabbitmq, RABBITMQ_AWAY), (&surroundings.postgres, POSTGRES_AWAY)] {
        // A process that is still recovering from the previous outage would not log this one.
        for driver in [&mut relay, &mut worker] {
            driver.until_ready(true).await;
        }
        server.set_up(false);
        for (driver, text) in [&mut relay, &mut worker].into_iter().zip(away) {
            driver.until_ready(false).await;
            driver.until_said(text).await;
        }
        server.set_up(true);
    }
    searched.extend(runner.run(OPERATE).await);
    for driver in [&mut relay, &mut worker] {
        driver.until_ready(true).await;
        driver.stop().await;
    }
    searched.extend(runner.run(REPLAY).await);
    searched.extend(population::own_rows(harness).await);
    searched.extend(runner.run(LAST).await);
    searched.extend([relay, worker, killed].into_iter().flat_map(MarkedProcess::captures));
    let (passed, complaints) = surroundings.captures();
    searched.extend(passed);
    Captured { searched, complaints }
}

/// Makes a marked subject whose effect is due, with this obstacle in its way.
async fn subject(harness: &Harness, task: &dyn Exampled, obstacle: Option<&str>) -> Uuid {
    let id = Uuid::new_v4();
    let tx = harness.sandbox.db.begin().await.expect("a transaction");
    sea_orm::ConnectionTrait::execute_raw(&tx, statement(task.examples().due, [id.into()])).await.expect("a subject");
    population::mark_subject(&tx, task.table(), id).await;
    if task.shortest().is_some() {
        population::as_long_ago(&tx, id).await;
    }
    if let Some(way) = obstacle {
        obstacles::lay(&tx, id, way).await;
    }
    tx.commit().await.expect("committed");
    id
}

/// Makes everything happen to subjects of every kind, and returns the number of resulting dead letters.
async fn misfortunes(harness: &Harness) -> usize {
    obstacles::install(harness, harness.tasks().map(shared::domain::task::Task::table)).await;
    for task in harness.tasks() {
        for way in obstacles::WAYS {
            subject(harness, task, Some(way)).await;
        }
        let applied = subject(harness, task, None).await;
        for event in task.counts_from() {
            population::event(harness, event.name(), applied).await;
        }
        let (moot, postponed) = (subject(harness, task, None).await, subject(harness, task, None).await);
        // As superuser, because related rows may prevent it.
        harness.as_superuser(&task.examples().moot.replace("$1", &format!("'{moot}'"))).await;
        from_now(harness, task, postponed).await;
        harness.publish(vec![harness.wakeup(task.kind(), &[moot, postponed])]).await;
        population::event(harness, "order.mystery", applied).await;
        population::event(harness, task.counts_from()[0].name(), Uuid::new_v4()).await;
    }
    let malformed: Vec<Outgoing> = ["no JSON", r#"{"v":1,"kind":"make-coffee"}"#].map(|body| malformed(harness, body)).into();
    let letters = malformed.len() + harness.tasks().count() * obstacles::WAYS.len();
    harness.publish(malformed).await;
    letters
}

/// A message in a lane that is not a wake-up.
pub fn malformed(harness: &Harness, body: &str) -> Outgoing {
    Outgoing {
        exchange: harness.topology().due_exchange(),
        routing_key: format!("{}.0", "confirm-receipt"),
        properties: BasicProperties::default().with_delivery_mode(2),
        body: body.into(),
    }
}

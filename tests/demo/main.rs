//! The demo: runs the main job on real servers, with one day as one second. It has a realistic population in every situation of the policy,
//! a relay and two workers, and compares the results with the expectations at the end.

mod population;
mod progress;
mod report;
mod situations;

use population::Actors;

use std::{collections::BTreeMap, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::Parser;
use sea_orm::ConnectionTrait;
use shared::{
    broker::Broker,
    database::{roles::DatabaseRole, schema::triggers, statement},
};
use tests::{fleet, sandbox::Sandbox};
use tokio::{process::Child, time::Instant};
use tokio_util::sync::CancellationToken;

use progress::Progress;

/// The published policy, with one day as one second.
const POLICY: &str = r#"
    [[policy]]
    on = "order.shipped"
    task = "confirm-receipt"
    after = "14s"
    [[policy]]
    on = ["order.shipped", "order.received", "order.out_of_stock", "order.fees_changed"]
    task = "collect-arrears"
    after = "1s"
    [[policy]]
    on = "cart.item_added"
    task = "purge-cart-item"
    after = "30s"
    # Six months stay six months; the population holds orders of which they end on day 20.
    [[policy]]
    on = "order.recorded"
    task = "hide-order"
    after = "6 months"
    [topology]
    ladder = ["50ms", "250ms", "1s", "5s", "1d"]
    [arrears]
    wallet_floor = "-500000"
    [relay]
    poll_ms = 50
    [telemetry]
    report_every_ms = 200
"#;

/// The last deadline of the policy, in days.
const LAST_DAY: u64 = 31;
/// The folder of the report and of the processes' logs.
const FOLDER: &str = "target/demo";
const WORKERS: usize = 2;

/// Runs the main job with one day as one second and checks every row at the end
#[derive(Parser)]
struct DemoArguments {
    /// How many orders to make; there are also a third as many cart items
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    orders: u32,
}

#[tokio::main]
async fn main() -> ExitCode {
    let DemoArguments { orders } = DemoArguments::parse();
    match demo(orders).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Sets up the sandbox, runs the demo, and always removes the sandbox. Returns whether every row is right.
async fn demo(orders: u32) -> Result<bool> {
    let shutdown = shared::process::lifecycle::shutdown_on_signals()?;
    std::fs::create_dir_all(FOLDER).context(FOLDER)?;
    let sandbox = Sandbox::new("demo", POLICY, &[]).await?;
    let done = tokio::select! {
        () = shutdown.cancelled() => Err(anyhow::anyhow!("interrupted; everything is cleaned up")),
        done = run_fleet(&sandbox, orders) => done,
    };
    // The fleet's processes were killed when their handles were dropped.
    let removed = sandbox.remove().await;
    let right = done?;
    removed?;
    Ok(right)
}

async fn run_fleet(sandbox: &Sandbox, orders: u32) -> Result<bool> {
    sandbox.declare().await?;
    triggers::install(&sandbox.db).await?;
    population::prepare(&sandbox.db).await?;
    // The order system logs in with its own role.
    let actors = Actors {
        order_system: sandbox.connect_as(DatabaseRole::OrderSystem).await?,
        carts: sandbox.connect_as(DatabaseRole::Owner).await?,
    };
    let broker = sandbox.broker().await?;
    let mut progress = Progress::new(sandbox, &broker, orders)?;
    let mut fleet = DemoFleet::start(&sandbox.env)?;

    let began = Instant::now();
    let populated = CancellationToken::new();
    let (populating, token) = (actors.clone(), populated.clone());
    let populating = tokio::spawn(async move {
        let done = population::populate(&populating, orders).await;
        token.cancel();
        done
    });
    let mut ended = None;
    // Stop waiting some time after the last deadline: a lost row is wrong, but the demo must end.
    let patience = Duration::from_secs(60 + u64::from(orders) / 1_000);
    loop {
        fleet.keep_alive()?;
        population::go_on(&actors).await?;
        progress.show(began.elapsed(), Path::new(FOLDER)).await?;
        if populated.is_cancelled() {
            let last_deadline = *ended.get_or_insert_with(|| Instant::now() + Duration::from_secs(LAST_DAY));
            let over = Instant::now() > last_deadline;
            if over
                && (progress.is_quiet() && situations::all_right(&sandbox.db).await? || Instant::now() > last_deadline + patience)
            {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    populating.await??;
    actors.close().await?;
    progress.finish();
    let restarts = fleet.restarts;
    fleet.stop().await?;
    let dead = dead_letters(sandbox, &broker).await?;
    broker.close().await;
    let report = report::DemoReport::make(&sandbox.db, dead).await?;
    report.print(restarts);
    report.write(Path::new(FOLDER))?;
    Ok(report.is_right())
}

/// The number of dead letters, stored or still in the broker.
async fn dead_letters(sandbox: &Sandbox, broker: &Broker) -> Result<i64> {
    let row = sandbox.db.query_one_raw(statement("SELECT count(*) AS letters FROM dead_letters", [])).await?;
    let stored: i64 = row.context("a count")?.try_get("", "letters")?;
    Ok(stored + i64::from(sandbox.depth(broker, "dead").await? + sandbox.depth(broker, "unrouted").await?))
}

/// The fleet's processes: a relay and two workers. A process that crashes is restarted, as a supervisor would.
struct DemoFleet {
    env: BTreeMap<String, String>,
    running: Vec<(String, &'static str, Vec<&'static str>, Child)>,
    restarts: u32,
}

impl DemoFleet {
    fn start(env: &BTreeMap<String, String>) -> Result<Self> {
        let mut fleet = Self { env: env.clone(), running: Vec::new(), restarts: 0 };
        for old in std::fs::read_dir(FOLDER)?.flatten().filter(|file| file.path().extension().is_some_and(|end| end == "log")) {
            std::fs::remove_file(old.path())?;
        }
        let mut players = vec![("relay".to_owned(), "producer", vec!["relay"])];
        players.extend((1..=WORKERS).map(|n| (format!("worker-{n}"), "worker", vec![])));
        for (name, binary, arguments) in players {
            let child = fleet.spawn(&name, binary, &arguments)?;
            fleet.running.push((name, binary, arguments, child));
        }
        let workers: Vec<String> = fleet.running.iter().skip(1).filter_map(|(.., child)| Some(child.id()?.to_string())).collect();
        eprintln!("fleet: 1 relay, {WORKERS} workers (pids {}; kill -9 one, if you like)", workers.join(", "));
        Ok(fleet)
    }

    fn spawn(&self, name: &str, binary: &str, arguments: &[&str]) -> Result<Child> {
        let log = Path::new(FOLDER).join(format!("{name}.log"));
        fleet::start(fleet::command(binary, &self.env, arguments)?, &log)
    }

    fn keep_alive(&mut self) -> Result<()> {
        for at in 0..self.running.len() {
            let (name, binary, arguments, child) = &mut self.running[at];
            if let Some(status) = child.try_wait()? {
                eprintln!("{name} died ({status}); it is started again");
                let (name, binary, arguments) = (name.clone(), *binary, arguments.clone());
                self.running[at].3 = self.spawn(&name, binary, &arguments)?;
                self.restarts += 1;
            }
        }
        Ok(())
    }

    async fn stop(mut self) -> Result<()> {
        for (.., child) in &self.running {
            fleet::terminate(child).await?;
        }
        for (name, .., child) in &mut self.running {
            let status = tokio::time::timeout(Duration::from_secs(40), child.wait())
                .await
                .with_context(|| format!("{name} does not stop"))??;
            anyhow::ensure!(status.success(), "{name} stopped with {status}");
        }
        Ok(())
    }
}

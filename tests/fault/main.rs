//! The fault suite: runs the fleet while servers, networks and workers fail. Each scenario has thousands of subjects and exact counts at the
//! end. The suite passes only if every line shows lost 0, twice 0, unexpected 0.
//!
//! `cargo test` runs the quick form with a fixed seed; `make fault` runs the long form.

mod acts;
mod book;
mod changes;
mod checker;
mod cluster;
mod disk;
mod fleet;
mod harness;
mod hostile;
mod messages;
mod network;
mod nodes;
mod oddities;
mod patience;
mod place;
mod population;
mod postgres;
mod proxy;
mod rabbitmq;
mod report;
mod scenario;
mod suspicion;
mod tap;
mod worker;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context, Result};
use clap::Parser;
use futures::StreamExt;
use tests::{
    pair::{self, Pair},
    sandbox::Servers,
};
use tokio_util::sync::CancellationToken;

use harness::Setting;
use report::ScenarioResult;
use scenario::{Disturbs, Scenario};

/// The seed of the quick form, fixed so that a test is reproducible.
const QUICK_SEED: u64 = 1;
/// How many scenarios that do not disturb the servers run in parallel.
const SIDE_BY_SIDE: usize = 3;

/// Runs the fleet while servers, networks and workers fail, and checks every effect
#[derive(Parser)]
struct FaultArguments {
    /// Run only scenarios whose names contain this; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// The same, as `cargo test` passes on its filter
    #[arg(value_name = "NAME")]
    filter: Vec<String>,
    /// Run the long form: outages of 20 seconds, more rounds
    #[arg(long)]
    long: bool,
    /// Repeat the plan of this seed [default: fixed in the quick form, random in the long form]
    #[arg(long)]
    seed: Option<u64>,
    /// Subjects of each scenario
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    subjects: u32,
    /// Also write the Markdown report to this file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Partition the cluster without network namespaces, even if they can be created
    #[arg(long)]
    no_namespaces: bool,
    /// List the scenarios
    #[arg(long)]
    list: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    // Ignore the options that `cargo test` passes to the default harness of other tests.
    let arguments = FaultArguments::parse_from(std::env::args().filter(|argument| {
        const OTHERS: [&str; 5] = ["--nocapture", "--no-capture", "--show-output", "--exact", "--include-ignored"];
        !OTHERS.contains(&argument.as_str()) && !argument.starts_with("--test-threads=")
    }));
    let wanted = |scenario: &&Scenario| {
        let names: Vec<&String> = arguments.only.iter().chain(&arguments.filter).collect();
        names.is_empty() || names.iter().any(|name| scenario.name.contains(name.as_str()))
    };
    let chosen: Vec<&Scenario> = scenario::ALL.iter().filter(wanted).collect();
    if arguments.list {
        for scenario in chosen {
            eprintln!("{}", scenario.name);
        }
        return ExitCode::SUCCESS;
    }
    // The filter is meant for another test.
    if chosen.is_empty() {
        eprintln!("fault: no scenario of that name");
        return if arguments.only.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    match suite(&arguments, &chosen).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fault: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn suite(arguments: &FaultArguments, chosen: &[&Scenario]) -> Result<bool> {
    let interrupted = shared::process::lifecycle::shutdown_on_signals()?;
    let seed = arguments.seed.unwrap_or_else(|| if arguments.long { u64::from(rand::random::<u32>()) } else { QUICK_SEED });
    let folder = pair::root().join("target/fault");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    eprintln!("fault: {} scenarios, seed {seed}; starting servers of its own", chosen.len());
    let pair = tokio::select! {
        () = interrupted.cancelled() => anyhow::bail!("interrupted"),
        pair = Pair::start(&folder) => Arc::new(pair?),
    };
    let FaultArguments { long, subjects, no_namespaces, .. } = *arguments;
    let setting = Setting { pair, long, seed, subjects, namespaces: !no_namespaces, folder };
    let head = describe(&setting.pair.servers).await?;
    suspicion::the_checker_finds_what_is_wrong(&setting).await.context("the checker itself")?;

    let mut lines = run(chosen, &setting, &interrupted).await;
    anyhow::ensure!(!interrupted.is_cancelled(), "interrupted; everything is removed");
    lines.sort_by_key(|line| chosen.iter().position(|scenario| scenario.name == line.scenario));
    let markdown =
        arguments.report.as_deref().map(|path| if path.is_absolute() { path.to_owned() } else { pair::root().join(path) });
    report::write(&lines, &setting, &head, markdown.as_deref())?;
    let wrong: Vec<&ScenarioResult> = lines.iter().filter(|line| !line.is_right()).collect();
    for line in &wrong {
        let logs = setting.folder.join("logs").join(line.scenario);
        eprintln!("fault: WRONG {}: {}\n       its processes' logs: {}", line.scenario, line.say(), logs.display());
    }
    if wrong.is_empty() {
        eprintln!("fault: every line is lost 0, twice 0, unexpected 0 (seed {seed})");
    } else {
        eprintln!("fault: {} of {} lines are wrong (seed {seed})", wrong.len(), lines.len());
    }
    Ok(wrong.is_empty())
}

/// Runs scenarios that disturb nothing in parallel, and the others one after the other.
async fn run(chosen: &[&Scenario], setting: &Setting, interrupted: &CancellationToken) -> Vec<ScenarioResult> {
    let run = async |disturbs: Disturbs, at_once: usize| {
        let mut lines = Vec::new();
        let mut running = futures::stream::iter(chosen.iter().filter(|scenario| scenario.disturbs == disturbs))
            .take_while(|_| std::future::ready(!interrupted.is_cancelled()))
            .map(|scenario| scenario.run(setting, interrupted))
            .buffer_unordered(at_once);
        while let Some(line) = running.next().await {
            eprintln!("{:>4} s  {}  {}", line.took.as_secs(), line.scenario, line.say());
            lines.push(line);
        }
        lines
    };
    let mut lines = run(Disturbs::Nothing, SIDE_BY_SIDE).await;
    lines.extend(run(Disturbs::Postgres, 1).await);
    let (rabbitmq, clusters) = futures::join!(run(Disturbs::RabbitMq, 1), run(Disturbs::ItsCluster, 1));
    lines.into_iter().chain(rabbitmq).chain(clusters).collect()
}

/// The date, by the database's clock, and the machine of the run.
async fn describe(servers: &Servers) -> Result<String> {
    use sea_orm::{ConnectionTrait, Database};
    let db = Database::connect(&servers.database_url).await?;
    let sql =
        "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD') || ', PostgreSQL ' || current_setting('server_version') AS said";
    let row = db.query_one_raw(shared::database::statement(sql, [])).await?.context("no row")?;
    let said: String = row.try_get("", "said")?;
    db.close().await?;
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    Ok(format!("The last run of `make fault`: {said}, everything on one machine with {cores} cores."))
}

//! The benchmark: measures every figure and its ceiling in the same rounds, on private servers that are removed afterwards. A wrong count
//! ends the run.

mod bare;
mod burst;
mod chart;
mod clock;
mod drain;
mod figure;
mod harness;
mod inserts;
mod job;
mod kinds;
mod lateness;
mod machine;
mod population;
mod process;
mod receipts;
mod relay;
mod report;
mod schedule;
mod start;
mod statements;
mod taking;
mod usage;
mod waiting;
mod wakeups;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::Parser;
use futures::future::LocalBoxFuture;

use figure::Figure;
use harness::{BenchHarness, FOLDER};
use report::BenchReport;

/// Measures the fleet and its ceilings on private servers
#[derive(Parser)]
struct BenchArguments {
    /// Run a smoke test of the bench in under two minutes: small counts; targets are shown, not enforced
    #[arg(long)]
    quick: bool,
    /// Measure only figures whose names contain this; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// How many rounds of each figure and its ceiling to measure, in turns [default: 5, quick 1]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: Option<u16>,
    /// How many unpacked messages wait in the rungs, in the figures about that [default: 1000000, quick 100000]
    #[arg(long, value_name = "MESSAGES", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    waiting: Option<u32>,
    /// The folder of the reports
    #[arg(long, value_name = "DIR", default_value = FOLDER)]
    out: PathBuf,
}

/// Figures that are measured together.
struct FigureGroup {
    names: &'static [&'static str],
    measure: for<'a> fn(&'a BenchHarness) -> LocalBoxFuture<'a, Result<Vec<Figure>>>,
}

const GROUPS: &[FigureGroup] = &[
    FigureGroup { names: schedule::NAMES, measure: |harness| Box::pin(schedule::measure(harness)) },
    FigureGroup { names: relay::NAMES, measure: |harness| Box::pin(relay::measure(harness)) },
    FigureGroup { names: inserts::NAMES, measure: |harness| Box::pin(inserts::measure(harness)) },
    FigureGroup { names: receipts::NAMES, measure: |harness| Box::pin(receipts::measure(harness)) },
    FigureGroup { names: kinds::NAMES, measure: |harness| Box::pin(kinds::measure(harness)) },
    FigureGroup { names: lateness::NAMES, measure: |harness| Box::pin(lateness::measure(harness)) },
    FigureGroup { names: waiting::NAMES, measure: |harness| Box::pin(waiting::measure(harness)) },
    FigureGroup { names: start::NAMES, measure: |harness| Box::pin(start::measure(harness)) },
    FigureGroup { names: job::NAMES, measure: |harness| Box::pin(job::measure(harness)) },
    FigureGroup { names: burst::NAMES, measure: |harness| Box::pin(burst::measure(harness)) },
];

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = BenchArguments::parse();
    match bench(&arguments).await {
        Ok(missed) if missed.is_empty() => ExitCode::SUCCESS,
        Ok(missed) => {
            eprintln!("bench: not reached: {}", missed.join("; "));
            if arguments.quick { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and always clears the harness: dropping it stops its processes and servers. Returns the figures that miss their target.
async fn bench(arguments: &BenchArguments) -> Result<Vec<String>> {
    let interrupted = shared::process::lifecycle::shutdown_on_signals()?;
    tokio::select! {
        () = interrupted.cancelled() => bail!("interrupted; everything is taken down"),
        measured = measure(arguments) => measured,
    }
}

async fn measure(arguments: &BenchArguments) -> Result<Vec<String>> {
    let BenchArguments { quick, only, rounds, waiting, out } = arguments;
    let wanted = |name: &str| only.is_empty() || only.iter().any(|only| name.contains(only.as_str()));
    let groups: Vec<&FigureGroup> = GROUPS.iter().filter(|group| group.names.iter().any(|name| wanted(name))).collect();
    if groups.is_empty() {
        let names: Vec<&str> = GROUPS.iter().flat_map(|group| group.names).copied().collect();
        bail!("no figure of that name; there are: {}", names.join("; "));
    }
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let rounds = rounds.map_or(if *quick { 1 } else { 5 }, usize::from);
    eprintln!("bench: starting servers of its own");
    let harness = BenchHarness::set(*quick, rounds, only.clone(), *waiting).await?;
    let machine = machine::describe(&harness).await?;
    let mut figures = Vec::new();
    for group in groups {
        figures.extend((group.measure)(&harness).await.with_context(|| group.names.join("; "))?);
    }
    let report = BenchReport { figures, machine, took: harness.elapsed(), quick: *quick };
    report.print();
    report.write(out)?;
    Ok(report.missed())
}

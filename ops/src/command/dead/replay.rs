//! `ops dead replay`, `approve` and `plans`: each replay is planned before it is run.

use std::{num::NonZeroU32, process::ExitCode};

use anyhow::bail;
use indicatif::ProgressBar;
use ops::{
    actor::Operator,
    dead::{
        filter::Filter,
        plan::{self, PlanRequest, ReplayPlan, Tolerance},
        run::{Run, RunLimits, RunReport},
        trial::Replays,
    },
    progress,
    shown::{moment, moment_or_dash, text, text_or_dash},
};
use sea_orm::DatabaseConnection;
use serde_json::json;
use shared::{
    database::{self, Client},
    domain::money::Dong,
    process::cli::say,
    settings::Settings,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::optional;
use crate::command::{
    UsageError, answer, confirm,
    options::{Json, Why, Yes},
    table,
};

#[derive(clap::Args)]
#[command(
    mut_arg("why", optional),
    after_help = "A plan tries each dead letter against the current rows, in a transaction that is rolled back. A run applies exactly the \
                        plan. It refuses if the rows have changed by more than the plan tolerates.\n\n\
                        Examples:\n  ops dead replay --group 3f2a91c0de --plan --why 'the constraint is gone'\n  \
                        ops dead approve 5f0c9d1e-…\n  ops dead replay --run 5f0c9d1e-… --amount-max 50.000.000\n\n\
                        Exit codes: 0 success; 1 refused, stopped early, or dead letters failed; 2 usage error."
)]
pub struct ReplayCommand {
    #[command(flatten)]
    filter: Filter,
    /// Plan every open dead letter
    #[arg(long)]
    all: bool,
    /// Try each matching dead letter, change nothing, and store what a replay would do
    #[arg(long, required_unless_present = "run", requires = "why")]
    plan: bool,
    /// Run this plan
    #[arg(long, value_name = "PLAN", conflicts_with_all = ["plan", "all"])]
    run: Option<Uuid>,
    #[command(flatten)]
    why: Option<Why>,
    /// Plan at most this many dead letters, oldest first
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
    /// Refuse to run this plan if the result has changed for more dead letters than this
    #[arg(long, default_value_t = 0, value_name = "LETTERS")]
    tolerance_letters: u32,
    /// Refuse to run this plan if the amount has changed by more than this
    #[arg(long, default_value = "0", value_parser = dong, value_name = "ĐỒNG")]
    tolerance_amount: i64,
    /// Replay at most this many dead letters per second [default: dead_letters.rate]
    #[arg(long)]
    rate: Option<NonZeroU32>,
    /// Stop after this many dead letters that failed or had another result than planned
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    failures_max: u32,
    /// Stop after this many dead letters
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    letters_max: Option<u32>,
    /// Stop before more than this amount has moved
    #[arg(long, value_parser = dong, value_name = "ĐỒNG")]
    amount_max: Option<i64>,
    #[command(flatten)]
    yes: Yes,
    #[command(flatten)]
    json: Json,
}

#[derive(clap::Args)]
#[command(mut_arg("why", optional))]
#[command(after_help = "Exit codes: 0 approved; 1 refused; 2 usage error.")]
pub struct ApproveCommand {
    /// The plan's id
    plan: Uuid,
    #[command(flatten)]
    why: Option<Why>,
    #[command(flatten)]
    yes: Yes,
    #[command(flatten)]
    json: Json,
}

#[derive(clap::Args)]
pub struct ListPlansCommand {
    /// Show only this plan, with the results of its dead letters
    plan: Option<Uuid>,
    /// List at most this many
    #[arg(long, default_value_t = 20)]
    limit: u32,
    #[command(flatten)]
    json: Json,
}

/// `5000000`, `5.000.000` or `5.000.000 ₫`.
fn dong(text: &str) -> Result<i64, String> {
    let digits: String = text.trim_end_matches(['₫', 'đ']).trim().replace(['.', '_'], "");
    digits
        .parse()
        .ok()
        .filter(|amount| *amount >= 0)
        .ok_or_else(|| "must be an amount in đồng, for instance 5000000 or 5.000.000".to_owned())
}

pub async fn replay(
    command: ReplayCommand,
    settings: &Settings,
    actor: &Operator,
    stop: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    // With a worker's timeouts.
    let db = database::connect(&settings.database, Client::Worker).await?;
    let replays = Replays::new(settings);
    match command.run {
        Some(id) => run(&command, id, &db, &replays, settings, actor, stop).await,
        None => make(command, &db, &replays, actor).await,
    }
}

async fn make(command: ReplayCommand, db: &DatabaseConnection, replays: &Replays, actor: &Operator) -> anyhow::Result<ExitCode> {
    if command.filter.names_nothing() && !command.all {
        return Err(
            UsageError("select dead letters with --kind, --group, --id or another filter, or pass --all".to_owned()).into()
        );
    }
    let request = PlanRequest {
        filter: command.filter,
        why: command.why.map(|Why { why }| why).unwrap_or_default(),
        limit: command.limit,
        tolerance: Tolerance { letters: command.tolerance_letters, amount: command.tolerance_amount },
    };
    let bar = progress::bar("checked", 0)?;
    let plan = plan::make(db, replays, &request, actor, advance(&bar)).await;
    bar.finish_and_clear();
    show(db, &plan?, command.json.json).await?;
    Ok(ExitCode::SUCCESS)
}

async fn run(
    command: &ReplayCommand,
    id: Uuid,
    db: &DatabaseConnection,
    replays: &Replays,
    settings: &Settings,
    actor: &Operator,
    stop: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let plan = plan::find(db, id).await?;
    if plan.state != "done" && !plan.waits_for_approval() {
        let tallies = plan::tallies(db, id).await?;
        let left = || tallies.iter().filter(|tally| tally.result.is_none());
        let (letters, amount): (i64, i64) = (left().map(|left| left.letters).sum(), left().map(|left| left.amount).sum());
        let agreed = if amount > 0 {
            let (amount, all, customers) = (Dong(amount), Dong(plan.amount), plan.customers);
            let question = format!(
                "This takes {amount} from wallets for {letters} dead letters (the whole plan: {all} from {customers} customers)."
            );
            confirm::typed(&question, &amount.to_string(), command.yes.yes)?
        } else {
            confirm::confirmed(&format!("Replay {letters} dead letters? No money moves."), command.yes.yes)?
        };
        if !agreed {
            bail!("not confirmed; nothing is replayed");
        }
    }
    let rate = command.rate.unwrap_or(settings.dead_letters.rate);
    let limits = RunLimits { failures: Some(command.failures_max), letters: command.letters_max, amount: command.amount_max };
    let (checking, running) = (progress::bar("checked again", 0)?, progress::bar("replayed", 0)?);
    let run = Run { db, replays, actor, rate, limits, shutdown: stop };
    let ran = run
        .run(id, advance(&checking), |report: &RunReport| {
            checking.finish_and_clear();
            running.set_length(checking.length().unwrap_or_default());
            running.set_position(report.done().into());
            running.set_message(format!("replayed, {}", Dong(report.amount)));
        })
        .await;
    checking.finish_and_clear();
    running.finish_and_clear();
    let report = ran?;
    if command.json.json {
        say(&serde_json::to_string_pretty(&json!({ "plan": id, "run": report }))?);
    } else {
        say(&summary(&report));
        if report.stopped.is_some() {
            say(&format!("to continue: ops dead replay --run {id}"));
        }
    }
    let whole = report.stopped.is_none() && report.failed + report.changed == 0;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The result of a run, in words.
fn summary(report: &RunReport) -> String {
    let RunReport { applied, moot, failed, changed, left, amount, stopped } = report;
    let end = stopped.as_ref().map_or("done".to_owned(), |why| format!("stopped: {}", text(why)));
    format!(
        "{applied} replayed, {} moved; {moot} moot and closed; {failed} failed; {changed} skipped, because their result has changed; \
         {left} not part of the run\n{end}",
        Dong(*amount)
    )
}

pub async fn approve(command: ApproveCommand, db: &DatabaseConnection, actor: &Operator) -> anyhow::Result<ExitCode> {
    let plan = plan::find(db, command.plan).await?;
    if !command.json.json {
        show(db, &plan, false).await?;
    }
    let amount = Dong(plan.amount);
    if !confirm::typed("Approve this plan?", &amount.to_string(), command.yes.yes)? {
        bail!("not confirmed; the plan is not approved");
    }
    let plan = plan::approve(db, &plan, actor, command.why.as_ref().map(|Why { why }| why.as_str())).await?;
    let text = format!("approved by {}; to run it: ops dead replay --run {}", actor.name(), plan.id);
    answer(command.json.json, &json!({ "plan": plan }), &text)?;
    Ok(ExitCode::SUCCESS)
}

pub async fn plans(command: ListPlansCommand, db: &DatabaseConnection) -> anyhow::Result<ExitCode> {
    if let Some(id) = command.plan {
        show(db, &plan::find(db, id).await?, command.json.json).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let plans = plan::newest(db, command.limit).await?;
    if command.json.json {
        say(&serde_json::to_string_pretty(&plans)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = table(["id", "made at", "by", "state", "money", "customers", "approved by", "why"]);
    for plan in plans {
        table.add_row([
            plan.id.to_string(),
            moment(plan.made_at),
            text(&plan.made_by),
            plan.state.clone(),
            Dong(plan.amount).to_string(),
            plan.customers.to_string(),
            approval(&plan),
            text(&plan.why),
        ]);
    }
    say(&table.to_string());
    Ok(ExitCode::SUCCESS)
}

fn approval(plan: &ReplayPlan) -> String {
    let without = || if plan.needs_approval { "needed".to_owned() } else { "-".to_owned() };
    plan.approved_by.as_deref().map_or_else(without, text)
}

/// Prints a plan, with the planned and actual results of its dead letters.
async fn show(db: &DatabaseConnection, plan: &ReplayPlan, as_json: bool) -> anyhow::Result<()> {
    let tallies = plan::tallies(db, plan.id).await?;
    if as_json {
        say(&serde_json::to_string_pretty(&json!({ "plan": plan, "letters": tallies }))?);
        return Ok(());
    }
    let mut table = table(["would", "did", "letters", "money", "moved", "why"]);
    for tally in tallies {
        table.add_row([
            tally.verdict,
            tally.result.unwrap_or_else(|| "-".to_owned()),
            tally.letters.to_string(),
            Dong(tally.amount).to_string(),
            Dong(tally.moved).to_string(),
            text(&tally.why.unwrap_or_default()),
        ]);
    }
    let ReplayPlan { id, state, .. } = plan;
    let made_by = text(&plan.made_by);
    say(&format!("plan {id}, made by {made_by} at {}: {}\n{table}", moment(plan.made_at), text(&plan.why)));
    say(&format!("takes {} from the wallets of {} customers", Dong(plan.amount), plan.customers));
    let Tolerance { letters, amount } = plan.tolerance();
    say(&format!("a run is refused if more than {letters} results, or more than {}, have changed by then", Dong(amount)));
    match state.as_str() {
        "done" => {
            say(&format!("run by {}, finished at {}", text_or_dash(plan.run_by.as_deref()), moment_or_dash(plan.finished_at)));
        }
        _ if plan.waits_for_approval() => {
            say(&format!("an operator other than {made_by} must approve it: ops dead approve {id}"));
        }
        state => {
            let stopped = plan.stopped_why.as_ref().map_or(String::new(), |why| format!(", {}", text(why)));
            say(&format!("{state}{stopped}; to run it: ops dead replay --run {id}"));
        }
    }
    Ok(())
}

fn advance(bar: &ProgressBar) -> impl Fn(usize, usize) + '_ {
    |done, of| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_read_as_it_is_written() {
        assert_eq!(dong("5.000.000 ₫"), Ok(5_000_000));
        assert_eq!(dong("5000000"), Ok(5_000_000));
        assert!(dong("-1").is_err() && dong("5,5").is_err() && dong("").is_err());
    }
}

//! `ops dead`: the commands on dead letters, one or two per file.

use std::process::ExitCode;

use clap::{Arg, Subcommand};
use ops::actor::Operator;
use shared::{database::active_policy::Governed, settings::Settings};
use tokio_util::sync::CancellationToken;

use super::{UsageError, governed};

mod decide;
mod list;
mod replay;
mod show;

/// `--reason` selects dead letters, so it is not an alias of `--why` here.
fn without_alias(why: Arg) -> Arg {
    why.visible_alias(None)
}

fn optional(why: Arg) -> Arg {
    without_alias(why).required(false)
}

#[derive(Subcommand)]
pub enum DeadCommand {
    /// List dead letters, oldest failure first; or count them by cause and by the state of their rows
    List(list::ListLettersCommand),
    /// Explain one dead letter: its task, what failed, its row now, and what a replay would do
    Show(show::ShowLetterCommand),
    /// Discard dead letters for good, with a reason
    Discard(decide::DiscardCommand),
    /// Correct the kind or the subject of a dead letter
    Repair(decide::RepairCommand),
    /// Plan a replay of dead letters, or run a plan
    Replay(Box<replay::ReplayCommand>),
    /// Approve another operator's plan
    Approve(replay::ApproveCommand),
    /// List plans, newest first; or show one, with the results of its dead letters
    Plans(replay::ListPlansCommand),
}

pub async fn dead(
    command: DeadCommand,
    settings: &Settings,
    actor: Result<Operator, UsageError>,
    shutdown: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let Governed { db, settings } = governed(settings).await?;
    let settings = &settings;
    match command {
        DeadCommand::List(command) => list::list(command, &db, settings).await,
        DeadCommand::Show(command) => show::show(command, &db, settings).await,
        DeadCommand::Discard(command) => decide::discard(command, &db, &actor?).await,
        DeadCommand::Repair(command) => decide::repair(command, &db, &actor?).await,
        DeadCommand::Replay(command) => replay::replay(*command, settings, &actor?, shutdown).await,
        DeadCommand::Approve(command) => replay::approve(command, &db, &actor?).await,
        DeadCommand::Plans(command) => replay::plans(command, &db).await,
    }
}

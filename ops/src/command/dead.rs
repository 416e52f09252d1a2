//! `ops dead`: letters listed, explained, discarded and repaired, a file a command or two.

use std::process::ExitCode;

use clap::{Arg, Subcommand};
use ops::actor::Actor;
use shared::{database::active_policy::Governed, settings::Settings};
use tokio_util::sync::CancellationToken;

use super::{WrongUse, governed};

mod decide;
mod list;
mod replay;
mod show;

/// `--reason` selects letters, so it is not an alias of `--why` here.
fn without_alias(why: Arg) -> Arg {
    why.visible_alias(None)
}

fn optional(why: Arg) -> Arg {
    without_alias(why).required(false)
}

#[derive(Subcommand)]
pub enum Dead {
    /// List letters, those first that failed first; or count them by cause and by how their rows stand now
    List(list::List),
    /// Explain one letter: what it was to do, what went wrong, and what its row looks like now
    Show(show::Show),
    /// Give letters up for good, with a reason
    Discard(decide::Discard),
    /// Put right what a letter says it was to do: a wrong subject, a kind that was renamed
    Repair(decide::Repair),
    /// Plan what a replay of letters would do; run such a plan
    Replay(Box<replay::Replay>),
    /// Approve somebody else's plan
    Approve(replay::Approve),
    /// Plans, the newest first; or one of them, with what became of its letters
    Plans(replay::Plans),
}

pub async fn dead(
    command: Dead,
    settings: &Settings,
    actor: Result<Actor, WrongUse>,
    shutdown: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let Governed { db, settings } = governed(settings).await?;
    let settings = &settings;
    match command {
        Dead::List(command) => list::list(command, &db, settings).await,
        Dead::Show(command) => show::show(command, &db, settings).await,
        Dead::Discard(command) => decide::discard(command, &db, &actor?).await,
        Dead::Repair(command) => decide::repair(command, &db, &actor?).await,
        Dead::Replay(command) => replay::replay(*command, settings, &actor?, shutdown).await,
        Dead::Approve(command) => replay::approve(command, &db, &actor?).await,
        Dead::Plans(command) => replay::plans(command, &db).await,
    }
}

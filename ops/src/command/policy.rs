//! `ops policy`: the policy in force, what another one would do, and putting it in force. A file a command.

use std::{num::NonZeroU32, path::Path, process::ExitCode, time::Duration};

use clap::Subcommand;
use indicatif::HumanDuration;
use ops::{actor::Actor, preview::Change, rollout};
use shared::{
    domain::{money::Dong, policy},
    settings::Settings,
};
use tokio_util::sync::CancellationToken;

use super::WrongUse;

mod apply;
mod preview;
mod show;

#[derive(Subcommand)]
pub enum Policy {
    /// Show the policy that is in force, as a kyhan.toml
    Show(show::Show),
    /// Say what another policy would do to the rows as they are now, and change nothing
    Preview(preview::Preview),
    /// Put another policy in force across the fleet; what it makes due at once is released little by little
    Apply(apply::Apply),
}

/// How many of a kind are released a second, unless it is said.
const RATE: NonZeroU32 = NonZeroU32::new(20).unwrap();

pub async fn policy(
    command: Policy,
    settings: &Settings,
    actor: Result<Actor, WrongUse>,
    stop: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    match command {
        Policy::Show(command) => show::show(command, settings).await,
        Policy::Preview(command) => preview::preview(command, settings).await,
        Policy::Apply(command) => apply::apply(command, settings, &actor?, stop).await,
    }
}

/// The policy of a file.
fn policy_of(file: &Path) -> Result<policy::Policy, WrongUse> {
    Settings::policy_of(file).map_err(|mistakes| WrongUse(format!("{}: {mistakes}", file.display())))
}

/// What falls due at once, and over how long it is released.
fn at_once(kind: &Change, rate: NonZeroU32) -> String {
    let money = kind.at_once_amount.map_or(String::new(), |amount| format!(" and are short of {}", Dong(amount)));
    let over = HumanDuration(Duration::from_millis(rollout::over_ms(kind.at_once, rate)));
    format!("{}: {} rows fall due at once{money}; at {rate} a second they are released over {over}", kind.kind, kind.at_once)
}

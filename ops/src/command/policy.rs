//! `ops policy`: show the active policy, preview another one, apply it. One file per command.

use std::{num::NonZeroU32, path::Path, process::ExitCode, time::Duration};

use clap::Subcommand;
use indicatif::HumanDuration;
use ops::{actor::Operator, preview::KindChange, rollout};
use shared::{
    domain::{money::Dong, policy},
    settings::Settings,
};
use tokio_util::sync::CancellationToken;

use super::UsageError;

mod apply;
mod approve;
mod preview;
mod show;

#[derive(Subcommand)]
pub enum PolicyCommand {
    /// Show the active policy, as a kyhan.toml
    Show(show::ShowPolicyCommand),
    /// Show what another policy would do to the current rows; changes nothing
    Preview(preview::PreviewPolicyCommand),
    /// Make another policy the active one of the whole fleet; rows that become due at once are released gradually
    Apply(apply::ApplyPolicyCommand),
    /// Apply a policy that another operator has proposed
    Approve(approve::ApprovePolicy),
    /// List the proposals that wait for a second operator
    Proposals(approve::Proposals),
}

/// The default of `--rate`: how many rows of a kind are released per second.
const RATE: NonZeroU32 = NonZeroU32::new(20).unwrap();

pub async fn policy(
    command: PolicyCommand,
    settings: &Settings,
    actor: Result<Operator, UsageError>,
    stop: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    match command {
        PolicyCommand::Show(command) => show::show(command, settings).await,
        PolicyCommand::Preview(command) => preview::preview(command, settings).await,
        PolicyCommand::Apply(command) => apply::apply(command, settings, &actor?, stop).await,
        PolicyCommand::Approve(command) => approve::approve(command, settings, &actor?, stop).await,
        PolicyCommand::Proposals(command) => approve::proposals(command, settings).await,
    }
}

/// The policy of a file.
fn policy_of(file: &Path) -> Result<policy::Policy, UsageError> {
    Settings::policy_of(file).map_err(|mistakes| UsageError(format!("{}: {mistakes}", file.display())))
}

/// How many rows fall due at once, and how long their release takes.
fn at_once(kind: &KindChange, rate: NonZeroU32) -> String {
    let money = kind.at_once_amount.map_or(String::new(), |amount| format!(" and are short of {}", Dong(amount)));
    let over = HumanDuration(Duration::from_millis(rollout::over_ms(kind.at_once, rate)));
    format!("{}: {} rows fall due at once{money}; at {rate} per second their release takes {over}", kind.kind, kind.at_once)
}

//! `ops`: the operators' command line.

// What is printed passes through `shared::process::cli`, which makes invisible characters visible.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use ops::actor::Operator;
use shared::{
    process::cli::{self, Common},
    settings::Settings,
};
use tokio_util::sync::CancellationToken;

mod command;

use command::{
    UsageError, activity, audit, completions, customer, dead, explain, forecast, pause, policy, rebuild, retention, roles,
    schema, set_aside, status, topology,
};

/// The exit code for a usage error; clap uses the same.
const EXIT_USAGE: u8 = 2;

/// Operate a Kỳ Hạn fleet
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 success; 1 failure, or a check found a fault; 2 usage error or invalid settings. A command with other \
                  exit codes lists them in its own help."
)]
struct OpsArguments {
    #[command(flatten)]
    common: Common,
    /// Your name, recorded in activity [default: the operating system's user]
    #[arg(long = "as", global = true, value_name = "NAME")]
    operator: Option<String>,
    #[command(subcommand)]
    command: Option<OpsCommand>,
}

#[derive(Subcommand)]
enum OpsCommand {
    /// Apply, take back or list the migrations of the database's schema
    #[command(subcommand)]
    Migrate(schema::MigrateCommand),
    /// Install the PostgreSQL roles, each with only the privileges it needs
    #[command(subcommand)]
    Roles(roles::RolesCommand),
    /// Install or remove the optional triggers that turn changes of orders and cart_items, and refunds, into events
    #[command(subcommand)]
    Triggers(schema::TriggersCommand),
    /// Show, declare or prune RabbitMQ's exchanges and queues
    #[command(subcommand)]
    Topology(topology::TopologyCommand),
    /// Show the state of the fleet on one screen, and what is wrong
    Status(status::StatusCommand),
    /// Stop applying a kind of task across the fleet, until it is resumed
    Pause(pause::PauseCommand),
    /// Resume a paused kind
    Resume(pause::ResumeCommand),
    /// Publish every pending wake-up again from the rows, for instance after the broker lost its disk
    Rebuild(rebuild::RebuildCommand),
    /// Compare rows, ledger and broker, and report what does not match
    Audit(audit::AuditCommand),
    /// Show one order or cart item: its history, what falls due next, and where its wake-up waits
    Explain(explain::ExplainCommand),
    /// Show how many rows fall due on each coming day, and the money at stake
    Forecast(forecast::ForecastCommand),
    /// Show the active policy, preview another one, or apply it
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Hold orders as they are, and make hidden orders visible
    #[command(subcommand)]
    Retention(retention::RetentionCommand),
    /// Verify the sealed records of activity
    #[command(subcommand)]
    Activity(activity::ActivityCommand),
    /// Show a customer masked, export all data held about them, or erase them
    #[command(subcommand)]
    Customer(customer::CustomerCommand),
    /// List, explain, replay, repair or discard dead letters
    #[command(subcommand)]
    Dead(Box<dead::DeadCommand>),
    /// List, retry or discard events that the relay could not schedule
    #[command(subcommand)]
    SetAside(set_aside::SetAsideCommand),
    /// Print a shell completion script
    Completions(completions::CompletionsCommand),
}

#[tokio::main]
async fn main() -> ExitCode {
    let OpsArguments { common, operator, command } = OpsArguments::parse();
    if command.is_none() && !common.print_config {
        OpsArguments::command().error(clap::error::ErrorKind::MissingSubcommand, "a subcommand is required; see --help").exit();
    }
    // Before the settings are read: a shell runs this in any directory.
    if let Some(OpsCommand::Completions(command)) = command {
        return completions::completions(command, OpsArguments::command());
    }
    cli::run("ops", &common, async |settings, shutdown| match command {
        None => Ok(ExitCode::SUCCESS),
        Some(command) => match run(command, settings, operator.as_deref(), shutdown).await {
            Err(error) if error.is::<UsageError>() => {
                cli::remark(&format!("ops: {error:#}"));
                Ok(ExitCode::from(EXIT_USAGE))
            }
            done => done,
        },
    })
    .await
}

async fn run(
    command: OpsCommand,
    settings: &Settings,
    operator: Option<&str>,
    shutdown: CancellationToken,
) -> anyhow::Result<ExitCode> {
    // An error only for commands that need a name.
    let actor = Operator::new(operator).map_err(|error| UsageError(error.to_string()));
    let done = match command {
        OpsCommand::Status(command) => return status::status(command, settings, &shutdown).await,
        OpsCommand::Pause(command) => return pause::pause(command, &actor?, settings, &shutdown).await,
        OpsCommand::Resume(command) => pause::resume(command, &actor?, settings).await,
        OpsCommand::Explain(command) => return explain::explain(command, settings).await,
        OpsCommand::Forecast(command) => forecast::forecast(command, settings).await,
        OpsCommand::Policy(command) => return policy::policy(command, settings, actor, &shutdown).await,
        OpsCommand::Completions(_) => Ok(()),
        OpsCommand::Migrate(command) => schema::migrate(command, settings, &or_unknown(actor)).await,
        OpsCommand::Roles(command) => roles::roles(command, settings, &or_unknown(actor)).await,
        OpsCommand::Retention(command) => retention::retention(command, settings, actor).await,
        OpsCommand::Activity(command) => return activity::activity(command, settings).await,
        OpsCommand::Customer(command) => customer::customer(command, settings, actor).await,
        OpsCommand::Triggers(command) => schema::triggers(command, settings, &or_unknown(actor)).await,
        OpsCommand::Topology(command) => topology::topology(command, settings, &or_unknown(actor)).await,
        OpsCommand::Rebuild(command) => rebuild::rebuild(command, settings, &or_unknown(actor), &shutdown).await,
        OpsCommand::Audit(command) => return audit::audit(command, actor, settings, &shutdown).await,
        OpsCommand::Dead(command) => return dead::dead(*command, settings, actor, &shutdown).await,
        OpsCommand::SetAside(command) => set_aside::aside(command, settings, actor).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// For the commands of an automatic deployment: they run without a name, too, and record `unknown`.
fn or_unknown(actor: Result<Operator, UsageError>) -> Operator {
    actor.unwrap_or_else(|_| Operator::unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_of_each_command_have_different_names() {
        OpsArguments::command().debug_assert();
    }

    /// Walks the whole command line, so it covers commands that are added later.
    #[test]
    fn every_why_is_one_line_of_1_to_500_characters() {
        fn reasons(command: &clap::Command, path: &str, found: &mut Vec<String>) {
            for argument in command.get_arguments().filter(|argument| argument.get_id() == "why") {
                assert_eq!(argument.get_long(), Some("why"), "{path}");
                let refused = |why: &str| {
                    let words = path.split(' ').chain(["--why", why]);
                    let parsed = OpsArguments::command().try_get_matches_from(words);
                    parsed.is_err_and(|error| error.kind() == clap::error::ErrorKind::ValueValidation)
                };
                for wrong in ["", "  ", "two\nlines", &"x".repeat(501)] {
                    assert!(refused(wrong), "{path} --why {wrong:?}");
                }
                assert!(!refused("a reason"), "{path}");
                found.push(path.to_owned());
            }
            for sub in command.get_subcommands() {
                reasons(sub, &format!("{path} {}", sub.get_name()), found);
            }
        }
        let mut found = Vec::new();
        reasons(&OpsArguments::command(), "ops", &mut found);
        assert!(found.len() >= 11 && found.iter().any(|path| path == "ops dead replay"), "{found:?}");
    }
}

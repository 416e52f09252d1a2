//! `ops`: the operators' command line.

// What is printed passes through `shared::process::cli`, which makes invisible characters visible.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use ops::actor::Actor;
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
struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Your name, recorded in activity [default: the operating system's user]
    #[arg(long = "as", global = true, value_name = "NAME")]
    operator: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Apply, take back or list the migrations of the database's schema
    #[command(subcommand)]
    Migrate(schema::Migrate),
    /// Install the PostgreSQL roles, each with only the privileges it needs
    #[command(subcommand)]
    Roles(roles::Roles),
    /// Install or remove the optional triggers that turn changes of orders and cart_items, and refunds, into events
    #[command(subcommand)]
    Triggers(schema::Triggers),
    /// Show, declare or prune RabbitMQ's exchanges and queues
    #[command(subcommand)]
    Topology(topology::Topology),
    /// Show the state of the fleet on one screen, and what is wrong
    Status(status::Status),
    /// Stop applying a kind of task across the fleet, until it is resumed
    Pause(pause::Pause),
    /// Resume a paused kind
    Resume(pause::Resume),
    /// Publish every pending wake-up again from the rows, for instance after the broker lost its disk
    Rebuild(rebuild::Rebuild),
    /// Compare rows, ledger and broker, and report what does not match
    Audit(audit::Audit),
    /// Show one order or cart item: its history, what falls due next, and where its wake-up waits
    Explain(explain::Explain),
    /// Show how many rows fall due on each coming day, and the money at stake
    Forecast(forecast::Forecast),
    /// Show the active policy, preview another one, or apply it
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Hold orders as they are, and make hidden orders visible
    #[command(subcommand)]
    Retention(retention::Retention),
    /// Verify the sealed records of activity
    #[command(subcommand)]
    Activity(activity::Activity),
    /// Show a customer masked, export all data held about them, or erase them
    #[command(subcommand)]
    Customer(customer::Customer),
    /// List, explain, replay, repair or discard dead letters
    #[command(subcommand)]
    Dead(Box<dead::Dead>),
    /// List, retry or discard events that the relay could not schedule
    #[command(subcommand)]
    SetAside(set_aside::SetAside),
    /// Print a shell completion script
    Completions(completions::Completions),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { common, operator, command } = Arguments::parse();
    if command.is_none() && !common.print_config {
        Arguments::command().error(clap::error::ErrorKind::MissingSubcommand, "a subcommand is required; see --help").exit();
    }
    // Before the settings are read: a shell runs this in any directory.
    if let Some(Command::Completions(command)) = command {
        return completions::completions(command, Arguments::command());
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
    command: Command,
    settings: &Settings,
    operator: Option<&str>,
    shutdown: CancellationToken,
) -> anyhow::Result<ExitCode> {
    // An error only for commands that need a name.
    let actor = Actor::new(operator).map_err(|error| UsageError(error.to_string()));
    let done = match command {
        Command::Status(command) => return status::status(command, settings, &shutdown).await,
        Command::Pause(command) => return pause::pause(command, &actor?, settings, &shutdown).await,
        Command::Resume(command) => pause::resume(command, &actor?, settings).await,
        Command::Explain(command) => return explain::explain(command, settings).await,
        Command::Forecast(command) => forecast::forecast(command, settings).await,
        Command::Policy(command) => return policy::policy(command, settings, actor, &shutdown).await,
        Command::Completions(_) => Ok(()),
        Command::Migrate(command) => schema::migrate(command, settings, &or_unknown(actor)).await,
        Command::Roles(command) => roles::roles(command, settings, &or_unknown(actor)).await,
        Command::Retention(command) => retention::retention(command, settings, actor).await,
        Command::Activity(command) => return activity::activity(command, settings).await,
        Command::Customer(command) => customer::customer(command, settings, actor).await,
        Command::Triggers(command) => schema::triggers(command, settings, &or_unknown(actor)).await,
        Command::Topology(command) => topology::topology(command, settings, &or_unknown(actor)).await,
        Command::Rebuild(command) => rebuild::rebuild(command, settings, &or_unknown(actor), &shutdown).await,
        Command::Audit(command) => return audit::audit(command, actor, settings, &shutdown).await,
        Command::Dead(command) => return dead::dead(*command, settings, actor, &shutdown).await,
        Command::SetAside(command) => set_aside::aside(command, settings, actor).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// For the commands of an automatic deployment: they run without a name, too, and record `unknown`.
fn or_unknown(actor: Result<Actor, UsageError>) -> Actor {
    actor.unwrap_or_else(|_| Actor::unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_of_each_command_have_different_names() {
        Arguments::command().debug_assert();
    }

    /// Walks the whole command line, so it covers commands that are added later.
    #[test]
    fn every_why_is_one_line_of_1_to_500_characters() {
        fn reasons(command: &clap::Command, path: &str, found: &mut Vec<String>) {
            for argument in command.get_arguments().filter(|argument| argument.get_id() == "why") {
                assert_eq!(argument.get_long(), Some("why"), "{path}");
                let refused = |why: &str| {
                    let words = path.split(' ').chain(["--why", why]);
                    let parsed = Arguments::command().try_get_matches_from(words);
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
        reasons(&Arguments::command(), "ops", &mut found);
        assert!(found.len() >= 11 && found.iter().any(|path| path == "ops dead replay"), "{found:?}");
    }
}

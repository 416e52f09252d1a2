//! `ops`: the operators' command line.

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
    WrongUse, activity, audit, completions, customer, dead, explain, forecast, pause, policy, rebuild, retention, roles, schema,
    set_aside, status, topology,
};

/// The exit code for wrong use; clap's own.
const EXIT_USAGE: u8 = 2;

/// Kỳ Hạn's operators' door
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done, 1 failed, or an audit found something off, 2 arguments or settings that cannot hold. \
                  Those of `ops status` are in its own help."
)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Who you are, for the record [default: the operating system's user]
    #[arg(long = "as", global = true, value_name = "NAME")]
    whom: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// The database's schema
    #[command(subcommand)]
    Migrate(schema::Migrate),
    /// The roles of PostgreSQL, each with the least rights
    #[command(subcommand)]
    Roles(roles::Roles),
    /// The optional triggers that turn changes of orders and cart_items, and refunds, into events
    #[command(subcommand)]
    Triggers(schema::Triggers),
    /// RabbitMQ's exchanges and queues
    #[command(subcommand)]
    Topology(topology::Topology),
    /// Lanes, rungs and their head ages, the outbox, on one screen
    Status(status::Status),
    /// Let nothing of a kind be applied any more, across the fleet, until it is resumed
    Pause(pause::Pause),
    /// Let a kind that was paused be applied again
    Resume(pause::Resume),
    /// Make every pending wake-up again from the rows, as after a broker was lost with its disk
    Rebuild(rebuild::Rebuild),
    /// Compare rows, ledger and broker, and say what is off
    Audit(audit::Audit),
    /// Everything on record about one order or cart item, what falls due next, and where its wake-up waits
    Explain(explain::Explain),
    /// How many fall due on each coming day, and how much money with them
    Forecast(forecast::Forecast),
    /// The policy: which one is in force, what another one would do, and putting it in force
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Orders that are kept as they are, and hidden ones put back on line
    #[command(subcommand)]
    Retention(retention::Retention),
    /// The sealed record of what was done
    #[command(subcommand)]
    Activity(activity::Activity),
    /// One customer: as staff may know them, all that is held about them, their erasure
    #[command(subcommand)]
    Customer(customer::Customer),
    /// Dead letters: what failed for good, or could not be understood
    #[command(subcommand)]
    Dead(Box<dead::Dead>),
    /// Events that made no sense to the relay
    #[command(subcommand)]
    SetAside(set_aside::SetAside),
    /// Print what lets a shell complete these commands
    Completions(completions::Completions),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { common, whom, command } = Arguments::parse();
    if command.is_none() && !common.print_config {
        Arguments::command().error(clap::error::ErrorKind::MissingSubcommand, "say what to do; see --help").exit();
    }
    // Before any settings are read: a shell asks for it wherever it starts.
    if let Some(Command::Completions(command)) = command {
        return completions::completions(command, Arguments::command());
    }
    cli::run("ops", &common, async |settings, shutdown| match command {
        None => Ok(ExitCode::SUCCESS),
        Some(command) => match run(command, settings, whom.as_deref(), shutdown).await {
            Err(error) if error.is::<WrongUse>() => {
                eprintln!("ops: {error:#}");
                Ok(ExitCode::from(EXIT_USAGE))
            }
            done => done,
        },
    })
    .await
}

async fn run(command: Command, settings: &Settings, whom: Option<&str>, shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
    // Only a command that changes something needs to know.
    let actor = Actor::new(whom).map_err(|nobody| WrongUse(nobody.to_string()));
    let done = match command {
        Command::Status(command) => return status::status(command, settings, &shutdown).await,
        Command::Pause(command) => return pause::pause(command, &actor?, settings, &shutdown).await,
        Command::Resume(command) => pause::resume(command, &actor?, settings).await,
        Command::Explain(command) => return explain::explain(command, settings).await,
        Command::Forecast(command) => forecast::forecast(command, settings).await,
        Command::Policy(command) => return policy::policy(command, settings, actor, &shutdown).await,
        Command::Completions(_) => Ok(()),
        Command::Migrate(command) => schema::migrate(command, settings, &anybody(actor)).await,
        Command::Roles(command) => roles::roles(command, settings, &anybody(actor)).await,
        Command::Retention(command) => retention::retention(command, settings, actor).await,
        Command::Activity(command) => return activity::activity(command, settings).await,
        Command::Customer(command) => customer::customer(command, settings, actor).await,
        Command::Triggers(command) => schema::triggers(command, settings, &anybody(actor)).await,
        Command::Topology(command) => topology::topology(command, settings, &anybody(actor)).await,
        Command::Rebuild(command) => rebuild::rebuild(command, settings, &anybody(actor), &shutdown).await,
        Command::Audit(command) => return audit::audit(command, actor, settings, &shutdown).await,
        Command::Dead(command) => return dead::dead(*command, settings, actor, &shutdown).await,
        Command::SetAside(command) => set_aside::aside(command, settings, actor).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// What a deployment does by itself is done whoever it is, and recorded of a nameless user, too.
fn anybody(actor: Result<Actor, WrongUse>) -> Actor {
    actor.unwrap_or_else(|_| Actor::unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_options_of_a_command_have_one_name() {
        Arguments::command().debug_assert();
    }

    /// Every `--why` of the whole command line, also of commands that are added later.
    #[test]
    fn a_reason_has_something_in_it_and_is_one_line_wherever_one_is_given() {
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

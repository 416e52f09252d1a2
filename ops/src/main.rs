//! `ops`: the operators' command line.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use ops::actor::Actor;
use shared::{
    cli::{self, Common},
    settings::Settings,
};
use tokio_util::sync::CancellationToken;

mod command;

use command::{audit, dead, pause, rebuild, schema, set_aside, status, topology};

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
    /// Dead letters: what failed for good, or could not be understood
    #[command(subcommand)]
    Dead(dead::Dead),
    /// Events that made no sense to the relay
    #[command(subcommand)]
    SetAside(set_aside::SetAside),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { common, whom, command } = Arguments::parse();
    if command.is_none() && !common.print_config {
        Arguments::command().error(clap::error::ErrorKind::MissingSubcommand, "say what to do; see --help").exit();
    }
    cli::run("ops", &common, async |settings, shutdown| match command {
        None => Ok(ExitCode::SUCCESS),
        Some(command) => run(command, whom.as_deref(), settings, shutdown).await,
    })
    .await
}

async fn run(command: Command, whom: Option<&str>, settings: &Settings, shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
    let actor = || Actor::new(whom);
    let done = match command {
        Command::Status(command) => return status::status(command, settings, &shutdown).await,
        Command::Pause(command) => return pause::pause(command, &actor()?, settings, &shutdown).await,
        Command::Resume(command) => pause::resume(command, &actor()?, settings).await,
        Command::Migrate(command) => schema::migrate(command, settings).await,
        Command::Triggers(command) => schema::triggers(command, settings).await,
        Command::Topology(command) => topology::topology(command, settings).await,
        Command::Rebuild(command) => rebuild::rebuild(command, settings, &shutdown).await,
        Command::Audit(command) => return audit::audit(command, actor(), settings, &shutdown).await,
        Command::Dead(command) => dead::dead(command, settings, shutdown).await,
        Command::SetAside(command) => set_aside::aside(command, settings).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}

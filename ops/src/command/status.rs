//! `ops status`: the state of the fleet on one screen, once or repeatedly.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use console::Term;
use ops::{
    OpsError,
    status::{self, StatusWatch},
};
use sea_orm::{DatabaseConnection, DbErr};
use serde_json::json;
use shared::{
    broker::{Broker, BrokerError},
    database::{DatabaseError, failure::trouble},
    process::{cli::remark, redact::redacted, visible::visible},
    settings::Settings,
};
use tokio_util::sync::CancellationToken;

use super::{options::Json, with_schema};

mod screen;

/// The exit code if a server is away, so that the state of the fleet is unknown.
const EXIT_AWAY: u8 = 3;
/// The time limit of one look. After it, a server that has not answered counts as away.
const LOOK_WITHIN: Duration = Duration::from_secs(60);
/// Between the two looks of one status.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
#[command(after_help = "\
The command looks twice, one second apart, to compute rates: how many messages per second a queue gains (+) or loses (-), and how many \
effects per second are recorded. With --watch it repeats until Ctrl-C. On a terminal it redraws the screen; otherwise it prints one block \
after the other, and with --json one document per line.

It reports as wrong
  - a missing queue, or a lane that no worker consumes;
  - events that wait in the outbox for more than a minute, and events that are set aside;
  - a stalled rung, and rows that are due but not applied within the sweep's grace;
  - open dead letters, and wake-ups of an applied policy that were not published;
  - a fault that the last recorded audit found.
A paused kind, and what waits because of it, is shown but not wrong.

Exit codes, for monitoring (with --watch, of the last look): 0 nothing is wrong; 1 something is wrong; 2 usage error; 3 a server is away, \
so the state is unknown.

Examples:
  ops status
  ops status --watch
  ops status --json | jq -r '.troubles[]'
  ops status --json --watch 10 >> status.jsonl")]
pub struct StatusCommand {
    #[command(flatten)]
    pub json: Json,
    /// Repeat after this many seconds [default: 2]
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub watch: Option<u64>,
}

/// Why there is no status.
enum Unseen {
    Away(anyhow::Error),
    Failed(anyhow::Error),
}

pub async fn status(command: StatusCommand, settings: &Settings, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
    let StatusCommand { json: Json { json }, watch: every } = command;
    let (mut servers, mut watch) = (None, StatusWatch::default());
    let Some(every) = every.map(Duration::from_secs) else {
        return match Box::pin(twice(&mut servers, &mut watch, settings)).await {
            Ok(status) => {
                let text = if json { serde_json::to_string_pretty(&status)? } else { screen::of(&status) };
                close(servers).await;
                let _ = line(&if json { visible(&text).into_owned() } else { screen::coloured(&text) });
                Ok(code(&status))
            }
            Err(Unseen::Failed(error)) => Err(error),
            Err(Unseen::Away(error)) => {
                remark(&format!("ops: {}", redacted(&*error)));
                Ok(ExitCode::from(EXIT_AWAY))
            }
        };
    };
    let mut last = ExitCode::SUCCESS;
    while let Some(looked) = stop.run_until_cancelled(Box::pin(look(&mut servers, &mut watch, settings))).await {
        let text;
        (text, last) = match looked {
            Ok(status) if json => (serde_json::to_string(&status)?, code(&status)),
            Ok(status) => (screen::of(&status), code(&status)),
            Err(Unseen::Failed(error)) => return Err(error),
            Err(Unseen::Away(error)) => {
                // The next look connects anew.
                close(servers.take()).await;
                let text = if json { json!({ "away": redacted(&*error) }).to_string() } else { screen::away(&error) };
                (text, ExitCode::from(EXIT_AWAY))
            }
        };
        let drawn = if json { line(&visible(&text)) } else { draw(&screen::coloured(&text)) };
        // A closed pipe ends the command.
        if drawn.is_err() || stop.run_until_cancelled(tokio::time::sleep(every)).await.is_none() {
            break;
        }
    }
    close(servers).await;
    Ok(last)
}

type Connections = Option<(DatabaseConnection, Broker)>;

async fn look(servers: &mut Connections, watch: &mut StatusWatch, settings: &Settings) -> Result<status::Status, Unseen> {
    let looked = async {
        let (db, broker) = match servers {
            Some(servers) => servers,
            None => servers.insert((
                with_schema(settings).await.map_err(unseen)?,
                Broker::connect(&settings.amqp, "kyhan ops").await.map_err(|error| unseen(error.into()))?,
            )),
        };
        watch.look(db, broker, settings).await.map_err(|error| unseen(error.into()))
    };
    let looked = tokio::time::timeout(LOOK_WITHIN, looked).await;
    looked.unwrap_or_else(|_| Err(Unseen::Away(anyhow::anyhow!("a server did not answer within {LOOK_WITHIN:?}"))))
}

/// Looks twice, because rates need two looks.
async fn twice(servers: &mut Connections, watch: &mut StatusWatch, settings: &Settings) -> Result<status::Status, Unseen> {
    look(servers, watch, settings).await?;
    tokio::time::sleep(BETWEEN_LOOKS).await;
    look(servers, watch, settings).await
}

/// Whether the error means that a server is away, or another failure.
fn unseen(error: anyhow::Error) -> Unseen {
    let outage = |error: &DbErr| trouble(error).is_outage();
    let away = error.chain().any(|cause| {
        cause.is::<BrokerError>()
            || matches!(cause.downcast_ref(), Some(DatabaseError::Connect { .. }))
            || matches!(cause.downcast_ref(), Some(OpsError::Broker(_)))
            || matches!(cause.downcast_ref(), Some(OpsError::Database(error)) if outage(error))
    });
    if away { Unseen::Away(error) } else { Unseen::Failed(error) }
}

fn code(status: &status::Status) -> ExitCode {
    if status.troubles.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn close(servers: Connections) {
    if let Some((_, broker)) = servers {
        broker.close().await;
    }
}

fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{text}").and_then(|()| out.flush())
}

/// Redraws a terminal with as many lines as fit; otherwise prints a block and an empty line.
fn draw(text: &str) -> io::Result<()> {
    if !io::stdout().is_terminal() {
        return line(&format!("{text}\n"));
    }
    let term = Term::buffered_stdout();
    let room = usize::from(term.size().0.max(2)) - 1;
    term.clear_screen()?;
    for shown in screen::cut(text, room) {
        term.write_line(&shown)?;
    }
    term.flush()
}

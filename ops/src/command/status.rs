//! `ops status`: the fleet on one screen, once or again and again.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use console::Term;
use ops::{
    OpsError,
    status::{self, Watch},
};
use sea_orm::{DatabaseConnection, DbErr};
use serde_json::json;
use shared::{
    broker::{Broker, BrokerError},
    database::{DatabaseError, failure::trouble},
    process::cli::say,
    settings::Settings,
};
use tokio_util::sync::CancellationToken;

use super::{options::Json, with_schema};

mod screen;

/// The exit code for a server that is away: how the fleet is cannot be told.
const EXIT_AWAY: u8 = 3;
/// How long one look may take; then a server is away that says nothing.
const LOOK_WITHIN: Duration = Duration::from_secs(60);
/// Between the two looks of one status.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
#[command(after_help = "\
It looks twice, a second apart, as only two looks tell rates: by how many messages a second a queue grows (+) or drains (-), and how many \
effects a second are recorded. With --watch it looks again and again until Ctrl-C: on a terminal the screen is drawn anew, else one block \
follows the other, with --json one document a line.

Something is wrong when a queue is missing, when no worker consumes a lane, when events wait in the outbox for over a minute or are set \
aside, when a rung does not move, when something due is not applied within the sweep's grace, while dead letters are open, when the \
wake-ups of an applied policy are not scheduled, and when the last recorded audit found a fault. \
A paused kind is shown; neither the pause nor what waits for it is wrong.

Exit codes, for monitoring; with --watch that of the last look: 0 nothing is wrong, 1 something is, 2 wrong use, 3 a server is away, so \
that nothing can be told.

Examples:
  ops status
  ops status --watch
  ops status --json | jq -r '.troubles[]'
  ops status --json --watch 10 >> status.jsonl")]
pub struct Status {
    #[command(flatten)]
    pub json: Json,
    /// Look again every so many seconds [default: 2]
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub watch: Option<u64>,
}

/// Why nothing can be told.
enum Unseen {
    Away(anyhow::Error),
    Failed(anyhow::Error),
}

pub async fn status(command: Status, settings: &Settings, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
    let Status { json: Json { json }, watch: every } = command;
    let (mut servers, mut watch) = (None, Watch::default());
    let Some(every) = every.map(Duration::from_secs) else {
        return match Box::pin(twice(&mut servers, &mut watch, settings)).await {
            Ok(status) => {
                let text = if json { serde_json::to_string_pretty(&status)? } else { screen::of(&status) };
                close(servers).await;
                say(&text);
                Ok(code(&status))
            }
            Err(Unseen::Failed(error)) => Err(error),
            Err(Unseen::Away(error)) => {
                eprintln!("ops: {error:#}");
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
                let text = if json { json!({ "away": format!("{error:#}") }).to_string() } else { screen::away(&error) };
                (text, ExitCode::from(EXIT_AWAY))
            }
        };
        let drawn = if json { line(&text) } else { draw(&text) };
        // A reader that has gone wants no more.
        if drawn.is_err() || stop.run_until_cancelled(tokio::time::sleep(every)).await.is_none() {
            break;
        }
    }
    close(servers).await;
    Ok(last)
}

type Servers = Option<(DatabaseConnection, Broker)>;

async fn look(servers: &mut Servers, watch: &mut Watch, settings: &Settings) -> Result<status::Status, Unseen> {
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

/// Looks, and once more: only two looks tell rates.
async fn twice(servers: &mut Servers, watch: &mut Watch, settings: &Settings) -> Result<status::Status, Unseen> {
    look(servers, watch, settings).await?;
    tokio::time::sleep(BETWEEN_LOOKS).await;
    look(servers, watch, settings).await
}

/// Whether a server is away, or something else has failed.
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

async fn close(servers: Servers) {
    if let Some((_, broker)) = servers {
        broker.close().await;
    }
}

fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{text}").and_then(|()| out.flush())
}

/// On a terminal in place of what was there, as much as has room; else a block and an empty line.
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

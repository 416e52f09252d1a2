//! How every binary starts: its settings, or every mistake in them; its telemetry; its shutdown; an admin port where it stays.

use std::{error::Error, io::Write, os::unix::process::CommandExt as _, path::PathBuf, process::ExitCode};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    process::{
        admin::AdminPort,
        health::Health,
        lifecycle::shutdown_on_signals,
        redact::told,
        telemetry::{Telemetry, TelemetryError},
    },
    settings::{Settings, SettingsError},
};

/// The exit code for settings or arguments that cannot hold; clap uses the same.
const EXIT_USAGE: u8 = 2;

/// Whatever keeps a command's work from being done.
type Failure = Box<dyn Error + Send + Sync>;

/// The options that every binary has.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// The file of settings [default: $KYHAN_CONFIG, else ./kyhan.toml where there is one]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the settings that hold, secrets redacted, and leave
    #[arg(long)]
    pub print_config: bool,
}

/// Why a binary did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error("signals cannot be watched: {0}")]
    Signals(#[from] std::io::Error),
}

/// What a running binary has.
pub struct Started {
    pub settings: Settings,
    pub telemetry: Telemetry,
    pub shutdown: CancellationToken,
}

/// The variable by which Rust's threads get their stacks, and how much they get: pages that are not used take no memory.
const STACK: (&str, &str) = ("RUST_MIN_STACK", "67108864");

/// Becomes the same process with room on its stacks; why not, where it cannot. lapin reads a message's headers by recursion, on a
/// thread of its own, before any code of ours sees them: tables nested two thousand deep, 10 KB of headers, overflow the usual
/// 2 MiB, and whoever may publish could stop every worker, and ops after them. A frame holds 128 KiB of headers.
fn with_room_for_headers() -> Option<std::io::Error> {
    if std::env::var_os(STACK.0).is_some() {
        return None;
    }
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(error) => return Some(error),
    };
    let mut arguments = std::env::args_os();
    let mut again = std::process::Command::new(own);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    let error = again.args(arguments).env(STACK.0, STACK.1).exec();
    // The try has made a closed pipe deadly again, as it is for a new program; watched, it is an error as before.
    let _ = signal(SignalKind::pipe());
    Some(error)
}

/// Starts a binary: settings, telemetry, shutdown.
///
/// # Errors
/// [`StartError`], which says what to do.
pub fn start(service: &'static str, common: &Common) -> Result<Started, StartError> {
    let cramped = with_room_for_headers();
    let settings = Settings::load(common.config.clone())?;
    let telemetry = Telemetry::start(service, &settings.telemetry.log)?;
    if let Some(error) = cramped {
        tracing::warn!(%error, "no room on the stacks for headers nested thousands deep; set {}={} by hand", STACK.0, STACK.1);
    }
    Ok(Started { telemetry, shutdown: shutdown_on_signals()?, settings })
}

/// Runs a command's work and turns what came of it into an exit code: 0 done, 1 failed, 2 settings that cannot hold.
/// `--print-config` prints them instead.
pub async fn run<E: Into<Failure>>(
    service: &'static str,
    common: &Common,
    work: impl AsyncFnOnce(&Settings, CancellationToken) -> Result<ExitCode, E>,
) -> ExitCode {
    if common.print_config {
        return match Settings::load(common.config.clone()) {
            Ok(settings) => {
                say(&settings.to_string());
                ExitCode::SUCCESS
            }
            Err(error) => complain(service, &error, EXIT_USAGE),
        };
    }
    let Started { settings, telemetry, shutdown } = match start(service, common) {
        Ok(started) => started,
        Err(error) => return complain(service, &error, EXIT_USAGE),
    };
    let done = work(&settings, shutdown).await;
    let code = done.unwrap_or_else(|error| complain(service, &told(&*error.into()), 1));
    // Exporters wait for their own runtime threads, which an async thread must not block on.
    let _ = tokio::task::spawn_blocking(move || telemetry.shutdown()).await;
    code
}

/// Runs the work of a binary that stays until it is told to stop. Its admin port is open before the work begins, and so before
/// any server has answered. A port that cannot be had is a failure: exit code 1.
pub async fn serve<E: Into<Failure>>(
    service: &'static str,
    common: &Common,
    work: impl AsyncFnOnce(&Settings, &Health, CancellationToken) -> Result<ExitCode, E>,
) -> ExitCode {
    run(service, common, async |settings, shutdown| {
        let health = Health::new();
        let _port = AdminPort::open(settings.admin, health.clone()).await.map_err(Failure::from)?;
        let _stopping = AbortOnDropHandle::new(tokio::spawn({
            let (health, shutdown) = (health.clone(), shutdown.clone());
            async move {
                shutdown.cancelled().await;
                health.stopping();
            }
        }));
        work(settings, &health, shutdown).await.map_err(Into::into)
    })
    .await
}

/// Prints an answer and a line's end. A reader that has gone (`| head`) is no error.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
}

/// Says why what a command was given cannot hold; the exit code for that.
pub fn refuse(service: &str, error: &impl std::fmt::Display) -> ExitCode {
    complain(service, error, EXIT_USAGE)
}

fn complain(service: &str, error: &impl std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("{service}: {error:#}");
    ExitCode::from(code)
}

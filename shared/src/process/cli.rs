//! How every binary starts: its settings, or every mistake in them; its telemetry; its shutdown; and an admin port if it is
//! long-running.

use std::{
    error::Error, io::Write, os::unix::process::CommandExt as _, path::PathBuf, process::ExitCode, sync::mpsc, time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    process::{
        admin::AdminPort,
        health::Health,
        lifecycle::shutdown_on_signals,
        redact::redacted,
        telemetry::{Telemetry, TelemetryError},
        visible::visible,
    },
    settings::{Settings, SettingsError},
};

/// The exit code for invalid settings or arguments; clap uses the same.
const EXIT_USAGE: u8 = 2;

/// The exit code of a long-running binary that cannot work until an operator changes something outside of it: waiting and
/// restarting do not help. `EX_CONFIG` of `sysexits.h`.
const EXIT_CONFIG: u8 = 78;

/// An error that a command fails with.
type Failure = Box<dyn Error + Send + Sync>;

/// The options of every binary.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// The settings file [default: $KYHAN_CONFIG, else ./kyhan.toml if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the settings, with secrets redacted, and exit
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
    #[error("cannot handle signals: {0}")]
    Signals(#[from] std::io::Error),
}

/// What a started binary works with.
pub struct Started {
    pub settings: Settings,
    pub telemetry: Telemetry,
    pub shutdown: CancellationToken,
}

/// The variable that sets the stack size of Rust's threads, and its value: unused pages take no memory.
const STACK: (&str, &str) = ("RUST_MIN_STACK", "67108864");

/// Restarts this process in place with larger stacks, or returns why it cannot. lapin reads a message's headers by recursion,
/// on a thread of its own, before any of our code sees them: tables nested two thousand deep, 10 KB of headers, overflow the
/// usual 2 MiB, so any login that may publish could stop every worker, and then ops. A frame holds 128 KiB of headers.
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
    // A failed `exec` leaves SIGPIPE at its default, which ends the process; a handler makes a closed pipe an error again.
    let _ = signal(SignalKind::pipe());
    Some(error)
}

/// Starts a binary: settings, telemetry, shutdown.
///
/// # Errors
/// [`StartError`], which names the remedy.
pub fn start(service: &'static str, common: &Common) -> Result<Started, StartError> {
    let cramped = with_room_for_headers();
    let settings = Settings::load(common.config.clone())?;
    let telemetry = Telemetry::start(service, &settings.telemetry.log)?;
    // The usual hook writes to stderr itself, and so waits for its reader.
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a thread panicked")));
    if let Some(error) = cramped {
        tracing::warn!(
            %error,
            "cannot enlarge the thread stacks, so deeply nested message headers could overflow them; set {}={}",
            STACK.0,
            STACK.1
        );
    }
    for (server, url) in [("PostgreSQL", &settings.database.url), ("RabbitMQ", &settings.amqp.url)] {
        if let Some(why) = url.exposed() {
            tracing::warn!(%url, why, "the connection to {server} is not safe from others on the network");
        }
    }
    Ok(Started { telemetry, shutdown: shutdown_on_signals()?, settings })
}

/// Runs a command's work and turns its result into an exit code: 0 done, 1 failed, 2 invalid settings. `--print-config`
/// prints the settings instead.
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
    let code = done.unwrap_or_else(|error| complain(service, &one_line(&redacted(&*error.into())), 1));
    // Exporters wait for their own runtime threads, which an async thread must not block on.
    let _ = tokio::task::spawn_blocking(move || telemetry.shutdown()).await;
    code
}

/// Runs the work of a long-running binary until it is asked to stop. Its admin port opens before the work begins, and so
/// before any server has answered. If the port cannot be opened, the exit code is 1.
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

/// Prints an answer and a newline, with invisible characters made visible. A reader that has gone (`| head`) is not an error.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{}", visible(text.trim_end()));
}

/// Prints a remark to stderr, with invisible characters made visible.
pub fn remark(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", visible(text.trim_end()));
}

/// How long the reader of stderr has to take the last words of a process.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Prints why a command's input is invalid; returns the exit code for that.
pub fn refuse(service: &str, error: &impl std::fmt::Display) -> ExitCode {
    complain(service, error, EXIT_USAGE)
}

/// Prints why a long-running binary cannot work until an operator acts; returns the exit code for that.
pub fn give_up(service: &str, error: &(dyn Error + 'static)) -> ExitCode {
    let why = one_line(&redacted(error));
    // Also to the log: a supervisor may keep only that.
    tracing::error!(error = why, "{service} ends; it can start again once this is mended");
    complain(service, &why, EXIT_CONFIG)
}

/// The text of a failure may contain what others wrote: it does not begin a line of its own.
fn one_line(text: &str) -> String {
    text.trim_end().replace('\n', "\\n")
}

fn complain(service: &str, error: &impl std::fmt::Display, code: u8) -> ExitCode {
    let words = format!("{service}: {error:#}");
    let (written, taken) = mpsc::channel();
    // A reader that stalls must not keep the process from its end.
    std::thread::spawn(move || {
        remark(&words);
        let _ = written.send(());
    });
    let _ = taken.recv_timeout(LAST_WORDS);
    ExitCode::from(code)
}

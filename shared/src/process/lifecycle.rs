//! Starting and stopping: the first signal asks to finish what is in hand, a second one leaves at once.

use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A second signal so soon after the first is the same wish: `timeout` and terminals send to a process and to its group.
const ONE_WISH: Duration = Duration::from_secs(1);
/// The exit code of a process that a second signal made leave at once.
const EXIT_INTERRUPTED: i32 = 130;

/// A token cancelled by the first SIGTERM or SIGINT. The second one ends the process; that loses nothing, as whatever is
/// unacked returns to its lane.
///
/// # Errors
/// When the operating system lets no signals be watched.
pub fn shutdown_on_signals() -> std::io::Result<CancellationToken> {
    let shutdown = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = shutdown.clone();
    tokio::spawn(async move {
        let mut first: Option<Instant> = None;
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            match first {
                None => {
                    first = Some(Instant::now());
                    tracing::info!(signal = name, "shutting down; once more to leave at once");
                    token.cancel();
                }
                Some(first) if first.elapsed() < ONE_WISH => {}
                Some(_) => {
                    tracing::warn!(signal = name, "leaving at once");
                    std::process::exit(EXIT_INTERRUPTED);
                }
            }
        }
    });
    Ok(shutdown)
}

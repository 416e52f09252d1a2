//! Starting and stopping: the first signal asks to finish what is in hand, a second one leaves at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

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
        for leave_now in [false, true] {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if leave_now {
                tracing::warn!(signal = name, "leaving at once");
                std::process::exit(EXIT_INTERRUPTED);
            }
            tracing::info!(signal = name, "shutting down; once more to leave at once");
            token.cancel();
        }
    });
    Ok(shutdown)
}

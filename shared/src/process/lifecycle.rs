//! Starting and stopping: the first signal asks to finish the work in hand, a second one exits at once.

use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A second signal this soon after the first is the same request: `timeout` and terminals send to a process and to its group.
const ONE_WISH: Duration = Duration::from_secs(1);
/// The exit code after a second signal.
const EXIT_INTERRUPTED: i32 = 130;

/// A token that the first SIGTERM or SIGINT cancels. The second one ends the process; that loses nothing, as unacked messages
/// return to their lane.
///
/// # Errors
/// If the operating system accepts no signal handlers.
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
                    token.cancel();
                    tracing::info!(signal = name, "shutting down; a second signal exits at once");
                }
                Some(first) if first.elapsed() < ONE_WISH => {}
                Some(_) => {
                    tracing::warn!(signal = name, "exiting at once");
                    std::process::exit(EXIT_INTERRUPTED);
                }
            }
        }
    });
    Ok(shutdown)
}

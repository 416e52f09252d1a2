//! The `worker` binary: parses the command line and runs one worker until SIGTERM.

use std::process::ExitCode;

use clap::Parser;
use shared::process::cli::{self, Common};
use worker::WorkerError;

/// Kỳ Hạn's worker: takes due wake-ups, rechecks their rows and applies what is due. Stops on SIGTERM. Run as many as you like
#[derive(Parser)]
#[command(version)]
struct WorkerArguments {
    #[command(flatten)]
    common: Common,
}

#[tokio::main]
async fn main() -> ExitCode {
    let WorkerArguments { common } = WorkerArguments::parse();
    cli::serve("worker", &common, async |settings, health, shutdown| {
        tracing::info!(prefix = settings.naming.prefix, shards = settings.naming.shards, "worker started");
        match Box::pin(worker::run(settings, health, shutdown)).await {
            Ok(_) => Ok(ExitCode::SUCCESS),
            Err(error @ WorkerError::Died(_)) => Err(error),
            Err(error) => Ok(cli::give_up("worker", &error)),
        }
    })
    .await
}

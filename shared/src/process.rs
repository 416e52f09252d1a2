//! What every binary shares: its command line, start and shutdown, logs, health, and how it waits for a server that is away.

pub mod admin;
pub mod backoff;
pub mod cli;
pub mod health;
pub mod lifecycle;
pub mod outage;
pub mod redact;
pub mod telemetry;
pub mod visible;

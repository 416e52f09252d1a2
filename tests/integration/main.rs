//! The integration tests: one binary, real servers, a database and a name prefix per test. Names are claims.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that meets an error has failed")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "counts of a few thousand"
)]

mod admin;
mod arrears;
mod audit;
mod bad_input;
mod canaries;
mod conformance;
mod dead_letters;
mod forecast;
mod history;
mod journey;
mod library;
mod outages;
mod outbox;
mod pauses;
mod processes;
mod quarantine;
mod rebuild;
mod receipts;
mod stage;
mod status;
mod sweep;
mod telemetry;
mod topology;
mod versions;

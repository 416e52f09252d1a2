//! The integration tests: one binary, real servers, and a database and a name prefix per test. Test names are claims.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that meets an error has failed")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "counts of a few thousand"
)]

mod activity;
mod addresses;
mod admin;
mod arrears;
mod audit;
mod backups;
mod bad_input;
mod broker_users;
mod canaries;
mod conformance;
mod customers;
mod dead_decisions;
mod dead_letters;
mod entities;
mod explain;
mod first_policy;
mod fleet_limits;
mod forecast;
mod harness;
mod history;
mod hostile;
mod journey;
mod leader;
mod letters;
mod letters_stored;
mod library;
mod logins;
mod markers;
mod market;
mod news;
mod operators_forecast;
mod outages;
mod outbox;
mod passive_declares;
mod pauses;
mod policies;
mod policy_applied;
mod policy_preview;
mod processes;
mod quarantine;
mod rebuild;
mod receipts;
mod replays;
mod retention;
mod rights;
mod roles;
mod sources;
mod status;
mod sweep;
mod telemetry;
mod topology;
mod two_persons;
mod versions;
mod visible;

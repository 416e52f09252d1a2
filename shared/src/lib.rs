//! Code that the producer, the worker and `ops` share, in layers. Each layer imports only from the layers before it, which a
//! test checks:
//!
//! - [`domain`]: the rules of the policy, and when each falls due
//! - [`message`]: what waits in RabbitMQ
//! - [`settings`]: every setting
//! - [`process`]: how every binary starts, stops, logs and waits
//! - [`broker`]: RabbitMQ, and [`database`]: PostgreSQL
//!
//! `ARCHITECTURE.md` gives an overview.

pub mod broker;
pub mod database;
pub mod domain;
pub mod message;
pub mod process;
pub mod settings;

#[cfg(test)]
mod layers;
#[cfg(test)]
mod names;

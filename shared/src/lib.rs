//! What the producer, the worker and `ops` share, in layers. Each layer imports only from those before it (a test holds that):
//!
//! - [`domain`]: what the policy promises, and when it is due
//! - [`message`]: what waits in RabbitMQ
//! - [`settings`]: everything that can be set
//! - [`process`]: how every binary lives
//! - [`broker`]: RabbitMQ, and [`database`]: PostgreSQL
//!
//! `ARCHITECTURE.md` is the map.

pub mod broker;
pub mod database;
pub mod domain;
pub mod message;
pub mod process;
pub mod settings;

#[cfg(test)]
mod layers;

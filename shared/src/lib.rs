//! What the three doors of Kỳ Hạn share: events, the policy, the tasks, the wake-up and the two servers behind them.
//!
//! A message's way through these rooms: [`event`] → [`policy`] → [`pack`] → [`ladder`] → [`topology`] → [`wakeup`] →
//! [`task`] → [`dead_letter`]. `ARCHITECTURE.md` is the map.

pub mod admin;
pub mod broker;
pub mod canary;
pub mod cli;
pub mod confidential;
pub mod database;
pub mod dead_letter;
pub mod due;
pub mod event;
pub mod health;
pub mod ladder;
pub mod lifecycle;
pub mod migration;
pub mod money;
mod order;
pub mod outage;
pub mod pack;
pub mod pause;
pub mod policy;
pub mod roles;
pub mod settings;
pub mod span;
pub mod task;
pub mod tasks;
pub mod telemetry;
pub mod topology;
pub mod triggers;
pub mod wakeup;

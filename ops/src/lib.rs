//! The operators' library: audit, status, dead letters, policies, pauses, retention, set-aside events. `main.rs` is its command line.

use sea_orm::DbErr;
use shared::broker::BrokerError;

pub mod activity;
pub mod actor;
pub mod audit;
pub mod bar;
pub mod customer;
pub mod dead;
pub mod explain;
pub mod forecast;
pub mod pause;
pub mod preview;
pub mod progress;
pub mod proposal;
pub mod rebuild;
pub mod retention;
pub mod rollout;
pub mod rungs;
pub mod set_aside;
pub mod shown;
pub mod status;
mod walk;

/// An error of one of the two servers that stopped an operator's command.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("PostgreSQL: {0}")]
    Database(#[from] DbErr),
}

//! The operators' door: the schema, the topology, the audit, events set aside, dead letters, and what is to come. `main.rs` is its command line.

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
pub mod rebuild;
pub mod retention;
pub mod rollout;
pub mod rungs;
pub mod set_aside;
pub mod shown;
pub mod status;
mod walk;

/// What stopped an operator's command between the two servers.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("PostgreSQL: {0}")]
    Database(#[from] DbErr),
}

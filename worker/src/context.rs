//! What all consumers and duties of a worker share. It lives from one start of the lanes to the next.

use std::{collections::HashMap, sync::Arc};

use sea_orm::DatabaseConnection;
use shared::{
    broker::Detours, database::statements::Statements, message::topology::Topology, process::outage::Outage, settings::Settings,
};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{paused::PausedKinds, pipeline::batch::BatchEnd, tally::Tally};

/// The shared settings, connections, outage states and stop signals.
pub(crate) struct Context {
    pub settings: Settings,
    pub topology: Topology,
    /// Around rungs that are full.
    pub detours: Detours,
    /// The name of this process: host and pid.
    pub name: String,
    pub db: DatabaseConnection,
    /// By kind.
    pub statements: HashMap<&'static str, Statements>,
    pub tally: Arc<Tally>,
    pub postgres: Outage,
    pub rabbitmq: Outage,
    pub paused: Arc<PausedKinds>,
    /// Held while a batch with a large message is processed, so that only one at a time takes the memory for it.
    pub large: Mutex<()>,
    /// Stop consuming.
    pub shutdown: CancellationToken,
    /// Also stop waiting for a server.
    pub abandon: CancellationToken,
}

impl Context {
    /// Restarts the lanes, because the policy has changed.
    pub(crate) fn outdated(&self) {
        if !self.shutdown.is_cancelled() {
            tracing::info!("the active policy has changed; the lanes restart");
            self.shutdown.cancel();
        }
    }

    /// Waits until a kind must not be consumed, and returns the reason. Queues that belong to no kind pass `None` and cannot be paused.
    pub(crate) async fn barred(&self, kind: Option<&'static str>) -> BatchEnd {
        tokio::select! {
            biased;
            () = self.postgres.began() => BatchEnd::Outage,
            () = self.paused.began(kind) => BatchEnd::Paused,
        }
    }
}

//! What all consumers and duties of a worker share, from one start of the lanes to the next.

use std::{collections::HashMap, sync::Arc};

use sea_orm::DatabaseConnection;
use shared::{database::statements::Statements, message::topology::Topology, process::outage::Outage, settings::Settings};
use tokio_util::sync::CancellationToken;

use crate::{paused::Paused, pipeline::batch::End, tally::Tally};

/// See above.
pub(crate) struct Context {
    pub settings: Settings,
    pub topology: Topology,
    /// This process: its host and pid.
    pub name: String,
    pub db: DatabaseConnection,
    /// Of every kind.
    pub statements: HashMap<&'static str, Statements>,
    pub tally: Arc<Tally>,
    pub postgres: Outage,
    pub rabbitmq: Outage,
    pub paused: Arc<Paused>,
    /// Stop taking.
    pub shutdown: CancellationToken,
    /// Stop waiting for a server, too.
    pub abandon: CancellationToken,
}

impl Context {
    /// Restarts the lanes, as the policy has changed.
    pub(crate) fn outdated(&self) {
        if !self.shutdown.is_cancelled() {
            tracing::info!("the active policy has changed; the lanes restart");
            self.shutdown.cancel();
        }
    }

    /// Waits until nothing of a kind is to be taken; why.
    pub(crate) async fn barred(&self, kind: Option<&'static str>) -> End {
        tokio::select! {
            biased;
            () = self.postgres.began() => End::Outage,
            () = self.paused.began(kind) => End::Paused,
        }
    }
}

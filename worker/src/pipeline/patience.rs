//! Patience: how a batch waits for a server. While PostgreSQL is away no consumer of the process takes messages, so that no wake-up is
//! delivered again and again. The consumers that hold a batch retry it, and so detect the end of the outage.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use sea_orm::DbErr;
use shared::{
    broker::{BrokerError, Publisher},
    process::{backoff::backoff, outage::Outage},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The waiting state of one batch.
pub struct Patience<'a> {
    postgres: &'a Outage,
    abandon: &'a CancellationToken,
    /// Whether the batch waits now.
    waits: watch::Sender<bool>,
    pauses: Mutex<Option<Pauses>>,
}

/// Growing pauses between tries.
pub(super) type Pauses = Box<dyn Iterator<Item = Duration> + Send>;

impl<'a> Patience<'a> {
    #[must_use]
    pub fn new(postgres: &'a Outage, abandon: &'a CancellationToken) -> Self {
        Self { postgres, abandon, waits: watch::Sender::new(false), pauses: Mutex::new(None) }
    }

    /// Waits for PostgreSQL, longer each time; `None` once the worker's grace is over.
    pub async fn for_postgres(&self, error: &DbErr) -> Option<()> {
        self.postgres.begins(error);
        self.waits.send_replace(true);
        let pause = self.pauses().get_or_insert_with(|| Box::new(backoff())).next().unwrap_or_default();
        self.abandon.run_until_cancelled(tokio::time::sleep(pause)).await
    }

    /// PostgreSQL answered: the outage is over.
    pub fn postgres_is_back(&self) {
        *self.pauses() = None;
        self.waits.send_replace(false);
        self.postgres.ends();
    }

    /// Waits until RabbitMQ stops blocking publishers. The messages published during the alarm may still be in flight on this connection,
    /// so the batch starts again over a new one.
    ///
    /// # Errors
    /// Always [`BrokerError::Blocked`].
    pub async fn for_rabbitmq(&self, publisher: &Publisher) -> Result<(), BrokerError> {
        let error = BrokerError::Blocked;
        tracing::warn!(%error, "waiting until RabbitMQ accepts publishes");
        self.waits.send_replace(true);
        publisher.unblocked().await;
        tracing::info!("RabbitMQ accepts publishes again");
        Err(error)
    }

    fn pauses(&self) -> std::sync::MutexGuard<'_, Option<Pauses>> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once the batch has waited for `patience` without interruption.
    pub async fn longer_than(&self, patience: Duration) {
        let mut waits = self.waits.subscribe();
        loop {
            let _ = waits.wait_for(|waits| *waits).await;
            if tokio::time::timeout(patience, waits.wait_for(|waits| !*waits)).await.is_err() {
                return;
            }
        }
    }
}

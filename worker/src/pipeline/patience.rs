//! Patience: how a batch in hand waits for a server. An outage of PostgreSQL is the whole process's: while it lasts no consumer
//! takes anything, so that no wake-up goes from hand to hand and is counted as delivered each time. Whoever holds a batch tries it
//! again, and so notices the end.

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

/// That of one batch.
pub struct Patience<'a> {
    postgres: &'a Outage,
    abandon: &'a CancellationToken,
    /// Whether it waits at this moment.
    waits: watch::Sender<bool>,
    pauses: Mutex<Option<Pauses>>,
}

type Pauses = Box<dyn Iterator<Item = Duration> + Send>;

impl<'a> Patience<'a> {
    #[must_use]
    pub fn new(postgres: &'a Outage, abandon: &'a CancellationToken) -> Self {
        Self { postgres, abandon, waits: watch::Sender::new(false), pauses: Mutex::new(None) }
    }

    /// Waits a while for PostgreSQL, longer each time; `None` when told not to wait for a server any more.
    pub async fn for_postgres(&self, error: &DbErr) -> Option<()> {
        self.postgres.begins(error);
        self.waits.send_replace(true);
        let pause = self.pauses().get_or_insert_with(|| Box::new(backoff())).next().unwrap_or_default();
        self.abandon.run_until_cancelled(tokio::time::sleep(pause)).await
    }

    /// PostgreSQL answers.
    pub fn postgres_is_back(&self) {
        *self.pauses() = None;
        self.waits.send_replace(false);
        self.postgres.ends();
    }

    /// Waits until RabbitMQ lets publish again. What was sent into the alarm may still be on its way over this connection: the
    /// batch starts anew over another one.
    ///
    /// # Errors
    /// Always [`BrokerError::Blocked`].
    pub async fn for_rabbitmq(&self, publisher: &Publisher) -> Result<(), BrokerError> {
        let error = BrokerError::Blocked;
        tracing::warn!(%error, "the lane waits until it may publish again");
        self.waits.send_replace(true);
        publisher.unblocked().await;
        tracing::info!("RabbitMQ lets publish again");
        Err(error)
    }

    fn pauses(&self) -> std::sync::MutexGuard<'_, Option<Pauses>> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends once the batch has waited for so long without a break.
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

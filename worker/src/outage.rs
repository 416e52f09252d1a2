//! Waiting for a server. An outage of PostgreSQL is the whole process's: while it lasts no consumer takes anything, so that no
//! wake-up goes from hand to hand and is counted as delivered each time. Whoever holds a batch tries it again and so notices the
//! end; it is told of once when it begins and once when it ends.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use sea_orm::DbErr;
use shared::broker::{BrokerError, Publisher, backoff};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Whether PostgreSQL is away, as the consumers of this process have met it.
pub struct Outage(watch::Sender<bool>);

impl Default for Outage {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Outage {
    fn begins(&self, error: &DbErr) {
        if !self.0.send_replace(true) {
            tracing::warn!(%error, "PostgreSQL is away; nothing is taken until it is back");
        }
    }

    fn ends(&self) {
        if self.0.send_replace(false) {
            tracing::info!("PostgreSQL is back");
        }
    }

    /// Waits for the beginning of an outage; at once while there is one.
    pub async fn began(&self) {
        self.is(true).await;
    }

    /// Waits for its end; at once when there is none.
    pub async fn ended(&self) {
        self.is(false).await;
    }

    async fn is(&self, away: bool) {
        // The sender is this very struct, so it does not go away while somebody waits.
        let _ = self.0.subscribe().wait_for(|now| *now == away).await;
    }
}

/// The waiting of one batch in hand.
pub struct Patience<'a> {
    outage: &'a Outage,
    abandon: &'a CancellationToken,
    /// Whether it waits at this moment.
    waits: watch::Sender<bool>,
    pauses: Mutex<Option<Pauses>>,
}

type Pauses = Box<dyn Iterator<Item = Duration> + Send>;

impl<'a> Patience<'a> {
    #[must_use]
    pub fn new(outage: &'a Outage, abandon: &'a CancellationToken) -> Self {
        Self { outage, abandon, waits: watch::Sender::new(false), pauses: Mutex::new(None) }
    }

    /// Waits a while for PostgreSQL, longer each time; `None` when told not to wait for a server any more.
    pub async fn for_postgres(&self, error: &DbErr) -> Option<()> {
        self.outage.begins(error);
        self.waits.send_replace(true);
        let pause = self.pauses().get_or_insert_with(|| Box::new(backoff())).next().unwrap_or_default();
        self.abandon.run_until_cancelled(tokio::time::sleep(pause)).await
    }

    /// PostgreSQL answers.
    pub fn postgres_is_back(&self) {
        *self.pauses() = None;
        self.waits.send_replace(false);
        self.outage.ends();
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

//! An outage of a server as one process sees it: told of once when it begins and once when it ends, however many connections
//! meet it, and waited for by whoever has nothing to do meanwhile.

use std::error::Error;

use tokio::sync::watch;

use crate::process::redact::told;

/// Whether a server is away, as far as this process knows.
pub struct Outage {
    server: &'static str,
    away: watch::Sender<bool>,
}

impl Outage {
    /// Of a server that is there until it is not; its name is for people.
    #[must_use]
    pub fn of(server: &'static str) -> Self {
        Self { server, away: watch::Sender::new(false) }
    }

    /// Somebody could not reach it; whether nobody had said so yet.
    pub fn begins(&self, error: &(dyn Error + 'static)) -> bool {
        let first = !self.away.send_replace(true);
        if first {
            tracing::warn!(error = told(error), "{} is away; trying again until it is back", self.server);
        }
        first
    }

    /// Somebody reached it.
    pub fn ends(&self) {
        if self.away.send_replace(false) {
            tracing::info!("{} is back", self.server);
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
        let _ = self.away.subscribe().wait_for(|now| *now == away).await;
    }
}

//! An outage of a server as one process sees it: logged once when it begins and once when it ends, however many connections
//! notice it. Tasks without other work wait for its end.

use std::error::Error;

use tokio::sync::watch;

use crate::process::redact::redacted;

/// Whether a server is away, as far as this process has noticed.
pub struct Outage {
    server: &'static str,
    away: watch::Sender<bool>,
}

impl Outage {
    /// For a server that counts as available until an error is reported; its name is for logs.
    #[must_use]
    pub fn of(server: &'static str) -> Self {
        Self { server, away: watch::Sender::new(false) }
    }

    /// Reports that the server could not be reached; returns whether this begins an outage.
    pub fn begins(&self, error: &(dyn Error + 'static)) -> bool {
        let first = !self.away.send_replace(true);
        if first {
            tracing::warn!(error = redacted(error), "{} is away; retrying until it is back", self.server);
        }
        first
    }

    /// Reports that the server answered and the login may not do its work; returns whether this begins an outage.
    pub fn refuses(&self, error: &(dyn Error + 'static)) -> bool {
        let first = !self.away.send_replace(true);
        if first {
            tracing::error!(error = redacted(error), "{} refuses this process's work; retrying until it does not", self.server);
        }
        first
    }

    /// Reports that the server was reached.
    pub fn ends(&self) {
        if self.away.send_replace(false) {
            tracing::info!("{} is back", self.server);
        }
    }

    /// Waits for an outage to begin; returns at once during one.
    pub async fn began(&self) {
        self.is(true).await;
    }

    /// Waits for it to end; returns at once without one.
    pub async fn ended(&self) {
        self.is(false).await;
    }

    async fn is(&self, away: bool) {
        // The sender is a field of this struct, so it outlives the wait.
        let _ = self.away.subscribe().wait_for(|now| *now == away).await;
    }
}

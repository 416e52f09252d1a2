//! Probes PostgreSQL over its own connection, and reads which kinds are paused and which policy is active.
//!
//! Without the probe, idle consumers would not notice an outage, and would take a wake-up only to hold it. An outage that shows only in
//! writing, such as a full disk, is detected by the consumers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use opentelemetry::{global, metrics::Gauge};
use shared::{
    database::{self, Client, active_policy, clock, probe::Probe},
    process::{health::HealthPart, redact::redacted},
};

use crate::context::Context;

/// The probe and what it reports to.
pub(crate) struct DatabaseWatch {
    context: Arc<Context>,
    database: Probe,
    part: HealthPart,
    /// Whether this probe began the current outage. An outage that a batch began is ended by that batch.
    began_here: bool,
    leader_silent: Gauge<f64>,
}

impl DatabaseWatch {
    pub(crate) fn new(context: Arc<Context>, part: HealthPart) -> Self {
        let database = Probe::new(&context.settings.database, Client::Worker);
        let leader_silent = global::meter("kyhan")
            .f64_gauge("kyhan.leader.silent")
            .with_unit("s")
            .with_description("Time since a leader last ended a round of its duties")
            .build();
        Self { context, database, part, began_here: false, leader_silent }
    }

    pub(crate) async fn run(mut self) {
        let shutdown = self.context.shutdown.clone();
        while shutdown.run_until_cancelled(tokio::time::sleep(WATCH_EVERY)).await.is_some() {
            self.look().await;
        }
    }

    pub(crate) async fn look(&mut self) {
        let asked = Instant::now();
        database::refresh(&self.context.db, &self.context.settings.database, Client::Worker);
        match self.database.ask().await {
            Ok(()) => {
                // Without its privileges, every batch would fail.
                if let Ok(Some(lacking)) = self.database.lacking().await {
                    self.part.down(lacking.to_string());
                    self.began_here |= self.context.postgres.refuses(&lacking);
                    return;
                }
                let decided = self.database.decided().await;
                let max_skew = self.context.settings.clock.max_skew;
                if let Ok(Err(skewed)) = decided.as_ref().map(|decided| clock::agrees(decided.now, max_skew)) {
                    self.part.down(skewed.to_string());
                    self.began_here |= self.context.postgres.refuses(&skewed);
                    return;
                }
                self.part.up();
                if std::mem::take(&mut self.began_here) {
                    self.context.postgres.ends();
                }
                match decided {
                    Ok(decided) => {
                        self.leader_silent.record(decided.leader_silent_s, &[]);
                        self.context.paused.are(decided.pauses, asked);
                        if decided.policy != self.context.settings.policy.number() {
                            self.context.outdated();
                        }
                    }
                    // The pauses and the policy read before stay valid.
                    Err(error) => tracing::warn!(error = redacted(&error), "pauses and the active policy could not be read"),
                }
            }
            Err(error) => {
                self.part.down(redacted(&error));
                self.began_here |= self.context.postgres.begins(&error);
            }
        }
    }
}

/// How often PostgreSQL is probed and the pauses and the active policy are read.
pub(crate) const WATCH_EVERY: Duration = active_policy::LOOK_EVERY;

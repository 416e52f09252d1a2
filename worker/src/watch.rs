//! Watches PostgreSQL over a connection of its own: consumers without work would not notice an outage, and would take the first wake-up in hand
//! only to hold it. (What shows only in writing, a full disk, they notice by themselves.) And reads what operators have decided: which kinds
//! are paused, and which policy is active.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use shared::{
    database::{DatabaseError, Role, active_policy, probe::Probe},
    process::{health::Part, redact::told},
};

use crate::context::Context;

/// See above.
pub(crate) struct Watch {
    context: Arc<Context>,
    database: Probe,
    part: Part,
    /// Whether the outage that is known began here: what a batch in hand began, it ends.
    told: bool,
}

impl Watch {
    pub(crate) fn new(context: Arc<Context>, part: Part) -> Result<Self, DatabaseError> {
        let database = Probe::new(&context.settings.database, Role::Worker)?;
        Ok(Self { context, database, part, told: false })
    }

    pub(crate) async fn run(mut self) {
        let shutdown = self.context.shutdown.clone();
        while shutdown.run_until_cancelled(tokio::time::sleep(WATCH_EVERY)).await.is_some() {
            self.look().await;
        }
    }

    pub(crate) async fn look(&mut self) {
        let asked = Instant::now();
        match self.database.ask().await {
            Ok(()) => {
                self.part.up();
                if std::mem::take(&mut self.told) {
                    self.context.postgres.ends();
                }
                match self.database.decided().await {
                    Ok(decided) => {
                        self.context.paused.are(decided.pauses, asked);
                        if decided.policy != self.context.settings.policy.number() {
                            self.context.outdated();
                        }
                    }
                    // What is known stays so.
                    Err(error) => tracing::warn!(error = told(&error), "what operators have decided is not known"),
                }
            }
            Err(error) => {
                self.part.down(told(&error));
                self.told |= self.context.postgres.begins(&error);
            }
        }
    }
}

/// How often the database is asked how it is, and what operators have decided.
pub(crate) const WATCH_EVERY: Duration = active_policy::LOOK_EVERY;

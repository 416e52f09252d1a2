//! Detours around rungs that refuse publishes, because a policy of the broker limits their length. Wake-ups take shorter rungs meanwhile: from
//! there they reach their lane early, and are sent on. So one full rung holds up nothing else.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::BrokerError;
use crate::message::topology::Topology;

/// How long a rung is avoided before it is tried again.
const AVOIDED: Duration = Duration::from_mins(1);

/// The exchanges that refused a message, and when.
#[derive(Debug, Default)]
pub struct Detours(Mutex<HashMap<String, Instant>>);

impl Detours {
    /// Notes what a failed publish says.
    pub fn note(&self, failed: &BrokerError) {
        if let BrokerError::Nacked { exchange } = failed {
            let before = self.refused().insert(exchange.clone(), Instant::now());
            if before.is_none_or(|before| before.elapsed() > AVOIDED * 2) {
                tracing::warn!(exchange, "RabbitMQ refuses messages, so a queue is full; if it is a rung, shorter ones are used");
            }
        }
    }

    /// The topology without the rungs that refused a message lately. If all of them did, all of them.
    #[must_use]
    pub fn around(&self, topology: &Topology) -> Topology {
        let refused = self.refused();
        topology.without(|exchange| refused.get(exchange).is_some_and(|at| at.elapsed() < AVOIDED))
    }

    fn refused(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

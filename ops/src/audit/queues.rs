//! The broker's part of an audit: the counts of each queue. It declares no queue and gets no message, because reading a rung would
//! disturb its order and its counts.

use serde::Serialize;
use shared::{
    broker::{Broker, BrokerError},
    message::topology::{QueueRole, Topology},
};

use super::CheckVerdict;

/// One queue in the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueueCheck {
    pub queue: String,
    /// `dead`, `unrouted`, `quarantine`, `lane`, `canaries`, `rung`, or `forgotten rung`: one that the policy no longer uses.
    pub role: &'static str,
    /// `null`: the queue is missing.
    pub messages: Option<u32>,
    pub consumers: Option<u32>,
    pub verdict: CheckVerdict,
}

/// One queue as the broker reports it.
#[derive(Clone, Debug)]
pub(super) struct SeenQueue {
    pub queue: String,
    /// `None`: the topology no longer has it.
    role: Option<QueueRole>,
    pub exchange: String,
    pub messages: Option<u32>,
    consumers: Option<u32>,
}

/// Observes every queue, rungs first, because messages move on from them.
pub(super) async fn look(broker: &Broker, topology: &Topology, forgotten: &[String]) -> Result<Vec<SeenQueue>, BrokerError> {
    let forgotten = forgotten.iter().map(|queue| (queue.clone(), None, queue.clone()));
    let used = topology.queues().into_iter().rev().map(|queue| (queue.name, Some(queue.role), queue.exchange));
    let mut all = Vec::new();
    for (queue, role, exchange) in forgotten.chain(used) {
        let seen = broker.observe(&queue).await?;
        let (messages, consumers) = (seen.map(|seen| seen.messages), seen.map(|seen| seen.consumers));
        all.push(SeenQueue { queue, role, exchange, messages, consumers });
    }
    Ok(all)
}

impl SeenQueue {
    /// The greater counts of two looks at a queue.
    pub fn most(self, after: Self) -> Self {
        Self { messages: after.messages.max(self.messages), consumers: after.consumers.max(self.consumers), ..after }
    }

    /// Whether the messages in this queue reach a worker without an operator.
    pub const fn wakes(&self) -> bool {
        matches!(self.role, Some(QueueRole::Rung | QueueRole::Lane | QueueRole::Quarantine) | None)
    }

    /// `None` for a forgotten rung that no longer exists, because that is correct. `resting` are the lanes of paused kinds, which no
    /// worker consumes.
    pub fn judge(&self, resting: &[String]) -> Option<QueueCheck> {
        let waits = self.messages.is_some_and(|messages| messages > 0);
        let verdict = match (self.role, self.messages) {
            (None, None) => return None,
            (Some(_), None) => CheckVerdict::Off,
            (Some(QueueRole::Lane), Some(_)) if resting.contains(&self.queue) => CheckVerdict::note_if(waits),
            (Some(QueueRole::Lane | QueueRole::Canaries | QueueRole::Quarantine), Some(_)) => {
                CheckVerdict::off_if(waits && self.consumers == Some(0))
            }
            // A worker has yet to store these. They are not lost, but operators cannot see them until then.
            (Some(QueueRole::Dead | QueueRole::Unrouted), Some(_)) => CheckVerdict::note_if(waits),
            (Some(QueueRole::Rung) | None, Some(_)) => CheckVerdict::Ok,
        };
        let role = match self.role {
            Some(QueueRole::Dead) => "dead",
            Some(QueueRole::Unrouted) => "unrouted",
            Some(QueueRole::Quarantine) => "quarantine",
            Some(QueueRole::Lane) => "lane",
            Some(QueueRole::Canaries) => "canaries",
            Some(QueueRole::Rung) => "rung",
            None => "forgotten rung",
        };
        let Self { queue, messages, consumers, .. } = self.clone();
        Some(QueueCheck { queue, role, messages, consumers, verdict })
    }
}

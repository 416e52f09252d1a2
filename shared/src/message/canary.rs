//! Canaries: probe messages sent through every rung, whose arrival shows that the rung moves.
//!
//! The age of a queue's head cannot be read without taking the message. In a rung all messages wait equally long and in
//! order, so the oldest canary that has not arrived is about as old as the head. The table `canaries` records which were sent
//! and which have arrived.

use lapin::BasicProperties;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    ladder::{Hop, Rung},
    outgoing::Outgoing,
    topology::{CANARY, Topology},
    wakeup::{CONTENT_TYPE, PERSISTENT},
};

/// The AMQP `type` property of a canary.
const MESSAGE_TYPE: &str = "kyhan.canary";
/// Longest body of a canary, in bytes.
const BODY_MAX: usize = 1024;

/// One canary. Everything else about it is in the table `canaries`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    pub id: Uuid,
    /// The rung's queue; informational.
    pub queue: String,
}

/// A rung's queue: its rung and shard.
pub type RungQueue = (Rung, u16);

impl Canary {
    /// The message that sends it into a rung.
    #[must_use]
    pub fn message(&self, topology: &Topology, (rung, shard): RungQueue) -> Outgoing {
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type(CONTENT_TYPE.into())
            .with_type(MESSAGE_TYPE.into())
            .with_message_id(self.id.to_string().into());
        Outgoing {
            exchange: topology.exchange_of(Hop::Rung(rung)),
            routing_key: Topology::routing_key(CANARY, shard),
            properties,
            body: serde_json::to_vec(self).unwrap_or_default(),
        }
    }

    /// Decodes a message of the canaries' lane.
    ///
    /// # Errors
    /// Why it is not a canary.
    pub fn decode(body: &[u8]) -> Result<Self, String> {
        if body.len() > BODY_MAX {
            return Err(format!("the body has {} bytes; the maximum is {BODY_MAX}", body.len()));
        }
        serde_json::from_slice(body).map_err(|error| format!("the body is not a canary: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::policy::Policy;

    #[test]
    fn what_is_sent_is_read_again_and_what_is_none_is_refused() {
        let topology = Topology::new("kyhan", 2, &[Duration::from_secs(5)], &Policy::default());
        let (place, queue) = topology.rungs().nth(1).unwrap();
        let canary = Canary { id: Uuid::from_u128(1), queue };
        let message = canary.message(&topology, place);
        assert_eq!((message.exchange.as_str(), message.routing_key.as_str()), ("kyhan.rung.5s", "canary.1"));
        assert_eq!(Canary::decode(&message.body), Ok(canary));
        assert!(Canary::decode(b"hello").is_err());
        assert!(Canary::decode(&[b' '; BODY_MAX + 1]).is_err());
    }
}

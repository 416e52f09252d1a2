//! A message to publish to an exchange.

use lapin::BasicProperties;

use super::{pack::Packed, topology::Topology};

/// One message to publish.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub exchange: String,
    pub routing_key: String,
    pub properties: BasicProperties,
    pub body: Vec<u8>,
}

impl Outgoing {
    /// The message of a packed wake-up.
    #[must_use]
    pub fn of(packed: &Packed, topology: &Topology) -> Self {
        Self {
            exchange: topology.exchange_of(packed.hop),
            routing_key: Topology::routing_key(packed.wakeup.kind, packed.shard),
            properties: packed.wakeup.properties(),
            body: packed.wakeup.body(),
        }
    }
}

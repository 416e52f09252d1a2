//! Intake: a delivery becomes a wake-up, or is refused with a reason and its bytes kept. Nothing that comes in here can stop
//! the worker or the messages beside it.

use lapin::{BasicProperties, message::Delivery, types::FieldTable};
use shared::message::wakeup::{Malformed, Wakeup};

/// A message in hand, unacked.
#[derive(Debug)]
pub struct Taken {
    pub delivery_tag: u64,
    pub routing_key: String,
    pub properties: BasicProperties,
    /// The original bytes.
    pub body: Vec<u8>,
    /// What it says, or why it says nothing.
    pub content: Result<Wakeup, Malformed>,
}

impl Taken {
    /// The original headers.
    #[must_use]
    pub fn headers(&self) -> Option<&FieldTable> {
        self.properties.headers().as_ref()
    }

    /// The subjects that are to be rechecked now: none where the pause before a retry is not over yet.
    #[must_use]
    pub fn asks(&self) -> Option<&Wakeup> {
        self.content.as_ref().ok().filter(|wakeup| wakeup.rest.is_zero())
    }
}

/// Understands a delivery; a `lane` takes wake-ups of its own kind only.
#[must_use]
pub fn take(delivery: Delivery, lane: Option<&'static str>) -> Taken {
    let content = Wakeup::decode(&delivery.data, delivery.properties.headers().as_ref()).and_then(|wakeup| match lane {
        Some(lane) if wakeup.kind != lane => Err(Malformed::WrongLane { kind: wakeup.kind, lane }),
        _ => Ok(wakeup),
    });
    Taken {
        delivery_tag: delivery.delivery_tag,
        routing_key: delivery.routing_key.into(),
        properties: delivery.properties,
        body: delivery.data,
        content,
    }
}

//! Intake: decodes a delivery into a wake-up, or refuses it with a reason and keeps its bytes. No input can stop the worker or affect
//! other messages.

use lapin::{BasicProperties, message::Delivery, types::FieldTable};
use shared::message::wakeup::{Malformed, Wakeup};

use super::inbox::weight_of;

/// An unacked message.
#[derive(Debug)]
pub struct TakenMessage {
    pub delivery_tag: u64,
    pub routing_key: String,
    pub properties: BasicProperties,
    /// The memory that it takes, in bytes.
    pub weight: usize,
    /// The original bytes.
    pub body: Vec<u8>,
    /// The decoded wake-up, or why it could not be decoded.
    pub content: Result<Wakeup, Malformed>,
}

impl TakenMessage {
    /// The original headers.
    #[must_use]
    pub fn headers(&self) -> Option<&FieldTable> {
        self.properties.headers().as_ref()
    }

    /// The wake-up, if its subjects are to be rechecked now: `None` while its retry pause is not over.
    #[must_use]
    pub fn asks(&self) -> Option<&Wakeup> {
        self.content.as_ref().ok().filter(|wakeup| wakeup.rest.is_zero())
    }
}

/// Decodes a delivery. With a `lane`, a wake-up of another kind is refused.
#[must_use]
pub fn take(delivery: Delivery, lane: Option<&'static str>) -> TakenMessage {
    let content = Wakeup::decode(&delivery.data, delivery.properties.headers().as_ref()).and_then(|wakeup| match lane {
        Some(lane) if wakeup.kind != lane => Err(Malformed::WrongLane { kind: wakeup.kind, lane }),
        _ => Ok(wakeup),
    });
    TakenMessage {
        weight: weight_of(&delivery),
        delivery_tag: delivery.delivery_tag,
        routing_key: delivery.routing_key.into(),
        properties: delivery.properties,
        body: delivery.data,
        content,
    }
}

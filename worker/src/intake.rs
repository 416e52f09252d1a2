//! Intake: a delivery becomes a wake-up, or is refused with a reason and its bytes kept. Nothing that comes in here can stop
//! the worker or the messages beside it.

use lapin::{message::Delivery, types::FieldTable};
use shared::wakeup::{Malformed, Wakeup};

/// A message in hand, unacked.
#[derive(Debug)]
pub struct Taken {
    pub delivery_tag: u64,
    pub routing_key: String,
    pub headers: Option<FieldTable>,
    /// The original bytes.
    pub body: Vec<u8>,
    /// What it says, or why it says nothing.
    pub content: Result<Wakeup, Malformed>,
}

/// Understands a delivery from the lane of `lane`.
#[must_use]
pub fn take(delivery: Delivery, lane: &'static str) -> Taken {
    let headers = delivery.properties.headers().clone();
    let content = Wakeup::decode(&delivery.data, headers.as_ref())
        .and_then(|wakeup| if wakeup.kind == lane { Ok(wakeup) } else { Err(Malformed::WrongLane { kind: wakeup.kind, lane }) });
    Taken { delivery_tag: delivery.delivery_tag, routing_key: delivery.routing_key.into(), headers, body: delivery.data, content }
}

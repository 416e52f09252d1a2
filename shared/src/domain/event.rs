//! Events: what happened in the order system. Their names on the wire never change.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// The kinds of event, a CloudEvents `type` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventType {
    /// An order was recorded.
    OrderRecorded,
    /// An order began to be delivered («Đang giao»).
    OrderShipped,
    /// An order was received by its customer («Khách nhận hàng»).
    OrderReceived,
    /// An order was set out of stock («Hết hàng»).
    OrderOutOfStock,
    /// What an order owes for goods, shipping (PVC) or service changed.
    OrderFeesChanged,
    /// A product entered a cart (giỏ hàng).
    CartItemAdded,
}

impl EventType {
    pub const ALL: [Self; 6] = [
        Self::OrderRecorded,
        Self::OrderShipped,
        Self::OrderReceived,
        Self::OrderOutOfStock,
        Self::OrderFeesChanged,
        Self::CartItemAdded,
    ];

    /// The name in `outbox.event_type`, in `kyhan.toml` and in a CloudEvent's `type`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OrderRecorded => "order.recorded",
            Self::OrderShipped => "order.shipped",
            Self::OrderReceived => "order.received",
            Self::OrderOutOfStock => "order.out_of_stock",
            Self::OrderFeesChanged => "order.fees_changed",
            Self::CartItemAdded => "cart.item_added",
        }
    }

    /// The table whose row is the event's subject.
    #[must_use]
    pub const fn table(self) -> &'static str {
        match self {
            Self::CartItemAdded => "cart_items",
            Self::OrderRecorded | Self::OrderShipped | Self::OrderReceived | Self::OrderOutOfStock | Self::OrderFeesChanged => {
                "orders"
            }
        }
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name, shortened, that is not one of [`EventType::ALL`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown event type {0:?}; known are {known}", known = EventType::ALL.map(EventType::name).join(", "))]
pub struct UnknownEventType(pub String);

impl FromStr for EventType {
    type Err = UnknownEventType;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        const SHOWN: usize = 80;
        let unknown = || UnknownEventType(name.chars().take(SHOWN).collect());
        Self::ALL.into_iter().find(|event| event.name() == name).ok_or_else(unknown)
    }
}

/// One event. In CloudEvents' terms: `id`, `type`, `subject` and `time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub id: Uuid,
    pub event_type: EventType,
    /// The order's or cart item's id.
    pub subject: Uuid,
    pub occurred_at: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_on_the_wire_are_pinned() {
        assert_eq!(
            EventType::ALL.map(EventType::name),
            ["order.recorded", "order.shipped", "order.received", "order.out_of_stock", "order.fees_changed", "cart.item_added"]
        );
        for event in EventType::ALL {
            assert_eq!(event.name().parse(), Ok(event));
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let refused = "order.shiped".parse::<EventType>().unwrap_err().to_string();
        assert!(refused.contains("order.shiped") && refused.contains("order.shipped"), "{refused}");
    }
}

//! The topology: names, exchanges, queues and their arguments. Pure; the layer `broker` declares it. The arguments of a name
//! never change, and are valid from RabbitMQ 3.10 to 4.x.

use std::time::Duration;

use uuid::Uuid;

use crate::{
    domain::{policy::Policy, tasks},
    message::ladder::{Hop, Ladder, Rung},
};

/// How often the broker delivers a wake-up without an ack before it goes into quarantine. RabbitMQ also counts deliveries
/// that were only prefetched, so wake-ups next to the culprit are quarantined as well, and applied there.
pub const LANE_DELIVERY_LIMIT: i64 = 20;
/// The same in quarantine, where a worker holds one wake-up at a time: the culprit becomes a dead letter.
pub const QUARANTINE_DELIVERY_LIMIT: i64 = 10;
/// The limit of queues that people read: RabbitMQ 4 drops a message after 20 deliveries by default, and 3.10 has no value for
/// "never".
pub const KEPT_DELIVERY_LIMIT: i64 = 1_000_000_000;

/// The value of a queue's or exchange's argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    Text(String),
    Number(i64),
}

/// The arguments of a queue or exchange, in order.
pub type Arguments = Vec<(&'static str, Argument)>;

/// An exchange's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeType {
    Direct,
    Fanout,
    Topic,
}

/// A durable exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    pub name: String,
    pub exchange_type: ExchangeType,
    pub arguments: Arguments,
}

/// The role of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueRole {
    Dead,
    Unrouted,
    Quarantine,
    Lane,
    /// The lane of the rungs' canaries.
    Canaries,
    Rung,
}

/// Stands in a canary's routing key in place of a kind. No task may have this name.
pub const CANARY: &str = "canary";

/// A durable quorum queue, bound to one exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    pub name: String,
    pub role: QueueRole,
    pub arguments: Arguments,
    pub exchange: String,
    pub routing_key: String,
}

/// The names of one fleet's exchanges and queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    prefix: String,
    shards: u16,
    ladder: Ladder,
}

impl Topology {
    /// The topology of a policy: a rung for each of its exact durations and for each of `ladder`.
    #[must_use]
    pub fn new(prefix: &str, shards: u16, ladder: &[Duration], policy: &Policy) -> Self {
        let ladder = Ladder::new(ladder.iter().copied().chain(policy.durations()));
        Self { prefix: prefix.to_owned(), shards, ladder }
    }

    /// The same without the rungs whose exchange is named, unless these are all.
    #[must_use]
    pub fn without(&self, named: impl Fn(&str) -> bool) -> Self {
        let rungs = self.ladder.rungs().iter().copied().filter(|rung| !named(&self.rung_exchange(*rung)));
        let ladder = Ladder::of(rungs);
        if ladder.rungs().is_empty() { self.clone() } else { Self { ladder, ..self.clone() } }
    }

    #[must_use]
    pub const fn ladder(&self) -> &Ladder {
        &self.ladder
    }

    #[must_use]
    pub const fn shards(&self) -> u16 {
        self.shards
    }

    /// The exchange into which every rung's messages expire.
    #[must_use]
    pub fn due_exchange(&self) -> String {
        format!("{}.due", self.prefix)
    }

    /// The exchange, and the queue, of dead letters.
    #[must_use]
    pub fn dead(&self) -> String {
        format!("{}.dead", self.prefix)
    }

    /// The exchange, and the queue, of messages that no lane takes.
    #[must_use]
    pub fn unrouted(&self) -> String {
        format!("{}.unrouted", self.prefix)
    }

    /// The exchange, and the queue, of wake-ups that were delivered too often: there, each is applied alone.
    #[must_use]
    pub fn quarantine(&self) -> String {
        format!("{}.quarantine", self.prefix)
    }

    /// A queue that is requested and never created, see `Broker::guard`.
    #[must_use]
    pub fn guard(&self) -> String {
        format!("{}.guard", self.prefix)
    }

    /// The queue of due wake-ups of a kind's shard.
    #[must_use]
    pub fn lane(&self, kind: &str, shard: u16) -> String {
        format!("{}.due.{kind}.{shard}", self.prefix)
    }

    /// Every lane of a kind.
    pub fn lanes<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = String> + 'a {
        (0..self.shards).map(move |shard| self.lane(kind, shard))
    }

    /// The routing key of a wake-up; it leads from any rung into the right lane.
    #[must_use]
    pub fn routing_key(kind: &str, shard: u16) -> String {
        format!("{kind}.{shard}")
    }

    /// The exchange to publish to for a hop.
    #[must_use]
    pub fn exchange_of(&self, hop: Hop) -> String {
        match hop {
            Hop::Lane => self.due_exchange(),
            Hop::Rung(rung) => self.rung_exchange(rung),
        }
    }

    /// How every rung's name begins.
    #[must_use]
    pub fn rung_prefix(&self) -> String {
        format!("{}.rung.", self.prefix)
    }

    /// Every rung's queue, with its rung and shard.
    pub fn rungs(&self) -> impl Iterator<Item = ((Rung, u16), String)> + '_ {
        let shards = move |rung: &Rung| {
            let rung = *rung;
            (0..self.shards).map(move |shard| ((rung, shard), self.rung_queue(rung, shard)))
        };
        self.ladder.rungs().iter().flat_map(shards)
    }

    fn rung_exchange(&self, rung: Rung) -> String {
        format!("{}{}", self.rung_prefix(), rung.label())
    }

    /// A rung's queue. The first shard's queue has the bare name, so that adding shards only adds queues.
    fn rung_queue(&self, rung: Rung, shard: u16) -> String {
        match shard {
            0 => self.rung_exchange(rung),
            _ => format!("{}.{shard}", self.rung_exchange(rung)),
        }
    }

    /// Every exchange.
    #[must_use]
    pub fn exchanges(&self) -> Vec<Exchange> {
        let exchange = |name, exchange_type| Exchange { name, exchange_type, arguments: Arguments::new() };
        let due = Exchange {
            // A message that no lane takes goes here instead of blocking its rung: an at-least-once queue stops at a message
            // that it cannot place.
            arguments: vec![("alternate-exchange", Argument::Text(self.unrouted()))],
            ..exchange(self.due_exchange(), ExchangeType::Direct)
        };
        let rungs = self.ladder.rungs().iter().map(|rung| exchange(self.rung_exchange(*rung), ExchangeType::Topic));
        let kept = [self.dead(), self.unrouted(), self.quarantine()].map(|name| exchange(name, ExchangeType::Fanout));
        kept.into_iter().chain([due]).chain(rungs).collect()
    }

    /// Every queue, targets before the rungs that dead-letter into them: a rung holds a message that it cannot place for
    /// minutes.
    #[must_use]
    pub fn queues(&self) -> Vec<Queue> {
        let mut queues = vec![
            Self::kept(QueueRole::Dead, self.dead()),
            Self::kept(QueueRole::Unrouted, self.unrouted()),
            self.quarantine_queue(),
        ];
        for (kind, role) in tasks::kinds().map(|kind| (kind, QueueRole::Lane)).chain([(CANARY, QueueRole::Canaries)]) {
            queues.extend((0..self.shards).map(|shard| self.lane_queue(kind, role, shard)));
        }
        for rung in self.ladder.rungs() {
            queues.extend((0..self.shards).map(|shard| self.rung_of(*rung, shard)));
        }
        queues
    }

    fn kept(role: QueueRole, name: String) -> Queue {
        Queue {
            role,
            arguments: vec![
                // Replicated and durable; the only type that keeps its messages when a node dies.
                ("x-queue-type", Argument::Text("quorum".into())),
                // Reading without taking returns messages; no number of reads may drop one.
                ("x-delivery-limit", Argument::Number(KEPT_DELIVERY_LIMIT)),
                // A policy of the broker may limit its length. By default it would then drop its oldest messages.
                ("x-overflow", Argument::Text("reject-publish".into())),
            ],
            exchange: name.clone(),
            routing_key: "#".into(),
            name,
        }
    }

    fn quarantine_queue(&self) -> Queue {
        Queue {
            name: self.quarantine(),
            role: QueueRole::Quarantine,
            arguments: given_up(QUARANTINE_DELIVERY_LIMIT, self.dead()),
            exchange: self.quarantine(),
            routing_key: "#".into(),
        }
    }

    fn lane_queue(&self, kind: &str, role: QueueRole, shard: u16) -> Queue {
        Queue {
            name: self.lane(kind, shard),
            role,
            arguments: given_up(LANE_DELIVERY_LIMIT, self.quarantine()),
            exchange: self.due_exchange(),
            routing_key: Self::routing_key(kind, shard),
        }
    }

    fn rung_of(&self, rung: Rung, shard: u16) -> Queue {
        Queue {
            name: self.rung_queue(rung, shard),
            role: QueueRole::Rung,
            arguments: vec![
                ("x-queue-type", Argument::Text("quorum".into())),
                // One duration per queue: no message waits behind a longer one.
                ("x-message-ttl", Argument::Number(i64::try_from(rung.duration_ms()).unwrap_or(i64::MAX))),
                // Expired messages keep their routing key, which leads to their lane.
                ("x-dead-letter-exchange", Argument::Text(self.due_exchange())),
                // Without it, messages that expire while their lane is missing or full are lost.
                ("x-dead-letter-strategy", Argument::Text("at-least-once".into())),
                ("x-overflow", Argument::Text("reject-publish".into())),
                // A rung has no consumers; RabbitMQ 4 would otherwise set its own limit.
                ("x-delivery-limit", Argument::Number(KEPT_DELIVERY_LIMIT)),
            ],
            exchange: self.rung_exchange(rung),
            routing_key: format!("*.{shard}"),
        }
    }
}

/// The arguments of a queue that workers consume: a message without an ack after this many deliveries goes on to `then`.
fn given_up(delivery_limit: i64, then: String) -> Arguments {
    vec![
        ("x-queue-type", Argument::Text("quorum".into())),
        // A wake-up that stops every worker that takes it must not do so forever.
        ("x-delivery-limit", Argument::Number(delivery_limit)),
        ("x-dead-letter-exchange", Argument::Text(then)),
        // A message leaves only once the other queue has confirmed it …
        ("x-dead-letter-strategy", Argument::Text("at-least-once".into())),
        // … which RabbitMQ grants only to queues that refuse publishes rather than drop their heads.
        ("x-overflow", Argument::Text("reject-publish".into())),
    ]
}

/// The shard of a subject: the last 8 bytes of its id, modulo the number of shards. Random in UUID versions 4 and 7.
#[must_use]
pub fn shard_of(subject: Uuid, shards: u16) -> u16 {
    let (_, low) = subject.as_u64_pair();
    u16::try_from(low % u64::from(shards.max(1))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{event::EventType, policy::PolicyLine};

    fn topology(shards: u16) -> Topology {
        let after = "14d".parse().unwrap();
        let policy = Policy::new(vec![PolicyLine { on: EventType::OrderShipped, task: "confirm-receipt", after }]).unwrap();
        Topology::new("kyhan", shards, &[Duration::from_secs(1), Duration::from_secs(3600)], &policy)
    }

    #[test]
    fn the_names_on_the_broker_are_pinned() {
        let names: Vec<_> =
            topology(1).queues().into_iter().map(|q| format!("{} ← {} {}", q.name, q.exchange, q.routing_key)).collect();
        assert_eq!(
            names,
            [
                "kyhan.dead ← kyhan.dead #",
                "kyhan.unrouted ← kyhan.unrouted #",
                "kyhan.quarantine ← kyhan.quarantine #",
                "kyhan.due.confirm-receipt.0 ← kyhan.due confirm-receipt.0",
                "kyhan.due.purge-cart-item.0 ← kyhan.due purge-cart-item.0",
                "kyhan.due.collect-arrears.0 ← kyhan.due collect-arrears.0",
                "kyhan.due.hide-order.0 ← kyhan.due hide-order.0",
                "kyhan.due.canary.0 ← kyhan.due canary.0",
                "kyhan.rung.1s ← kyhan.rung.1s *.0",
                "kyhan.rung.1h ← kyhan.rung.1h *.0",
                "kyhan.rung.14d ← kyhan.rung.14d *.0",
            ]
        );
    }

    #[test]
    fn more_shards_only_add_queues() {
        let few = topology(1).queues();
        let many = topology(3).queues();
        assert!(few.iter().all(|queue| many.contains(queue)));
        assert_eq!(many.len(), 3 + 3 * (4 + 1 + 3));
    }

    #[test]
    fn every_queue_says_all_that_keeps_its_messages() {
        for queue in topology(2).queues() {
            let named = |name: &str| queue.arguments.iter().any(|(argument, _)| *argument == name);
            assert!(named("x-queue-type") && named("x-delivery-limit") && named("x-overflow"), "{}", queue.name);
            if !matches!(queue.role, QueueRole::Dead | QueueRole::Unrouted) {
                assert!(named("x-dead-letter-strategy"), "{}", queue.name);
            }
        }
    }
}

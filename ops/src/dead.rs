//! Dead letters, straight from the broker's queues. Reading takes nothing; replaying acks a letter only once its wake-up is
//! confirmed, so that ops killed at any point loses none.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use lapin::{
    BasicProperties, Channel,
    options::{BasicAckOptions, BasicGetOptions},
};
use shared::{
    broker::{Broker, BrokerError, Outgoing, Publisher, close_channel},
    dead_letter::{DeadLetter, without_deaths},
    ladder::Ladder,
    pack::{Waiting, pack},
    settings::Settings,
    topology::Topology,
    wakeup::{PERSISTENT, TraceContext, Wakeup},
};
use uuid::Uuid;

/// So many letters are republished, confirmed and acked at a time.
const CHUNK: usize = 256;

/// A letter in hand: no other reader sees it until it is acked or released.
#[derive(Debug)]
pub struct Held {
    pub letter: DeadLetter,
    /// The queue it lies in: the dead letters' or the unrouted messages'.
    pub queue: String,
    delivery_tag: u64,
}

/// The letters of a fleet, read over one connection.
pub struct Reader {
    broker: Broker,
    channel: Channel,
    topology: Topology,
}

impl Reader {
    /// Connects.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn open(settings: &Settings) -> Result<Self, BrokerError> {
        let broker = Broker::connect(&settings.amqp, "kyhan ops").await?;
        let topology = settings.topology();
        broker.declare(&topology).await?;
        let channel = broker.channel().await?;
        Ok(Self { broker, channel, topology })
    }

    /// How many letters lie ready, those not held by another reader.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn ready(&self) -> Result<usize, BrokerError> {
        let mut ready = 0;
        for queue in self.queues() {
            ready += self.broker.observe(&queue).await?.map_or(0, |observed| observed.messages as usize);
        }
        Ok(ready)
    }

    /// Takes up to `most` letters in hand, oldest first.
    ///
    /// # Errors
    /// [`BrokerError`]; the letters in hand return to their queues then.
    pub async fn take(&self, most: usize) -> Result<Vec<Held>, BrokerError> {
        let mut held = Vec::new();
        for queue in self.queues() {
            while held.len() < most {
                let got = self.channel.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: false }).await?;
                let Some(got) = got else { break };
                let delivery = got.delivery;
                let unrouted = queue == self.topology.unrouted();
                let letter = DeadLetter::read(unrouted, delivery.routing_key.as_str(), &delivery.properties, delivery.data);
                held.push(Held { letter, queue: queue.clone(), delivery_tag: delivery.delivery_tag });
            }
        }
        Ok(held)
    }

    /// Wakes again what the letters are about, then acks them, chunk after chunk. A letter of one subject becomes a fresh
    /// wake-up of it; a packed wake-up that the broker gave up is taken apart; what could not be understood is sent again
    /// as it was.
    ///
    /// # Errors
    /// [`BrokerError`]; letters not acked by then stay where they are. Their wake-ups may have been sent: the recheck
    /// makes that harmless.
    pub async fn replay(&self, held: &[Held], mut progress: impl FnMut(usize)) -> Result<(), BrokerError> {
        let publisher = self.broker.publisher().await?;
        for chunk in held.chunks(CHUNK) {
            self.replay_chunk(&publisher, chunk).await?;
            progress(chunk.len());
        }
        publisher.close().await;
        Ok(())
    }

    async fn replay_chunk(&self, publisher: &Publisher, chunk: &[Held]) -> Result<(), BrokerError> {
        let messages: Vec<Outgoing> = chunk.iter().flat_map(|held| again(&held.letter, &self.topology)).collect();
        publisher.publish_all(&messages).await?;
        for held in chunk {
            self.ack(held.delivery_tag).await?;
        }
        Ok(())
    }

    #[expect(clippy::disallowed_methods, reason = "a replayed letter, after its wake-up is confirmed")]
    async fn ack(&self, delivery_tag: u64) -> Result<(), BrokerError> {
        Ok(self.channel.basic_ack(delivery_tag, BasicAckOptions { multiple: false }).await?)
    }

    /// Lets go of every letter in hand and closes the connection.
    pub async fn close(self) {
        close_channel(&self.channel).await;
        self.broker.close().await;
    }

    fn queues(&self) -> [String; 2] {
        [self.topology.dead(), self.topology.unrouted()]
    }
}

/// The letters named, and the ids that no letter has.
#[must_use]
pub fn choose(mut held: Vec<Held>, ids: &BTreeSet<Uuid>) -> (Vec<Held>, BTreeSet<Uuid>) {
    held.retain(|held| ids.contains(&held.letter.id));
    let found: BTreeSet<Uuid> = held.iter().map(|held| held.letter.id).collect();
    (held, ids.difference(&found).copied().collect())
}

/// The messages that wake again what a letter is about.
fn again(letter: &DeadLetter, topology: &Topology) -> Vec<Outgoing> {
    let Ok(Wakeup { kind, due_at, subjects, .. }) = Wakeup::decode(&letter.body, None) else {
        return vec![as_it_was(letter, topology)];
    };
    let subjects = letter.subject.map_or(subjects, |subject| vec![subject]);
    let waiting = subjects.into_iter().map(|subject| Waiting { kind, subject, due_at, wait: TimeDelta::zero(), attempt: 0 });
    // Each alone, so that only the one that fails again dies again.
    pack(waiting, &Ladder::new([]), topology.shards(), 1, &TraceContext::default())
        .iter()
        .map(|packed| Outgoing::of(packed, topology))
        .collect()
}

fn as_it_was(letter: &DeadLetter, topology: &Topology) -> Outgoing {
    Outgoing {
        exchange: topology.due_exchange(),
        routing_key: letter.routing_key.clone(),
        properties: BasicProperties::default().with_delivery_mode(PERSISTENT).with_headers(without_deaths(Some(&letter.headers))),
        body: letter.body.clone(),
    }
}

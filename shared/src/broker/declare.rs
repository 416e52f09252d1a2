//! Declaring the topology: idempotent, targets before the rungs that lead to them. A queue that exists with other arguments
//! is an error that names the queue and the difference. A login that may not declare checks whether everything exists.

use std::fmt;

use lapin::{
    Channel, ErrorKind, ExchangeKind,
    options::{
        BasicGetOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};

use super::{ACCESS_REFUSED, Broker, BrokerError, Declined, Difference, close_channel};
use crate::message::topology::{Argument, Arguments, Exchange, ExchangeType, Queue, Topology};

/// What the broker reports about a queue at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Messages ready to be delivered (or waiting, in a rung).
    pub messages: u32,
    pub consumers: u32,
}

/// What is missing of the topology, for a login that may not declare it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "RabbitMQ has no {}{}; this login may not declare {}: run `ops topology declare` with one that may",
    .named.join(", no "), if *.more { ", and perhaps more is missing" } else { "" }, if .named.len() == 1 { "it" } else { "them" }
)]
pub struct Missing {
    /// Like "queue kyhan.rung.14d": an exchange and a queue may have the same name.
    named: Vec<String>,
    /// The search ended here.
    more: bool,
}

/// At most this many are named. Each one that is missing costs a channel, and a line in RabbitMQ's log.
const MISSING_MAX: usize = 8;

impl Broker {
    /// Declares the topology, as [`Broker::declare`] does; if RabbitMQ does not let this login configure anything, checks
    /// whether all of it exists. For programs that only use it: the fleet needs no permission to declare or delete.
    ///
    /// # Errors
    /// [`BrokerError::Missing`], which names what is missing; those of [`Broker::declare`].
    pub async fn declare_or_find(&self, topology: &Topology) -> Result<(), BrokerError> {
        match self.declare(topology).await {
            // RabbitMQ would refuse the others as well.
            Err(BrokerError::Protocol(error)) if is_soft(&error, ACCESS_REFUSED) => self.find(topology).await,
            declared => declared,
        }
    }

    /// Looks for every exchange and queue with a passive declare. It shows neither arguments nor bindings: the login that
    /// declared them compared the arguments and made the bindings.
    ///
    /// RabbitMQ before 4.2.6 requires no permission for it. Later versions refuse it to a login that may neither configure,
    /// write nor read the object. Such an object counts as present: this login does not use it, and would not notice its
    /// absence.
    async fn find(&self, topology: &Topology) -> Result<(), BrokerError> {
        let mut missing = Missing { named: Vec::new(), more: false };
        let mut channel = self.channel().await?;
        let exchanges = topology.exchanges().into_iter().map(|exchange| (ObjectKind::Exchange, exchange.name));
        let queues = topology.queues().into_iter().map(|queue| (ObjectKind::Queue, queue.name));
        for (kind, name) in exchanges.chain(queues) {
            let seen = self.look_for(&channel, kind, &name).await?;
            if seen == Existence::There {
                continue;
            }
            // RabbitMQ closes the channel with its answer.
            channel = self.channel().await?;
            if seen == Existence::NotOursToSee {
                continue;
            }
            missing.more = missing.named.len() == MISSING_MAX;
            if missing.more {
                break;
            }
            missing.named.push(format!("{kind} {name}"));
        }
        close_channel(&channel).await;
        if missing.named.is_empty() { Ok(()) } else { Err(BrokerError::Missing(missing)) }
    }

    async fn look_for(&self, channel: &Channel, kind: ObjectKind, name: &str) -> Result<Existence, BrokerError> {
        let found = match kind {
            ObjectKind::Exchange => {
                let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
                // A passive declare ignores the type.
                self.answered(channel.exchange_declare(name.into(), ExchangeKind::Direct, passive, FieldTable::default())).await
            }
            ObjectKind::Queue => {
                self.answered(channel.queue_declare(name.into(), passive(), FieldTable::default())).await.map(|_| ())
            }
        };
        match found {
            Ok(()) => Ok(Existence::There),
            Err(BrokerError::Protocol(error)) if is_soft(&error, NOT_FOUND) => Ok(Existence::Missing),
            Err(BrokerError::Protocol(error)) if is_soft(&error, ACCESS_REFUSED) => Ok(Existence::NotOursToSee),
            Err(error) => Err(error),
        }
    }

    /// Declares every exchange, queue and binding.
    ///
    /// # Errors
    /// [`BrokerError::Inequivalent`] names every queue and exchange that exists and differs.
    pub async fn declare(&self, topology: &Topology) -> Result<(), BrokerError> {
        let mut differences = Vec::new();
        let mut channel = self.channel().await?;
        for exchange in topology.exchanges() {
            if let Some(difference) = declare_exchange(&channel, &exchange).await? {
                differences.push(difference);
                // RabbitMQ closes the channel with its refusal.
                channel = self.channel().await?;
            }
        }
        for queue in topology.queues() {
            if let Some(difference) = declare_queue(&channel, &queue).await? {
                differences.push(difference);
                channel = self.channel().await?;
            }
        }
        close_channel(&channel).await;
        if differences.is_empty() { Ok(()) } else { Err(BrokerError::Inequivalent(differences)) }
    }

    /// How an existing queue differs from ours. It declares the queue, so call it only for one that exists.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn difference(&self, queue: &Queue) -> Result<Option<Difference>, BrokerError> {
        let channel = self.channel().await?;
        // Without its binding: a check must not repair.
        let declared = channel.queue_declare(queue.name.as_str().into(), durable(), table(&queue.arguments)).await;
        let difference = difference(&queue.name, declared.map(|_| ()))?;
        if difference.is_none() {
            close_channel(&channel).await;
        }
        Ok(difference)
    }

    /// Reads a queue's counts without changing it; `None` if it does not exist.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn observe(&self, queue: &str) -> Result<Option<Observed>, BrokerError> {
        // A channel of its own: RabbitMQ closes it if the queue does not exist.
        let channel = self.channel().await?;
        match self.answered(channel.queue_declare(queue.into(), passive(), FieldTable::default())).await {
            Ok(found) => {
                close_channel(&channel).await;
                Ok(Some(Observed { messages: found.message_count(), consumers: found.consumer_count() }))
            }
            Err(BrokerError::Protocol(error)) if is_soft(&error, NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a queue returns no message to a `basic.get`; a message that it returns goes back at once. Unlike its count,
    /// this answer comes from the queue's recovered log. It does not cover messages that a rung has expired and that its lane
    /// has not confirmed yet. `None`: the queue does not exist.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn is_empty(&self, queue: &str) -> Result<Option<bool>, BrokerError> {
        let channel = self.channel().await?;
        match self.answered(channel.basic_get(queue.into(), BasicGetOptions { no_ack: false })).await {
            Ok(got) => {
                close_channel(&channel).await;
                Ok(Some(got.is_none()))
            }
            Err(BrokerError::Protocol(error)) if is_soft(&error, NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes a queue and everything in it.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn delete_queue(&self, queue: &str) -> Result<(), BrokerError> {
        let channel = self.channel().await?;
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        close_channel(&channel).await;
        Ok(())
    }

    /// Deletes an exchange and its bindings.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn delete_exchange(&self, exchange: &str) -> Result<(), BrokerError> {
        let channel = self.channel().await?;
        channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await?;
        close_channel(&channel).await;
        Ok(())
    }
}

/// The result of a passive declare.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Existence {
    There,
    Missing,
    NotOursToSee,
}

/// What a passive declare looks for.
#[derive(Clone, Copy)]
enum ObjectKind {
    Exchange,
    Queue,
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exchange => "exchange",
            Self::Queue => "queue",
        })
    }
}

const NOT_FOUND: u16 = 404;
pub(super) const PRECONDITION_FAILED: u16 = 406;

async fn declare_exchange(channel: &Channel, exchange: &Exchange) -> Result<Option<Difference>, BrokerError> {
    let kind = match exchange.exchange_type {
        ExchangeType::Direct => ExchangeKind::Direct,
        ExchangeType::Fanout => ExchangeKind::Fanout,
        ExchangeType::Topic => ExchangeKind::Topic,
    };
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declared = channel.exchange_declare(exchange.name.as_str().into(), kind, durable, table(&exchange.arguments)).await;
    difference(&exchange.name, declared)
}

fn durable() -> QueueDeclareOptions {
    QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() }
}

fn passive() -> QueueDeclareOptions {
    QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() }
}

async fn declare_queue(channel: &Channel, queue: &Queue) -> Result<Option<Difference>, BrokerError> {
    let name = || queue.name.as_str().into();
    let declared = channel.queue_declare(name(), durable(), table(&queue.arguments)).await;
    if let Some(difference) = difference(&queue.name, declared.map(|_| ()))? {
        return Ok(Some(difference));
    }
    let (exchange, key) = (queue.exchange.as_str().into(), queue.routing_key.as_str().into());
    channel.queue_bind(name(), exchange, key, QueueBindOptions::default(), FieldTable::default()).await?;
    Ok(None)
}

fn table(arguments: &Arguments) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Number(number) => AMQPValue::LongLongInt(*number),
        };
        table.insert((*name).into(), value);
    }
    table
}

/// RabbitMQ reports what differs: "inequivalent arg 'x-message-ttl' for queue …: received '…' but current is '…'". It has the same code for
/// other refusals, such as a virtual host's limit of queues.
fn difference(name: &str, declared: lapin::Result<()>) -> Result<Option<Difference>, BrokerError> {
    let Err(error) = declared else { return Ok(None) };
    let said = match error.kind() {
        ErrorKind::ProtocolError(said) if said.get_id() == PRECONDITION_FAILED => said.get_message().to_string(),
        _ => return Err(error.into()),
    };
    let (name, said) = (name.to_owned(), said.trim_start_matches("PRECONDITION_FAILED - ").to_owned());
    if said.starts_with("inequivalent") {
        Ok(Some(Difference { name, difference: said }))
    } else {
        let limit = said.contains("limit");
        Err(BrokerError::Declined(Declined { name, why: said, limit }))
    }
}

fn is_soft(error: &lapin::Error, code: u16) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if error.get_id() == code)
}

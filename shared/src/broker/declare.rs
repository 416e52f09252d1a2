//! Declaring the topology: idempotent, targets before the rungs that lead to them. A queue that exists with other arguments
//! is an error that names the queue and the difference.

use lapin::{
    Channel, ErrorKind, ExchangeKind,
    options::{
        BasicGetOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};

use super::{Broker, BrokerError, Difference, close_channel};
use crate::topology::{Argument, Arguments, Exchange, ExchangeType, Queue, Topology};

/// What the broker says of a queue at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Messages ready to be delivered (or waiting, in a rung).
    pub messages: u32,
    pub consumers: u32,
}

impl Broker {
    /// Declares every exchange, queue and binding.
    ///
    /// # Errors
    /// [`BrokerError::Inequivalent`] names every one that exists and differs.
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

    /// How an existing queue differs from ours. Declares it, so ask only for one that exists.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn difference(&self, queue: &Queue) -> Result<Option<Difference>, BrokerError> {
        let channel = self.channel().await?;
        // Without its binding: to look must not repair.
        let declared = channel.queue_declare(queue.name.as_str().into(), durable(), table(&queue.arguments)).await;
        let difference = difference(&queue.name, declared.map(|_| ()))?;
        if difference.is_none() {
            close_channel(&channel).await;
        }
        Ok(difference)
    }

    /// Looks at a queue without touching it; `None` when it does not exist.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn observe(&self, queue: &str) -> Result<Option<Observed>, BrokerError> {
        // A channel of its own: asking for a queue that is not there closes the channel.
        let channel = self.channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        match self.answered(channel.queue_declare(queue.into(), passive, FieldTable::default())).await {
            Ok(found) => {
                close_channel(&channel).await;
                Ok(Some(Observed { messages: found.message_count(), consumers: found.consumer_count() }))
            }
            Err(BrokerError::Protocol(error)) if is_soft(&error, NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a queue gives no message when asked for one, which is given back at once. Unlike its count, this answer comes
    /// from the queue's recovered log. What a rung has expired and not yet seen placed in its lane is not given.
    ///
    /// # Errors
    /// When the connection or the queue is gone.
    pub async fn is_empty(&self, queue: &str) -> Result<bool, BrokerError> {
        let channel = self.channel().await?;
        let got = channel.basic_get(queue.into(), BasicGetOptions { no_ack: false }).await?;
        close_channel(&channel).await;
        Ok(got.is_none())
    }

    /// Removes a queue and everything in it.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn delete_queue(&self, queue: &str) -> Result<(), BrokerError> {
        let channel = self.channel().await?;
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        close_channel(&channel).await;
        Ok(())
    }

    /// Removes an exchange and its bindings.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn delete_exchange(&self, exchange: &str) -> Result<(), BrokerError> {
        let channel = self.channel().await?;
        channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await?;
        close_channel(&channel).await;
        Ok(())
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

/// RabbitMQ says what differs: "inequivalent arg 'x-message-ttl' for queue …: received '…' but current is '…'".
fn difference(name: &str, declared: lapin::Result<()>) -> Result<Option<Difference>, BrokerError> {
    let Err(error) = declared else { return Ok(None) };
    let said = match error.kind() {
        ErrorKind::ProtocolError(said) if said.get_id() == PRECONDITION_FAILED => said.get_message().to_string(),
        _ => return Err(error.into()),
    };
    let difference = said.trim_start_matches("PRECONDITION_FAILED - ").to_owned();
    Ok(Some(Difference { name: name.to_owned(), difference }))
}

fn is_soft(error: &lapin::Error, code: u16) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if error.get_id() == code)
}

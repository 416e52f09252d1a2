//! The broker: connecting, declaring and publishing. Every publish is persistent and mandatory and awaits its confirm: a
//! message counts as sent only when the broker has confirmed it, and an ack with a returned message is a failure.
//!
//! A consumer publishes over another connection: a broker short of memory or disk stops reading from connections that publish
//! (<https://www.rabbitmq.com/docs/alarms>), and the acks of a consumer must not wait behind that.

use std::{sync::Arc, time::Duration};

use lapin::{Channel, Connection, ConnectionProperties, ConnectionStatus, options::ConfirmSelectOptions, uri::AMQPUri};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    process::{
        backoff::{BACKOFF_MAX, backoff},
        outage::Outage,
    },
    settings::{AmqpSettings, SecretUrl},
};

mod declare;
mod detours;
mod guard;
mod publish;

pub use declare::{Missing, Observed};
pub use detours::Detours;
pub use publish::Publisher;

/// A connection silent for longer is dead; RabbitMQ recommends 5 to 20 seconds. <https://www.rabbitmq.com/docs/heartbeats>
const HEARTBEAT_S: u16 = 10;
/// RabbitMQ's own default, in bytes. lapin allocates its buffers, 64 frames per connection, for the frame size that it is
/// given first, and fills those that grow later with zeros: 8 MiB of memory for each idle connection.
const FRAME_MAX: u32 = 131_072;
/// AMQP reply code 200: closed on purpose.
const REPLY_SUCCESS: u16 = 200;
/// AMQP reply code 403: the login is refused, or lacks a permission.
const ACCESS_REFUSED: u16 = 403;
/// How long a server may take to answer a handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long closing a connection or channel may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the broker refused or failed to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BrokerError {
    #[error("cannot connect to RabbitMQ at {at}: {error}")]
    Connect { at: String, error: Arc<lapin::Error> },
    #[error("RabbitMQ: {0}")]
    Protocol(#[from] Arc<lapin::Error>),
    #[error("{}; remove it when empty, or choose another topology.prefix", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Inequivalent(Vec<Difference>),
    #[error(transparent)]
    Missing(Missing),
    #[error(transparent)]
    Declined(Declined),
    #[error("exchange {exchange} returned a message with routing key {routing_key}: {reply}")]
    Returned { exchange: String, routing_key: String, reply: String },
    #[error("RabbitMQ refused a message for exchange {exchange} (basic.nack)")]
    Nacked { exchange: String },
    #[error("timed out after {0:?} waiting for RabbitMQ to confirm or answer")]
    Unconfirmed(Duration),
    #[error("lost the connection to RabbitMQ")]
    Lost,
    #[error("this channel failed earlier, so RabbitMQ's answers can no longer be matched to messages")]
    Unsound,
    #[error("RabbitMQ cancelled the consumer: its queue was deleted or its node left")]
    Cancelled,
    #[error("RabbitMQ is short of memory or disk and blocks publishers")]
    Blocked,
    #[error("this RabbitMQ could lose messages, so nothing was started: {0}")]
    Unsafe(String),
}

/// A queue or exchange that exists with other arguments than ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} exists with arguments other than Kỳ Hạn's, so {}: {difference}", guard::at_stake(.difference))]
pub struct Difference {
    pub name: String,
    /// As RabbitMQ reports it.
    pub difference: String,
}

/// A queue or exchange that RabbitMQ does not create, although none of this name exists with other arguments.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("RabbitMQ does not create {name}{}: {why}", if *.limit { "; raise the limit (rabbitmqctl set_vhost_limits, or a policy)" } else { "" })]
pub struct Declined {
    pub name: String,
    /// As RabbitMQ reports it.
    pub why: String,
    /// Whether a limit is reached, which may be raised or have room again.
    pub limit: bool,
}

impl BrokerError {
    /// Whether retrying is useless until an operator changes the broker.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Inequivalent(_) | Self::Unsafe(_) | Self::Declined(Declined { limit: false, .. }))
    }

    /// Whether this repeats the error before: an error that lasts until an operator acts is logged once.
    #[must_use]
    pub fn repeats(&self, before: Option<&Self>) -> bool {
        match (self, before) {
            (Self::Missing(now), Some(Self::Missing(before))) => now == before,
            (Self::Declined(now), Some(Self::Declined(before))) => now == before,
            _ => false,
        }
    }

    /// Whether the broker answered and refused the login.
    fn is_refusal(&self) -> bool {
        const NOT_ALLOWED: u16 = 530;
        let Self::Connect { error, .. } = self else { return false };
        let lapin::ErrorKind::ProtocolError(said) = error.kind() else { return false };
        // A limit of connections is "not allowed" too, but temporary.
        [ACCESS_REFUSED, NOT_ALLOWED].contains(&said.get_id()) && !said.get_message().as_str().contains("limit")
    }
}

impl From<lapin::Error> for BrokerError {
    fn from(error: lapin::Error) -> Self {
        Self::Protocol(Arc::new(error))
    }
}

/// A connection to RabbitMQ.
pub struct Broker {
    connection: Connection,
    confirm_timeout: Duration,
}

impl Broker {
    /// Connects once; RabbitMQ's list of connections shows `name`.
    ///
    /// # Errors
    /// [`BrokerError::Connect`], with the address but never its password.
    pub async fn connect(settings: &AmqpSettings, name: &str) -> Result<Self, BrokerError> {
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let url = settings.url.current();
        let refused = |error| BrokerError::Connect { at: url.to_string(), error: Arc::new(error) };
        let uri = uri_of(&url).map_err(|why| refused(std::io::Error::other(why).into()))?;
        let connecting = Connection::connect_uri(uri, properties);
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| Err(silence()));
        let connection = connected.map_err(refused)?;
        Ok(Self { connection, confirm_timeout: settings.confirm_timeout })
    }

    /// Connects, retrying with backoff and jitter for as long as it takes; `None` on shutdown.
    pub async fn connect_until(
        settings: &AmqpSettings,
        name: &str,
        outage: &Outage,
        shutdown: &CancellationToken,
    ) -> Option<Self> {
        Self::try_until(settings, name, outage, shutdown, |_| false).await.unwrap_or_default()
    }

    /// The same for a process's first connection: a broker that refuses the login will keep refusing it.
    ///
    /// # Errors
    /// A wrong password, or a virtual host that does not exist or is not allowed.
    pub async fn connect_first(
        settings: &AmqpSettings,
        name: &str,
        outage: &Outage,
        shutdown: &CancellationToken,
    ) -> Result<Option<Self>, BrokerError> {
        Self::try_until(settings, name, outage, shutdown, BrokerError::is_refusal).await
    }

    async fn try_until(
        settings: &AmqpSettings,
        name: &str,
        outage: &Outage,
        shutdown: &CancellationToken,
        hopeless: impl Fn(&BrokerError) -> bool,
    ) -> Result<Option<Self>, BrokerError> {
        let mut pauses = backoff();
        loop {
            let Some(connected) = shutdown.run_until_cancelled(Self::connect(settings, name)).await else { return Ok(None) };
            match connected {
                Ok(broker) => {
                    outage.ends();
                    return Ok(Some(broker));
                }
                Err(error) if hopeless(&error) => return Err(error),
                Err(error) => {
                    outage.begins(&error);
                    let pause = pauses.next().unwrap_or(BACKOFF_MAX);
                    shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
                }
            }
        }
    }

    /// A new channel.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn channel(&self) -> Result<Channel, BrokerError> {
        self.answered(self.connection.create_channel()).await
    }

    /// Awaits an answer of the broker, for a limited time: the broker neither reads nor answers over a connection that it
    /// blocks.
    async fn answered<T>(&self, asked: impl Future<Output = lapin::Result<T>>) -> Result<T, BrokerError> {
        let answer = tokio::time::timeout(self.confirm_timeout, asked).await;
        Ok(answer.map_err(|_| silent(self.connection.status(), self.confirm_timeout))??)
    }

    /// A channel in confirm mode.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn publisher(&self) -> Result<Publisher, BrokerError> {
        let channel = self.channel().await?;
        self.answered(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let status = self.connection.status().clone();
        Ok(Publisher { channel, status, confirm_timeout: self.confirm_timeout, sound: Mutex::new(true) })
    }

    /// Closes the connection. Its channels are closed first, each by its owner: dropping the last one and then closing can
    /// hang.
    pub async fn close(self) {
        let goodbye = self.connection.close(REPLY_SUCCESS, "done".into());
        if tokio::time::timeout(CLOSE_TIMEOUT, goodbye).await.is_err() {
            tracing::debug!("timed out closing the connection to RabbitMQ");
        }
    }
}

/// What the client connects to.
fn uri_of(url: &SecretUrl) -> Result<AMQPUri, String> {
    let mut uri: AMQPUri = url.expose().parse()?;
    if let Some(address) = url.ipv6() {
        // The crate takes it for no host, and so for localhost.
        uri.authority.host = address.to_string();
    }
    uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
    uri.query.frame_max.get_or_insert(FRAME_MAX);
    Ok(uri)
}

/// Closes a channel in any state; what it had delivered without an ack returns to its queue.
pub async fn close_channel(channel: &Channel) {
    let goodbye = channel.close(REPLY_SUCCESS, "done".into());
    if tokio::time::timeout(CLOSE_TIMEOUT, goodbye).await.is_err() {
        tracing::debug!("timed out closing a channel to RabbitMQ");
    }
}

/// The error for a timeout.
fn silent(status: &ConnectionStatus, span: Duration) -> BrokerError {
    if status.blocked() { BrokerError::Blocked } else { BrokerError::Unconfirmed(span) }
}

fn silence() -> lapin::Error {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_connected_to_is_what_the_url_names() {
        for (url, host, port, vhost) in [
            ("amqp://u:p@mq.example:5673/shop", "mq.example", 5673, "shop"),
            ("amqps://u:p@10.0.0.1/%2f", "10.0.0.1", 5671, "/"),
            ("amqp://u:p@[::1]", "::1", 5672, "/"),
            ("amqp://u:p@[2001:db8::1]:5673/c%E1%BB%ADa%20h%C3%A0ng", "2001:db8::1", 5673, "cửa hàng"),
        ] {
            let uri = uri_of(&SecretUrl::rabbitmq(url).unwrap()).unwrap();
            assert_eq!((uri.authority.host.as_str(), uri.authority.port, uri.vhost.as_str()), (host, port, vhost), "{url}");
            assert_eq!((uri.authority.userinfo.username.as_str(), uri.authority.userinfo.password.as_str()), ("u", "p"));
        }
        let uri = uri_of(&SecretUrl::rabbitmq("amqp://u:p@[::1]/?heartbeat=7&frame_max=8192&channel_max=9").unwrap()).unwrap();
        assert_eq!((uri.query.heartbeat, uri.query.frame_max, uri.query.channel_max), (Some(7), Some(8192), Some(9)));
    }
}

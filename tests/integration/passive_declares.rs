//! From 4.2.6 and 4.3.0 on, RabbitMQ refuses a passive declare by a user without any permission on the object. Here a proxy in
//! front of an older broker answers such declares as the newer ones do.

use std::{collections::HashSet, net::SocketAddr, sync::Arc};

use producer::{Producer, schedule::event};
use shared::{broker::BrokerError, domain::event::EventType};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Mutex,
};

use crate::{
    broker_users::{ops, pair, sandbox, settings_of},
    harness::{on_harness, relay_with, worker_with},
};

const METHOD: u8 = 1;
const FRAME_END: u8 = 0xCE;
/// Class and method, as at the beginning of a method frame.
const CHANNEL_CLOSE: [u8; 4] = [0, 20, 0, 40];
const CHANNEL_CLOSE_OK: [u8; 4] = [0, 20, 0, 41];
const EXCHANGE_DECLARE: [u8; 4] = [0, 40, 0, 10];
const QUEUE_DECLARE: [u8; 4] = [0, 50, 0, 10];

/// The names that are refused.
type Refused = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Listens in front of the broker of this URL. Returns the URL of this proxy.
async fn refusing(url: &str, refused: Refused) -> String {
    let mut url = url::Url::parse(url).expect("a URL");
    let server = (url.host_str().expect("a host").to_owned(), url.port().unwrap_or(5672));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address: SocketAddr = listener.local_addr().expect("an address");
    url.set_port(Some(address.port())).expect("a URL with a port");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(server.clone()).await.expect("the broker");
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            let (to_client, closing) = (Arc::new(Mutex::new(to_client)), Arc::<Mutex<HashSet<[u8; 2]>>>::default());
            tokio::spawn(to_the_server(
                from_client,
                to_server,
                Arc::clone(&to_client),
                Arc::clone(&closing),
                Arc::clone(&refused),
            ));
            tokio::spawn(to_the_client(from_server, to_client, closing));
        }
    });
    url.into()
}

/// A frame: its type, channel and payload.
struct Frame {
    kind: u8,
    channel: [u8; 2],
    payload: Vec<u8>,
}

impl Frame {
    async fn read(from: &mut OwnedReadHalf) -> Option<Self> {
        let mut header = [0; 7];
        from.read_exact(&mut header).await.ok()?;
        let [kind, c0, c1, length @ ..] = header;
        let mut payload = vec![0; u32::from_be_bytes(length) as usize + 1];
        from.read_exact(&mut payload).await.ok()?;
        assert_eq!(payload.pop(), Some(FRAME_END));
        Some(Self { kind, channel: [c0, c1], payload })
    }

    async fn write(&self, to: &mut OwnedWriteHalf) {
        let length = u32::try_from(self.payload.len()).expect("a frame").to_be_bytes();
        let _ = to.write_all(&[&[self.kind], &self.channel[..], &length, &self.payload, &[FRAME_END]].concat()).await;
    }

    fn is(&self, method: [u8; 4]) -> bool {
        self.kind == METHOD && self.payload.starts_with(&method)
    }

    /// A method on the same channel.
    fn answer(&self, payload: Vec<u8>) -> Self {
        Self { kind: METHOD, channel: self.channel, payload }
    }

    /// The name in a passive declare.
    fn passively_declared(&self) -> Option<&str> {
        // Class, method, a reserved field; then the name, the type if it is an exchange, and the bits, the first of which is
        // "passive".
        let (name, mut rest) = short_string(self.payload.get(6..)?)?;
        if self.is(EXCHANGE_DECLARE) {
            rest = short_string(rest)?.1;
        } else if !self.is(QUEUE_DECLARE) {
            return None;
        }
        (rest.first()? & 1 == 1).then_some(name)
    }
}

fn short_string(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (text, rest) = rest.split_at_checked((*length).into())?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

/// A frame that closes a channel, with a code and a text.
fn close(code: u16, text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("a short text");
    [&CHANNEL_CLOSE[..], &code.to_be_bytes(), &[length], text.as_bytes(), &[0; 4]].concat()
}

/// When a declare is refused, closes the client's channel as the broker would, and the broker's channel if it is still open.
async fn to_the_server(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    back: Arc<Mutex<OwnedWriteHalf>>,
    closing: Arc<Mutex<HashSet<[u8; 2]>>>,
    refused: Refused,
) {
    let mut greeting = [0; 8];
    if from.read_exact(&mut greeting).await.is_err() || to.write_all(&greeting).await.is_err() {
        return;
    }
    let mut refusals = HashSet::new();
    while let Some(frame) = Frame::read(&mut from).await {
        if frame.is(CHANNEL_CLOSE_OK) && refusals.remove(&frame.channel) {
            continue;
        }
        match frame.passively_declared().filter(|name| refused(name)) {
            Some(name) => {
                closing.lock().await.insert(frame.channel);
                frame.answer(close(200, "done")).write(&mut to).await;
                refusals.insert(frame.channel);
                let text = format!("ACCESS_REFUSED - access to '{name}' refused");
                frame.answer(close(403, &text)).write(&mut *back.lock().await).await;
            }
            None => frame.write(&mut to).await,
        }
    }
}

async fn to_the_client(mut from: OwnedReadHalf, to: Arc<Mutex<OwnedWriteHalf>>, closing: Arc<Mutex<HashSet<[u8; 2]>>>) {
    while let Some(frame) = Frame::read(&mut from).await {
        if !(frame.is(CHANNEL_CLOSE_OK) && closing.lock().await.remove(&frame.channel)) {
            frame.write(&mut *to.lock().await).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_runs_where_the_broker_shows_each_login_only_what_it_may_use() {
    let pair = pair().await;
    on_harness(sandbox(&pair).await, async |harness| {
        ops(harness, &pair.users.ops, &["topology", "declare"]).await;
        let prefix = harness.settings().naming.prefix.clone();
        let due_exchange = harness.topology().due_exchange();
        let (rungs, due) = (format!("{prefix}.rung."), due_exchange.clone());
        let producers = refusing(&pair.users.producer, Arc::new(move |name| name != due && !name.starts_with(&rungs))).await;
        // A worker uses everything except the unrouted exchange, where that has a name of its own.
        let (relay, worker) =
            (relay_with(settings_of(harness, &producers)), worker_with(settings_of(harness, &pair.users.worker)));
        let shipped = harness.delivering().await;
        harness.event("order.shipped", shipped).await;
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        let producer = Producer::connect(&settings_of(harness, &producers)).await.expect("a producer");
        let shipped = harness.delivering().await;
        assert_eq!(producer.schedule(&[event(EventType::OrderShipped, shipped)]).await.expect("confirmed"), []);
        producer.close().await;
        harness.until("SELECT count(*) = 2 FROM orders WHERE status = 'received'").await;
        relay.stop().await;
        worker.stop().await;

        // Objects that it uses and that do not exist are still reported as missing.
        let operator = crate::broker_users::broker_of(harness, &pair.users.ops).await;
        operator.delete_exchange(&due_exchange).await.expect("deleted");
        operator.close().await;
        let refused = Producer::connect(&settings_of(harness, &producers)).await.err().expect("no producer");
        assert!(
            matches!(&refused, BrokerError::Missing(_)) && refused.to_string().contains(&format!("no exchange {due_exchange}")),
            "{refused}"
        );
        ops(harness, &pair.users.ops, &["topology", "declare"]).await;
    })
    .await;
}

//! A TCP proxy on 127.0.0.1 between the fleet and a server. It is a network that delays, truncates, resets and falls silent by a seeded plan,
//! or a tap that reads AMQP, or a plain way to a node that answers.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::tap::{Tap, Wire};

/// How many bytes are forwarded at a time.
const CHUNK: usize = 16 * 1024;
const CONNECT: Duration = Duration::from_secs(2);

/// What the proxy does to the traffic.
#[derive(Clone)]
pub enum Conduct {
    Plain,
    Flaky(Flaws),
    Tapped(Arc<Tap>),
}

/// Chances of each flaw per chunk of bytes, in millionths.
#[derive(Clone, Copy, Debug)]
pub struct Flaws {
    pub seed: u64,
    pub delay: u32,
    pub truncate: u32,
    pub reset: u32,
    /// The connection stays open, but nothing is forwarded any more.
    pub silence: u32,
}

/// Longest delay of a chunk, in milliseconds.
const DELAY_MAX_MS: u64 = 150;
/// How long a silent connection stays open.
const SILENCE: Duration = Duration::from_secs(4);

/// How often each flaw happened.
#[derive(Default)]
pub struct Happened {
    pub delayed: AtomicU64,
    pub truncated: AtomicU64,
    pub reset: AtomicU64,
    pub silenced: AtomicU64,
    /// Set when the flaws end.
    healed: AtomicBool,
}

impl Happened {
    pub fn say(&self) -> String {
        let [delayed, truncated, reset, silenced] =
            [&self.delayed, &self.truncated, &self.reset, &self.silenced].map(|count| count.load(Ordering::Relaxed));
        format!("{delayed} delays, {truncated} truncations, {reset} resets, {silenced} silences")
    }
}

pub struct Proxy {
    pub port: u16,
    pub happened: Arc<Happened>,
    accepting: JoinHandle<()>,
    open: CancellationToken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

enum ChunkVerdict {
    Pass,
    /// Forward this many bytes, then close.
    Truncate(usize),
    Reset,
    Silence,
}

impl Proxy {
    /// Starts a proxy to the first of `targets` that answers; each connection begins with the next target.
    pub async fn start(targets: Vec<SocketAddr>, conduct: Conduct) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (happened, open) = (Arc::new(Happened::default()), CancellationToken::new());
        let (count, until) = (Arc::clone(&happened), open.clone());
        let accepting = tokio::spawn(async move {
            let mut number = 0;
            while let Ok((client, _)) = listener.accept().await {
                number += 1;
                let (targets, conduct, count) = (targets.clone(), conduct.clone(), Arc::clone(&count));
                let until = until.clone();
                tokio::spawn(async move {
                    until.run_until_cancelled(serve(client, &targets, &conduct, number, &count)).await;
                });
            }
        });
        Ok(Self { port, happened, accepting, open })
    }

    /// Ends all flaws.
    pub fn heal(&self) {
        self.happened.healed.store(true, Ordering::Relaxed);
    }

    /// The URL, changed to go through this proxy.
    pub fn url(&self, of: &str) -> Result<String> {
        let mut url = url::Url::parse(of)?;
        url.set_port(Some(self.port)).map_err(|()| anyhow::anyhow!("a URL without a port"))?;
        Ok(url.into())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.open.cancel();
    }
}

/// The host and port of a URL.
pub fn address(url: &str) -> Result<SocketAddr> {
    let url = url::Url::parse(url)?;
    let (host, port) = (url.host_str().context("a URL without a host")?, url.port().context("a URL without a port")?);
    Ok(format!("{host}:{port}").parse()?)
}

async fn serve(client: TcpStream, targets: &[SocketAddr], conduct: &Conduct, number: u64, happened: &Happened) {
    let first = usize::try_from(number).unwrap_or_default() % targets.len().max(1);
    let Some(server) = connect(targets[first..].iter().chain(&targets[..first])).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let wire = Wire::default();
    let rng = |way: u64| match conduct {
        Conduct::Flaky(flaws) => StdRng::seed_from_u64(flaws.seed ^ (number << 1 | way)),
        _ => StdRng::seed_from_u64(number),
    };
    let (mut out, mut back) = (
        Pump { way: Direction::ToServer, conduct, wire: &wire, rng: rng(0), happened },
        Pump { way: Direction::ToClient, conduct, wire: &wire, rng: rng(1), happened },
    );
    // The direction that ends first ends both.
    tokio::select! {
        () = out.run(from_client, to_server) => {}
        () = back.run(from_server, to_client) => {}
    }
}

async fn connect(targets: impl Iterator<Item = &SocketAddr>) -> Option<TcpStream> {
    for target in targets {
        if let Ok(Ok(stream)) = timeout(CONNECT, TcpStream::connect(target)).await {
            return Some(stream);
        }
    }
    None
}

struct Pump<'a> {
    way: Direction,
    conduct: &'a Conduct,
    wire: &'a Wire,
    rng: StdRng,
    happened: &'a Happened,
}

impl Pump<'_> {
    async fn run(&mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut buffer = vec![0; CHUNK];
        loop {
            let Ok(count) = from.read(&mut buffer).await else { return };
            if count == 0 {
                return;
            }
            let passes = match self.judge(&buffer[..count]).await {
                ChunkVerdict::Pass => count,
                ChunkVerdict::Truncate(short) => {
                    let _ = to.write_all(&buffer[..short]).await;
                    return;
                }
                ChunkVerdict::Reset => {
                    let _ = (to.as_ref().set_zero_linger(), from.as_ref().set_zero_linger());
                    return;
                }
                ChunkVerdict::Silence => return tokio::time::sleep(SILENCE).await,
            };
            if to.write_all(&buffer[..passes]).await.is_err() {
                return;
            }
        }
    }

    async fn judge(&mut self, chunk: &[u8]) -> ChunkVerdict {
        match self.conduct {
            Conduct::Plain => ChunkVerdict::Pass,
            Conduct::Tapped(tap) => tap.sees(self.wire, self.way, chunk).map_or(ChunkVerdict::Pass, ChunkVerdict::Truncate),
            Conduct::Flaky(_) if self.happened.healed.load(Ordering::Relaxed) => ChunkVerdict::Pass,
            Conduct::Flaky(flaws) => {
                let drawn = self.rng.random_range(0..1_000_000_u32);
                let limits = [flaws.delay, flaws.truncate, flaws.reset, flaws.silence];
                let mut limit = 0;
                let drawn = limits.iter().position(|chance| {
                    limit += chance;
                    drawn < limit
                });
                let count = |count: &AtomicU64| count.fetch_add(1, Ordering::Relaxed);
                match drawn {
                    Some(0) => {
                        count(&self.happened.delayed);
                        let delay = self.rng.random_range(1..=DELAY_MAX_MS);
                        tokio::time::sleep(Duration::from_millis(delay)).await;
                        ChunkVerdict::Pass
                    }
                    Some(1) => {
                        count(&self.happened.truncated);
                        ChunkVerdict::Truncate(self.rng.random_range(0..chunk.len()))
                    }
                    Some(2) => {
                        count(&self.happened.reset);
                        ChunkVerdict::Reset
                    }
                    Some(_) => {
                        count(&self.happened.silenced);
                        ChunkVerdict::Silence
                    }
                    None => ChunkVerdict::Pass,
                }
            }
        }
    }
}

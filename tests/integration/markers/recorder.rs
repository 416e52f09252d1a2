//! A TCP proxy on 127.0.0.1 in front of one server. It keeps every byte in both directions, and can simulate an outage of the
//! server.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// The bytes of one connection.
#[derive(Clone, Default)]
pub struct Passed {
    pub to_server: Vec<u8>,
    pub to_client: Vec<u8>,
}

pub struct Recorder {
    address: SocketAddr,
    passed: Arc<Mutex<Vec<Passed>>>,
    /// Whether the server is reachable for its clients.
    up: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Recorder {
    /// A proxy in front of the server of a URL.
    pub async fn before(url: &str, standard_port: u16) -> Self {
        let url = url::Url::parse(url).expect("a URL");
        let server = (url.host_str().expect("a host").to_owned(), url.port().unwrap_or(standard_port));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (up, seen) = watch::channel(true);
        let passed = Arc::<Mutex<Vec<Passed>>>::default();
        let kept = Arc::clone(&passed);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // During an outage, a new connection is dropped immediately.
                if *seen.borrow() {
                    tokio::spawn(serve(client, server.clone(), Arc::clone(&kept), seen.clone()));
                }
            }
        });
        Self { address, passed, up, accepting }
    }

    /// The same URL, through this proxy.
    pub fn url(&self, of: &str) -> String {
        let mut url = url::Url::parse(of).expect("a URL");
        url.set_port(Some(self.address.port())).expect("a URL with a port");
        url.into()
    }

    /// Starts or ends an outage. An outage closes every connection.
    pub fn set_up(&self, up: bool) {
        self.up.send_replace(up);
    }

    /// The bytes so far, by connection.
    pub fn passed(&self) -> Vec<Passed> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.accepting.abort();
        self.set_up(false);
    }
}

async fn serve(client: TcpStream, server: (String, u16), passed: Arc<Mutex<Vec<Passed>>>, mut up: watch::Receiver<bool>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let own = {
        let mut passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.push(Passed::default());
        passed.len() - 1
    };
    let keep = |bytes: &[u8], to_server: bool| {
        let mut passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = &mut passed[own];
        if to_server { passed.to_server.extend_from_slice(bytes) } else { passed.to_client.extend_from_slice(bytes) }
    };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        () = pump(from_client, to_server, |bytes| keep(bytes, true)) => {}
        () = pump(from_server, to_client, |bytes| keep(bytes, false)) => {}
        // Also when the proxy has been dropped.
        _ = up.wait_for(|up| !up) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, keep: impl Fn(&[u8])) {
    let mut buffer = vec![0; 16 * 1_024];
    while let Ok(count) = from.read(&mut buffer).await {
        keep(&buffer[..count]);
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

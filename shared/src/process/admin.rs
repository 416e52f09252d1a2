//! The admin port: over HTTP, whether a process is alive (`/healthz`) and whether it is ready (`/readyz`).
//!
//! Liveness depends on no server: otherwise, in an outage, a supervisor that restarts processes which are not alive would
//! restart the whole fleet. Callers are limited: this many connections at once, one small request each, a few seconds in all.
//! Beyond that number the oldest connection is closed, so that idle ones cannot keep a probe out.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use axum::{Json, Router, extract::State, http::StatusCode, response::IntoResponse, routing::get, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::{process::health::Health, settings};

/// Most connections at once. An answer takes less than a millisecond, so the oldest of so many sends nothing.
const CONNECTIONS_MAX: usize = 64;
/// Most bytes of a request line and headers; bodies are not read.
const REQUEST_MAX: usize = 16 * 1_024;
/// How long a client may take to send its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a connection may last, from accepted to answered.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the admin port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("admin.listen: cannot listen on {address}: {error}; set another address, port 0 for any free one, or \"none\"")]
pub struct AdminError {
    pub address: SocketAddr,
    pub error: std::io::Error,
}

/// An open admin port; dropping it closes it.
pub struct AdminPort {
    _serving: AbortOnDropHandle<()>,
}

impl AdminPort {
    /// Opens the port and answers on it; `None` if the settings disable it.
    ///
    /// # Errors
    /// [`AdminError`] if the address cannot be used, for example because another process has it.
    pub async fn open(settings: settings::AdminSettings, health: Health) -> Result<Option<Self>, AdminError> {
        let Some(address) = settings.listen else { return Ok(None) };
        let failed = |error| AdminError { address, error };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        tracing::info!(%address, "admin port listens");
        let serving = tokio::spawn(serve(listener, router(health)));
        Ok(Some(Self { _serving: AbortOnDropHandle::new(serving) }))
    }
}

fn router(health: Health) -> Router {
    Router::new().route("/healthz", get(alive)).route("/readyz", get(ready)).with_state(health)
}

/// An answer of any kind shows that the runtime runs. A part that dies for good ends the process.
async fn alive() -> impl IntoResponse {
    Json(json!({ "alive": true }))
}

async fn ready(State(health): State<Health>) -> impl IntoResponse {
    let report = health.report();
    (if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(report))
}

/// Not `axum::serve`, which lets silent clients pile up.
async fn serve(mut listener: TcpListener, router: Router) {
    // Oldest first; dropping one closes its connection.
    let mut open: VecDeque<AbortOnDropHandle<()>> = VecDeque::with_capacity(CONNECTIONS_MAX);
    loop {
        // Axum's own `accept`: after an error (such as no descriptor left) it waits and tries again.
        let (stream, _) = Listener::accept(&mut listener).await;
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS_MAX {
            open.pop_front();
        }
        let answered = answer(stream, router.clone());
        open.push_back(AbortOnDropHandle::new(tokio::spawn(async move {
            if tokio::time::timeout(CONNECTION_TIMEOUT, answered).await.is_err() {
                tracing::debug!("closed a connection to the admin port that took too long");
            }
        })));
    }
}

/// Answers the one request of a connection.
async fn answer(stream: TcpStream, router: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).keep_alive(false).max_buf_size(REQUEST_MAX);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await {
        tracing::debug!(%error, "a connection to the admin port failed");
    }
}

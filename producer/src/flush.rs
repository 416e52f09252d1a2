//! Flush: what several callers want scheduled at the same moment travels together, packed. While some flushes await their
//! confirms the next one gathers; a lone caller waits for nobody. A caller hears of its events once every wake-up that names them
//! is confirmed, or what went wrong.

use futures::{StreamExt, stream::FuturesUnordered};
use shared::{
    broker::{BrokerError, Outgoing, Publisher},
    event::Event,
    policy::Policy,
    telemetry,
    topology::Topology,
    wakeup::TraceContext,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tracing::Instrument;

use crate::schedule::{self, Plan};

/// Most events that a flush begins with; one caller's beyond that are several flushes. A multiple of what a wake-up names.
const EVENTS_MAX: usize = 32_768;
/// Flushes under way at once. More of them would be smaller ones: callers that come meanwhile gather for the next.
const FLUSHES_MAX: usize = 4;
/// Callers' requests that wait for a flush; whoever comes then waits to ask.
const REQUESTS_MAX: usize = 1_024;
/// Most callers to whose spans that of a flush links.
const LINKS_MAX: usize = 32;

/// From what wake-ups are made.
pub(crate) struct Terms {
    pub policy: Policy,
    pub topology: Topology,
    pub pack_max: usize,
}

impl Terms {
    pub(crate) fn plan(&self, events: &[Event], trace: &TraceContext) -> Plan {
        schedule::plan(events, schedule::now(), &self.policy, &self.topology, self.pack_max, trace)
    }
}

/// Some of a caller's events.
struct Request {
    events: Vec<Event>,
    trace: TraceContext,
    /// Hears which of the flush's events lie beyond the calendar's end.
    done: oneshot::Sender<Result<Vec<Event>, BrokerError>>,
}

/// Gathers and sends in a task of its own, so that a caller that goes away in the middle takes no other's events with it.
pub(crate) struct Flushing {
    requests: mpsc::Sender<Request>,
    running: JoinHandle<Publisher>,
}

impl Flushing {
    pub(crate) fn start(terms: Terms, publisher: Publisher) -> Self {
        let (requests, waiting) = mpsc::channel(REQUESTS_MAX);
        Self { requests, running: tokio::spawn(run(terms, publisher, waiting)) }
    }

    /// Has `events` scheduled. Those of them beyond the calendar's end.
    pub(crate) async fn schedule(&self, events: &[Event], trace: &TraceContext) -> Result<Vec<Event>, BrokerError> {
        let mut answers = Vec::with_capacity(events.len().div_ceil(EVENTS_MAX));
        for part in events.chunks(EVENTS_MAX) {
            let (done, answer) = oneshot::channel();
            let request = Request { events: part.to_vec(), trace: trace.clone(), done };
            self.requests.send(request).await.map_err(|_| BrokerError::Lost)?;
            answers.push((part, answer));
        }
        let mut beyond = Vec::new();
        for (part, answer) in answers {
            // Others' events were in the same flush.
            let theirs = answer.await.map_err(|_| BrokerError::Lost)??;
            beyond.extend(theirs.into_iter().filter(|event| part.contains(event)));
        }
        Ok(beyond)
    }

    /// Sends what was asked for and ends; the publisher, unless the task has died.
    pub(crate) async fn end(self) -> Option<Publisher> {
        drop(self.requests);
        self.running.await.ok()
    }
}

async fn run(terms: Terms, publisher: Publisher, mut waiting: mpsc::Receiver<Request>) -> Publisher {
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = under_way.next() => {}
            first = waiting.recv(), if under_way.len() < FLUSHES_MAX => {
                let Some(first) = first else { break };
                under_way.push(flush(&terms, &publisher, gather(first, &mut waiting)));
            }
        }
    }
    while under_way.next().await.is_some() {}
    drop(under_way);
    publisher
}

/// A request and those that wait behind it.
fn gather(first: Request, waiting: &mut mpsc::Receiver<Request>) -> Vec<Request> {
    let mut events = first.events.len();
    let mut requests = vec![first];
    while events < EVENTS_MAX
        && let Ok(next) = waiting.try_recv()
    {
        events += next.events.len();
        requests.push(next);
    }
    requests
}

async fn flush(terms: &Terms, publisher: &Publisher, requests: Vec<Request>) {
    let span = tracing::info_span!("schedule", otel.kind = "producer", callers = requests.len());
    for request in requests.iter().take(LINKS_MAX) {
        telemetry::link(&span, &request.trace);
    }
    let trace = telemetry::trace_context(&span);
    let sent = async {
        let events: Vec<Event> = requests.iter().flat_map(|request| &request.events).copied().collect();
        let plan = terms.plan(&events, &trace);
        let messages: Vec<Outgoing> = plan.messages(&terms.topology);
        publisher.publish_all(&messages).await.map(|()| plan.beyond)
    };
    let sent = sent.instrument(span).await;
    for request in requests {
        // Whoever has gone does not want to know.
        let _ = request.done.send(sent.clone());
    }
}

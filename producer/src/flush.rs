//! Flush: what several callers want scheduled at the same moment travels together, packed. While some flushes await their
//! confirms the next one gathers; a lone caller waits for nobody. A caller hears of its events once every wake-up that names them
//! is confirmed, or what went wrong with its own.

use std::{slice, sync::Arc};

use futures::{StreamExt, stream::FuturesUnordered};
use shared::{
    broker::{Broker, BrokerError, Publisher},
    domain::{event::Event, policy::Policy},
    message::{topology::Topology, wakeup::TraceContext},
    process::telemetry,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinHandle,
};
use tracing::Instrument;

use crate::schedule::{self, Plan};

/// Most events that a flush begins with; one caller's beyond that are several flushes. A multiple of what a wake-up names.
const EVENTS_MAX: u32 = 16_384;
/// Flushes under way at once, each over a channel of its own. More of them would be smaller ones: callers that come meanwhile
/// gather for the next.
const FLUSHES_MAX: usize = 8;
/// Events that are under way or wait for a flush, and requests that wait; whoever comes then waits to ask.
const ROOM: u32 = 16 * EVENTS_MAX;
const REQUESTS_MAX: usize = 1_024;
/// Most callers to whose spans that of a flush links.
const LINKS_MAX: usize = 32;

/// From what wake-ups are made.
pub(crate) struct Terms {
    pub policy: Policy,
    pub topology: Topology,
    pub pack_max: usize,
}

/// Some of a caller's events.
struct Request {
    events: Vec<Event>,
    trace: TraceContext,
    /// Hears which of the flush's events lie beyond the calendar's end.
    done: oneshot::Sender<Result<Vec<Event>, BrokerError>>,
    _room: OwnedSemaphorePermit,
}

/// Gathers and sends in a task of its own, so that a caller that goes away in the middle takes no other's events with it.
pub(crate) struct Flushing {
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    running: JoinHandle<Broker>,
}

impl Flushing {
    pub(crate) fn start(terms: Terms, broker: Broker) -> Self {
        let (requests, waiting) = mpsc::channel(REQUESTS_MAX);
        let room = Arc::new(Semaphore::new(ROOM as usize));
        Self { requests, room, running: tokio::spawn(run(terms, broker, waiting)) }
    }

    /// Has `events` scheduled. Those of them beyond the calendar's end.
    pub(crate) async fn schedule(&self, events: &[Event], trace: &TraceContext) -> Result<Vec<Event>, BrokerError> {
        let mut answers = Vec::new();
        for part in events.chunks(EVENTS_MAX as usize) {
            let size = u32::try_from(part.len()).unwrap_or(EVENTS_MAX);
            let room = Arc::clone(&self.room).acquire_many_owned(size).await.map_err(|_| BrokerError::Lost)?;
            let (done, answer) = oneshot::channel();
            let request = Request { events: part.to_vec(), trace: trace.clone(), done, _room: room };
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

    /// Sends what was asked for and ends; the connection, unless the task has died.
    pub(crate) async fn end(self) -> Option<Broker> {
        drop(self.requests);
        self.running.await.ok()
    }
}

async fn run(terms: Terms, broker: Broker, mut waiting: mpsc::Receiver<Request>) -> Broker {
    let mut under_way = FuturesUnordered::new();
    // One for each flush that may be under way: an open channel, or none yet.
    let mut idle: Vec<Option<Publisher>> = (0..FLUSHES_MAX).map(|_| None).collect();
    loop {
        tokio::select! {
            biased;
            Some(publisher) = under_way.next() => idle.push(publisher),
            first = waiting.recv(), if !idle.is_empty() => {
                let Some(first) = first else { break };
                let publisher = idle.pop().flatten();
                under_way.push(flush(&terms, &broker, publisher, gather(first, &mut waiting)));
            }
        }
    }
    while let Some(publisher) = under_way.next().await {
        idle.push(publisher);
    }
    for publisher in idle.into_iter().flatten() {
        publisher.close().await;
    }
    drop(under_way);
    broker
}

/// A request and those that wait behind it.
fn gather(first: Request, waiting: &mut mpsc::Receiver<Request>) -> Vec<Request> {
    let mut events = first.events.len();
    let mut requests = vec![first];
    while events < EVENTS_MAX as usize
        && let Ok(next) = waiting.try_recv()
    {
        events += next.events.len();
        requests.push(next);
    }
    requests
}

/// Sends what some callers asked for and tells each. The channel, where it can be used again.
async fn flush(terms: &Terms, broker: &Broker, mut publisher: Option<Publisher>, requests: Vec<Request>) -> Option<Publisher> {
    let sent = send(terms, broker, &mut publisher, &requests).await;
    // A rung that is missing or full fails those alone whose events need it.
    let alone = requests.len() > 1 && matches!(sent, Err(BrokerError::Returned { .. } | BrokerError::Nacked { .. }));
    for request in requests {
        let own = if alone { send(terms, broker, &mut publisher, slice::from_ref(&request)).await } else { sent.clone() };
        // Whoever has gone does not want to know.
        let _ = request.done.send(own);
    }
    publisher
}

/// Sends over the channel, or over a new one, and keeps it if all went well. The events beyond the calendar's end.
async fn send(
    terms: &Terms,
    broker: &Broker,
    publisher: &mut Option<Publisher>,
    requests: &[Request],
) -> Result<Vec<Event>, BrokerError> {
    let span = tracing::info_span!("schedule", otel.kind = "producer", callers = requests.len());
    for request in requests.iter().take(LINKS_MAX) {
        telemetry::link(&span, &request.trace);
    }
    let trace = telemetry::trace_context(&span);
    async {
        let channel = match publisher.take() {
            Some(channel) => channel,
            None => broker.publisher().await?,
        };
        let events: Vec<Event> = requests.iter().flat_map(|request| &request.events).copied().collect();
        let Terms { policy, topology, pack_max } = terms;
        let plan: Plan = schedule::plan(&events, schedule::now(), policy, topology, *pack_max, &trace);
        let sent = channel.publish_all(&plan.messages(topology)).await;
        match &sent {
            Ok(()) => *publisher = Some(channel),
            Err(_) => channel.close().await,
        }
        sent.map(|()| plan.beyond)
    }
    .instrument(span)
    .await
}

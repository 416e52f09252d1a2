//! Flush: packs the events of concurrent callers into shared wake-ups. While some flushes wait for their confirms, the next one collects
//! requests; a single caller is sent at once. A caller gets its answer once every wake-up that names its events is confirmed or has failed.

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

use crate::schedule::{self, WakeupPlan};

/// A flush stops collecting at this many events; a caller with more gets several flushes. A multiple of what a wake-up names.
const EVENTS_MAX: u32 = 16_384;
/// Most concurrent flushes, each over its own channel. More would make each flush smaller, as fewer callers would share it.
const FLUSHES_MAX: usize = 8;
/// Most events in flight or waiting for a flush, and most waiting requests. Further callers wait before they can submit.
const ROOM: u32 = 16 * EVENTS_MAX;
const REQUESTS_MAX: usize = 1_024;
/// The span of a flush links to the spans of at most this many callers.
const LINKS_MAX: usize = 32;

/// The settings that decide which wake-ups are made.
pub(crate) struct FlushSettings {
    pub policy: Policy,
    pub topology: Topology,
    pub pack_max: usize,
}

/// Some of a caller's events.
struct FlushRequest {
    events: Vec<Event>,
    trace: TraceContext,
    /// Receives the events of the flush with a deadline beyond the end of the calendar.
    done: oneshot::Sender<Result<Vec<Event>, BrokerError>>,
    _room: OwnedSemaphorePermit,
}

/// Collects and sends in its own task, so that a caller that is cancelled does not cancel the events of others.
pub(crate) struct Flushing {
    requests: mpsc::Sender<FlushRequest>,
    room: Arc<Semaphore>,
    running: JoinHandle<Broker>,
}

impl Flushing {
    pub(crate) fn start(terms: FlushSettings, broker: Broker) -> Self {
        let (requests, waiting) = mpsc::channel(REQUESTS_MAX);
        let room = Arc::new(Semaphore::new(ROOM as usize));
        Self { requests, room, running: tokio::spawn(run(terms, broker, waiting)) }
    }

    /// Schedules `events`; returns those with a deadline beyond the end of the calendar.
    pub(crate) async fn schedule(&self, events: &[Event], trace: &TraceContext) -> Result<Vec<Event>, BrokerError> {
        let mut answers = Vec::new();
        for part in events.chunks(EVENTS_MAX as usize) {
            let size = u32::try_from(part.len()).unwrap_or(EVENTS_MAX);
            let room = Arc::clone(&self.room).acquire_many_owned(size).await.map_err(|_| BrokerError::Lost)?;
            let (done, answer) = oneshot::channel();
            let request = FlushRequest { events: part.to_vec(), trace: trace.clone(), done, _room: room };
            self.requests.send(request).await.map_err(|_| BrokerError::Lost)?;
            answers.push((part, answer));
        }
        let mut beyond = Vec::new();
        for (part, answer) in answers {
            // The answer covers the whole flush; keep only the events of this caller.
            let theirs = answer.await.map_err(|_| BrokerError::Lost)??;
            beyond.extend(theirs.into_iter().filter(|event| part.contains(event)));
        }
        Ok(beyond)
    }

    /// Sends the submitted requests and ends; returns the connection, unless the task has crashed.
    pub(crate) async fn end(self) -> Option<Broker> {
        drop(self.requests);
        self.running.await.ok()
    }
}

async fn run(terms: FlushSettings, broker: Broker, mut waiting: mpsc::Receiver<FlushRequest>) -> Broker {
    let mut under_way = FuturesUnordered::new();
    // One slot per concurrent flush: an open channel, or `None` before it is opened.
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

/// Collects the first request and those that wait behind it.
fn gather(first: FlushRequest, waiting: &mut mpsc::Receiver<FlushRequest>) -> Vec<FlushRequest> {
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

/// Sends some requests and answers each. Returns the channel if it can be reused.
async fn flush(
    terms: &FlushSettings,
    broker: &Broker,
    mut publisher: Option<Publisher>,
    requests: Vec<FlushRequest>,
) -> Option<Publisher> {
    let sent = send(terms, broker, &mut publisher, &requests).await;
    // A missing or full rung fails only the callers whose events need it, so each request is sent alone.
    let alone = requests.len() > 1 && matches!(sent, Err(BrokerError::Returned { .. } | BrokerError::Nacked { .. }));
    for request in requests {
        let own = if alone { send(terms, broker, &mut publisher, slice::from_ref(&request)).await } else { sent.clone() };
        // A cancelled caller has dropped its receiver.
        let _ = request.done.send(own);
    }
    publisher
}

/// Sends over the channel or a new one, and keeps the channel on success. Returns the events with a deadline beyond the end of the calendar.
async fn send(
    terms: &FlushSettings,
    broker: &Broker,
    publisher: &mut Option<Publisher>,
    requests: &[FlushRequest],
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
        let FlushSettings { policy, topology, pack_max } = terms;
        let plan: WakeupPlan = schedule::plan(&events, schedule::now(), policy, topology, *pack_max, &trace);
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

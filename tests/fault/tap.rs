//! The tap: reads AMQP 0-9-1 in a proxy and kills the worker at one exact instant, when it sends an ack. The ack never arrives, so the work
//! is done and the broker will redeliver it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use crate::{fleet::Drivers, proxy::Direction};

/// The protocol header before the client's first frame: "AMQP" and a version.
const GREETING: usize = 8;
/// The header of a frame: type, channel, size.
const HEADER: usize = 7;
const METHOD: u8 = 1;
const BASIC: u16 = 60;
const CONSUME: u16 = 20;
const PUBLISH: u16 = 40;
const ACK: u16 = 80;

/// The acks at which the worker is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadly {
    /// Any ack: the batch is committed.
    AfterCommit,
    /// An ack of a lane whose follow-ups the broker has just confirmed.
    AfterConfirm,
}

/// The tap of one worker, over all of its connections and restarts.
pub struct Tap {
    drivers: Drivers,
    name: String,
    deadly: Deadly,
    state: Mutex<TapState>,
}

struct TapState {
    /// For each kill that is still to come: how many matching acks to let pass first.
    pauses: VecDeque<u32>,
    kills: u32,
    /// Kinds whose follow-ups were confirmed since the last ack of that kind.
    confirmed: Vec<String>,
}

/// One connection's frames.
#[derive(Default)]
pub struct Wire(Mutex<Frames>);

#[derive(Default)]
struct Frames {
    to_server: FrameReader,
    to_client: FrameReader,
    /// Per channel: the kind of the lane that it consumes.
    lanes: HashMap<u16, String>,
    /// Per channel: the kinds published and not yet confirmed, with their delivery tags.
    published: HashMap<u16, (u64, VecDeque<(u64, String)>)>,
}

/// Finds the frames in a stream that arrives in chunks.
#[derive(Default)]
struct FrameReader {
    greeted: bool,
    pending: Vec<u8>,
}

struct Method {
    channel: u16,
    number: u16,
    arguments: Vec<u8>,
    /// Where the method's frame begins in the chunk.
    begins: usize,
}

impl Tap {
    /// A tap that kills the named worker once per pause; a pause is the number of matching acks to let pass before.
    pub fn new(drivers: Drivers, name: &str, deadly: Deadly, pauses: Vec<u32>) -> Self {
        let state = TapState { pauses: pauses.into(), kills: 0, confirmed: Vec::new() };
        Self { drivers, name: name.to_owned(), deadly, state: Mutex::new(state) }
    }

    pub fn kills(&self) -> u32 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).kills
    }

    /// Reads a chunk. Returns `Some` if it killed the worker: the number of bytes before the ack, which may still pass.
    pub fn sees(&self, wire: &Wire, way: Direction, chunk: &[u8]) -> Option<usize> {
        let mut frames = wire.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let reader = if way == Direction::ToServer { &mut frames.to_server } else { &mut frames.to_client };
        for method in reader.read(chunk, way == Direction::ToClient) {
            match (way, method.number) {
                (Direction::ToServer, CONSUME) => frames.consumes(&method),
                (Direction::ToServer, PUBLISH) => frames.publishes(&method),
                (Direction::ToClient, ACK) => state.confirmed.extend(frames.confirmed(&method)),
                (Direction::ToServer, ACK) => {
                    let Some(kind) = frames.lanes.get(&method.channel) else { continue };
                    let follows = state.confirmed.iter().any(|confirmed| confirmed == kind);
                    state.confirmed.retain(|confirmed| confirmed != kind);
                    if (self.deadly == Deadly::AfterCommit || follows) && state.is_time() && self.drivers.kill(&self.name) {
                        state.pauses.pop_front();
                        state.kills += 1;
                        state.confirmed.clear();
                        return Some(method.begins);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

impl TapState {
    /// Counts down at a matching ack.
    fn is_time(&mut self) -> bool {
        match self.pauses.front_mut() {
            None => false,
            Some(0) => true,
            Some(pause) => {
                *pause -= 1;
                false
            }
        }
    }
}

impl Frames {
    fn consumes(&mut self, method: &Method) {
        // A reserved field, then the queue: `<prefix>.due.<kind>.<shard>`.
        let queue = short_string(&method.arguments, 2).0;
        let kind = queue.rsplit('.').nth(1).unwrap_or_default().to_owned();
        self.lanes.insert(method.channel, kind);
    }

    fn publishes(&mut self, method: &Method) {
        // A reserved field, the exchange, then the routing key: `<kind>.<shard>`.
        let (_, after) = short_string(&method.arguments, 2);
        let kind = short_string(&method.arguments, after).0.split('.').next().unwrap_or_default().to_owned();
        let (number, waiting) = self.published.entry(method.channel).or_default();
        *number += 1;
        waiting.push_back((*number, kind));
    }

    /// The kinds of the publishes that this method confirms.
    fn confirmed(&mut self, method: &Method) -> Vec<String> {
        let Some((tag, multiple)) = method.arguments.split_first_chunk::<8>() else { return Vec::new() };
        let (tag, multiple) = (u64::from_be_bytes(*tag), multiple.first().is_some_and(|bits| bits & 1 == 1));
        let Some((_, waiting)) = self.published.get_mut(&method.channel) else { return Vec::new() };
        let is_confirmed = |number: u64| number == tag || (multiple && (number < tag || tag == 0));
        let kinds = waiting.iter().filter(|(number, _)| is_confirmed(*number)).map(|(_, kind)| kind.clone()).collect();
        waiting.retain(|(number, _)| !is_confirmed(*number));
        kinds
    }
}

impl FrameReader {
    /// The methods of the class `basic` whose frames end in this chunk.
    fn read(&mut self, chunk: &[u8], greeted: bool) -> Vec<Method> {
        let before = self.pending.len();
        self.pending.extend_from_slice(chunk);
        let (mut at, mut found) = (0, Vec::new());
        if !(self.greeted || greeted) {
            if self.pending.len() < GREETING {
                return found;
            }
            at = GREETING;
        }
        self.greeted = true;
        while let Some(header) = self.pending.get(at..at + HEADER) {
            let channel = u16::from_be_bytes([header[1], header[2]]);
            let size = u32::from_be_bytes([header[3], header[4], header[5], header[6]]) as usize;
            let (kind, end) = (header[0], at + HEADER + size + 1);
            let Some(payload) = self.pending.get(at + HEADER..end) else { break };
            if kind == METHOD && size >= 4 && u16::from_be_bytes([payload[0], payload[1]]) == BASIC {
                let number = u16::from_be_bytes([payload[2], payload[3]]);
                let (arguments, begins) = (payload[4..size].to_vec(), at.saturating_sub(before));
                found.push(Method { channel, number, arguments, begins });
            }
            at = end;
        }
        self.pending.drain(..at);
        found
    }
}

/// Reads a short string; returns it and where it ends.
fn short_string(bytes: &[u8], at: usize) -> (String, usize) {
    let end = at + 1 + bytes.get(at).copied().map_or(0, usize::from);
    (String::from_utf8_lossy(bytes.get(at + 1..end).unwrap_or_default()).into_owned(), end)
}

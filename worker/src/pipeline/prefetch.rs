//! Prefetch: how many messages a consumer holds. As many as keep it busy for some batches, and no more: what one consumer holds, no
//! other applies. A message may name one subject or a thousand, so it follows what the messages turn out to be.

use shared::settings;

use super::batch::Batch;

/// Fewest messages, with which a consumer begins: of a lane that is full it must not take everything before it knows what it takes.
const LEAST: u16 = 32;
/// Full batches that a consumer holds.
const BATCHES: f64 = 4.0;
/// The part of the newest batch in what is known of the traffic.
const NEWEST: f64 = 0.25;
/// Only a number so many times smaller is worth a change, as traffic comes and goes; a larger one at once.
const NARROWER: u16 = 4;

/// That of one consumer.
pub(crate) struct Prefetch {
    most: u16,
    batch_max: f64,
    now: u16,
    /// Subjects that a message names, lately.
    subjects: Option<f64>,
}

impl Prefetch {
    /// At most `worker.prefetch`.
    pub(crate) fn of(worker: &settings::Worker) -> Self {
        let batch_max = u32::try_from(worker.batch_max).unwrap_or(u32::MAX);
        Self { most: worker.prefetch, batch_max: batch_max.into(), now: worker.prefetch.min(LEAST), subjects: None }
    }

    /// Never another number.
    pub(crate) const fn fixed(messages: u16) -> Self {
        Self { most: messages, batch_max: f64::INFINITY, now: messages, subjects: None }
    }

    pub(crate) const fn messages(&self) -> u16 {
        self.now
    }

    /// Learns from a batch; whether the number has changed.
    pub(crate) fn follows(&mut self, batch: &Batch) -> bool {
        let named: usize = batch.wakeups().map(|wakeup| wakeup.subjects.len()).sum();
        let (named, messages) = (u32::try_from(named).unwrap_or(u32::MAX), u32::try_from(batch.len()).unwrap_or(u32::MAX));
        let newest = f64::from(named.max(1)) / f64::from(messages.max(1));
        let subjects = self.subjects.map_or(newest, |before| before + (newest - before) * NEWEST);
        self.subjects = Some(subjects);
        let (least, most) = (LEAST.min(self.most), self.most);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between two numbers of this type")]
        let wanted = (BATCHES * self.batch_max / subjects).clamp(least.into(), most.into()) as u16;
        let changes = wanted > self.now || wanted <= self.now / NARROWER;
        if changes {
            self.now = wanted;
        }
        changes
    }
}

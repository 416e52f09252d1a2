//! Prefetch: how many messages a consumer holds. Enough for a few batches and no more, because no other consumer can apply them. A message
//! may name one subject or a thousand, so the prefetch adapts to the traffic.

use shared::settings;

use super::batch::Batch;

/// Fewest messages. A consumer begins with it, so that it does not take too much of a full lane before it has seen any message.
const LEAST: u16 = 32;
/// How many full batches a consumer holds.
const BATCHES: f64 = 4.0;
/// The weight of the newest batch in the moving average.
const NEWEST: f64 = 0.25;
/// The prefetch shrinks only to this fraction or less, because traffic varies; it grows at once.
const NARROWER: u16 = 4;

/// The prefetch of one consumer.
pub(crate) struct Prefetch {
    most: u16,
    batch_max: f64,
    now: u16,
    /// Moving average of the subjects that a message names.
    subjects: Option<f64>,
}

impl Prefetch {
    /// An adaptive prefetch of at most `worker.prefetch`.
    pub(crate) fn of(worker: &settings::WorkerSettings) -> Self {
        let batch_max = u32::try_from(worker.batch_max).unwrap_or(u32::MAX);
        Self { most: worker.prefetch, batch_max: batch_max.into(), now: worker.prefetch.min(LEAST), subjects: None }
    }

    /// A constant prefetch.
    pub(crate) const fn fixed(messages: u16) -> Self {
        Self { most: messages, batch_max: f64::INFINITY, now: messages, subjects: None }
    }

    pub(crate) const fn messages(&self) -> u16 {
        self.now
    }

    /// Adapts to a batch; returns whether the prefetch has changed.
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

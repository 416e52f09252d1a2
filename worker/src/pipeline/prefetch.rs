//! Prefetch: how many messages a consumer holds. Enough for a few batches and no more, because no other consumer can apply them. A message
//! may name one subject or a thousand, and may be large, so the prefetch adapts to the traffic.

use shared::settings;

use super::{batch::Batch, inbox::HELD_MAX};

/// The first prefetch. Low, so that a consumer does not take too much of a full lane before it has seen any message, and no more than fits
/// if each is as large as a broker set up as documented accepts.
const FIRST: u16 = 16;
/// Fewest messages, unless they are large.
const LEAST: u16 = 32;
/// How many full batches a consumer holds.
const BATCHES: f64 = 4.0;
/// The weight of the newest batch in the moving average.
const NEWEST: f64 = 0.25;
/// While messages are small, the prefetch shrinks only to this fraction or less, because traffic varies.
const NARROWER: u16 = 4;
/// How much of the largest size is remembered from batch to batch: after large messages the prefetch grows back slowly, because more of
/// them may follow.
const REMEMBERED: f64 = 0.9;
/// After large messages the prefetch grows only by this factor or more, because each change restarts the consumer.
const WIDER: u16 = 2;

/// The prefetch of one consumer.
pub(crate) struct Prefetch {
    most: u16,
    batch_max: f64,
    now: u16,
    /// Moving average of the subjects that a message names.
    subjects: Option<f64>,
    /// The bytes of the largest message, which fade with time.
    bytes: f64,
}

impl Prefetch {
    /// An adaptive prefetch of at most `worker.prefetch`.
    pub(crate) fn of(worker: &settings::WorkerSettings) -> Self {
        let batch_max = u32::try_from(worker.batch_max).unwrap_or(u32::MAX);
        Self { batch_max: batch_max.into(), ..Self::up_to(worker.prefetch) }
    }

    /// A prefetch that adapts only to the sizes of messages.
    pub(crate) fn up_to(most: u16) -> Self {
        Self { most, batch_max: f64::INFINITY, now: most.min(FIRST), subjects: None, bytes: 0.0 }
    }

    pub(crate) const fn messages(&self) -> u16 {
        self.now
    }

    /// Adapts to a batch, and to the bytes of the `largest` message that arrived since the batch before; returns whether the prefetch has
    /// changed.
    pub(crate) fn follows(&mut self, batch: &Batch, largest: usize) -> bool {
        let named: usize = batch.wakeups().map(|wakeup| wakeup.subjects.len()).sum();
        self.adapts(named, batch.len(), largest)
    }

    fn adapts(&mut self, named: usize, messages: usize, largest: usize) -> bool {
        let number = |count: usize| f64::from(u32::try_from(count.max(1)).unwrap_or(u32::MAX));
        let newest = number(named) / number(messages);
        let subjects = self.subjects.map_or(newest, |before| before + (newest - before) * NEWEST);
        self.subjects = Some(subjects);
        let (least, most) = (LEAST.min(self.most), self.most);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between two numbers of this type")]
        let wanted = (BATCHES * self.batch_max / subjects).clamp(least.into(), most.into()) as u16;
        self.bytes *= REMEMBERED;
        let fitting = self.remember(largest);
        let next = wanted.min(fitting);
        let changes = fitting < self.now
            || next <= self.now / NARROWER
            || (next > self.now && (fitting >= wanted || next >= self.now.saturating_mul(WIDER)));
        if changes {
            self.now = next;
        }
        changes
    }

    /// Shrinks until messages as large as this one fit.
    pub(crate) fn fits(&mut self, largest: usize) {
        self.now = self.now.min(self.remember(largest));
    }

    /// How many messages of the largest size fit.
    fn remember(&mut self, largest: usize) -> u16 {
        let bytes = |bytes: usize| f64::from(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.bytes = self.bytes.max(bytes(largest));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between two numbers of this type")]
        let fitting = (bytes(HELD_MAX) / self.bytes.max(1.0)).clamp(1.0, u16::MAX.into()) as u16;
        fitting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(prefetch: &mut Prefetch, subjects: usize, largest: usize) -> u16 {
        for _ in 0..100 {
            prefetch.adapts(subjects * 10, 10, largest);
        }
        prefetch.messages()
    }

    fn adaptive() -> Prefetch {
        Prefetch { batch_max: 256.0, ..Prefetch::up_to(1024) }
    }

    #[test]
    fn it_begins_low_and_follows_how_many_subjects_a_message_names() {
        let mut prefetch = adaptive();
        assert_eq!(prefetch.messages(), FIRST);
        assert_eq!(settled(&mut prefetch, 1, 300), 1024);
        assert_eq!(settled(&mut prefetch, 1_000, 40_000), LEAST);
        assert_eq!(settled(&mut Prefetch::up_to(1), 1, 300), 1);
    }

    #[test]
    fn it_shrinks_at_once_when_a_large_message_arrives_and_grows_back_slowly() {
        let mut prefetch = adaptive();
        settled(&mut prefetch, 1, 300);
        assert!(prefetch.adapts(10, 10, 256 * 1024));
        assert_eq!(prefetch.messages(), 16);
        assert!(prefetch.adapts(10, 10, 40 << 20));
        assert_eq!(prefetch.messages(), 1, "one at a time, however large it is");
        let mut changes = 0;
        for round in 0..200 {
            let changed = prefetch.adapts(10, 10, 300);
            assert!(!changed || round > 5, "it remembers the large one for some batches");
            changes += u32::from(changed);
        }
        assert_eq!(prefetch.messages(), 1024);
        assert!(changes <= 11, "{changes} restarts of the consumer");
    }

    #[test]
    fn what_had_to_be_returned_fits_the_next_time() {
        let mut prefetch = adaptive();
        settled(&mut prefetch, 1, 300);
        prefetch.fits(1 << 20);
        assert_eq!(prefetch.messages(), 4);
    }
}

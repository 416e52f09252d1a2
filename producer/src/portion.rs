//! Portion: how many events a batch takes. A batch that fails with no outage is retried with half as many, down to one event, which is then
//! taken without its data: so events that cannot be moved block no others for long, as with the worker's batches.

use std::time::Duration;

use shared::database::{
    attempts::{Attempts, Next},
    failure::Trouble,
};

/// How often a conflict with other transactions, and a broken connection, are retried before the events are blamed.
const CONFLICTS_MAX: u32 = 1;
const CUTS_MAX: u32 = 5;
/// How many batches in a row must succeed before the portion is doubled.
const STEADY: u32 = 4;

/// How many events the next batch takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Portion {
    most: u32,
    now: u32,
    /// Whether an event is set aside without its data.
    bare: bool,
    succeeded: u32,
    attempts: Attempts,
}

impl Portion {
    pub(crate) const fn new(most: u32) -> Self {
        Self { most, now: most, bare: false, succeeded: 0, attempts: Attempts::new(CONFLICTS_MAX, CUTS_MAX) }
    }

    pub(crate) const fn events(self) -> u32 {
        self.now
    }

    pub(crate) const fn is_bare(self) -> bool {
        self.bare
    }

    /// Whether a batch failed lately.
    pub(crate) const fn is_reduced(self) -> bool {
        self.now < self.most || self.bare
    }

    /// A batch succeeded.
    pub(crate) fn succeeded(&mut self) {
        self.attempts = Attempts::new(CONFLICTS_MAX, CUTS_MAX);
        self.bare = false;
        self.succeeded += 1;
        if self.succeeded >= STEADY {
            self.succeeded = 0;
            self.now = self.now.saturating_mul(2).min(self.most);
        }
    }

    /// A batch failed. Returns the pause before the next try; `None` if the events are not at fault, or no smaller portion is possible.
    pub(crate) fn failed(&mut self, trouble: Trouble) -> Option<Duration> {
        self.succeeded = 0;
        match self.attempts.after(trouble) {
            Next::Wait => None,
            Next::Again(pause) => Some(pause),
            Next::Blame if self.bare => None,
            // A reported outage, even one that is over when the server is asked, is no reason to lose an event's data.
            Next::Blame if self.now == 1 && trouble == Trouble::Unconfirmed => None,
            Next::Blame => {
                self.bare = self.now == 1;
                self.now = (self.now / 2).max(1);
                self.attempts = self.attempts.of_a_part(trouble, 0, 1);
                Some(Duration::ZERO)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_portion_is_halved_down_to_one_without_data_and_grows_back() {
        let mut portion = Portion::new(500);
        let mut tried = vec![];
        while portion.failed(Trouble::Failure).is_some() {
            tried.push((portion.events(), portion.is_bare()));
        }
        assert_eq!(tried.iter().map(|(events, _)| *events).collect::<Vec<_>>(), [250, 125, 62, 31, 15, 7, 3, 1, 1]);
        assert_eq!(tried.iter().filter(|(_, bare)| *bare).count(), 1, "only the last");
        portion.succeeded();
        assert!(!portion.is_bare() && portion.is_reduced());
        for _ in 0..36 {
            portion.succeeded();
        }
        assert_eq!(portion, Portion::new(500).after_success());
    }

    #[test]
    fn a_reported_outage_takes_no_events_data() {
        let mut portion = Portion::new(500);
        for _ in 0..100 {
            portion.failed(Trouble::Unconfirmed);
        }
        assert_eq!((portion.events(), portion.is_bare(), portion.failed(Trouble::Unconfirmed)), (1, false, None));
    }

    #[test]
    fn an_outage_halves_nothing_and_a_conflict_is_retried_first() {
        let mut portion = Portion::new(500);
        for _ in 0..100 {
            assert_eq!(portion.failed(Trouble::Away), None);
        }
        assert!(portion.failed(Trouble::Conflict).is_some());
        assert_eq!(portion.events(), 500);
        assert_eq!((portion.failed(Trouble::Conflict), portion.events()), (Some(Duration::ZERO), 250));
    }

    impl Portion {
        /// As it is one batch after it last grew.
        const fn after_success(self) -> Self {
            Self { succeeded: 1, ..self }
        }
    }
}

//! What to do after a failed transaction: wait for the server, retry after a pause, or blame the rows. One rule for all code
//! that applies, stores or tries; it decides, and its caller acts.

use std::time::Duration;

use super::failure::Trouble;

/// Longest pause before a retry after a conflict, in milliseconds; the actual one is random, so that two transactions that
/// collided separate.
const CONFLICT_PAUSE_MAX_MS: u64 = 40;
/// The pause after the connection broke once; it is doubled each time, up to the longest.
const CUT_PAUSE: Duration = Duration::from_millis(100);
const CUT_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often a statement is retried that reports an outage which the server does not confirm. The outage may have just ended.
const UNCONFIRMED_MAX: u32 = 3;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The server is away. This spends no attempt.
    Wait,
    /// Retry the same, after this pause.
    Again(Duration),
    /// These rows fail, or break the connection each time although the server answers in between.
    Blame,
}

/// The failures of the same rows so far, and how many of them are retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    conflicts: u32,
    cuts: u32,
    unconfirmed: u32,
    conflicts_max: u32,
    cuts_max: u32,
}

impl Attempts {
    /// No failures so far, and at most this many conflicts with other transactions, and this many broken connections.
    #[must_use]
    pub const fn new(conflicts_max: u32, cuts_max: u32) -> Self {
        Self { conflicts: 0, cuts: 0, unconfirmed: 0, conflicts_max, cuts_max }
    }

    /// How often the connection broke so far.
    #[must_use]
    pub const fn cuts(&self) -> u32 {
        self.cuts
    }

    /// Counts a failure and decides what to do.
    pub fn after(&mut self, trouble: Trouble) -> Next {
        match trouble {
            Trouble::Away => Next::Wait,
            Trouble::Cut if self.cuts < self.cuts_max => {
                self.cuts += 1;
                Next::Again(pause_after(self.cuts))
            }
            Trouble::Unconfirmed if self.unconfirmed < UNCONFIRMED_MAX => {
                self.unconfirmed += 1;
                Next::Again(pause_after(self.unconfirmed))
            }
            Trouble::Conflict if self.conflicts < self.conflicts_max => {
                self.conflicts += 1;
                Next::Again(Duration::from_millis(rand::random_range(1..=CONFLICT_PAUSE_MAX_MS)))
            }
            Trouble::Cut | Trouble::Unconfirmed | Trouble::Conflict | Trouble::Failure => Next::Blame,
        }
    }

    /// The attempts for a part of the rows that were blamed for `trouble`, with this many more conflicts and broken
    /// connections, so that the culprit is found without another long wait.
    #[must_use]
    pub fn of_a_part(self, trouble: Trouble, conflicts_left: u32, cuts_left: u32) -> Self {
        // A row that others lock for long must not block its lane.
        let conflicts = if trouble == Trouble::Conflict { self.conflicts_max.saturating_sub(conflicts_left) } else { 0 };
        let unconfirmed = if trouble == Trouble::Unconfirmed { UNCONFIRMED_MAX } else { 0 };
        Self { conflicts, cuts: self.cuts.min(self.cuts_max.saturating_sub(cuts_left)), unconfirmed, ..self }
    }
}

/// The pause after that many failures.
fn pause_after(failures: u32) -> Duration {
    CUT_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(CUT_PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agains(attempts: &mut Attempts, trouble: Trouble) -> usize {
        (0..100).take_while(|_| matches!(attempts.after(trouble), Next::Again(_))).count()
    }

    #[test]
    fn an_outage_spends_nothing_and_a_failure_is_blamed_at_once() {
        let mut attempts = Attempts::new(3, 10);
        for _ in 0..100 {
            assert_eq!(attempts.after(Trouble::Away), Next::Wait);
        }
        assert_eq!(attempts, Attempts::new(3, 10));
        assert_eq!(attempts.after(Trouble::Failure), Next::Blame);
    }

    #[test]
    fn conflicts_and_broken_connections_are_tried_again_so_often_each() {
        let mut attempts = Attempts::new(3, 10);
        assert_eq!((agains(&mut attempts, Trouble::Conflict), agains(&mut attempts, Trouble::Cut)), (3, 10));
        assert_eq!(agains(&mut attempts, Trouble::Unconfirmed), 3);
        let mut pauses = Attempts::new(0, 10);
        assert_eq!(pauses.after(Trouble::Cut), Next::Again(CUT_PAUSE));
        assert_eq!(pauses.after(Trouble::Cut), Next::Again(CUT_PAUSE * 2));
    }

    #[test]
    fn a_part_of_what_was_blamed_has_few_tries_left() {
        let mut attempts = Attempts::new(3, 10);
        agains(&mut attempts, Trouble::Cut);
        let mut part = attempts.of_a_part(Trouble::Cut, 0, 2);
        assert_eq!((agains(&mut part, Trouble::Conflict), agains(&mut part, Trouble::Cut)), (3, 2));
        let mut part = attempts.of_a_part(Trouble::Conflict, 0, 2);
        assert_eq!(agains(&mut part, Trouble::Conflict), 0);
        assert_eq!(agains(&mut attempts.of_a_part(Trouble::Unconfirmed, 0, 2), Trouble::Unconfirmed), 0);
    }
}

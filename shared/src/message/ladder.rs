//! The ladder of rungs: which delay queue a wait takes. Pure. Every wait ends within a tolerance, after finitely many hops.

use std::time::Duration;

use chrono::TimeDelta;

use crate::domain::span::compact;

/// A rung may overshoot a wait by at most this, and never by more than 1% of the rung.
const TOLERANCE_MAX: Duration = Duration::from_mins(1);

/// One delay queue of one fixed duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rung(Duration);

impl Rung {
    /// # Panics
    /// Never: a duration beyond `u64` milliseconds is clamped.
    #[must_use]
    pub fn duration_ms(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// The duration as part of a queue's name: `14d`, `1h`, `30s`. It determines the queue's TTL, so the arguments of a name
    /// never change.
    #[must_use]
    pub fn label(self) -> String {
        compact(self.duration_ms())
    }

    /// By how much this rung may be longer than the wait it serves.
    #[must_use]
    pub fn tolerance(self) -> Duration {
        (self.0 / 100).min(TOLERANCE_MAX)
    }
}

/// Where a wake-up goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hop {
    /// Already due: straight to its lane.
    Lane,
    /// Into a rung, from which it expires into its lane.
    Rung(Rung),
}

/// All rungs, shortest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder(Vec<Rung>);

impl Ladder {
    /// A ladder of these durations, in any order; durations under a millisecond are left out.
    #[must_use]
    pub fn new(durations: impl IntoIterator<Item = Duration>) -> Self {
        let mut rungs: Vec<Rung> = durations
            .into_iter()
            .map(|d| Rung(Duration::from_millis(u64::try_from(d.as_millis()).unwrap_or(u64::MAX))))
            .collect();
        rungs.sort_unstable();
        rungs.dedup();
        rungs.retain(|rung| rung.duration_ms() > 0);
        Self(rungs)
    }

    /// A ladder of some rungs of another, in their order.
    pub(super) fn of(rungs: impl Iterator<Item = Rung>) -> Self {
        Self(rungs.collect())
    }

    #[must_use]
    pub fn rungs(&self) -> &[Rung] {
        &self.0
    }

    /// The next hop of a wake-up that is due in `wait`.
    ///
    /// The rung that overshoots by no more than its tolerance; else the longest rung that fits into the wait (the wake-up
    /// arrives early and is postponed again); else, for a wait shorter than all rungs, the shortest one.
    #[must_use]
    pub fn next(&self, wait: Duration) -> Hop {
        if wait.is_zero() {
            return Hop::Lane;
        }
        let longer = self.0.partition_point(|rung| rung.0 < wait);
        match (self.0.get(longer), longer.checked_sub(1).and_then(|below| self.0.get(below))) {
            (Some(over), _) if over.0.saturating_sub(wait) <= over.tolerance() => Hop::Rung(*over),
            (_, Some(below)) => Hop::Rung(*below),
            (Some(shortest), None) => Hop::Rung(*shortest),
            (None, None) => Hop::Lane,
        }
    }

    /// Every hop of a wait, in order: a rung and how often it is taken in a row.
    #[must_use]
    pub fn way(&self, mut wait: Duration) -> Vec<(Rung, u64)> {
        let mut way: Vec<(Rung, u64)> = Vec::new();
        while let Hop::Rung(rung) = self.next(wait) {
            let rung_ms = rung.duration_ms();
            // A wait longer than twice the rung takes it again, as no other rung lies between the two. These hops are counted
            // at once, as a ladder of short rungs takes a long wait in a billion hops.
            let fits = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) / rung_ms;
            let times = fits.saturating_sub(1).max(1);
            wait = wait.saturating_sub(Duration::from_millis(rung_ms.saturating_mul(times)));
            match way.last_mut() {
                Some((last, taken)) if *last == rung => *taken += times,
                _ => way.push((rung, times)),
            }
        }
        way
    }

    /// What is left of a wait when `hop` ends; zero if that is shorter than every rung.
    #[must_use]
    pub fn rest(&self, wait: Duration, hop: Hop) -> TimeDelta {
        let Hop::Rung(rung) = hop else { return TimeDelta::zero() };
        let rest = wait.saturating_sub(rung.0);
        let shortest = self.0.first().map_or(Duration::MAX, |shortest| shortest.0);
        if rest < shortest { TimeDelta::zero() } else { TimeDelta::from_std(rest).unwrap_or(TimeDelta::zero()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn of_the_policy() -> Ladder {
        let short = [1, 5, 30, 300, 3600, 6 * 3600, 86_400, 7 * 86_400, 30 * 86_400];
        Ladder::new(short.map(Duration::from_secs).into_iter().chain([14 * DAY]))
    }

    /// Every rung that one wait takes, and when it arrives.
    fn way(ladder: &Ladder, wait: Duration) -> (Vec<Rung>, Duration) {
        let (mut hops, mut waited) = (Vec::new(), Duration::ZERO);
        while let Hop::Rung(rung) = ladder.next(wait.saturating_sub(waited)) {
            hops.push(rung);
            waited += rung.0;
            assert!(hops.len() <= 10_000, "no end");
        }
        (hops, waited)
    }

    #[test]
    fn fourteen_days_are_one_hop_and_six_months_are_seven() {
        let ladder = of_the_policy();
        let (hops, _) = way(&ladder, 14 * DAY - Duration::from_secs(20));
        assert_eq!(hops.iter().map(|r| r.label()).collect::<Vec<_>>(), ["14d"]);
        assert_eq!(way(&ladder, 181 * DAY).0.len(), 7);
        let runs = ladder.way(181 * DAY).into_iter().map(|(rung, times)| (rung.label(), times)).collect::<Vec<_>>();
        assert_eq!(runs, [("30d".to_owned(), 6), ("1d".to_owned(), 1)]);
        let tiny = Ladder::new([Duration::from_millis(1)]).way(3_650 * DAY);
        assert_eq!(tiny.iter().map(|(_, times)| *times).sum::<u64>(), 3_650 * 86_400_000);
    }

    #[test]
    fn what_is_due_goes_straight_to_its_lane() {
        assert_eq!(of_the_policy().next(Duration::ZERO), Hop::Lane);
        assert_eq!(Ladder::new([]).next(DAY), Hop::Lane);
    }

    proptest! {
        #[test]
        fn every_wait_arrives_within_tolerance_in_finitely_many_hops(
            wait_ms in 1u64..400 * 86_400_000,
            rungs_ms in prop::collection::vec(1u64..60 * 86_400_000, 0..6),
        ) {
            let ladder = Ladder::new(
                of_the_policy().rungs().iter().map(|r| r.0).chain(rungs_ms.into_iter().map(Duration::from_millis)),
            );
            let wait = Duration::from_millis(wait_ms);
            let (hops, waited) = way(&ladder, wait);
            let shortest = ladder.rungs()[0].0;
            let last = hops.last().expect("a wait takes at least one rung");
            let runs = ladder.way(wait).into_iter().flat_map(|(rung, times)| (0..times).map(move |_| rung));
            prop_assert_eq!(runs.collect::<Vec<_>>(), hops.clone());
            prop_assert!(waited >= wait, "early by {:?}", wait - waited);
            prop_assert!(waited - wait <= last.tolerance().max(shortest), "late by {:?}", waited - wait);
            // Every hop but those of the short end takes a good part of what is left.
            prop_assert!(hops.len() <= 13 + 6 + 30 + 12 * 6 + 64, "{} hops", hops.len());
        }

        #[test]
        fn a_rung_never_overshoots_by_more_than_a_minute_or_a_hundredth(wait_ms in 1000u64..400 * 86_400_000) {
            let wait = Duration::from_millis(wait_ms);
            let Hop::Rung(rung) = of_the_policy().next(wait) else { panic!("a wait takes a rung") };
            prop_assert!(rung.0.saturating_sub(wait) <= Duration::from_secs(60).min(rung.0 / 100));
        }
    }
}

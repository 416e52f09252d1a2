//! What the leader has looked at of one kind, and what it looks at next. It is only a leader's memory: with none, rows are looked
//! at once more. Moments are the database's; how long a query took only sets the pace.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

/// The first stretch of a deep look, and the shortest that one is cut down to.
const STRETCH_FIRST: TimeDelta = TimeDelta::days(1);
const STRETCH_MIN: TimeDelta = TimeDelta::seconds(1);

/// The next stretch is twice as long after a query that was quicker, half as long after one that was slower.
const QUICK: Duration = Duration::from_millis(100);
const SLOW: Duration = Duration::from_secs(1);

/// A look at all rows of a kind, or at a part of them, is followed by the next only after so many times as long as it took: they are to
/// take no more than a thirtieth of one connection's time, however many rows there are.
const REST: u32 = 30;

/// What the leader has looked at of one kind.
#[derive(Default)]
pub(super) struct View {
    /// Up to where the last complete look at the recent past went.
    seen: Option<DateTime<Utc>>,
    deep: Option<Deep>,
    /// Until when a kind of which no index tells what fell due is not looked at again.
    rests_until: Option<Instant>,
}

/// A look at all that lies before the recent past, from the newest to the oldest: by when rows fell due, or, where no index tells that, by
/// how long they have been there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deep {
    /// What is of later than `until` has been looked at.
    Under { until: DateTime<Utc>, stretch: TimeDelta },
    /// All of it was, and the look ended then.
    Rests { since: DateTime<Utc> },
}

/// What a deep look asks about next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// What fell due after the one moment and not later than the other.
    Stretch(DateTime<Utc>, DateTime<Utc>),
    /// What fell due before the years that count.
    Rest,
}

impl View {
    /// Whether a look was made so lately that another one would keep PostgreSQL busy.
    pub fn is_resting(&self) -> bool {
        self.rests_until.is_some_and(|until| Instant::now() < until)
    }

    /// Rows were looked at, which took so long.
    pub fn rests_after(&mut self, took: Duration) {
        self.rests_until = Instant::now().checked_add(took * REST);
    }

    /// The moment after which a look at the recent past begins, and the one after which pauses have to have ended, when it goes up
    /// to `horizon`. The looks overlap by the lookback, as what commits late was invisible to the one that should have seen it;
    /// pauses are the leader's own rows, and overlap with nobody's.
    pub fn begins(&self, horizon: DateTime<Utc>, lookback: TimeDelta) -> (DateTime<Utc>, DateTime<Utc>) {
        // What falls due while a clock that was set back catches up has to be seen too.
        let seen = self.seen.map(|seen| seen.min(horizon));
        (seen.unwrap_or(horizon) - lookback, seen.unwrap_or(horizon - lookback))
    }

    /// A look at the recent past up to `horizon` was complete.
    pub fn saw(&mut self, horizon: DateTime<Utc>) {
        self.seen = Some(horizon);
    }

    /// Begins the deep look under `after`, unless one is under way or rests until it is `again` later.
    pub fn descend(&mut self, after: DateTime<Utc>, horizon: DateTime<Utc>, again: TimeDelta) {
        let goes_on = match self.deep {
            Some(Deep::Under { .. }) => true,
            // A clock that was set back must not prolong the rest.
            Some(Deep::Rests { since }) => since <= horizon && horizon - since < again,
            None => false,
        };
        if !goes_on {
            self.deep = Some(Deep::Under { until: after, stretch: STRETCH_FIRST });
        }
    }

    /// What the deep look asks about next, if it does not rest.
    pub fn step(&self) -> Option<Step> {
        match self.deep? {
            Deep::Under { until, .. } if until <= DateTime::UNIX_EPOCH => Some(Step::Rest),
            Deep::Under { until, stretch } => {
                let after = until.checked_sub_signed(stretch).unwrap_or(DateTime::UNIX_EPOCH);
                Some(Step::Stretch(after.max(DateTime::UNIX_EPOCH), until))
            }
            Deep::Rests { .. } => None,
        }
    }

    /// All of this step was looked at, and the query took so long.
    pub fn stepped(&mut self, step: Step, took: Duration, horizon: DateTime<Utc>) {
        let Some(Deep::Under { stretch, .. }) = self.deep else { return };
        self.deep = Some(match step {
            Step::Stretch(after, _) => Deep::Under { until: after, stretch: paced(stretch, took) },
            Step::Rest => Deep::Rests { since: horizon },
        });
    }

    /// The step failed, perhaps as it takes too long: the next try is shorter.
    pub fn stumbled(&mut self) {
        if let Some(Deep::Under { stretch, .. }) = &mut self.deep {
            *stretch = paced(*stretch, Duration::MAX);
        }
    }
}

fn paced(stretch: TimeDelta, took: Duration) -> TimeDelta {
    if took > SLOW {
        (stretch / 2).max(STRETCH_MIN)
    } else if took < QUICK {
        stretch.checked_add(&stretch).unwrap_or(stretch)
    } else {
        stretch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    const HOUR: TimeDelta = TimeDelta::hours(1);
    const DAY: TimeDelta = TimeDelta::days(1);

    #[test]
    fn whatever_the_databases_clock_does_rounds_join_on_to_each_other() {
        let mut view = View::default();
        let noon = at("2026-11-24T12:00:00Z");
        assert_eq!(view.begins(noon, HOUR), (noon - HOUR, noon - HOUR));
        view.saw(noon);
        assert_eq!(view.begins(noon + HOUR, HOUR), (noon - HOUR, noon), "an overlap for what commits late");
        assert_eq!(view.begins(noon + DAY, HOUR), (noon - HOUR, noon), "no gap after a leap");
        assert_eq!(view.begins(noon - DAY, HOUR), (noon - DAY - HOUR, noon - DAY), "nor after one back");
    }

    #[test]
    fn a_deep_look_covers_all_the_past_in_a_few_quick_queries_and_rests() {
        let mut view = View::default();
        let (noon, quick) = (at("2026-11-24T12:00:00Z"), Duration::from_millis(3));
        view.descend(noon - HOUR, noon, DAY);
        let (mut until, mut count) = (noon - HOUR, 0);
        while let Some(step) = view.step() {
            if let Step::Stretch(after, to) = step {
                assert!(to == until && after < until, "{step:?} follows on {until}");
                until = after;
            } else {
                assert_eq!(until, DateTime::UNIX_EPOCH);
            }
            view.stepped(step, quick, noon);
            count += 1;
        }
        assert_eq!(count, 16);
        view.descend(noon + HOUR, noon + HOUR, DAY);
        assert_eq!(view.step(), None, "it rests");
        for later in [noon + DAY, noon - HOUR] {
            let mut view = View { deep: view.deep, ..View::default() };
            view.descend(later, later, DAY);
            assert_eq!(view.step(), Some(Step::Stretch(later - DAY, later)), "and begins anew, also by a clock set back");
        }
    }

    #[test]
    fn a_stretch_that_is_slow_or_fails_is_halved_and_one_that_fails_is_tried_again() {
        let mut view = View::default();
        let noon = at("2026-11-24T12:00:00Z");
        view.descend(noon, noon, DAY);
        view.stumbled();
        assert_eq!(view.step(), Some(Step::Stretch(noon - DAY / 2, noon)));
        view.stepped(Step::Stretch(noon - DAY / 2, noon), Duration::from_secs(5), noon);
        assert_eq!(view.step(), Some(Step::Stretch(noon - DAY / 2 - DAY / 4, noon - DAY / 2)));
        for _ in 0..100 {
            view.stumbled();
        }
        assert_eq!(view.step(), Some(Step::Stretch(noon - DAY / 2 - STRETCH_MIN, noon - DAY / 2)));
    }
}

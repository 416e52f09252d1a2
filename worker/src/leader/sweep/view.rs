//! What the sweep has looked at of one kind, and what it looks at next. The view lives in memory; without it, rows are only looked at once
//! more. All times are the database's; the duration of a query only sets the pace.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

/// The first stretch of a deep look, and the shortest one.
const STRETCH_FIRST: TimeDelta = TimeDelta::days(1);
const STRETCH_MIN: TimeDelta = TimeDelta::seconds(1);

/// After a query quicker than `QUICK` the next stretch doubles; after one slower than `SLOW` it is halved.
const QUICK: Duration = Duration::from_millis(100);
const SLOW: Duration = Duration::from_secs(1);

/// A look without an index is followed by a rest of this many times its duration, so that it takes at most a thirtieth of one connection's
/// time, however many rows there are.
const REST: u32 = 30;

/// What the sweep has looked at of one kind.
#[derive(Default)]
pub(super) struct View {
    /// Where the last complete look at the recent past ended.
    seen: Option<DateTime<Utc>>,
    deep: Option<Deep>,
    /// Until when a kind without an index is not looked at again.
    rests_until: Option<Instant>,
}

/// A look at everything before the recent past, from the newest to the oldest: by due time or, for a kind without an index on it, by the age
/// of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deep {
    /// Everything after `until` has been looked at.
    Under { until: DateTime<Utc>, stretch: TimeDelta },
    /// The look was complete at `since`.
    Rests { since: DateTime<Utc> },
}

/// The next step of a deep look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Rows after the first time, up to and including the second.
    Stretch(DateTime<Utc>, DateTime<Utc>),
    /// Rows before 1970.
    Rest,
}

impl View {
    /// Whether the rest after the last look is not over.
    pub fn is_resting(&self) -> bool {
        self.rests_until.is_some_and(|until| Instant::now() < until)
    }

    /// Starts the rest after a look that took this long.
    pub fn rests_after(&mut self, took: Duration) {
        self.rests_until = Instant::now().checked_add(took * REST);
    }

    /// For a look at the recent past up to `horizon`: the time after which rows fell due, and the time after which pauses ended. Looks
    /// overlap by the lookback, because a row that commits late was invisible to the look before. Pauses need no overlap, because only the
    /// leader writes them.
    pub fn begins(&self, horizon: DateTime<Utc>, lookback: TimeDelta) -> (DateTime<Utc>, DateTime<Utc>) {
        // If the clock was set back, look at what falls due while it catches up, too.
        let seen = self.seen.map(|seen| seen.min(horizon));
        (seen.unwrap_or(horizon) - lookback, seen.unwrap_or(horizon - lookback))
    }

    /// Records that a look at the recent past up to `horizon` was complete.
    pub fn saw(&mut self, horizon: DateTime<Utc>) {
        self.seen = Some(horizon);
    }

    /// Begins a deep look before `after`, unless one is under way, or the last one ended less than `again` ago.
    pub fn descend(&mut self, after: DateTime<Utc>, horizon: DateTime<Utc>, again: TimeDelta) {
        let goes_on = match self.deep {
            Some(Deep::Under { .. }) => true,
            // A clock that was set back must not extend the rest.
            Some(Deep::Rests { since }) => since <= horizon && horizon - since < again,
            None => false,
        };
        if !goes_on {
            self.deep = Some(Deep::Under { until: after, stretch: STRETCH_FIRST });
        }
    }

    /// The next step of the deep look; `None` while it rests.
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

    /// Records that a step is complete, and how long its query took.
    pub fn stepped(&mut self, step: Step, took: Duration, horizon: DateTime<Utc>) {
        let Some(Deep::Under { stretch, .. }) = self.deep else { return };
        self.deep = Some(match step {
            Step::Stretch(after, _) => Deep::Under { until: after, stretch: paced(stretch, took) },
            Step::Rest => Deep::Rests { since: horizon },
        });
    }

    /// Records that a step failed, perhaps with a timeout: the next try is shorter.
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

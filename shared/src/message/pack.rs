//! Packing: subjects that wait side by side travel as one wake-up. Pure. No subject is lost or named twice in a wake-up, and
//! packing adds no lateness, as only subjects that take the same rung at the same moment are packed.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use sha1::{Digest, Sha1};
use uuid::Uuid;

use crate::message::{
    ladder::{Hop, Ladder},
    topology::shard_of,
    wakeup::{TraceContext, Wakeup},
};

/// The namespace of wake-up ids (UUID version 5).
const NAMESPACE: Uuid = Uuid::from_u128(0x6b79_6861_6e00_5000_8000_7761_6b65_7570);

/// One subject to wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingSubject {
    pub kind: &'static str,
    pub subject: Uuid,
    pub due_at: DateTime<Utc>,
    /// How long until it is to be woken; negative if it is overdue.
    pub wait: TimeDelta,
    /// Failures so far. A retry keeps its full pause: the part that its rung does not cover travels with it.
    pub attempt: u32,
}

/// A wake-up and where it goes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    pub hop: Hop,
    pub shard: u16,
    pub wakeup: Wakeup,
}

/// What must be equal for two subjects to travel together: kind, shard, attempt, next hop, and the rest of a pause after it.
type PackKey = (&'static str, u16, u32, Hop, TimeDelta);
/// A subject and when it falls due.
type DueSubject = (DateTime<Utc>, Uuid);

/// Packs subjects with the same kind, shard, attempt, next hop and rest of a pause that are due within the rung's tolerance
/// of each other, at most `pack_max` subjects per wake-up.
#[must_use]
pub fn pack(
    waiting: impl IntoIterator<Item = WaitingSubject>,
    ladder: &Ladder,
    shards: u16,
    pack_max: usize,
    trace: &TraceContext,
) -> Vec<Packed> {
    pack_failed(waiting.into_iter().map(|one| (one, None)), ladder, shards, pack_max, trace)
}

/// The same for subjects that may have failed before, each with the moment of its first failure. Subjects packed together
/// share the earliest of these moments: it is informational, and they have failed equally often.
#[must_use]
pub fn pack_failed(
    waiting: impl IntoIterator<Item = (WaitingSubject, Option<DateTime<Utc>>)>,
    ladder: &Ladder,
    shards: u16,
    pack_max: usize,
    trace: &TraceContext,
) -> Vec<Packed> {
    let mut places: BTreeMap<PackKey, usize> = BTreeMap::new();
    let mut placed: Vec<(PackKey, Vec<DueSubject>)> = Vec::new();
    let mut failures: BTreeMap<usize, DateTime<Utc>> = BTreeMap::new();
    let mut last = 0;
    for (one, failed_at) in waiting {
        let wait = one.wait.to_std().unwrap_or(Duration::ZERO);
        let hop = ladder.next(wait);
        let rest = if one.attempt == 0 { TimeDelta::zero() } else { ladder.rest(wait, hop) };
        let place = (one.kind, shard_of(one.subject, shards), one.attempt, hop, rest);
        // Consecutive subjects mostly go to the same place.
        if placed.get(last).is_none_or(|(known, _)| *known != place) {
            last = *places.entry(place).or_insert_with(|| {
                placed.push((place, Vec::new()));
                placed.len() - 1
            });
        }
        placed[last].1.push((one.due_at, one.subject));
        if let Some(failed_at) = failed_at {
            failures.entry(last).and_modify(|earliest| *earliest = failed_at.min(*earliest)).or_insert(failed_at);
        }
    }

    let mut packed = Vec::new();
    for (place, at) in places {
        let mut side_by_side = std::mem::take(&mut placed[at].1);
        // Once sorted, the same subjects give the same wake-ups, in whatever order they came.
        side_by_side.sort_unstable();
        let failed_at = failures.get(&at).copied();
        let mut open: Option<Pack> = None;
        for (due_at, subject) in side_by_side {
            match &mut open {
                Some(pack) if pack.has_room(due_at, pack_max) => pack.add(due_at, subject),
                _ => {
                    let next = Pack::new(due_at, subject, place.3);
                    packed.extend(open.replace(next).map(|full| full.close(place, failed_at, trace)));
                }
            }
        }
        packed.extend(open.map(|pack| pack.close(place, failed_at, trace)));
    }
    packed
}

/// The stable id of a wake-up: the same content gives the same id. It is a UUID of version 5, hashed here because the crate's
/// own hashing takes a fifth of the time of scheduling.
fn stable_id(kind: &str, due_at: DateTime<Utc>, attempt: u32, subjects: &[Uuid]) -> Uuid {
    let mut name = Sha1::new_with_prefix(NAMESPACE.as_bytes());
    name.update(kind.as_bytes());
    name.update(due_at.timestamp_micros().to_be_bytes());
    name.update(attempt.to_be_bytes());
    for subject in subjects {
        name.update(subject.as_bytes());
    }
    let mut beginning = [0; 16];
    beginning.copy_from_slice(&name.finalize()[..16]);
    uuid::Builder::from_sha1_bytes(beginning).into_uuid()
}

/// A wake-up being filled, earliest due first.
struct Pack {
    last_due: DateTime<Utc>,
    /// The latest due moment that may still be added; `None` if everything is sent at once.
    latest: Option<DateTime<Utc>>,
    subjects: Vec<Uuid>,
}

impl Pack {
    fn new(due_at: DateTime<Utc>, subject: Uuid, hop: Hop) -> Self {
        let latest = match hop {
            Hop::Rung(rung) => TimeDelta::from_std(rung.tolerance()).ok().and_then(|within| due_at.checked_add_signed(within)),
            // All subjects are overdue and are sent at once, whenever they were due.
            Hop::Lane => None,
        };
        Self { last_due: due_at, latest, subjects: vec![subject] }
    }

    fn has_room(&self, due_at: DateTime<Utc>, pack_max: usize) -> bool {
        self.subjects.len() < pack_max.max(1) && self.latest.is_none_or(|latest| due_at <= latest)
    }

    fn add(&mut self, due_at: DateTime<Utc>, subject: Uuid) {
        self.last_due = due_at;
        self.subjects.push(subject);
    }

    fn close(
        mut self,
        (kind, shard, attempt, hop, rest): PackKey,
        failed_at: Option<DateTime<Utc>>,
        trace: &TraceContext,
    ) -> Packed {
        self.subjects.sort_unstable();
        self.subjects.dedup();
        let id = stable_id(kind, self.last_due, attempt, &self.subjects);
        let (subjects, due_at, trace) = (self.subjects, self.last_due, trace.clone());
        let wakeup = Wakeup { id, kind, subjects, due_at, attempt, rest, failed_at, trace };
        Packed { hop, shard, wakeup }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::domain::tasks;

    fn ladder() -> Ladder {
        Ladder::new([1, 60, 3600, 86_400, 14 * 86_400].map(Duration::from_secs))
    }

    prop_compose! {
        fn waiting()(kind in 0..3usize, subject in 0u128..40, wait_ms in -5_000i64..20 * 86_400_000, attempt in 0u32..2) -> WaitingSubject {
            let wait = TimeDelta::milliseconds(wait_ms);
            let now: DateTime<Utc> = "2026-11-24T00:00:00Z".parse().unwrap();
            WaitingSubject { kind: tasks::ALL[kind].kind(), subject: Uuid::from_u128(subject), due_at: now + wait, wait, attempt }
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_nothing_is_named_twice_and_the_bounds_are_kept(
            all in prop::collection::vec(waiting(), 0..200),
            shards in 1u16..5,
            pack_max in 1usize..20,
        ) {
            let packed = pack(all.iter().copied(), &ladder(), shards, pack_max, &TraceContext::default());
            let asked: BTreeSet<_> = all.iter().map(|one| (one.kind, one.attempt, one.subject)).collect();
            let named: BTreeSet<_> = packed
                .iter()
                .flat_map(|p| p.wakeup.subjects.iter().map(|s| (p.wakeup.kind, p.wakeup.attempt, *s)))
                .collect();
            prop_assert_eq!(asked, named);
            for Packed { hop, shard, wakeup } in &packed {
                prop_assert!((1..=pack_max).contains(&wakeup.subjects.len()));
                prop_assert_eq!(wakeup.subjects.iter().collect::<BTreeSet<_>>().len(), wakeup.subjects.len());
                for subject in &wakeup.subjects {
                    prop_assert_eq!(shard_of(*subject, shards), *shard);
                    // This subject was requested for this very hop, due no later than the wake-up, within tolerance.
                    let within = |one: &&WaitingSubject| match hop {
                        Hop::Lane => true,
                        Hop::Rung(rung) => wakeup.due_at - one.due_at <= TimeDelta::from_std(rung.tolerance()).unwrap(),
                    };
                    prop_assert!(all.iter()
                        .filter(|one| (one.kind, one.attempt, one.subject) == (wakeup.kind, wakeup.attempt, *subject))
                        .filter(|one| ladder().next(one.wait.to_std().unwrap_or_default()) == *hop && one.due_at <= wakeup.due_at)
                        .any(|one| within(&one)));
                }
            }
        }

        #[test]
        fn the_same_made_again_has_the_same_ids(all in prop::collection::vec(waiting(), 0..60)) {
            let trace = TraceContext::default();
            let forwards = pack(all.iter().copied(), &ladder(), 2, 16, &trace);
            let backwards = pack(all.iter().rev().copied(), &ladder(), 2, 16, &trace);
            prop_assert_eq!(forwards, backwards);
        }
    }

    #[test]
    fn a_retry_takes_the_rest_of_its_pause_along_and_anything_else_does_not() {
        let due_at = "2026-12-08T00:00:00Z".parse().unwrap();
        let subject = Uuid::from_u128(9);
        let of = |attempt, wait_ms| {
            let one =
                WaitingSubject { kind: "confirm-receipt", subject, due_at, wait: TimeDelta::milliseconds(wait_ms), attempt };
            pack([one], &ladder(), 1, 128, &TraceContext::default()).remove(0)
        };
        assert_eq!(of(1, 72_500).wakeup.rest, TimeDelta::milliseconds(12_500));
        assert_eq!(of(0, 72_500).wakeup.rest, TimeDelta::zero());
        // A rest shorter than the shortest rung is not worth a hop.
        assert_eq!(of(1, 60_900).wakeup.rest, TimeDelta::zero());
    }

    #[test]
    fn those_that_failed_together_share_the_earliest_first_failure_and_keep_their_ids() {
        let due_at = "2026-12-08T00:00:00Z".parse().unwrap();
        let one = |subject, attempt| WaitingSubject {
            kind: "confirm-receipt",
            subject: Uuid::from_u128(subject),
            due_at,
            wait: TimeDelta::seconds(60),
            attempt,
        };
        let at = |second: u32| Some(format!("2026-12-08T00:00:{second:02}Z").parse().unwrap());
        let all = [(one(1, 1), at(7)), (one(2, 1), at(3)), (one(3, 1), None), (one(4, 2), at(9)), (one(5, 0), None)];
        let packed = pack_failed(all, &ladder(), 1, 128, &TraceContext::default());
        let failures: BTreeSet<_> =
            packed.iter().map(|packed| (packed.wakeup.attempt, packed.wakeup.subjects.len(), packed.wakeup.failed_at)).collect();
        assert_eq!(failures, BTreeSet::from([(0, 1, None), (1, 3, at(3)), (2, 1, at(9))]));
        let ids = |packed: Vec<Packed>| packed.into_iter().map(|packed| packed.wakeup.id).collect::<Vec<_>>();
        let without = pack(all.map(|(one, _)| one), &ladder(), 1, 128, &TraceContext::default());
        assert_eq!(ids(packed), ids(without));
    }

    #[test]
    fn one_alone_is_a_wakeup_of_one() {
        let due_at = "2026-12-08T00:00:00Z".parse().unwrap();
        let wait = TimeDelta::days(14);
        let one = WaitingSubject { kind: "confirm-receipt", subject: Uuid::from_u128(9), due_at, wait, attempt: 0 };
        let packed = pack([one], &ladder(), 1, 128, &TraceContext::default());
        assert_eq!(packed.len(), 1);
        assert_eq!(packed[0].wakeup.subjects, [one.subject]);
        assert_eq!(packed[0].hop, ladder().next(Duration::from_secs(14 * 86_400)));
        assert_eq!(packed[0].wakeup.id.to_string(), "ebb3b118-a923-5020-a084-6c742a6f36a1", "ids are pinned");
    }
}

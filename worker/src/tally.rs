//! Tally: counts subjects by kind and outcome, for the log and for OpenTelemetry. Nothing depends on it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use opentelemetry::{
    KeyValue, global,
    metrics::{Counter, Histogram},
};
use shared::{domain::outcome::Outcome, message::wakeup::Malformed};

use crate::pipeline::batch::Answered;

/// Bounds of the histogram of lateness, in seconds: from unnoticeable to a broken promise.
const LATENESS_BOUNDS_S: [f64; 14] = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 3600.0, 86_400.0];

/// Subjects by outcome, and messages that could not be applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub applied: u64,
    pub stale: u64,
    pub postponed: u64,
    pub retried: u64,
    pub rejected: u64,
    /// Messages that could not be decoded.
    pub malformed: u64,
    /// Messages of a later format, parked for a newer worker.
    pub parked: u64,
    /// New rows of `dead_letters`.
    pub stored: u64,
}

pub(crate) struct Tally {
    counts: [AtomicU64; NAMES.len()],
    stored: AtomicU64,
    said: AtomicU64,
    subjects: Counter<u64>,
    letters: Counter<u64>,
    lateness: Histogram<f64>,
}

const MALFORMED: usize = 5;
const PARKED: usize = 6;

impl Tally {
    pub(crate) fn new() -> Self {
        let meter = global::meter("kyhan");
        Self {
            counts: Default::default(),
            stored: AtomicU64::new(0),
            said: AtomicU64::new(0),
            subjects: meter
                .u64_counter("kyhan.worker.subjects")
                .with_unit("{subject}")
                .with_description("Subjects settled, by kind and outcome")
                .build(),
            letters: meter
                .u64_counter("kyhan.worker.dead_letters")
                .with_unit("{letter}")
                .with_description("Dead letters stored, by reason")
                .build(),
            lateness: meter
                .f64_histogram("kyhan.worker.lateness")
                .with_unit("s")
                .with_boundaries(LATENESS_BOUNDS_S.to_vec())
                .with_description("Applied minus due, by the database's clock")
                .build(),
        }
    }

    pub(crate) fn count(&self, kind: &'static str, batch: &[Answered]) {
        let mut counts = [0u64; NAMES.len()];
        let of_kind = [KeyValue::new("kind", kind)];
        for Answered { message, outcomes } in batch {
            match message.content {
                Ok(_) => {}
                Err(Malformed::Future(_)) => counts[PARKED] += 1,
                Err(_) => counts[MALFORMED] += 1,
            }
            for (_, outcome) in outcomes {
                if let Some(at) = NAMES.iter().position(|name| *name == outcome.name()) {
                    counts[at] += 1;
                }
                if let Outcome::Applied { late } = outcome {
                    self.lateness.record(late.as_seconds_f64(), &of_kind);
                }
            }
        }
        for ((total, count), name) in self.counts.iter().zip(counts).zip(NAMES) {
            if count > 0 {
                total.fetch_add(count, Ordering::Relaxed);
                self.subjects.add(count, &[KeyValue::new("kind", kind), KeyValue::new("outcome", name)]);
            }
        }
    }

    /// Counts stored letters by reason. An unknown reason counts as `other`, so that a publisher cannot create metric series.
    pub(crate) fn stored<'a>(&self, reasons: impl Iterator<Item = &'a str>) {
        let mut counts = [0u64; REASONS.len()];
        for reason in reasons {
            counts[REASONS.iter().position(|known| *known == reason).unwrap_or(REASONS.len() - 1)] += 1;
        }
        for (count, reason) in counts.into_iter().zip(REASONS).filter(|(count, _)| *count > 0) {
            self.stored.fetch_add(count, Ordering::Relaxed);
            self.letters.add(count, &[KeyValue::new("reason", reason)]);
        }
    }

    pub(crate) fn totals(&self) -> Totals {
        let [applied, stale, postponed, retried, rejected, malformed, parked] =
            [0, 1, 2, 3, 4, MALFORMED, PARKED].map(|at| self.counts[at].load(Ordering::Relaxed));
        let stored = self.stored.load(Ordering::Relaxed);
        Totals { applied, stale, postponed, retried, rejected, malformed, parked, stored }
    }

    /// Logs the totals whenever they have changed.
    pub(crate) async fn report(self: Arc<Self>, every: Duration) {
        let mut ticks = tokio::time::interval(every);
        loop {
            ticks.tick().await;
            self.say();
        }
    }

    pub(crate) fn say(&self) {
        let Totals { applied, stale, postponed, retried, rejected, malformed, parked, stored } = self.totals();
        let all = applied + stale + postponed + retried + rejected + malformed + parked + stored;
        if self.said.swap(all, Ordering::Relaxed) != all {
            tracing::info!(applied, stale, postponed, retried, rejected, malformed, parked, stored, "settled so far");
        }
    }
}

/// The names under which outcomes are counted and logged: those of [`Outcome::name`], then [`MALFORMED`] and [`PARKED`].
const NAMES: [&str; 7] = ["applied", "stale", "postponed", "retried", "rejected", "malformed", "parked"];
/// The reasons of letters: a worker's ([`shared::domain::outcome::Reason::name`]), then the broker's; the last one stands for all others.
const REASONS: [&str; 8] =
    ["malformed", "attempts-exhausted", "delivery-limit", "unrouted", "expired", "maxlen", "rejected", "other"];

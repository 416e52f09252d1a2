//! Which kinds are paused, as far as this process has read. Logs the begin and the end of each pause once, exports them as a metric, and
//! stops the consumers of paused lanes. It only saves work: the transactions themselves refuse to apply a paused kind.

use std::{collections::BTreeMap, time::Instant};

use opentelemetry::{KeyValue, global};
use shared::{
    database::pause::Pause,
    domain::{task::Task, tasks},
};
use tokio::sync::watch;

/// The pauses of all kinds.
pub(crate) struct PausedKinds {
    known: watch::Sender<KnownPauses>,
}

type KnownPauses = BTreeMap<&'static str, Met>;

struct Met {
    pause: Pause,
    at: Instant,
}

impl PausedKinds {
    /// Starts without any pause.
    pub(crate) fn new() -> Self {
        let known = watch::Sender::new(KnownPauses::new());
        let seen = known.subscribe();
        let _registered = global::meter("kyhan")
            .u64_observable_gauge("kyhan.paused")
            .with_description("1 while an operator has paused the kind, else 0")
            .with_callback(move |observer| {
                let seen = seen.borrow();
                for kind in tasks::kinds() {
                    observer.observe(seen.contains_key(kind).into(), &[KeyValue::new("kind", kind)]);
                }
            })
            .build();
        Self { known }
    }

    /// Takes over all pauses of the database, read at `asked`. A pause that a transaction met after that is kept.
    pub(crate) fn are(&self, pauses: Vec<Pause>, asked: Instant) {
        self.known.send_if_modified(|known| {
            let before = known.len();
            known.retain(|kind, met| {
                let goes_on = met.at > asked || pauses.iter().any(|pause| pause.kind == *kind);
                if !goes_on {
                    tracing::info!(kind, "kind resumed");
                }
                goes_on
            });
            let mut changed = known.len() < before;
            for pause in pauses {
                changed |= begins(known, pause);
            }
            changed
        });
    }

    /// Adds a pause that a transaction has met.
    pub(crate) fn met(&self, pause: Pause) {
        self.known.send_if_modified(|known| begins(known, pause));
    }

    /// The kind's pause, if it is paused.
    pub(crate) fn of(&self, kind: &str) -> Option<Pause> {
        self.known.borrow().get(kind).map(|met| met.pause.clone())
    }

    /// Waits until the kind is paused. Returns at once if it is, and never without a kind.
    pub(crate) async fn began(&self, kind: Option<&'static str>) {
        match kind {
            Some(kind) => self.is(kind, true).await,
            None => std::future::pending().await,
        }
    }

    /// Waits until the kind is not paused. Returns at once if it is not.
    pub(crate) async fn ended(&self, kind: &'static str) {
        self.is(kind, false).await;
    }

    async fn is(&self, kind: &'static str, paused: bool) {
        // Cannot fail: the sender is borrowed from this struct for as long as this waits.
        let _ = self.known.subscribe().wait_for(|known| known.contains_key(kind) == paused).await;
    }
}

/// Adds a pause; returns whether it is new. Ignores kinds of newer versions, which have no lane here.
fn begins(known: &mut KnownPauses, pause: Pause) -> bool {
    let Some(kind) = tasks::find(&pause.kind).map(Task::kind) else { return false };
    if known.get(kind).is_some_and(|met| met.pause == pause) {
        return false;
    }
    let Pause { since, by, why, .. } = &pause;
    tracing::warn!(kind, since = since.to_rfc3339(), by, why, "kind paused: it is not applied until `ops resume`");
    known.insert(kind, Met { pause, at: Instant::now() });
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause(kind: &str) -> Pause {
        Pause { kind: kind.into(), since: "2026-11-24T08:00:00Z".parse().unwrap(), by: "lan".into(), why: "phí sai".into() }
    }

    #[test]
    fn what_was_met_after_the_database_was_asked_is_not_taken_back_by_its_answer() {
        let paused = PausedKinds::new();
        let asked = Instant::now();
        paused.met(pause("confirm-receipt"));
        paused.are(Vec::new(), asked);
        assert_eq!(paused.of("confirm-receipt"), Some(pause("confirm-receipt")));
        paused.are(vec![pause("collect-arrears"), pause("of-a-newer-version")], Instant::now());
        assert_eq!(paused.of("confirm-receipt"), None);
        assert_eq!(paused.known.borrow().keys().copied().collect::<Vec<_>>(), ["collect-arrears"]);
    }
}

//! Which kinds are paused, as this process knows: told of once when a pause begins and once when it ends, waited for by the lanes,
//! and told as a metric. It only keeps consumers away from what they could not apply; that nothing is applied, the transactions see to.

use std::{collections::BTreeMap, time::Instant};

use opentelemetry::{KeyValue, global};
use shared::{
    database::pause::Pause,
    domain::{task::Task, tasks},
};
use tokio::sync::watch;

/// What is known of all kinds.
pub(crate) struct Paused {
    known: watch::Sender<Known>,
}

type Known = BTreeMap<&'static str, Met>;

struct Met {
    pause: Pause,
    at: Instant,
}

impl Paused {
    /// Of no kind, until told.
    pub(crate) fn new() -> Self {
        let known = watch::Sender::new(Known::new());
        let told = known.subscribe();
        let _registered = global::meter("kyhan")
            .u64_observable_gauge("kyhan.paused")
            .with_description("1 while nothing of a kind is applied, as an operator has paused it; else 0")
            .with_callback(move |observer| {
                let told = told.borrow();
                for kind in tasks::kinds() {
                    observer.observe(told.contains_key(kind).into(), &[KeyValue::new("kind", kind)]);
                }
            })
            .build();
        Self { known }
    }

    /// All there are, as the database said when it was asked at that moment. A pause that was met since is younger than that.
    pub(crate) fn are(&self, pauses: Vec<Pause>, asked: Instant) {
        self.known.send_if_modified(|known| {
            let before = known.len();
            known.retain(|kind, met| {
                let goes_on = met.at > asked || pauses.iter().any(|pause| pause.kind == *kind);
                if !goes_on {
                    tracing::info!(kind, "resumed: the kind is applied again");
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

    /// A transaction was refused for it.
    pub(crate) fn met(&self, pause: Pause) {
        self.known.send_if_modified(|known| begins(known, pause));
    }

    /// The kind's pause.
    pub(crate) fn of(&self, kind: &str) -> Option<Pause> {
        self.known.borrow().get(kind).map(|met| met.pause.clone())
    }

    /// Waits until the kind is paused; at once while it is, never for what is of no kind.
    pub(crate) async fn began(&self, kind: Option<&'static str>) {
        match kind {
            Some(kind) => self.is(kind, true).await,
            None => std::future::pending().await,
        }
    }

    /// Waits until it is not; at once when it is not.
    pub(crate) async fn ended(&self, kind: &'static str) {
        self.is(kind, false).await;
    }

    async fn is(&self, kind: &'static str, paused: bool) {
        // The sender is this very struct, so it does not go away while somebody waits.
        let _ = self.known.subscribe().wait_for(|known| known.contains_key(kind) == paused).await;
    }
}

/// Whether it is news. A kind of a newer version has no lane here.
fn begins(known: &mut Known, pause: Pause) -> bool {
    let Some(kind) = tasks::find(&pause.kind).map(Task::kind) else { return false };
    if known.get(kind).is_some_and(|met| met.pause == pause) {
        return false;
    }
    let Pause { since, by, why, .. } = &pause;
    tracing::warn!(kind, since = since.to_rfc3339(), by, why, "paused: nothing of the kind is applied until it is resumed");
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
        let paused = Paused::new();
        let asked = Instant::now();
        paused.met(pause("confirm-receipt"));
        paused.are(Vec::new(), asked);
        assert_eq!(paused.of("confirm-receipt"), Some(pause("confirm-receipt")));
        paused.are(vec![pause("collect-arrears"), pause("of-a-newer-version")], Instant::now());
        assert_eq!(paused.of("confirm-receipt"), None);
        assert_eq!(paused.known.borrow().keys().copied().collect::<Vec<_>>(), ["collect-arrears"]);
    }
}

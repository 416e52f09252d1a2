//! Audit: compares rows, ledger and broker in both directions, with exact counts. It only reads: it writes none of the data that it
//! checks and gets no message, not even to requeue it. [`remember`] records the result once.
//!
//! The broker counts messages, not the subjects that they name. So a missing wake-up is certain only if there are more subjects than
//! all messages together can name. The sweep finds the others once they are overdue.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::{AccessMode, DatabaseConnection, DbErr, IsolationLevel, TransactionTrait};
use serde::Serialize;
use serde_json::json;
use shared::{broker::Broker, database::transaction_began, message::ladder::Hop, settings::Settings};

use crate::{
    OpsError,
    actor::{Operator, id_of},
    rungs,
};

mod queues;
mod rows;

pub use queues::QueueCheck;
use queues::{SeenQueue, look};

/// A message that moves between two queues is missing from both counts. So if wake-ups seem to be missing, the audit repeats: at most
/// `TRIES` times, `PAUSE` apart.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(2);

/// What a count means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckVerdict {
    Ok,
    /// Nothing is wrong, but an operator may have something to do.
    Note,
    Off,
}

impl CheckVerdict {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Off => "off",
        }
    }

    const fn off_if(wrong: bool) -> Self {
        if wrong { Self::Off } else { Self::Ok }
    }

    const fn note_if(worth_it: bool) -> Self {
        if worth_it { Self::Note } else { Self::Ok }
    }
}

/// All counts. The fields are those of `ops audit --json`, so their names must not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// The time of the database snapshot. *Due* and *overdue* refer to it.
    pub at: DateTime<Utc>,
    pub due: Vec<DueCounts>,
    pub records: Vec<CheckCount>,
    pub ledger: Vec<CheckCount>,
    pub queues: Vec<QueueCheck>,
    pub rungs: Vec<RungCounts>,
    pub wakeups: Wakeups,
    pub events: Vec<CheckCount>,
    /// Paused kinds. Their due rows are not applied, as intended.
    pub paused: Vec<String>,
    /// The number of verdicts that are [`CheckVerdict::Off`].
    pub off: usize,
}

/// One kind's candidates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DueCounts {
    pub kind: &'static str,
    /// Due later.
    pub pending: u64,
    /// Due for less than the sweep's grace, so a worker may be applying them.
    pub due: u64,
    /// Due for longer than that, and not applied.
    pub overdue: u64,
    pub verdict: CheckVerdict,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckCount {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    pub check: &'static str,
    pub count: i64,
    pub verdict: CheckVerdict,
}

/// One rung: the messages in it, and the candidates that would be sent there now. The two need not agree: retries and earlier hops wait
/// there too, one message names several subjects, and a wake-up sent earlier would take a shorter rung now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RungCounts {
    pub rung: String,
    pub messages: u64,
    /// Canaries among the messages. They name no subject and only show that the rung moves.
    pub canaries: u64,
    /// Pending candidates of all kinds that would be sent to this rung now.
    pub candidates: u64,
}

/// Pending subjects compared with waiting messages. Due subjects are excluded, because their wake-ups may be unacked at a worker,
/// where the counts do not include them. If such a wake-up is lost, its subject becomes overdue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Wakeups {
    /// Pending subjects of all kinds, each of which needs a wake-up.
    pub subjects: u64,
    /// Pending subjects whose event is still in the outbox.
    pub in_outbox: u64,
    /// Messages in all rungs, in the lanes and in quarantine.
    pub messages: u64,
    /// Canaries that should be among the messages. If a rung was lost, they are not, until a rebuild deletes their rows.
    pub canaries: u64,
    /// Subjects without a wake-up, if all those canaries are among the messages.
    pub perhaps_missing: u64,
    /// Subjects without a wake-up, even if every message names as many subjects as possible.
    pub missing: u64,
    pub verdict: CheckVerdict,
}

/// Compares everything.
///
/// # Errors
/// [`OpsError`].
pub async fn audit(db: &DatabaseConnection, broker: &Broker, settings: &Settings) -> Result<AuditReport, OpsError> {
    for _ in 1..TRIES {
        let report = once(db, broker, settings).await?;
        if report.wakeups.perhaps_missing == 0 {
            return Ok(report);
        }
        tokio::time::sleep(PAUSE).await;
    }
    once(db, broker, settings).await
}

/// Records in `activity` who ran an audit and how many checks were off. `ops status` shows the last one.
///
/// # Errors
/// Database errors.
pub async fn remember(db: &DatabaseConnection, actor: &Operator, report: &AuditReport) -> Result<(), DbErr> {
    let found = json!({ "at": report.at, "off": report.off });
    actor.record(db, FINISHED, ("audit", id_of(AUDIT)), None, found).await
}

/// The action and the subject that [`remember`] records.
pub(crate) const FINISHED: &str = "audit.finished";
pub(crate) const AUDIT: &str = "audit";

async fn once(db: &DatabaseConnection, broker: &Broker, settings: &Settings) -> Result<AuditReport, OpsError> {
    let topology = settings.topology();
    let forgotten: Vec<String> = rungs::forgotten(db, &topology).await?.into_iter().map(|rung| rung.queue).collect();
    // One look before the snapshot and one after it, so that a message that moves meanwhile is in at least one.
    let before = look(broker, &topology, &forgotten).await?;
    let snapshot = db.begin_with_config(Some(IsolationLevel::RepeatableRead), Some(AccessMode::ReadOnly)).await?;
    let at = transaction_began(&snapshot).await?;
    let after = look(broker, &topology, &forgotten).await?;
    let rows = rows::count(&snapshot, settings).await?;
    snapshot.rollback().await?;

    let seen: Vec<SeenQueue> = before.into_iter().zip(after).map(|(before, after)| before.most(after)).collect();
    let rungs = topology.ladder().rungs().iter().zip(&rows.by_rung).map(|(rung, candidates)| {
        let exchange = topology.exchange_of(Hop::Rung(*rung));
        let here = || seen.iter().filter(|seen| seen.exchange == exchange);
        let messages = here().filter_map(|seen| seen.messages).map(u64::from).sum();
        let canaries = here().filter_map(|seen| rows.canaries.get(&seen.queue)).sum();
        RungCounts { rung: rung.label(), messages, canaries, candidates: *candidates }
    });
    let rungs = rungs.collect();
    let wakeups = wakeups(&rows, &seen, settings.naming.pack_max);
    let resting: Vec<String> = rows.paused.iter().flat_map(|kind| topology.lanes(kind)).collect();
    let queues: Vec<QueueCheck> = seen.iter().filter_map(|seen| seen.judge(&resting)).collect();
    let rows::Rows { due, records, ledger, events, paused, .. } = rows;
    let verdicts = due.iter().map(|due| due.verdict).chain(queues.iter().map(|queue| queue.verdict)).chain([wakeups.verdict]);
    let counted = [&records, &ledger, &events].into_iter().flatten().map(|counted| counted.verdict);
    let off = verdicts.chain(counted).filter(|verdict| *verdict == CheckVerdict::Off).count();
    Ok(AuditReport { at, due, records, ledger, queues, rungs, wakeups, events, paused, off })
}

fn wakeups(rows: &rows::Rows, seen: &[SeenQueue], pack_max: usize) -> Wakeups {
    let subjects = rows.due.iter().map(|due| due.pending).sum::<u64>();
    let candidates = rows.due.iter().map(|due| due.pending + due.due + due.overdue).sum::<u64>();
    let messages = seen.iter().filter(|seen| seen.wakes()).filter_map(|seen| seen.messages).map(u64::from).sum::<u64>();
    let canaries = rows.canaries.values().sum::<u64>();
    let without = |messages| missing(subjects.saturating_sub(rows.in_outbox), messages, pack_max as u64);
    let (perhaps_missing, missing) = (without(messages.saturating_sub(canaries)), without(messages));
    // A surplus wake-up is harmless, because its recheck finds it stale.
    let verdict = match missing {
        0 => CheckVerdict::note_if(perhaps_missing > 0 || (messages > canaries && candidates == 0)),
        _ => CheckVerdict::Off,
    };
    Wakeups { subjects, in_outbox: rows.in_outbox, messages, canaries, perhaps_missing, missing, verdict }
}

/// How many of `subjects` have no wake-up, even if each message names `pack_max` subjects.
const fn missing(subjects: u64, messages: u64, pack_max: u64) -> u64 {
    subjects.saturating_sub(messages.saturating_mul(pack_max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_message_can_name_is_missing() {
        assert_eq!(missing(300, 3, 128), 0);
        assert_eq!(missing(385, 3, 128), 1);
        assert_eq!(missing(300, 0, 128), 300);
        assert_eq!(missing(0, 7, 128), 0);
        assert_eq!(missing(u64::MAX, u64::MAX, 1_000), 0);
    }
}

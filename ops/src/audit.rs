//! Audit: rows, ledger and broker are compared, both ways, and exact counts say what is off. It only looks: nothing of what it looks at
//! is written, no message is taken, not even to be given back. What it came to is recorded, once, by [`remember`].
//!
//! What the broker can prove is little. It counts messages, not the subjects that they name, so only more subjects than all
//! messages together could name are certainly without a wake-up; what a count cannot see the sweep finds once it is overdue.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::{AccessMode, DatabaseConnection, DbErr, IsolationLevel, TransactionTrait};
use serde::Serialize;
use serde_json::json;
use shared::{broker::Broker, database::transaction_began, message::ladder::Hop, settings::Settings};

use crate::{
    OpsError,
    actor::{Actor, id_of},
    rungs,
};

mod queues;
mod rows;

pub use queues::Queue;
use queues::{Seen, look};

/// A message between two queues is in no count, and one postponed just then in neither look. So what seems to be missing is looked
/// for again: this often in all, so long apart.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(2);

/// What a count means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// Nothing is wrong, and somebody may have something to do.
    Note,
    Off,
}

impl Verdict {
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

/// All that was counted. Its fields are those of `ops audit --json`, and keep their names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The moment of the database's snapshot, by which everything is judged.
    pub at: DateTime<Utc>,
    pub due: Vec<Due>,
    pub records: Vec<Counted>,
    pub ledger: Vec<Counted>,
    pub queues: Vec<Queue>,
    pub rungs: Vec<Rung>,
    pub wakeups: Wakeups,
    pub events: Vec<Counted>,
    /// Kinds that are paused: what is due of them is not applied, and that is as it should be.
    pub paused: Vec<String>,
    /// How many of the verdicts are [`Verdict::Off`].
    pub off: usize,
}

/// One kind's candidates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Due {
    pub kind: &'static str,
    /// Due later.
    pub pending: u64,
    /// Due, within the sweep's grace: on its way.
    pub due: u64,
    /// Due for longer than that, and without an effect.
    pub overdue: u64,
    pub verdict: Verdict,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Counted {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    pub check: &'static str,
    pub count: i64,
    pub verdict: Verdict,
}

/// One rung: how many wait in it, beside how many would be sent there now. Retries and earlier hops wait there too, a message names
/// several, and what was sent a while ago would take a shorter rung now: the two need not agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rung {
    pub rung: String,
    pub messages: u64,
    /// Messages among them that name nothing and only tell that the rung moves.
    pub canaries: u64,
    /// Pending candidates of all kinds whose next hop this would be.
    pub candidates: u64,
}

/// Pending subjects against waiting messages. What is due already is left out, as it may be in a worker's hands, where no count
/// shows it; lost, it becomes overdue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Wakeups {
    /// Pending subjects of all kinds, each of which needs a wake-up.
    pub subjects: u64,
    /// Those whose event is still in the outbox.
    pub in_outbox: u64,
    /// Messages in all rungs, in the lanes and in quarantine.
    pub messages: u64,
    /// Canaries that should be among them. After a rung was lost they are not, until a rebuild forgets them.
    pub canaries: u64,
    /// So many subjects have no wake-up, if all those canaries are there.
    pub perhaps_missing: u64,
    /// So many have none, whatever the messages are.
    pub missing: u64,
    pub verdict: Verdict,
}

/// Compares everything.
///
/// # Errors
/// [`OpsError`].
pub async fn audit(db: &DatabaseConnection, broker: &Broker, settings: &Settings) -> Result<Report, OpsError> {
    for _ in 1..TRIES {
        let report = once(db, broker, settings).await?;
        if report.wakeups.perhaps_missing == 0 {
            return Ok(report);
        }
        tokio::time::sleep(PAUSE).await;
    }
    once(db, broker, settings).await
}

/// Records in `activity` that an audit was made, by whom, and how many checks it found off: what `ops status` shows of the last one.
///
/// # Errors
/// The database's.
pub async fn remember(db: &DatabaseConnection, actor: &Actor, report: &Report) -> Result<(), DbErr> {
    let found = json!({ "at": report.at, "off": report.off });
    actor.record(db, FINISHED, ("audit", id_of(AUDIT)), None, found).await
}

/// What [`remember`] records, of which thing.
pub(crate) const FINISHED: &str = "audit.finished";
pub(crate) const AUDIT: &str = "audit";

async fn once(db: &DatabaseConnection, broker: &Broker, settings: &Settings) -> Result<Report, OpsError> {
    let topology = settings.topology();
    let forgotten: Vec<String> = rungs::forgotten(db, &topology).await?.into_iter().map(|rung| rung.queue).collect();
    // Before the snapshot and after it: what moves on meanwhile is in one of the looks.
    let before = look(broker, &topology, &forgotten).await?;
    let snapshot = db.begin_with_config(Some(IsolationLevel::RepeatableRead), Some(AccessMode::ReadOnly)).await?;
    let at = transaction_began(&snapshot).await?;
    let after = look(broker, &topology, &forgotten).await?;
    let rows = rows::count(&snapshot, settings).await?;
    snapshot.rollback().await?;

    let seen: Vec<Seen> = before.into_iter().zip(after).map(|(before, after)| before.most(after)).collect();
    let rungs = topology.ladder().rungs().iter().zip(&rows.by_rung).map(|(rung, candidates)| {
        let exchange = topology.exchange_of(Hop::Rung(*rung));
        let here = || seen.iter().filter(|seen| seen.exchange == exchange);
        let messages = here().filter_map(|seen| seen.messages).map(u64::from).sum();
        let canaries = here().filter_map(|seen| rows.canaries.get(&seen.queue)).sum();
        Rung { rung: rung.label(), messages, canaries, candidates: *candidates }
    });
    let rungs = rungs.collect();
    let wakeups = wakeups(&rows, &seen, settings.naming.pack_max);
    let resting: Vec<String> = rows.paused.iter().flat_map(|kind| topology.lanes(kind)).collect();
    let queues: Vec<Queue> = seen.iter().filter_map(|seen| seen.judge(&resting)).collect();
    let rows::Rows { due, records, ledger, events, paused, .. } = rows;
    let verdicts = due.iter().map(|due| due.verdict).chain(queues.iter().map(|queue| queue.verdict)).chain([wakeups.verdict]);
    let counted = [&records, &ledger, &events].into_iter().flatten().map(|counted| counted.verdict);
    let off = verdicts.chain(counted).filter(|verdict| *verdict == Verdict::Off).count();
    Ok(Report { at, due, records, ledger, queues, rungs, wakeups, events, paused, off })
}

fn wakeups(rows: &rows::Rows, seen: &[Seen], pack_max: usize) -> Wakeups {
    let subjects = rows.due.iter().map(|due| due.pending).sum::<u64>();
    let candidates = rows.due.iter().map(|due| due.pending + due.due + due.overdue).sum::<u64>();
    let messages = seen.iter().filter(|seen| seen.wakes()).filter_map(|seen| seen.messages).map(u64::from).sum::<u64>();
    let canaries = rows.canaries.values().sum::<u64>();
    let without = |messages| missing(subjects.saturating_sub(rows.in_outbox), messages, pack_max as u64);
    let (perhaps_missing, missing) = (without(messages.saturating_sub(canaries)), without(messages));
    // Wake-ups of nothing that is pending are harmless: each is found stale.
    let verdict = match missing {
        0 => Verdict::note_if(perhaps_missing > 0 || (messages > canaries && candidates == 0)),
        _ => Verdict::Off,
    };
    Wakeups { subjects, in_outbox: rows.in_outbox, messages, canaries, perhaps_missing, missing, verdict }
}

/// How many of `subjects` cannot have a wake-up, whatever the messages name.
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

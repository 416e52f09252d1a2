//! Explain: the recorded history of one order or cart item, what falls due next and when, and where its wake-up waits. It only reads, in
//! one snapshot. It shows ids, times, amounts and code words, and never personal data or a source of goods.
//!
//! Rechecks that found nothing to do, and attempts that are retried, leave no row. They are in the traces.

use chrono::{DateTime, Utc};
use sea_orm::{AccessMode, DatabaseConnection, DbErr, IsolationLevel, TransactionTrait};
use serde::Serialize;
use shared::{
    database::transaction_began,
    domain::{task::Shown, tasks},
    settings::Settings,
};
use uuid::Uuid;

mod fact;
mod letters;
mod named;
mod outlook;
mod records;

pub use fact::{Fact, Facts};
pub use outlook::{CountedEvent, Hops, Outlook, PauseOfKind, WakeupPlace};

/// The explanation of a name. The fields are those of `ops explain --json`, so their names must not change.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// The time of the database snapshot.
    pub at: DateTime<Utc>,
    /// Nearly always one. If a name is both the code of one row and the id of another, both are here.
    pub subjects: Vec<Subject>,
}

/// One row, or the records of a deleted one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Subject {
    /// The table of the row; `None`: the row no longer exists, only records about it.
    pub table: Option<&'static str>,
    pub id: Uuid,
    /// The code by which people name it, if it has one.
    pub code: Option<String>,
    pub timeline: Vec<TimelineEntry>,
    pub kinds: Vec<Outlook>,
}

/// An entry of the timeline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TimelineEntry {
    pub at: DateTime<Utc>,
    pub what: String,
    pub detail: Facts,
}

/// Explains an order's code, an order's id or a cart item's id; `None`: neither a row nor a record has this name.
///
/// # Errors
/// Database errors.
pub async fn explain(db: &DatabaseConnection, settings: &Settings, name: &str) -> Result<Option<Explanation>, DbErr> {
    let snapshot = db.begin_with_config(Some(IsolationLevel::RepeatableRead), Some(AccessMode::ReadOnly)).await?;
    let at = transaction_began(&snapshot).await?;
    let mut subjects = Vec::new();
    for named in named::find(&snapshot, name).await? {
        let mut timeline = records::of_row(&snapshot, named.table, named.id).await?;
        timeline.extend(records::of_subject(&snapshot, named.id).await?);
        timeline.extend(letters::of_subject(&snapshot, named.id).await?);
        // An id without a row and without records is probably mistyped.
        if named.table.is_none() && timeline.is_empty() {
            continue;
        }
        // The sort is stable, so entries of the same time keep the order of their sources. `dedup` keeps one entry of a plan that contains
        // several letters of the subject.
        timeline.sort_by_key(|entry| entry.at);
        timeline.dedup();
        let concerned = |task: &&&dyn Shown| named.table.is_none_or(|table| table == task.table());
        let mut kinds = Vec::new();
        for task in tasks::ALL.iter().filter(concerned) {
            kinds.push(outlook::of(&snapshot, settings, *task, named.id, at).await?);
        }
        subjects.push(Subject { table: named.table, id: named.id, code: named.code, timeline, kinds });
    }
    snapshot.rollback().await?;
    Ok(if subjects.is_empty() { None } else { Some(Explanation { at, subjects }) })
}

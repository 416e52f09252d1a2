//! Explain: all that is on record about one order or cart item in order of time, when what falls due next, and where its wake-up
//! waits. It only looks, at one snapshot, and tells ids, moments, amounts and words of codes: no personal data, no source of goods.
//!
//! Rechecks that found nothing to do leave no row, and neither do attempts that are made again: they are in the traces.

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
pub use outlook::{Counted, Hops, Outlook, Paused, Waiting};

/// What a name stands for, explained. Its fields are those of `ops explain --json`, and keep their names.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// The moment of the database's snapshot, by which everything is told.
    pub at: DateTime<Utc>,
    /// Nearly always one. A code that looks like an id may be another row's id: then both are told of, and nothing is guessed.
    pub subjects: Vec<Subject>,
}

/// One row, or the remains of one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Subject {
    /// Where the row lies; `None`: there is none of this id any more, only what is on record about it.
    pub table: Option<&'static str>,
    pub id: Uuid,
    /// What people call it, where they do.
    pub code: Option<String>,
    pub timeline: Vec<Entry>,
    pub kinds: Vec<Outlook>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    pub at: DateTime<Utc>,
    pub what: String,
    pub detail: Facts,
}

/// Explains what an order's code, an order's id or a cart item's id stands for; `None`: nothing is known by this name.
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
        // An id that no row has and nothing remembers is a mistyped one.
        if named.table.is_none() && timeline.is_empty() {
            continue;
        }
        // What has the same moment stays in the order of its sources. A plan of several of the subject's letters is told of once.
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

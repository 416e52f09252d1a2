//! The current state of the rows that letters are about. *Due* is the shared definition ([`due::query`]). The task defines what
//! operators may see of a row ([`Shown::shown`]), so this file names no kind.

use chrono::{DateTime, Utc};
use sea_orm::{
    ConnectionTrait, DbBackend, DbErr, DeriveActiveEnum, EntityTrait, EnumIter, FromQueryResult, QueryFilter, QuerySelect,
    QueryTrait, Value,
};
use serde::Serialize;
use shared::{
    database::{
        entity::dead_letters::{self, Column},
        statement,
    },
    domain::{due, policy::Policy, task::Shown, tasks},
};
use uuid::Uuid;

use super::filter::{Filter, LetterState};

/// The state of the row that a letter is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, EnumIter, DeriveActiveEnum)]
#[serde(rename_all = "lowercase")]
#[sea_orm(rs_type = "String", db_type = "Text", rename_all = "lowercase")]
pub enum Standing {
    /// A candidate, and due: a replay applies it, unless something fails.
    Due,
    /// A candidate that is not due yet.
    Waits,
    /// The row exists and nothing is left to do.
    Moot,
    /// The row does not exist.
    Gone,
    /// The row is unknown: the letter has no kind, no subject, or an unknown kind.
    Unreadable,
}

impl Standing {
    /// The name in SQL and output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Due => "due",
            Self::Waits => "waits",
            Self::Moot => "moot",
            Self::Gone => "gone",
            Self::Unreadable => "unreadable",
        }
    }
}

/// The standing of one letter's row. `due_at` is set if the row is a candidate and the policy makes it due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, FromQueryResult)]
pub struct Stands {
    pub standing: Standing,
    pub due_at: Option<DateTime<Utc>>,
}

/// The state of one letter's row; `None`: there is no such letter.
///
/// # Errors
/// Database errors.
pub async fn stands(db: &impl ConnectionTrait, policy: &Policy, letter: Uuid) -> Result<Option<Stands>, DbErr> {
    let (with, values) = standings(policy, &Filter { ids: vec![letter], state: LetterState::All, ..Filter::default() });
    let sql = format!("WITH {with} SELECT standing, due_at FROM standing");
    Stands::find_by_statement(statement(&sql, values)).one(db).await
}

/// What operators may see of a subject now, by [`Shown::shown`]; `None`: there is no such row.
///
/// # Errors
/// Database errors.
pub async fn seen(db: &impl ConnectionTrait, task: &dyn Shown, subject: Uuid) -> Result<Option<serde_json::Value>, DbErr> {
    let row = db.query_one_raw(statement(task.shown(), [subject.into()])).await?;
    row.map(|row| row.try_get_by_index(0)).transpose()
}

/// The common table expressions `letter` (the selected letters, without their messages) and `standing` (`id`, `standing` and `due_at`,
/// one row per letter), and the values of their parameters `$1…`.
pub(super) fn standings(policy: &Policy, filter: &Filter) -> (String, Vec<Value>) {
    let letters = dead_letters::Entity::find().select_only().columns([
        Column::Id,
        Column::Kind,
        Column::SubjectId,
        Column::Reason,
        Column::CauseGroup,
        Column::FirstFailedAt,
        Column::LastFailedAt,
    ]);
    let chosen = letters.filter(filter.condition()).build(DbBackend::Postgres);
    let mut values = chosen.values.map(|values| values.0).unwrap_or_default();
    let mut parameter = |value: Value| {
        values.push(value);
        format!("${}", values.len())
    };
    let of_kinds: Vec<String> = tasks::ALL
        .iter()
        .map(|task| {
            format!(
                "SELECT letter.id, due.due_at,
                        CASE WHEN due.due_at <= now() THEN 'due' WHEN due.id IS NOT NULL THEN 'waits'
                             WHEN subject.id IS NOT NULL THEN 'moot' ELSE 'gone' END AS standing
                   FROM letter LEFT JOIN {table} AS subject ON subject.id = letter.subject_id
                               LEFT JOIN {due} AS due ON due.id = letter.subject_id
                  WHERE letter.subject_id IS NOT NULL AND letter.kind = {kind}",
                table = task.table(),
                due = due::query(*task, policy),
                kind = parameter(task.kind().into()),
            )
        })
        .collect();
    let kinds: Vec<String> = tasks::kinds().map(ToOwned::to_owned).collect();
    let with = format!(
        "letter AS MATERIALIZED ({chosen}), standing AS (
            {of_kinds}
            UNION ALL
            SELECT letter.id, NULL, 'unreadable' FROM letter
             WHERE letter.subject_id IS NULL OR letter.kind IS NULL OR letter.kind <> ALL({kinds})
        )",
        chosen = chosen.sql,
        of_kinds = of_kinds.join(" UNION ALL "),
        kinds = parameter(kinds.into()),
    );
    (with, values)
}

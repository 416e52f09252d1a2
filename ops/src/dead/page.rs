//! Letters page by page, the one that failed first at the beginning. A page begins behind the last letter of the page before it,
//! so what comes or is decided meanwhile neither repeats nor skips any other.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr};
use serde::{Serialize, Serializer};
use shared::database::statement;
use uuid::Uuid;

use super::{
    filter::Filter,
    letter::{Summary, summary_columns},
};

/// The last letter of a page: the next one begins behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    last_failed_at: DateTime<Utc>,
    id: Uuid,
}

/// Some letters, and where to go on if there are more.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Page {
    pub letters: Vec<Summary>,
    pub next: Option<Cursor>,
}

/// At most `most` of the chosen letters, behind the cursor.
///
/// # Errors
/// The database's.
pub async fn page(db: &impl ConnectionTrait, filter: &Filter, after: Option<Cursor>, most: u32) -> Result<Page, DbErr> {
    let (condition, mut values) = filter.condition();
    let mut behind = String::new();
    if let Some(Cursor { last_failed_at, id }) = after {
        values.extend([last_failed_at.into(), id.into()]);
        behind = format!("AND (letter.last_failed_at, letter.id) > (${}, ${})", values.len() - 1, values.len());
    }
    // One more tells whether there are more.
    values.push((i64::from(most) + 1).into());
    let sql = format!(
        "SELECT {summary} FROM dead_letters AS letter WHERE {condition} {behind}
          ORDER BY letter.last_failed_at, letter.id LIMIT ${limit}",
        summary = summary_columns(),
        limit = values.len(),
    );
    let rows = db.query_all_raw(statement(&sql, values)).await?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let letters = rows.iter().take(most).map(Summary::read).collect::<Result<Vec<_>, _>>()?;
    let last = letters.last().map(|letter| Cursor { last_failed_at: letter.last_failed_at, id: letter.id });
    Ok(Page { next: last.filter(|_| rows.len() > most), letters })
}

/// How many letters are meant.
///
/// # Errors
/// The database's.
pub async fn count(db: &impl ConnectionTrait, filter: &Filter) -> Result<i64, DbErr> {
    let (condition, values) = filter.condition();
    let sql = format!("SELECT count(*) FROM dead_letters AS letter WHERE {condition}");
    let row = db.query_one_raw(statement(&sql, values)).await?;
    row.ok_or_else(|| DbErr::RecordNotFound("a count".into()))?.try_get_by_index(0)
}

/// The ids of the letters that are meant, in order.
///
/// # Errors
/// The database's.
pub async fn ids(db: &impl ConnectionTrait, filter: &Filter) -> Result<Vec<Uuid>, DbErr> {
    let (condition, values) = filter.condition();
    let sql = format!("SELECT letter.id FROM dead_letters AS letter WHERE {condition} ORDER BY letter.id");
    let rows = db.query_all_raw(statement(&sql, values)).await?;
    rows.iter().map(|row| row.try_get_by_index(0)).collect()
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.last_failed_at.timestamp_micros(), self.id)
    }
}

impl Serialize for Cursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text that no page ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no page ended so; copy it from the last line of the page before")]
pub struct NotACursor;

impl FromStr for Cursor {
    type Err = NotACursor;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (micros, id) = text.trim().split_once('.').ok_or(NotACursor)?;
        let last_failed_at = micros.parse().ok().and_then(DateTime::from_timestamp_micros).ok_or(NotACursor)?;
        Ok(Self { last_failed_at, id: id.parse().map_err(|_| NotACursor)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_is_written() {
        let cursor = Cursor { last_failed_at: "2026-11-24T08:00:00.123456Z".parse().unwrap(), id: Uuid::from_u128(7) };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for text in ["", "7", "x.00000000-0000-0000-0000-000000000007", "1.x", "99999999999999999999.7"] {
            assert_eq!(text.parse::<Cursor>(), Err(NotACursor), "{text}");
        }
    }
}

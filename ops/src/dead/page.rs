//! Pages of letters, ordered by the time of their last failure. A page starts after the last letter of the previous one, so letters
//! that arrive or are decided meanwhile cause no repetition and no gap.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DbErr, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect, Select,
    sea_query::{Expr, ExprTrait},
};
use serde::{Serialize, Serializer};
use shared::database::entity::dead_letters::{self, Column};
use uuid::Uuid;

use super::{filter::Filter, letter::Summary};

/// The last letter of a page. The next page starts after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    last_failed_at: DateTime<Utc>,
    id: Uuid,
}

/// Some letters, and the cursor of the next page if there are more.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LetterPage {
    pub letters: Vec<Summary>,
    pub next: Option<Cursor>,
}

/// At most `most` of the selected letters, after the cursor.
///
/// # Errors
/// Database errors.
pub async fn page(db: &impl ConnectionTrait, filter: &Filter, after: Option<Cursor>, most: u32) -> Result<LetterPage, DbErr> {
    let behind = after.map(|Cursor { last_failed_at, id }| {
        let place = Expr::tuple([Column::LastFailedAt.into_expr(), Column::Id.into_expr()]);
        place.gt(Expr::tuple([Expr::val(last_failed_at), Expr::val(id)]))
    });
    let chosen = dead_letters::Entity::find().filter(filter.condition().add_option(behind));
    let ordered = chosen.order_by_asc(Column::LastFailedAt).order_by_asc(Column::Id);
    // One letter more shows whether there is a next page.
    let mut letters: Vec<Summary> = ordered.limit(u64::from(most) + 1).into_partial_model().all(db).await?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let more = letters.len() > most;
    letters.truncate(most);
    let last = letters.last().map(|letter| Cursor { last_failed_at: letter.last_failed_at, id: letter.id });
    Ok(LetterPage { next: last.filter(|_| more), letters })
}

/// The number of selected letters.
///
/// # Errors
/// Database errors.
pub async fn count(db: &impl ConnectionTrait, filter: &Filter) -> Result<u64, DbErr> {
    chosen_ids(filter).count(db).await
}

/// The ids of the selected letters, in order.
///
/// # Errors
/// Database errors.
pub async fn ids(db: &impl ConnectionTrait, filter: &Filter) -> Result<Vec<Uuid>, DbErr> {
    chosen_ids(filter).order_by_asc(Column::Id).into_tuple().all(db).await
}

fn chosen_ids(filter: &Filter) -> Select<dead_letters::Entity> {
    dead_letters::Entity::find().select_only().column(Column::Id).filter(filter.condition())
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

/// The error for a text that is not a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid cursor; copy it from the last line of the previous page")]
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

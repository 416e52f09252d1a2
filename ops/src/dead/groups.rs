//! Groups of letters by cause and by the current state of their rows: which letters share a fault, and what a replay would do.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr, FromQueryResult};
use serde::Serialize;
use shared::{database::statement, domain::policy::Policy};
use uuid::Uuid;

use super::{
    filter::Filter,
    subject::{Standing, standings},
};

/// SQL for the short, stable id of a letter's group.
pub(super) const GROUP_ID: &str = "left(encode(sha256(convert_to(cause_group, 'UTF8')), 'hex'), 10)";
/// The length of these ids.
pub(super) const GROUP_ID_DIGITS: usize = 10;

/// Letters with the same cause whose rows are in the same state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, FromQueryResult)]
pub struct LetterGroup {
    /// For `--group`. It depends only on the cause, not on the state of the rows.
    #[sea_orm(from_alias = "group_id")]
    pub group: String,
    /// The cause, without the ids and numbers that differ between letters.
    #[sea_orm(from_alias = "cause_group")]
    pub cause: String,
    pub standing: Standing,
    pub letters: i64,
    /// Some of their kinds and reasons. Only forged letters can have more than fit here.
    pub kinds: Vec<String>,
    pub reasons: Vec<String>,
    pub first_failed_at: DateTime<Utc>,
    pub last_failed_at: DateTime<Utc>,
    /// The letter that failed last.
    pub example: Uuid,
}

/// The first groups, and the totals.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Groups {
    pub groups: Vec<LetterGroup>,
    /// The number of all groups, including those not in `groups`.
    pub all: i64,
    /// The number of letters in all groups.
    pub letters: i64,
}

/// Groups the selected letters, the cause with the most letters first. Returns at most `most` groups.
///
/// # Errors
/// Database errors.
pub async fn groups(db: &impl ConnectionTrait, policy: &Policy, filter: &Filter, most: u32) -> Result<Groups, DbErr> {
    #[derive(FromQueryResult)]
    struct GroupWithCounts {
        #[sea_orm(nested)]
        group: LetterGroup,
        all_groups: i64,
        all_letters: i64,
    }
    let (with, mut values) = standings(policy, filter);
    values.push(i64::from(most).into());
    let sql = format!(
        "WITH {with}, grouped AS (
            SELECT letter.cause_group, {GROUP_ID} AS group_id, standing.standing, count(*) AS letters,
                   coalesce((array_agg(DISTINCT letter.kind) FILTER (WHERE letter.kind IS NOT NULL))[1:5], '{{}}') AS kinds,
                   (array_agg(DISTINCT letter.reason))[1:5] AS reasons,
                   min(coalesce(letter.first_failed_at, letter.last_failed_at)) AS first_failed_at,
                   max(letter.last_failed_at) AS last_failed_at,
                   (array_agg(letter.id ORDER BY letter.last_failed_at DESC, letter.id))[1] AS example
              FROM letter JOIN standing ON standing.id = letter.id
             GROUP BY letter.cause_group, standing.standing
        )
        SELECT grouped.*, count(*) OVER () AS all_groups, (sum(letters) OVER ())::bigint AS all_letters
          FROM grouped
         ORDER BY sum(letters) OVER (PARTITION BY cause_group) DESC, group_id, letters DESC, standing LIMIT ${limit}",
        limit = values.len(),
    );
    let rows = GroupWithCounts::find_by_statement(statement(&sql, values)).all(db).await?;
    let (all, letters) = rows.first().map_or((0, 0), |first| (first.all_groups, first.all_letters));
    Ok(Groups { groups: rows.into_iter().map(|counted| counted.group).collect(), all, letters })
}

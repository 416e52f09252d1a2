//! Letters counted by what killed them and by how their rows stand now: what is one fault, and what a replay would still do about it.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr, FromQueryResult};
use serde::Serialize;
use shared::{database::statement, domain::policy::Policy};
use uuid::Uuid;

use super::{
    filter::Filter,
    subject::{Standing, standings},
};

/// SQL for the short stable id of a letter's group.
pub(super) const GROUP_ID: &str = "left(encode(sha256(convert_to(cause_group, 'UTF8')), 'hex'), 10)";
/// How long those ids are.
pub(super) const GROUP_ID_DIGITS: usize = 10;

/// Letters of one cause whose rows stand alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, FromQueryResult)]
pub struct Group {
    /// For `--group`. The same cause has one id, however its letters' rows stand.
    #[sea_orm(from_alias = "group_id")]
    pub group: String,
    /// The cause, without what differs from letter to letter.
    #[sea_orm(from_alias = "cause_group")]
    pub cause: String,
    pub standing: Standing,
    pub letters: i64,
    /// Some of their kinds and reasons: all there are, but for forged ones.
    pub kinds: Vec<String>,
    pub reasons: Vec<String>,
    pub first_failed_at: DateTime<Utc>,
    pub last_failed_at: DateTime<Utc>,
    /// The letter that failed last.
    pub example: Uuid,
}

/// The first of them, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Groups {
    pub groups: Vec<Group>,
    /// Groups there are, those not in `groups` too.
    pub all: i64,
    /// Letters in all of them.
    pub letters: i64,
}

/// Groups the chosen letters, the cause with most letters first; at most `most` groups.
///
/// # Errors
/// Database errors.
pub async fn groups(db: &impl ConnectionTrait, policy: &Policy, filter: &Filter, most: u32) -> Result<Groups, DbErr> {
    #[derive(FromQueryResult)]
    struct Counted {
        #[sea_orm(nested)]
        group: Group,
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
    let rows = Counted::find_by_statement(statement(&sql, values)).all(db).await?;
    let (all, letters) = rows.first().map_or((0, 0), |first| (first.all_groups, first.all_letters));
    Ok(Groups { groups: rows.into_iter().map(|counted| counted.group).collect(), all, letters })
}

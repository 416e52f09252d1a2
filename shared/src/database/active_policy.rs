//! The active policy: the one that was applied last (`ops policy apply`), in `policies`. So a fleet changes from one policy to another
//! together, whatever its processes' files contain. A file is only the proposal for a new database: `ops migrate up` applies it there
//! ([`propose`]). Until a policy was applied, workers apply nothing and relays publish nothing ([`connect_until`]), and `ops` says so
//! ([`NONE`]).

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::{ColumnTrait, ConnectionTrait, DatabaseConnection, DbErr, EntityTrait, QueryFilter, QueryOrder};
use tokio_util::sync::CancellationToken;

use super::{
    Client, DatabaseError,
    connection::{self, ANSWER_WITHIN},
    entity::policies,
    failure::{Trouble, trouble},
    require_schema, scalar, statement, within,
};
use crate::{
    domain::policy::Policy,
    process::{
        health::{HealthPart, UNREACHED},
        redact::redacted,
    },
    settings::Settings,
};

/// How often a running process checks for another policy.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);
/// What every process and command says of a database without an applied policy.
pub const NONE: &str = "no policy was applied to this database, so nothing is published and nothing applied; run `ops policy apply FILE`, \
                        which first shows what falls due";
/// The pause before another attempt to read the policy.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A scalar: the number of the active policy; null if none was applied.
pub(crate) const NUMBER: &str = "(SELECT max(id) FROM policies)";

/// A policy that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub number: i64,
    /// With its number.
    pub policy: Policy,
    pub at: DateTime<Utc>,
    /// The operator who applied it.
    pub by: String,
    pub why: String,
    /// When some of its wake-ups were last published, or when it was applied.
    pub went_on_at: DateTime<Utc>,
    /// When the last wake-up of the rows that it made due earlier was confirmed; `None` while some remain.
    pub scheduled_at: Option<DateTime<Utc>>,
}

/// The policy that was applied last, if any.
///
/// # Errors
/// A database error; [`DbErr::Type`] if the policy cannot be read, as for one of a later version.
pub async fn read(db: &impl ConnectionTrait) -> Result<Option<Applied>, DbErr> {
    policies::Entity::find().order_by_desc(policies::Column::Id).one(db).await?.map(applied).transpose()
}

/// The policies whose wake-ups are not all published, oldest first.
///
/// # Errors
/// As [`read`].
pub async fn unscheduled(db: &impl ConnectionTrait) -> Result<Vec<Applied>, DbErr> {
    let unscheduled = policies::Entity::find().filter(policies::Column::ScheduledAt.is_null());
    unscheduled.order_by_asc(policies::Column::Id).all(db).await?.into_iter().map(applied).collect()
}

fn applied(row: policies::Model) -> Result<Applied, DbErr> {
    let number = row.id;
    let unreadable = |why: String| DbErr::Type(format!("the applied policy {number} cannot be read: {why}"));
    Ok(Applied {
        number,
        policy: Policy::of_json(row.policy).map_err(unreadable)?.numbered(number),
        at: row.applied_at,
        by: row.applied_by,
        why: row.why,
        went_on_at: row.went_on_at,
        scheduled_at: row.scheduled_at,
    })
}

/// The number of the active policy alone.
///
/// # Errors
/// A database error.
pub async fn number(db: &impl ConnectionTrait) -> Result<Option<i64>, DbErr> {
    within(ANSWER_WITHIN, scalar(db, statement(&format!("SELECT {NUMBER}"), []))).await
}

/// Makes a policy active, in a transaction of the caller's. The database decides whether the session's login may do that alone;
/// `proposal`: the proposal that it approves by this.
///
/// # Errors
/// A database error; [`super::failure::is_refused`] if another operator's approval is needed.
pub async fn apply(
    tx: &impl ConnectionTrait,
    policy: &Policy,
    by: &str,
    why: &str,
    proposal: Option<i64>,
) -> Result<Applied, DbErr> {
    let values = [json(policy)?.into(), by.into(), why.into(), proposal.into()];
    let number: i64 = scalar(tx, statement("SELECT kyhan_policy_apply($1, $2, $3, $4)", values)).await?;
    let row = policies::Entity::find_by_id(number).one(tx).await?;
    applied(row.ok_or_else(|| DbErr::RecordNotFound(format!("policy {number}")))?)
}

/// Whether a second operator has to approve a policy before it becomes active.
///
/// # Errors
/// A database error.
pub async fn needs_approval(db: &impl ConnectionTrait, policy: &Policy) -> Result<bool, DbErr> {
    scalar(db, statement("SELECT kyhan_policy_needs_approval($1)", [json(policy)?.into()])).await
}

fn json(policy: &Policy) -> Result<serde_json::Value, DbErr> {
    policy.to_json().map_err(|error| DbErr::Json(error.to_string()))
}

/// Applies the policy of these settings to a new database: one without a policy and without rows that could fall due. Returns it if it
/// did.
///
/// # Errors
/// A database error.
pub async fn propose(tx: &impl ConnectionTrait, settings: &Settings, by: &str) -> Result<Option<Applied>, DbErr> {
    let new =
        "SELECT NOT EXISTS (SELECT FROM policies) AND NOT EXISTS (SELECT FROM orders) AND NOT EXISTS (SELECT FROM cart_items)";
    if !scalar::<bool>(tx, statement(new, [])).await? {
        return Ok(None);
    }
    let applied = apply(tx, &settings.policy, by, "the settings with which this database was made", None).await?;
    // Nothing waits, so no wake-up is missing.
    let sql = "UPDATE policies SET scheduled_at = now() WHERE id = $1";
    tx.execute_raw(statement(sql, [applied.number.into()])).await?;
    Ok(Some(applied))
}

/// A database, and the settings that apply to it.
pub struct Governed {
    pub db: DatabaseConnection,
    /// The settings of the process, with the active policy.
    pub settings: Settings,
}

/// Checks the schema of a database, and reads its active policy.
///
/// # Errors
/// [`DatabaseError`].
pub async fn of(db: DatabaseConnection, settings: &Settings) -> Result<Governed, DatabaseError> {
    require_schema(&settings.database, &db).await?;
    let applied = read(&db).await.map_err(|error| DatabaseError::Policy { at: settings.database.url.to_string(), error })?;
    Ok(govern(db, settings, applied.as_ref()))
}

/// Connects as [`connection::connect_until`] does, and waits until a policy is active; `part` says what it waits for. `None` on shutdown.
///
/// # Errors
/// [`DatabaseError`] when waiting would not help.
pub async fn connect_until(
    settings: &Settings,
    role: Client,
    part: &HealthPart,
    shutdown: &CancellationToken,
) -> Result<Option<Governed>, DatabaseError> {
    part.down(UNREACHED);
    let mut without = false;
    loop {
        let Some(db) = connection::connect_until(&settings.database, role, shutdown).await? else { return Ok(None) };
        let pause = match within(ANSWER_WITHIN, read(&db)).await {
            Ok(Some(applied)) => {
                log_active(settings, &applied);
                part.up();
                return Ok(Some(govern(db, settings, Some(&applied))));
            }
            Ok(None) => {
                if !std::mem::replace(&mut without, true) {
                    tracing::warn!("{NONE}");
                }
                part.down(NONE);
                LOOK_EVERY
            }
            Err(error) if trouble(&error) != Trouble::Failure => {
                tracing::debug!(error = redacted(&error), "cannot read the active policy yet");
                AGAIN_AFTER
            }
            Err(error) => return Err(DatabaseError::Policy { at: settings.database.url.to_string(), error }),
        };
        if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return Ok(None);
        }
    }
}

/// These settings, with the active policy: without one, nothing falls due.
#[must_use]
pub fn under(settings: &Settings, applied: Option<&Applied>) -> Settings {
    settings.with_policy(applied.map(|applied| applied.policy.clone()).unwrap_or_default())
}

fn govern(db: DatabaseConnection, settings: &Settings, applied: Option<&Applied>) -> Governed {
    Governed { db, settings: under(settings, applied) }
}

/// Logs which policy is active, because a user who edited a file expects it to apply.
fn log_active(settings: &Settings, Applied { number, policy, at, by, .. }: &Applied) {
    let at = at.to_rfc3339();
    if settings.policy.is_equivalent(policy) {
        tracing::info!(number, at, by, "the applied policy is active");
    } else {
        tracing::warn!(
            number,
            at,
            by,
            "the applied policy is active, not the one in this process's settings (lines, wallet_floor, approval_above, retention.mode); \
             `ops policy apply` changes it"
        );
    }
}

//! Rollout: another policy is put in force, and the wake-ups are made of what it makes due earlier. What would fall due at once is
//! released little by little; nothing is released before every running process had the time to learn of the policy.
//!
//! The policy holds from the commit of its row on. Whoever is killed after that leaves wake-ups unmade, which the same command makes
//! when it is run again, and the sweep if nobody does.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, TransactionTrait};
use serde_json::json;
use shared::{
    broker::Broker,
    database::statement,
    dead_letter, due,
    policy::{
        Policy, Stage,
        in_force::{self, Applied, Governed, LOOK_EVERY},
    },
    settings::Settings,
    task::Task,
    tasks,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    OpsError,
    actor::{Actor, id_of},
    preview::{Change, Preview},
    walk::Walk,
};

/// How long after its commit a policy begins to make anything due earlier: by then every process looks for it, finishes what it has in
/// hand and begins anew. One that has not yet would put a wake-up off to the deadline that was.
pub const LEAD: Duration = LOOK_EVERY.saturating_mul(3);

/// The advisory lock of whoever puts a policy in force: "kyhan" in ASCII, then 3.
const ROLLING: i64 = 0x6b_7968_616e_0003;

/// Stages that may lie in each other: each one is asked about for every row.
const DEPTH_MAX: usize = 3;

/// Most wake-ups a second.
const RATE: u32 = 20_000;

/// Why a policy was not put in force. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    #[error("another policy was applied in the meantime, by {by}; look at what this one would do now, and apply it again")]
    Changed { by: String },
    #[error("{DEPTH_MAX} policies are taking hold one after the other; apply another one after {until}")]
    Busy { until: DateTime<Utc> },
    #[error("PostgreSQL: {0}")]
    Database(#[from] DbErr),
}

/// A policy, and how it is to take hold.
pub struct Rollout<'a> {
    pub policy: Policy,
    /// What it does, as it was shown to whoever applies it.
    pub preview: &'a Preview,
    /// How many of a kind are released a second.
    pub rate: NonZeroU32,
    /// See [`LEAD`].
    pub lead: Duration,
    pub why: &'a str,
}

/// Puts a policy in force in the place of the one that governs, and records who did it and why in the same transaction.
///
/// # Errors
/// [`RolloutError`].
pub async fn put_in_force(governed: &Governed, actor: &Actor, rollout: Rollout<'_>) -> Result<Applied, RolloutError> {
    let tx = governed.db.begin().await?;
    tx.execute_raw(statement("SELECT pg_advisory_xact_lock($1)", [ROLLING.into()])).await?;
    let last = in_force::read(&tx).await?;
    if last.as_ref().map(|last| last.number) != governed.number {
        return Err(RolloutError::Changed { by: last.map(|last| last.by).unwrap_or_default() });
    }
    let row = tx.query_one_raw(statement("SELECT now() AS now", [])).await?;
    let now: DateTime<Utc> = row.ok_or_else(|| DbErr::RecordNotFound("now()".into()))?.try_get("", "now")?;
    let Rollout { policy, preview, rate, lead, why } = rollout;
    let lead = TimeDelta::from_std(lead).unwrap_or_default();
    let policy = policy.staged(stage(&governed.settings.policy, preview, rate, now, lead)?);
    let number = in_force::apply(&tx, &policy, actor.name(), why).await?;
    let changed = json!({ "number": number, "rate": rate, "kinds": preview.kinds.iter().filter(|kind| !kind.lines.is_empty()).map(|kind| {
        let Change { kind, lines, earlier, later, appear, vanish, at_once, at_once_amount, .. } = kind;
        json!({ "kind": kind, "lines": lines, "earlier": earlier, "later": later, "appear": appear, "vanish": vanish,
                "at_once": at_once, "at_once_amount": at_once_amount })
    }).collect::<Vec<_>>() });
    actor.record(&tx, "policy.applied", ("policy", id_of("policy")), Some(why), changed).await?;
    let applied = in_force::read(&tx).await?.ok_or_else(|| DbErr::RecordNotFound("a row that was inserted".into()))?;
    tx.commit().await?;
    Ok(applied)
}

/// How a policy takes hold in the place of `before`; `None` where it makes nothing due earlier.
fn stage(
    before: &Policy,
    preview: &Preview,
    rate: NonZeroU32,
    now: DateTime<Utc>,
    lead: TimeDelta,
) -> Result<Option<Stage>, RolloutError> {
    let earlier = preview.kinds.iter().filter(|kind| kind.earlier > 0 || kind.appear > 0);
    let over_ms: BTreeMap<_, _> = earlier.map(|kind| (kind.kind, over_ms(kind.at_once, rate))).collect();
    if over_ms.is_empty() {
        return Ok(None);
    }
    // One that has come to its end makes no difference any more.
    let before = match before.stage() {
        Some(stage) if stage.until() <= now => before.clone().staged(None),
        _ => before.clone(),
    };
    let stage = Stage { before, from: now + lead, over_ms };
    match stage.before.stage() {
        Some(earlier) if stage.depth() > DEPTH_MAX => Err(RolloutError::Busy { until: earlier.until() }),
        _ => Ok(Some(stage)),
    }
}

/// Over how many milliseconds so many are released.
#[must_use]
pub fn over_ms(count: i64, rate: NonZeroU32) -> u64 {
    u64::try_from(count).unwrap_or_default().saturating_mul(1000).div_ceil(rate.get().into())
}

/// Makes the wake-ups of everything that the policy in force has made due earlier, and tells `progress` of each page. `false` when it
/// was told to stop before the end.
///
/// # Errors
/// [`OpsError`]; running it again goes on where it stopped.
pub async fn schedule(
    db: &DatabaseConnection,
    broker: &Broker,
    settings: &Settings,
    applied: &Applied,
    stop: &CancellationToken,
    mut progress: impl FnMut(usize),
) -> Result<bool, OpsError> {
    for task in tasks::ALL.iter().copied() {
        let Some(release) = applied.policy.release(task) else { continue };
        let due = due::query_compared(task, &applied.policy, release.before);
        let which = format!(
            "(due.due_at_other IS NULL OR due.due_at < due.due_at_other) AND NOT {}",
            dead_letter::sql_decided(task, "due")
        );
        let cursor = scheduled_to(db, applied.number, task).await?;
        let remember = async |last: Uuid| {
            let sql = "UPDATE policies SET scheduled_to = scheduled_to || jsonb_build_object($2::text, $3::text) WHERE id = $1";
            let values = [applied.number.into(), task.kind().into(), last.to_string().into()];
            db.execute_raw(statement(sql, values)).await.map(|_| ())
        };
        let walk = Walk { db, broker, settings, task, due: &due, which: &which, rate: RATE, stop };
        if !walk.run(cursor, remember, &mut progress).await? {
            return Ok(false);
        }
    }
    let sql = "UPDATE policies SET scheduled_at = now() WHERE id = $1 AND scheduled_at IS NULL";
    db.execute_raw(statement(sql, [applied.number.into()])).await?;
    Ok(true)
}

async fn scheduled_to(db: &DatabaseConnection, number: i64, task: &dyn Task) -> Result<Option<Uuid>, DbErr> {
    let sql = "SELECT (scheduled_to ->> $2)::uuid AS scheduled_to FROM policies WHERE id = $1";
    let row = db.query_one_raw(statement(sql, [number.into(), task.kind().into()])).await?;
    row.ok_or_else(|| DbErr::RecordNotFound(format!("policy {number}")))?.try_get("", "scheduled_to")
}

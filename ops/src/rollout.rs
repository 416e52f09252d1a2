//! Rollout: another policy is put in force, and the wake-ups are made of what it makes due earlier. What would fall due at once is
//! released little by little; nothing is released before every running process had the time to learn of the policy.
//!
//! The policy holds from the commit of its row on. Whoever is killed after that leaves wake-ups unmade, which the same command makes
//! when it is run again, and the sweep if nobody does.

use std::{num::NonZeroU32, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, TransactionTrait};
use serde_json::json;
use shared::{
    broker::Broker,
    database::{
        self,
        active_policy::{self, Applied, Governed, LOOK_EVERY},
        statement,
    },
    domain::{
        due,
        policy::{Policy, Release},
        span::Span,
        task::Shown,
        tasks,
    },
    settings::Settings,
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
/// hand and begins anew. A relay that has not yet would send a wake-up to where the policy before told it to.
pub const LEAD: Duration = LOOK_EVERY.saturating_mul(3);

/// The advisory lock of whoever puts a policy in force: "kyhan" in ASCII, then 3.
const ROLLING: i64 = 0x6b_7968_616e_0003;

/// Releases of a kind that may lie in each other: each one is asked about for every row.
const DEPTH_MAX: usize = 3;

/// Most wake-ups a second.
const WAKEUPS_PER_S: u32 = 20_000;

/// Why a policy was not put in force. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    #[error("another policy was applied in the meantime, by {by}; look at what this one would do now, and apply it again")]
    Changed { by: String },
    #[error(
        "{kind}: {DEPTH_MAX} policies are taking hold one after the other; make it due earlier once more after {until}, or take them back"
    )]
    Busy { kind: &'static str, until: DateTime<Utc> },
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
pub async fn activate(governed: &Governed, actor: &Actor, rollout: Rollout<'_>) -> Result<Applied, RolloutError> {
    let tx = governed.db.begin().await?;
    tx.execute_raw(statement("SELECT pg_advisory_xact_lock($1)", [ROLLING.into()])).await?;
    let last = active_policy::read(&tx).await?;
    if last.as_ref().map(|last| last.number) != governed.settings.policy.number() {
        return Err(RolloutError::Changed { by: last.map(|last| last.by).unwrap_or_default() });
    }
    let since = database::transaction_began(&tx).await?;
    let Rollout { policy, preview, rate, lead, why } = rollout;
    let from = since + TimeDelta::from_std(lead).unwrap_or_default();
    let mut policy = policy.carrying_over(&governed.settings.policy);
    for change in &preview.kinds {
        if !is_earlier(change, &policy, &governed.settings.policy) {
            continue;
        }
        // A release that is over makes no difference any more.
        let before = governed.settings.policy.of_kind(change.kind, since);
        let release = Release { before, since, from, over_ms: over_ms(change.at_once, rate) };
        let task = tasks::find(change.kind);
        if let Some(earlier) = task.and_then(|task| release.before.release(task).filter(|_| release.depth(task) > DEPTH_MAX)) {
            return Err(RolloutError::Busy { kind: change.kind, until: earlier.until() });
        }
        policy = policy.releasing(change.kind, release);
    }
    let applied = active_policy::apply(&tx, &policy, actor.name(), why).await?;
    let changes: Vec<&Change> = preview.kinds.iter().filter(|kind| !kind.lines.is_empty()).collect();
    let changed = json!({ "number": applied.number, "rate": rate, "kinds": changes });
    actor.record(&tx, "policy.applied", ("policy", id_of("policy")), Some(why), changed).await?;
    tx.commit().await?;
    Ok(applied)
}

/// Whether lines were changed so that a row is due earlier than it was, as in the middle of a release by a longer span than that has,
/// or may be: then there is a release, even if no row would be due at once by now.
fn is_earlier(change: &Change, new: &Policy, old: &Policy) -> bool {
    let Some(task) = tasks::find(change.kind).filter(|_| !change.lines.is_empty()) else { return false };
    let may_be = task.counts_from().iter().any(|event| match (old.span(task, *event), new.span(task, *event)) {
        (_, None) => false,
        (Some(Span::Exact(old)), Some(Span::Exact(new))) => new < old,
        (old, new) => old != new,
    });
    may_be || change.earlier > 0 || change.appear > 0
}

/// Over how many milliseconds so many are released.
#[must_use]
pub fn over_ms(count: i64, rate: NonZeroU32) -> u64 {
    u64::try_from(count).unwrap_or_default().saturating_mul(1000).div_ceil(rate.get().into())
}

/// Makes the wake-ups of everything that is due earlier by the policy in force than it was when the last wake-ups were made, and tells
/// `progress` of each page. It begins when the release does: what comes until then, a process may have put where the policy before
/// told it to. `false` when it was told to stop before the end.
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
    let unscheduled = active_policy::unscheduled(db).await?;
    if let Some(begins) = applied.policy.releases().map(|(_, release)| release.from).max() {
        let left = (begins - database::now(db).await?).to_std().unwrap_or_default();
        stop.run_until_cancelled(tokio::time::sleep(left)).await;
    }
    for task in tasks::ALL.iter().copied() {
        // The first of those whose wake-ups are not all made; what it carries over was made by the one that began it.
        let own = |it: &Applied| it.policy.release(task).filter(|release| release.since == it.at).cloned();
        let Some(first) = unscheduled.iter().find_map(own) else { continue };
        let due = due::query_compared(task, &applied.policy, &first.before);
        let which = format!(
            "(due.due_at_other IS NULL OR due.due_at < due.due_at_other) AND NOT {}",
            shared::database::sql_decided(task, "due")
        );
        let cursor = scheduled_to(db, applied.number, task).await?;
        let remember = async |last: Uuid| {
            let sql =
                "UPDATE policies SET scheduled_to = scheduled_to || jsonb_build_object($2::text, $3::text), went_on_at = now()
                        WHERE id = $1";
            let values = [applied.number.into(), task.kind().into(), last.to_string().into()];
            db.execute_raw(statement(sql, values)).await.map(|_| ())
        };
        let walk = Walk { db, broker, settings, task, due: &due, which: &which, rate: WAKEUPS_PER_S, stop };
        if !walk.run(cursor, remember, &mut progress).await? {
            return Ok(false);
        }
    }
    let sql = "UPDATE policies SET scheduled_at = now() WHERE id <= $1 AND scheduled_at IS NULL";
    db.execute_raw(statement(sql, [applied.number.into()])).await?;
    Ok(true)
}

async fn scheduled_to(db: &DatabaseConnection, number: i64, task: &dyn Shown) -> Result<Option<Uuid>, DbErr> {
    let sql = "SELECT (scheduled_to ->> $2)::uuid FROM policies WHERE id = $1";
    database::scalar(db, statement(sql, [number.into(), task.kind().into()])).await
}

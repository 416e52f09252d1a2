//! Rollout: activates another policy, and publishes wake-ups for the rows that it makes due earlier. Rows that become due at once are
//! released gradually, and only after every running process has had time to load the policy.
//!
//! The policy is active from the commit of its row on. If the process is killed after that, some wake-ups are missing. Running the
//! command again publishes them; otherwise the sweep does.

use std::{num::NonZeroU32, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, TransactionTrait};
use serde_json::json;
use shared::{
    broker::Broker,
    database::{
        self,
        active_policy::{self, Applied, Governed, LOOK_EVERY},
        failure::is_refused,
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
    actor::{Operator, id_of},
    preview::{KindChange, PolicyPreview},
    walk::Walk,
};

/// How long after its commit a policy starts to make rows due earlier. By then every process has found it, finished its current work and
/// restarted its lanes. A relay that has not would still publish wake-ups by the previous policy.
pub const LEAD: Duration = LOOK_EVERY.saturating_mul(3);

/// The advisory lock that serializes activations of policies: "kyhan" in ASCII, then 3.
const ROLLING: i64 = 0x6b_7968_616e_0003;

/// Most nested releases of a kind. Each one adds a computation to every row.
const DEPTH_MAX: usize = 3;

/// Most wake-ups per second.
const WAKEUPS_PER_S: u32 = 20_000;

/// Why a policy was not activated. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    #[error("{by} applied another policy in the meantime; preview this one again, then apply it")]
    Changed { by: String },
    #[error(
        "{kind}: {DEPTH_MAX} releases are in progress, which is the limit; apply the policy after {until}, or revert the earlier policies"
    )]
    Busy { kind: &'static str, until: DateTime<Utc> },
    #[error(
        "another operator must approve this policy, and neither of you with a login that several people may use: `ops policy apply`, then \
         `ops policy approve` by the other one"
    )]
    NeedsAnother,
    #[error("PostgreSQL: {0}")]
    Database(#[from] DbErr),
}

/// A policy, and how to release the rows that it makes due at once.
pub struct Rollout<'a> {
    pub policy: Policy,
    /// What the policy changes, as shown to the operator who applies it.
    pub preview: &'a PolicyPreview,
    /// How many rows of a kind are released per second.
    pub rate: NonZeroU32,
    /// See [`LEAD`].
    pub lead: Duration,
    pub why: &'a str,
    /// The proposal that the operator approves by this.
    pub proposal: Option<i64>,
}

/// Replaces the active policy, and records who did it and why in the same transaction.
///
/// # Errors
/// [`RolloutError`].
pub async fn activate(governed: &Governed, actor: &Operator, rollout: Rollout<'_>) -> Result<Applied, RolloutError> {
    let tx = governed.db.begin().await?;
    tx.execute_raw(statement("SELECT pg_advisory_xact_lock($1)", [ROLLING.into()])).await?;
    let last = active_policy::read(&tx).await?;
    if last.as_ref().map(|last| last.number) != governed.settings.policy.number() {
        return Err(RolloutError::Changed { by: last.map(|last| last.by).unwrap_or_default() });
    }
    let since = database::transaction_began(&tx).await?;
    let Rollout { policy, preview, rate, lead, why, proposal } = rollout;
    let from = since + TimeDelta::from_std(lead).unwrap_or_default();
    let mut policy = policy.carrying_over(&governed.settings.policy);
    for change in &preview.kinds {
        if !is_earlier(change, &policy, &governed.settings.policy) {
            continue;
        }
        // Leaves out releases that have ended, because they have no effect any more.
        let before = governed.settings.policy.of_kind(change.kind, since);
        let release = Release { before, since, from, over_ms: over_ms(change.at_once, rate) };
        let task = tasks::find(change.kind);
        if let Some(earlier) = task.and_then(|task| release.before.release(task).filter(|_| release.depth(task) > DEPTH_MAX)) {
            return Err(RolloutError::Busy { kind: change.kind, until: earlier.until() });
        }
        policy = policy.releasing(change.kind, release);
    }
    let applied = active_policy::apply(&tx, &policy, actor.name(), why, proposal).await.map_err(refused)?;
    let changes: Vec<&KindChange> = preview.kinds.iter().filter(|kind| !kind.lines.is_empty()).collect();
    let changed = json!({ "number": applied.number, "rate": rate, "proposal": proposal, "kinds": changes });
    actor.record(&tx, "policy.applied", ("policy", id_of("policy")), Some(why), changed).await?;
    tx.commit().await?;
    Ok(applied)
}

/// The database refuses it to this login.
fn refused(error: DbErr) -> RolloutError {
    if is_refused(&error) { RolloutError::NeedsAnother } else { error.into() }
}

/// Whether changed lines make, or may make, a row due earlier. A longer duration than that of a current release can do so too. Such a
/// change needs a release, even if no row becomes due at once.
fn is_earlier(change: &KindChange, new: &Policy, old: &Policy) -> bool {
    let Some(task) = tasks::find(change.kind).filter(|_| !change.lines.is_empty()) else { return false };
    let may_be = task.counts_from().iter().any(|event| match (old.span(task, *event), new.span(task, *event)) {
        (_, None) => false,
        (Some(Span::Exact(old)), Some(Span::Exact(new))) => new < old,
        (old, new) => old != new,
    });
    may_be || change.earlier > 0 || change.appear > 0
}

/// How many milliseconds the release of `count` rows takes.
#[must_use]
pub fn over_ms(count: i64, rate: NonZeroU32) -> u64 {
    u64::try_from(count).unwrap_or_default().saturating_mul(1000).div_ceil(rate.get().into())
}

/// Publishes wake-ups for all rows that the active policy makes due earlier than the last policy whose wake-ups were all published.
/// `progress` receives the size of each page. It starts when the release does, because until then a process may still publish by the
/// previous policy. Returns `false` if `stop` was cancelled before the end.
///
/// # Errors
/// [`OpsError`]; the next call continues from the stored position.
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
        // The first policy whose wake-ups are not all published. A release that it carried over belongs to an earlier policy.
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

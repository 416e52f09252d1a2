//! Apply: rechecks and writes a batch, and returns an outcome for every subject.
//!
//! A batch that fails is halved until the failing subject is alone; the others are applied. Subjects whose rows others have locked are left
//! out and tried after the rest, see [`Pass`]. An outage is waited out. A paused kind, or a policy that is no longer active, stops the
//! batch. None of these last four spends an attempt.

use std::collections::{HashMap, VecDeque};

use chrono::TimeDelta;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr};
use shared::{
    database::{
        clock,
        failure::Trouble,
        pause::Pause,
        statements::{NotApplied, OnLocked, Rechecked, Statements},
    },
    domain::outcome::Outcome,
    process::redact::redacted,
    settings::Settings,
};
use uuid::Uuid;

use super::{
    attempt::{After, Attempt, Failed, transaction},
    batch::{Answered, Batch},
    patience::Patience,
};

/// Why a batch has no outcomes. The subjects of it that were committed are found stale on redelivery.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// PostgreSQL stayed away until the grace was over.
    Abandoned,
    /// The kind is paused.
    Paused(Pause),
    /// Another policy is active.
    Outdated,
}

/// Subjects that are tried in one transaction, each with the id of its wake-up.
struct SubjectPart {
    asked: Vec<(Uuid, Uuid)>,
    attempt: Attempt,
    pass: Pass,
}

/// How a part treats rows that others have locked. A short wait is worth it, because batches of customers with several orders meet at their
/// wallets; a long one is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// Leaves locked rows out.
    First,
    /// The rows that were locked: waits [`LOCK_WAIT`].
    Second,
    /// The same after the wait, because one that is still locked failed the others too. What is locked now is postponed.
    Last,
}

/// In SQL.
const LOCK_WAIT: &str = "200ms";

/// Applies a batch and returns each message with the outcomes of its subjects. `statements` is `None` when no message could be decoded;
/// then nothing is applied.
///
/// # Errors
/// [`Unanswered`]: the whole batch will be redelivered.
#[tracing::instrument(skip_all, level = "debug", fields(subjects))]
pub(crate) async fn apply(
    batch: Batch,
    statements: Option<&Statements>,
    db: &DatabaseConnection,
    settings: &Settings,
    patience: &Patience<'_>,
) -> Result<Vec<Answered>, Unanswered> {
    let mut outcomes = HashMap::new();
    let mut parts = VecDeque::new();
    if let Some(statements) = statements {
        let asked = batch.asked();
        tracing::Span::current().record("subjects", asked.len());
        parts.push_back(SubjectPart { asked, attempt: Attempt::first(), pass: Pass::First });
        while let Some(mut part) = parts.pop_back() {
            if part.asked.is_empty() {
                continue;
            }
            match attempt(db, settings, statements, &part).await {
                Ok(Ok(Rechecked { outcomes: rechecked, busy, now })) => {
                    patience.postgres_is_back();
                    outcomes.extend(rechecked);
                    if part.pass == Pass::First {
                        part.asked.retain(|(subject, _)| busy.contains(subject));
                        parts.push_front(part.of_pass(Pass::Second));
                    } else {
                        let wait =
                            settings.worker.retry.first().and_then(|pause| TimeDelta::from_std(*pause).ok()).unwrap_or_default();
                        outcomes.extend(busy.into_iter().map(|subject| (subject, Outcome::Postpone { until: now + wait, wait })));
                    }
                }
                Ok(Err(unanswered)) => {
                    patience.postgres_is_back();
                    return Err(unanswered);
                }
                Err((_, Trouble::Conflict)) if part.pass == Pass::Second => parts.push_front(part.of_pass(Pass::Last)),
                Err(failed) => match part.attempt.after(&failed, patience).await {
                    After::Again => parts.push_back(part),
                    After::Abandoned => return Err(Unanswered::Abandoned),
                    After::Blame => match part.asked.as_slice() {
                        [(subject, _)] => {
                            outcomes.insert(*subject, Outcome::Retry { cause: redacted(&failed.0) });
                        }
                        _ => parts.extend(part.halves(&failed)),
                    },
                },
            }
        }
    }
    Ok(batch.answer(outcomes))
}

impl SubjectPart {
    fn halves(self, (_, trouble): &Failed) -> [Self; 2] {
        let attempt = self.attempt.of_a_part(*trouble);
        let mut left = self.asked;
        let right = left.split_off(left.len() / 2);
        // `apply` pops from the end, so the left half is tried first.
        [right, left].map(|asked| Self { asked, attempt, pass: self.pass })
    }

    fn of_pass(self, pass: Pass) -> Self {
        Self { attempt: Attempt::first(), pass, ..self }
    }
}

/// One transaction: the outcomes, or why there are none.
async fn attempt(
    db: &DatabaseConnection,
    settings: &Settings,
    statements: &Statements,
    part: &SubjectPart,
) -> Result<Result<Rechecked, Unanswered>, Failed> {
    let mut skewed = None;
    let attempted = transaction(db, &settings.database, statements.count(), async |tx| {
        let on_locked = if part.pass == Pass::Second { OnLocked::Wait } else { OnLocked::Skip };
        if on_locked == OnLocked::Wait {
            tx.execute_unprepared(&format!("SET LOCAL lock_timeout = '{LOCK_WAIT}'")).await?;
        }
        let failed = match statements.apply(&tx, &part.asked, on_locked).await {
            // What a wrong clock makes due is rolled back.
            Ok(rechecked) => match clock::agrees(rechecked.now, settings.clock.max_skew) {
                Ok(()) => return tx.commit().await.map(|()| Ok(rechecked)),
                Err(error) => {
                    skewed = Some(error);
                    Err(DbErr::Custom(error.to_string()))
                }
            },
            Err(NotApplied::Paused(pause)) => Ok(Err(Unanswered::Paused(pause))),
            Err(NotApplied::Outdated) => Ok(Err(Unanswered::Outdated)),
            Err(NotApplied::Database(error)) => Err(error),
        };
        // Dropping it would not wait, and the next try would find these rows locked.
        let _ = tx.rollback().await;
        failed
    })
    .await;
    // As in an outage, no attempt is spent.
    attempted.map_err(|(error, trouble)| (error, if skewed.is_some() { Trouble::Away } else { trouble }))
}

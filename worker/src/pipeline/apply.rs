//! Apply: rechecks and writes a batch, and returns an outcome for every subject.
//!
//! A batch that fails is halved until the failing subject is alone; the others are applied. An outage is waited out. A paused kind, or a
//! policy that is no longer active, stops the batch. None of these three spends an attempt.

use std::collections::HashMap;

use sea_orm::DatabaseConnection;
use shared::{
    database::{
        pause::Pause,
        statements::{NotApplied, Statements},
    },
    domain::outcome::Outcome,
    process::redact::redacted,
    settings,
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
}

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
    settings: &settings::DatabaseSettings,
    patience: &Patience<'_>,
) -> Result<Vec<Answered>, Unanswered> {
    let mut outcomes = HashMap::new();
    let mut parts = Vec::new();
    if let Some(statements) = statements {
        let asked = batch.asked();
        tracing::Span::current().record("subjects", asked.len());
        parts.push(SubjectPart { asked, attempt: Attempt::first() });
        while let Some(mut part) = parts.pop() {
            if part.asked.is_empty() {
                continue;
            }
            match attempt(db, settings, statements, &part.asked).await {
                Ok(Ok(applied)) => {
                    patience.postgres_is_back();
                    outcomes.extend(applied);
                }
                Ok(Err(unanswered)) => {
                    patience.postgres_is_back();
                    return Err(unanswered);
                }
                Err(failed) => match part.attempt.after(&failed, patience).await {
                    After::Again => parts.push(part),
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
        [right, left].map(|asked| Self { asked, attempt })
    }
}

/// One transaction: the outcomes, or why there are none.
async fn attempt(
    db: &DatabaseConnection,
    settings: &settings::DatabaseSettings,
    statements: &Statements,
    asked: &[(Uuid, Uuid)],
) -> Result<Result<Vec<(Uuid, Outcome)>, Unanswered>, Failed> {
    transaction(db, settings, statements.count(), async |tx| {
        // Without a commit, the transaction rolls back when it is dropped.
        match statements.apply(&tx, asked).await {
            Ok(outcomes) => tx.commit().await.map(|()| Ok(outcomes)),
            Err(NotApplied::Paused(pause)) => Ok(Err(Unanswered::Paused(pause))),
            Err(NotApplied::Outdated) => Ok(Err(Unanswered::Outdated)),
            Err(NotApplied::Database(error)) => Err(error),
        }
    })
    .await
}

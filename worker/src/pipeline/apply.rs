//! Apply: rechecks and writes a batch, and answers it. A batch that fails is split in halves until what breaks it stands alone; its
//! neighbours are applied. An outage spends no attempt: it is waited out. Nothing of a paused kind is applied, nor anything by a policy that
//! is no longer active, and that spends no attempt either.

use std::collections::HashMap;

use sea_orm::DatabaseConnection;
use shared::{
    database::{
        pause::Pause,
        statements::{NotApplied, Statements},
    },
    domain::outcome::Outcome,
    process::redact::told,
    settings,
};
use uuid::Uuid;

use super::{
    attempt::{After, Attempt, Failed, transaction},
    batch::{Answered, Batch},
    patience::Patience,
};

/// Why a batch is left as it is. What was committed of it by then comes back stale.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// The database stayed away until the worker was told to wait no longer.
    Abandoned,
    /// The kind is paused.
    Paused(Pause),
    /// Another policy is active.
    Outdated,
}

/// Rows that are tried together: subjects, each with its wake-up.
struct Part {
    asked: Vec<(Uuid, Uuid)>,
    attempt: Attempt,
}

/// Applies a batch and gives each of its messages what became of its subjects. Without statements, as no message of it was understood, there
/// is nothing to apply.
///
/// # Errors
/// [`Unanswered`]: all of it comes again.
#[tracing::instrument(skip_all, level = "debug", fields(messages = batch.len()))]
pub(crate) async fn apply(
    batch: Batch,
    statements: Option<&Statements>,
    db: &DatabaseConnection,
    settings: &settings::Database,
    patience: &Patience<'_>,
) -> Result<Vec<Answered>, Unanswered> {
    let mut outcomes = HashMap::new();
    let mut parts = Vec::new();
    if let Some(statements) = statements {
        parts.push(Part { asked: batch.asked(), attempt: Attempt::first() });
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
                            outcomes.insert(*subject, Outcome::Retry { cause: told(&failed.0) });
                        }
                        _ => parts.extend(part.halves(&failed)),
                    },
                },
            }
        }
    }
    Ok(batch.answer(outcomes))
}

impl Part {
    fn halves(self, (_, trouble): &Failed) -> [Self; 2] {
        let attempt = self.attempt.of_a_part(*trouble);
        let mut left = self.asked;
        let right = left.split_off(left.len() / 2);
        // The last one is tried first.
        [right, left].map(|asked| Self { asked, attempt })
    }
}

/// One attempt: the outcomes, or why there are none.
async fn attempt(
    db: &DatabaseConnection,
    settings: &settings::Database,
    statements: &Statements,
    asked: &[(Uuid, Uuid)],
) -> Result<Result<Vec<(Uuid, Outcome)>, Unanswered>, Failed> {
    transaction(db, settings, statements.count(), async |tx| {
        // On an error, and where nothing was applied, the transaction rolls back as it is dropped.
        match statements.apply(&tx, asked).await {
            Ok(outcomes) => tx.commit().await.map(|()| Ok(outcomes)),
            Err(NotApplied::Paused(pause)) => Ok(Err(Unanswered::Paused(pause))),
            Err(NotApplied::Outdated) => Ok(Err(Unanswered::Outdated)),
            Err(NotApplied::Database(error)) => Err(error),
        }
    })
    .await
}

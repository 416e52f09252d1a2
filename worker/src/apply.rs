//! Apply: rechecks and writes a batch in one transaction. A batch that fails is split in halves until what breaks it stands
//! alone; its neighbours are applied. An outage spends no attempt: it is waited out.

use std::{collections::HashMap, time::Duration};

use sea_orm::{DatabaseConnection, DbErr, TransactionTrait};
use shared::{
    broker::backoff,
    database::{Trouble, trouble},
    task::{Outcome, Statements},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often a conflict with other transactions is tried again at once before the batch is split.
const CONFLICT_TRIES: u32 = 3;
/// Longest pause before such a try, in milliseconds; the actual one is random, so that two that collided part.
const CONFLICT_PAUSE_MAX_MS: u64 = 40;

/// Applies `asked` (subject and wake-up, each subject once) and returns what became of every subject; `None` when the database
/// stayed away until `abandon`. What was committed by then comes back stale.
#[tracing::instrument(skip_all, level = "debug", fields(subjects = asked.len()))]
pub async fn apply(
    db: &DatabaseConnection,
    statements: &Statements,
    asked: Vec<(Uuid, Uuid)>,
    abandon: &CancellationToken,
) -> Option<HashMap<Uuid, Outcome>> {
    let mut outcomes = HashMap::with_capacity(asked.len());
    let mut parts = vec![(asked, 0)];
    let mut outage = None;
    while let Some((part, conflicts)) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        let (error, trouble) = match transaction(db, statements, &part).await {
            Ok(applied) => {
                outcomes.extend(applied);
                if outage.take().is_some() {
                    tracing::info!("PostgreSQL is back");
                }
                continue;
            }
            Err(failed) => failed,
        };
        match trouble {
            Trouble::Away => {
                // The same again is the probe: a server may answer and still refuse to write.
                let pauses = outage.get_or_insert_with(|| {
                    tracing::warn!(%error, "PostgreSQL is away; the lane waits until it is back");
                    Box::new(backoff())
                });
                let pause = pauses.next().unwrap_or_default();
                abandon.run_until_cancelled(tokio::time::sleep(pause)).await?;
                parts.push((part, conflicts));
            }
            Trouble::Conflict if conflicts < CONFLICT_TRIES => {
                tokio::time::sleep(Duration::from_millis(rand::random_range(1..=CONFLICT_PAUSE_MAX_MS))).await;
                parts.push((part, conflicts + 1));
            }
            Trouble::Conflict | Trouble::Failure => {
                if let [(subject, _)] = part.as_slice() {
                    outcomes.insert(*subject, Outcome::Retry { cause: chain(&error) });
                } else {
                    let (left, right) = part.split_at(part.len() / 2);
                    // A conflict that lasted gets one more try per part: a row locked for long must not hold up its lane.
                    let conflicts = if trouble == Trouble::Conflict { CONFLICT_TRIES } else { 0 };
                    parts.push((right.to_vec(), conflicts));
                    parts.push((left.to_vec(), conflicts));
                }
            }
        }
    }
    Some(outcomes)
}

/// One try. What fails before the first statement is no wake-up's fault, whatever the server says: it is away.
async fn transaction(
    db: &DatabaseConnection,
    statements: &Statements,
    part: &[(Uuid, Uuid)],
) -> Result<Vec<(Uuid, Outcome)>, (DbErr, Trouble)> {
    let known = |error: DbErr| {
        let trouble = trouble(&error);
        (error, trouble)
    };
    let tx = db.begin().await.map_err(|error| (error, Trouble::Away))?;
    // On an error the transaction rolls back as it is dropped.
    let outcomes = statements.apply(&tx, part).await.map_err(known)?;
    tx.commit().await.map_err(known)?;
    Ok(outcomes)
}

/// An error and its causes, outermost first.
fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Wrappers repeat what they wrap.
        if !said.contains(&text) {
            said.push_str(": ");
            said.push_str(&text);
        }
        source = cause.source();
    }
    said
}

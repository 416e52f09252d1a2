//! Apply: rechecks and writes a batch in one transaction. A batch that fails is split in halves until what breaks it stands
//! alone; its neighbours are applied. An outage spends no attempt: it is waited out. A row that breaks the connection again and
//! again, each time after the server had answered, is no outage. Nothing of a paused kind is applied, nor anything by a policy that is
//! not in force any more, and that spends no attempt either.

use std::{collections::HashMap, time::Duration};

use sea_orm::{DatabaseConnection, DatabaseTransaction, DbErr, TransactionTrait};
use shared::{
    database::{
        failure::{Trouble, trouble},
        pause::Pause,
        statements::{NotApplied, Statements},
        unanswered,
    },
    domain::outcome::Outcome,
    process::redact::told,
    settings,
};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::patience::Patience;

/// How often a conflict with other transactions is tried again at once before the batch is split.
pub(crate) const CONFLICT_TRIES: u32 = 3;
/// Longest pause before such a try, in milliseconds; the actual one is random, so that two that collided part.
pub(crate) const CONFLICT_PAUSE_MAX_MS: u64 = 40;
/// So often the connection may break under the same rows, each time after the server had begun a transaction for them, before
/// they are to blame for it.
pub(crate) const CUTS_MAX: u32 = 10;
/// The same for each half of rows that are to blame: the culprit is found without another long wait.
const CUTS_LEFT: u32 = 2;
/// The pause after the first time, doubled each time up to the longest.
pub(crate) const CUT_PAUSE: Duration = Duration::from_millis(100);
pub(crate) const CUT_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How much longer than its statements may take a transaction may take before nobody is there to answer.
pub(crate) const ANSWER_MARGIN: Duration = Duration::from_secs(5);

/// Why there is no answer for a batch. What was committed of it by then comes back stale.
#[derive(Debug)]
pub enum Unanswered {
    /// The database stayed away until it was told to wait no longer.
    Abandoned,
    /// The kind is paused.
    Paused(Pause),
    /// Another policy is in force.
    Outdated,
}

/// Why one try came to nothing.
enum Failed {
    Paused(Pause),
    Outdated,
    Database(DbErr, Trouble),
}

/// Rows that are tried together.
struct Part {
    asked: Vec<(Uuid, Uuid)>,
    conflicts: u32,
    cuts: u32,
}

/// Applies `asked` (subject and wake-up, each subject once) and returns what became of every subject.
///
/// # Errors
/// [`Unanswered`]: all of it is to come again.
#[tracing::instrument(skip_all, level = "debug", fields(subjects = asked.len()))]
pub async fn apply(
    db: &DatabaseConnection,
    settings: &settings::Database,
    statements: &Statements,
    asked: Vec<(Uuid, Uuid)>,
    patience: &Patience<'_>,
) -> Result<HashMap<Uuid, Outcome>, Unanswered> {
    let mut outcomes = HashMap::with_capacity(asked.len());
    let mut parts = vec![Part { asked, conflicts: 0, cuts: 0 }];
    while let Some(part) = parts.pop() {
        if part.asked.is_empty() {
            continue;
        }
        let (error, trouble) = match transaction(db, settings, statements, &part.asked).await {
            Ok(applied) => {
                outcomes.extend(applied);
                patience.postgres_is_back();
                continue;
            }
            Err(Failed::Paused(pause)) => {
                patience.postgres_is_back();
                return Err(Unanswered::Paused(pause));
            }
            Err(Failed::Outdated) => {
                patience.postgres_is_back();
                return Err(Unanswered::Outdated);
            }
            Err(Failed::Database(error, trouble)) => (error, trouble),
        };
        match trouble {
            Trouble::Away => {
                // The same again is the probe: a server may answer and still refuse to write.
                patience.for_postgres(&error).await.ok_or(Unanswered::Abandoned)?;
                parts.push(part);
            }
            Trouble::Cut if part.cuts < CUTS_MAX => {
                patience.postgres_is_back();
                tracing::warn!(error = told(&error), cuts = part.cuts, "the connection to PostgreSQL broke; trying again");
                sleep(CUT_PAUSE.saturating_mul(1 << part.cuts).min(CUT_PAUSE_MAX)).await;
                parts.push(Part { cuts: part.cuts + 1, ..part });
            }
            Trouble::Conflict if part.conflicts < CONFLICT_TRIES => {
                patience.postgres_is_back();
                sleep(Duration::from_millis(rand::random_range(1..=CONFLICT_PAUSE_MAX_MS))).await;
                parts.push(Part { conflicts: part.conflicts + 1, ..part });
            }
            Trouble::Conflict | Trouble::Cut | Trouble::Failure => {
                patience.postgres_is_back();
                if let [(subject, _)] = part.asked.as_slice() {
                    outcomes.insert(*subject, Outcome::Retry { cause: told(&error) });
                } else {
                    // A conflict that lasted gets one more try per part: a row locked for long must not hold up its lane.
                    let conflicts = if trouble == Trouble::Conflict { CONFLICT_TRIES } else { 0 };
                    let (mut left, cuts) = (part.asked, part.cuts.min(CUTS_MAX - CUTS_LEFT));
                    let right = left.split_off(left.len() / 2);
                    parts.extend([right, left].map(|asked| Part { asked, conflicts, cuts }));
                }
            }
        }
    }
    Ok(outcomes)
}

/// One try. What fails before the first statement is no wake-up's fault, whatever the server says: it is away.
async fn transaction(
    db: &DatabaseConnection,
    settings: &settings::Database,
    statements: &Statements,
    part: &[(Uuid, Uuid)],
) -> Result<Vec<(Uuid, Outcome)>, Failed> {
    let known = |error: DbErr| {
        let trouble = trouble(&error);
        Failed::Database(error, trouble)
    };
    let tx = begin(db, settings).await.map_err(|error| Failed::Database(error, Trouble::Away))?;
    let apply = async {
        // On an error the transaction rolls back as it is dropped.
        let outcomes = statements.apply(&tx, part).await.map_err(|not_applied| match not_applied {
            NotApplied::Paused(pause) => Failed::Paused(pause),
            NotApplied::Outdated => Failed::Outdated,
            NotApplied::Database(error) => known(error),
        })?;
        tx.commit().await.map_err(known)?;
        Ok(outcomes)
    };
    // Each statement has its timeout on the server; of a server that is cut off nothing is heard.
    let answer_within = Duration::from_millis(settings.statement_timeout_ms) * (statements.count() + 1) + ANSWER_MARGIN;
    timeout(answer_within, apply).await.unwrap_or_else(|_| Err(Failed::Database(unanswered(), Trouble::Cut)))
}

/// Begins a transaction. Connections that lay idle through an outage are dead and show it only now: they are passed over.
pub(crate) async fn begin(db: &DatabaseConnection, settings: &settings::Database) -> Result<DatabaseTransaction, DbErr> {
    let answer_within = Duration::from_millis(settings.acquire_timeout_ms) + ANSWER_MARGIN;
    let mut idle = db.get_postgres_connection_pool().num_idle();
    loop {
        let Ok(begun) = timeout(answer_within, db.begin()).await else { return Err(unanswered()) };
        match begun {
            Err(error) if trouble(&error) == Trouble::Cut && idle > 0 => idle -= 1,
            begun => return begun,
        }
    }
}

//! Apply: rechecks and writes a batch in one transaction. A batch that fails is split in halves until what breaks it stands
//! alone; its neighbours are applied. An outage spends no attempt: it is waited out. A row that breaks the connection again and
//! again, while the server answers others, is no outage.

use std::{collections::HashMap, time::Duration};

use sea_orm::{DatabaseConnection, DbErr, TransactionTrait};
use shared::{
    broker::backoff,
    database::{Trouble, probe, trouble, unanswered},
    settings,
    task::{Outcome, Statements},
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often a conflict with other transactions is tried again at once before the batch is split.
const CONFLICT_TRIES: u32 = 3;
/// Longest pause before such a try, in milliseconds; the actual one is random, so that two that collided part.
const CONFLICT_PAUSE_MAX_MS: u64 = 40;
/// So often the connection may break under the same rows, while the server answers others, before they are to blame for it.
const CUTS_MAX: u32 = 10;
/// The same for each half of rows that are to blame: the culprit is found without another long wait.
const CUTS_LEFT: u32 = 2;
/// The pause after the first time, doubled each time up to the longest.
const CUT_PAUSE: Duration = Duration::from_millis(100);
const CUT_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How much longer than a single statement a transaction may take before nobody is there to answer.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);

/// Rows that are tried together.
struct Part {
    asked: Vec<(Uuid, Uuid)>,
    conflicts: u32,
    cuts: u32,
}

/// Applies `asked` (subject and wake-up, each subject once) and returns what became of every subject; `None` when the database
/// stayed away until `abandon`. What was committed by then comes back stale.
#[tracing::instrument(skip_all, level = "debug", fields(subjects = asked.len()))]
pub async fn apply(
    db: &DatabaseConnection,
    settings: &settings::Database,
    statements: &Statements,
    asked: Vec<(Uuid, Uuid)>,
    abandon: &CancellationToken,
) -> Option<HashMap<Uuid, Outcome>> {
    let answer_within = Duration::from_millis(settings.statement_timeout_ms) + ANSWER_MARGIN;
    let mut outcomes = HashMap::with_capacity(asked.len());
    let mut parts = vec![Part { asked, conflicts: 0, cuts: 0 }];
    let mut outage = Outage::default();
    while let Some(mut part) = parts.pop() {
        if part.asked.is_empty() {
            continue;
        }
        let trying = transaction(db, statements, &part.asked);
        let tried = timeout(answer_within, trying).await.unwrap_or_else(|_| Err((unanswered(), Trouble::Cut)));
        let (error, mut trouble) = match tried {
            Ok(applied) => {
                outcomes.extend(applied);
                outage.over();
                continue;
            }
            Err(failed) => failed,
        };
        if trouble == Trouble::Cut && probe(db, answer_within).await.is_err() {
            trouble = Trouble::Away;
        }
        match trouble {
            // The server answers others.
            Trouble::Cut if part.cuts < CUTS_MAX => {
                tracing::warn!(%error, cuts = part.cuts, "the connection to PostgreSQL broke; trying again");
                outage.over();
                sleep(CUT_PAUSE.saturating_mul(1 << part.cuts).min(CUT_PAUSE_MAX)).await;
                parts.push(Part { cuts: part.cuts + 1, ..part });
            }
            Trouble::Away => {
                // The same again is the probe: a server may answer and still refuse to write.
                outage.wait(&error, abandon).await?;
                parts.push(part);
            }
            Trouble::Conflict if part.conflicts < CONFLICT_TRIES => {
                sleep(Duration::from_millis(rand::random_range(1..=CONFLICT_PAUSE_MAX_MS))).await;
                parts.push(Part { conflicts: part.conflicts + 1, ..part });
            }
            Trouble::Conflict | Trouble::Cut | Trouble::Failure => {
                if let [(subject, _)] = part.asked.as_slice() {
                    outcomes.insert(*subject, Outcome::Retry { cause: chain(&error) });
                } else {
                    // A conflict that lasted gets one more try per part: a row locked for long must not hold up its lane.
                    let conflicts = if trouble == Trouble::Conflict { CONFLICT_TRIES } else { 0 };
                    let cuts = part.cuts.min(CUTS_MAX - CUTS_LEFT);
                    let right = part.asked.split_off(part.asked.len() / 2);
                    parts.extend([right, part.asked].map(|asked| Part { asked, conflicts, cuts }));
                }
            }
        }
    }
    Some(outcomes)
}

/// An outage of the database as one consumer sees it: told once when it begins and once when it ends, waited out with backoff.
#[derive(Default)]
pub struct Outage {
    pauses: Option<Box<dyn Iterator<Item = Duration> + Send>>,
}

impl Outage {
    /// Waits a while, longer each time; `None` when there is no more time.
    pub async fn wait(&mut self, error: &DbErr, abandon: &CancellationToken) -> Option<()> {
        let pauses = self.pauses.get_or_insert_with(|| {
            tracing::warn!(%error, "PostgreSQL is away; the lane waits until it is back");
            Box::new(backoff())
        });
        let pause = pauses.next().unwrap_or_default();
        abandon.run_until_cancelled(sleep(pause)).await
    }

    /// It answers again.
    pub fn over(&mut self) {
        if self.pauses.take().is_some() {
            tracing::info!("PostgreSQL is back");
        }
    }
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

//! One attempt at a transaction, and what follows when it fails: an outage is waited out, a conflict or a broken connection is tried again
//! after a pause, and what is left is the fault of the rows.

use std::time::Duration;

use sea_orm::{DatabaseConnection, DatabaseTransaction, DbErr, TransactionTrait};
use shared::{
    database::{
        attempts::{Attempts, Next},
        failure::{Trouble, trouble},
        unanswered,
    },
    process::redact::told,
    settings,
};
use tokio::time::{sleep, timeout};

use super::patience::Patience;

/// How often a conflict with other transactions is tried again at once.
const CONFLICTS_MAX: u32 = 3;
/// So often the connection may break under the same rows, each time after the server had begun a transaction for them, before
/// they are to blame for it.
const CUTS_MAX: u32 = 10;
/// The same for each part of rows that are to blame.
const CUTS_LEFT: u32 = 2;
/// How much longer than its statements may take a transaction may take before the server counts as cut off.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);

/// A failed transaction: the error, and what it asks for.
pub(crate) type Failed = (DbErr, Trouble);

/// The failures of some rows so far.
#[derive(Clone, Copy)]
pub(crate) struct Attempt(Attempts);

/// What is left to do after a failure.
pub(crate) enum After {
    /// Try the same again.
    Again,
    /// These rows are at fault: take them apart, or give up on what is alone.
    Blame,
    /// The worker was told to wait for a server no longer.
    Abandoned,
}

impl Attempt {
    pub(crate) const fn first() -> Self {
        Self::with_conflicts(CONFLICTS_MAX)
    }

    /// With as many conflicts tried again.
    pub(crate) const fn with_conflicts(conflicts_max: u32) -> Self {
        Self(Attempts::new(conflicts_max, CUTS_MAX))
    }

    /// That of a part of the rows that were blamed for `trouble`.
    pub(crate) fn of_a_part(self, trouble: Trouble) -> Self {
        Self(self.0.of_a_part(trouble, 0, CUTS_LEFT))
    }

    /// Counts a failure, and waits for as long as it takes before the same may be tried again.
    pub(crate) async fn after(&mut self, (error, trouble): &Failed, patience: &Patience<'_>) -> After {
        let next = self.0.after(*trouble);
        if next != Next::Wait {
            patience.postgres_is_back();
        }
        match next {
            // The same again is the probe: a server may answer and still refuse to write.
            Next::Wait => match patience.for_postgres(error).await {
                Some(()) => After::Again,
                None => After::Abandoned,
            },
            Next::Again(pause) => {
                if *trouble == Trouble::Cut {
                    tracing::warn!(error = told(error), "the connection to PostgreSQL broke; trying again");
                }
                sleep(pause).await;
                After::Again
            }
            Next::Blame => After::Blame,
        }
    }
}

/// Runs `work` in a transaction, which it commits. A failure before the first statement is not the rows' fault, whatever the server says: it
/// is away. Each of the `statements` has its timeout on the server; a server that is cut off never answers.
///
/// # Errors
/// [`Failed`]; nothing is written then, unless the connection broke while it was committed.
pub(crate) async fn transaction<T>(
    db: &DatabaseConnection,
    settings: &settings::Database,
    statements: u32,
    work: impl AsyncFnOnce(DatabaseTransaction) -> Result<T, DbErr>,
) -> Result<T, Failed> {
    let tx = begin(db, settings).await.map_err(|error| (error, Trouble::Away))?;
    let answer_within = settings.statement_timeout * (statements + 1) + ANSWER_MARGIN;
    let answer = timeout(answer_within, work(tx)).await.unwrap_or_else(|_| {
        // Whatever the error says of itself, the server has not answered.
        Err(unanswered())
    });
    answer.map_err(|error| {
        let trouble = trouble(&error);
        (error, trouble)
    })
}

/// Begins a transaction. Connections that lay idle through an outage are dead and show it only now: they are passed over.
async fn begin(db: &DatabaseConnection, settings: &settings::Database) -> Result<DatabaseTransaction, DbErr> {
    let answer_within = settings.acquire_timeout + ANSWER_MARGIN;
    let mut idle = db.get_postgres_connection_pool().num_idle();
    loop {
        let Ok(begun) = timeout(answer_within, db.begin()).await else { return Err(unanswered()) };
        match begun {
            Err(error) if trouble(&error) == Trouble::Cut && idle > 0 => idle -= 1,
            begun => return begun,
        }
    }
}

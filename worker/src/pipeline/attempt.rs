//! One attempt at a transaction, and what to do when it fails: wait out an outage, retry a conflict or a broken connection after a pause,
//! and blame the rows for everything else.

use std::time::Duration;

use sea_orm::{DatabaseConnection, DatabaseTransaction, DbErr, TransactionTrait};
use shared::{
    database::{
        Client,
        attempts::{Attempts, Next},
        failure::{Trouble, is_refused, trouble},
        probe::judge,
        rights::lacking,
        unanswered,
    },
    process::redact::redacted,
    settings,
};
use tokio::time::{sleep, timeout};

use super::patience::Patience;

/// How often a conflict with other transactions is retried.
const CONFLICTS_MAX: u32 = 3;
/// How often the connection may break under the same rows, each time inside a transaction that the server had begun, before the rows are
/// blamed.
const CUTS_MAX: u32 = 10;
/// The same for each part of rows that were blamed.
const CUTS_LEFT: u32 = 2;
/// How much longer than the sum of its statement timeouts a transaction may take before the server counts as unreachable.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);

/// A failed transaction: the error and its class.
pub(crate) type Failed = (DbErr, Trouble);

/// Counts the failures of a group of rows.
#[derive(Clone, Copy)]
pub(crate) struct Attempt(Attempts);

/// What to do after a failure.
pub(crate) enum After {
    /// Retry the same rows.
    Again,
    /// The rows are at fault: split them, or give up on a single row.
    Blame,
    /// The worker's grace is over; it stops waiting for the server.
    Abandoned,
}

impl Attempt {
    pub(crate) const fn first() -> Self {
        Self::with_conflicts(CONFLICTS_MAX)
    }

    /// With another limit of retried conflicts.
    pub(crate) const fn with_conflicts(conflicts_max: u32) -> Self {
        Self(Attempts::new(conflicts_max, CUTS_MAX))
    }

    /// The counts for a part of the rows that were blamed for `trouble`.
    pub(crate) fn of_a_part(self, trouble: Trouble) -> Self {
        Self(self.0.of_a_part(trouble, 0, CUTS_LEFT))
    }

    /// Counts a failure, and waits as long as necessary before a retry.
    pub(crate) async fn after(&mut self, (error, trouble): &Failed, patience: &Patience<'_>) -> After {
        let next = self.0.after(*trouble);
        if next != Next::Wait {
            patience.postgres_is_back();
        }
        match next {
            // Retrying the same rows is the probe: a server may answer and still refuse to write.
            Next::Wait => match patience.for_postgres(error).await {
                Some(()) => After::Again,
                None => After::Abandoned,
            },
            Next::Again(pause) => {
                match trouble {
                    Trouble::Cut => {
                        tracing::warn!(
                            error = redacted(error),
                            cuts = self.0.cuts(),
                            "the connection to PostgreSQL broke; retrying"
                        );
                    }
                    Trouble::Unconfirmed => {
                        tracing::warn!(
                            error = redacted(error),
                            "a statement reports an outage, but PostgreSQL answers and writes; retrying"
                        );
                    }
                    _ => {}
                }
                sleep(pause).await;
                After::Again
            }
            Next::Blame => After::Blame,
        }
    }
}

/// Runs `work` in a transaction; `work` commits it. A failure to begin counts as an outage whatever the error is, because it cannot be the
/// rows' fault; a failure of a statement counts as one if the server confirms it. `statements` is the number of statements in `work`: each has its timeout on the server, and this function stops waiting
/// when a server that cannot be reached never answers.
///
/// # Errors
/// [`Failed`]. Nothing was written then, unless the connection broke during the commit.
pub(crate) async fn transaction<T>(
    db: &DatabaseConnection,
    settings: &settings::DatabaseSettings,
    statements: u32,
    work: impl AsyncFnOnce(DatabaseTransaction) -> Result<T, DbErr>,
) -> Result<T, Failed> {
    let tx = begin(db, settings).await.map_err(|error| (error, Trouble::Away))?;
    let answer_within = settings.statement_timeout * (statements + 1) + ANSWER_MARGIN;
    let answer = timeout(answer_within, work(tx)).await.unwrap_or_else(|_| {
        // The server did not answer in time; this error is classified as a broken connection.
        Err(unanswered())
    });
    let error = match answer {
        Ok(done) => return Ok(done),
        Err(error) => error,
    };
    // A trigger may raise this for a row; a privilege that the login lacks is not the rows' fault.
    if is_refused(&error)
        && let Ok(Ok(Some(lacking))) = timeout(answer_within, lacking(db.get_postgres_connection_pool(), Client::Worker)).await
    {
        return Err((DbErr::Custom(lacking.to_string()), Trouble::Away));
    }
    let trouble = judge(db, &error).await;
    Err((error, trouble))
}

/// Begins a transaction. Idle connections that broke during an outage fail only when used, so as many failures as there are idle
/// connections are skipped.
async fn begin(db: &DatabaseConnection, settings: &settings::DatabaseSettings) -> Result<DatabaseTransaction, DbErr> {
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

//! Seals activity: once no transaction can add to a range of ids any more, hashes the range into the chain of `activity_seals`. Later
//! changes to its rows are found by `ops activity verify` (policy point 5).

use std::time::{Duration, Instant};

use futures::{FutureExt, future::BoxFuture};
use opentelemetry::{global, metrics::Counter};
use sea_orm::{DatabaseConnection, DbErr, FromQueryResult};
use shared::database::{column, statement, within};

use super::{ANSWER_WITHIN, Duty, DutyError, DutyRound};

/// Most rows of one seal. They are hashed in memory, and are the unit in which a change is located.
const PIECE: i32 = 5_000;
/// How long a round seals; the next round continues.
const SEALING_MAX: Duration = Duration::from_secs(10);
/// SQL: the transactions that have delayed sealing for too long.
const DELAYED: &str = "SELECT unnest(open) FROM activity_closing WHERE since < now() - interval '10 minutes'";

/// The duty that seals activity.
pub(super) struct SealDuty {
    sealed: Counter<u64>,
    /// Whether the delay that lasts was logged.
    logged: bool,
}

impl SealDuty {
    pub(super) fn new() -> Self {
        let sealed = global::meter("kyhan")
            .u64_counter("kyhan.activity.seals")
            .with_unit("{seal}")
            .with_description("Ranges of activity that were sealed")
            .build();
        Self { sealed, logged: false }
    }

    async fn next(&mut self, db: &DatabaseConnection) -> Result<(), DbErr> {
        self.seal(db).await?;
        let delayed: Vec<String> = within(ANSWER_WITHIN, column(db, statement(DELAYED, []))).await?;
        if !delayed.is_empty() && !self.logged {
            tracing::warn!(transactions = ?delayed, "sealing activity is delayed by open transactions that may write to it");
        }
        self.logged = !delayed.is_empty();
        Ok(())
    }

    /// Seals what the database finds complete, piece by piece, for at most [`SEALING_MAX`].
    async fn seal(&self, db: &DatabaseConnection) -> Result<(), DbErr> {
        #[derive(FromQueryResult)]
        struct Sealed {
            number: i64,
            last_id: i64,
            hash: String,
        }
        let began = Instant::now();
        let sql = "SELECT number, last_id, encode(hash, 'hex') AS hash FROM kyhan_seal_activity($1, $2)";
        while began.elapsed() < SEALING_MAX {
            let asked = Sealed::find_by_statement(statement(sql, [i64::MAX.into(), PIECE.into()]));
            let Some(Sealed { number, last_id, hash }) = within(ANSWER_WITHIN, asked.one(db)).await? else { break };
            // The log keeps the hash outside of the database, so that a rewritten chain is found with `ops activity verify --seal`.
            tracing::info!(number, last_id, hash, "sealed activity");
            self.sealed.add(1, &[]);
        }
        Ok(())
    }
}

impl Duty for SealDuty {
    fn name(&self) -> &'static str {
        "sealing activity"
    }

    fn round<'a>(&'a mut self, round: &'a DutyRound<'a>) -> BoxFuture<'a, Result<(), DutyError>> {
        async { Ok(self.next(&round.context.db).await?) }.boxed()
    }
}

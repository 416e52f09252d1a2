//! Seals activity: once no transaction can add to a range of ids any more, hashes the range into the chain of `activity_seals`. Later
//! changes to its rows are found by `ops activity verify` (policy point 5).

use std::time::{Duration, Instant};

use futures::{FutureExt, future::BoxFuture};
use opentelemetry::{global, metrics::Counter};
use sea_orm::{DatabaseConnection, DbErr, FromQueryResult};
use shared::database::{column, scalar, statement, within};

use super::{ANSWER_WITHIN, Duty, DutyError, DutyRound};

/// Most rows of one seal. They are hashed in memory, and are the unit in which a change is located.
const PIECE: i32 = 5_000;
/// How long a round seals; the next round continues.
const SEALING_MAX: Duration = Duration::from_secs(10);
/// How long a transaction may delay sealing before it is logged.
const TOO_LONG: Duration = Duration::from_secs(600);

/// The duty that seals activity.
pub(super) struct SealDuty {
    closing: Option<Closing>,
    sealed: Counter<u64>,
}

/// A range to seal, and the transactions that may still add to it.
struct Closing {
    until: i64,
    /// Virtual ids of the transactions that have not ended.
    open: Vec<String>,
    since: Instant,
    logged: bool,
}

impl SealDuty {
    pub(super) fn new() -> Self {
        let sealed = global::meter("kyhan")
            .u64_counter("kyhan.activity.seals")
            .with_unit("{seal}")
            .with_description("Ranges of activity that were sealed")
            .build();
        Self { closing: None, sealed }
    }

    async fn next(&mut self, db: &DatabaseConnection) -> Result<(), DbErr> {
        let mut closing = match self.closing.take() {
            Some(closing) => closing,
            None => Closing::begin(db).await?,
        };
        closing.open = writing(db, Some(closing.open)).await?;
        if closing.open.is_empty() {
            return self.seal(db, closing.until).await;
        }
        if closing.since.elapsed() > TOO_LONG && !std::mem::replace(&mut closing.logged, true) {
            tracing::warn!(transactions = ?closing.open, "sealing activity is delayed by open transactions that may write to it");
        }
        self.closing = Some(closing);
        Ok(())
    }

    /// Seals up to `until`, piece by piece, for at most [`SEALING_MAX`].
    async fn seal(&self, db: &DatabaseConnection, until: i64) -> Result<(), DbErr> {
        #[derive(FromQueryResult)]
        struct Sealed {
            number: i64,
            last_id: i64,
            hash: String,
        }
        let began = Instant::now();
        let sql = "SELECT number, last_id, encode(hash, 'hex') AS hash FROM kyhan_seal_activity($1, $2)";
        while began.elapsed() < SEALING_MAX {
            let asked = Sealed::find_by_statement(statement(sql, [until.into(), PIECE.into()]));
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

impl Closing {
    /// The range up to the newest visible id. A transaction locks the table for writing before it draws an id, and ids are drawn in order,
    /// so every uncommitted transaction with a lower id holds that lock when the locks are read afterwards.
    async fn begin(db: &DatabaseConnection) -> Result<Self, DbErr> {
        let sql = "SELECT coalesce(max(id), 0) FROM activity";
        let until = within(ANSWER_WITHIN, scalar(db, statement(sql, []))).await?;
        Ok(Self { until, open: writing(db, None).await?, since: Instant::now(), logged: false })
    }
}

/// The virtual ids of the transactions that hold a write lock on `activity`: all, or only those `among` the given ones.
async fn writing(db: &DatabaseConnection, among: Option<Vec<String>>) -> Result<Vec<String>, DbErr> {
    let sql = "SELECT DISTINCT virtualtransaction FROM pg_locks
                WHERE locktype = 'relation' AND granted AND relation = 'activity'::regclass
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                  AND mode NOT IN ('AccessShareLock', 'RowShareLock')
                  AND ($1::text[] IS NULL OR virtualtransaction = ANY ($1))";
    within(ANSWER_WITHIN, column(db, statement(sql, [among.into()]))).await
}

//! Seals activity: once no transaction can add to a range of its ids any more, the range is hashed into the chain of
//! `activity_seals`, so that whatever is done to its rows later is found by `ops activity verify` (policy point 5).

use std::time::{Duration, Instant};

use opentelemetry::{global, metrics::Counter};
use sea_orm::{DatabaseConnection, DbErr, FromQueryResult};
use shared::database::{column, scalar, statement, within};

/// Rows of one seal: they are hashed in one go, which takes their size in memory, and are looked at together when something is off.
const PIECE: i32 = 5_000;
/// How long a round goes on sealing; the next one goes on.
const SEALING_MAX: Duration = Duration::from_secs(10);
/// How long PostgreSQL may take for one statement, should it not give up by itself.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// After how long it is said that a transaction keeps activity from being sealed.
const TOO_LONG: Duration = Duration::from_secs(600);

pub(super) struct Sealer {
    closing: Option<Closing>,
    sealed: Counter<u64>,
}

/// A range that is to be sealed once the transactions have ended that may hold one of its ids.
struct Closing {
    until: i64,
    /// Their virtual ids.
    open: Vec<String>,
    since: Instant,
    told: bool,
}

impl Sealer {
    pub(super) fn new() -> Self {
        let sealed = global::meter("kyhan")
            .u64_counter("kyhan.activity.seals")
            .with_unit("{seal}")
            .with_description("Ranges of activity that were sealed")
            .build();
        Self { closing: None, sealed }
    }

    pub(super) async fn round(&mut self, db: &DatabaseConnection) -> Result<(), DbErr> {
        let mut closing = match self.closing.take() {
            Some(closing) => closing,
            None => Closing::begin(db).await?,
        };
        closing.open = writing(db, Some(closing.open)).await?;
        if closing.open.is_empty() {
            return self.seal(db, closing.until).await;
        }
        if closing.since.elapsed() > TOO_LONG && !std::mem::replace(&mut closing.told, true) {
            tracing::warn!(transactions = ?closing.open, "activity is not sealed while transactions that may write to it go on");
        }
        self.closing = Some(closing);
        Ok(())
    }

    /// Piece by piece, for so long.
    async fn seal(&self, db: &DatabaseConnection, until: i64) -> Result<(), DbErr> {
        #[derive(FromQueryResult)]
        struct Seal {
            number: i64,
            last_id: i64,
            hash: String,
        }
        let began = Instant::now();
        let sql = "SELECT number, last_id, encode(hash, 'hex') AS hash FROM kyhan_seal_activity($1, $2)";
        while began.elapsed() < SEALING_MAX {
            let asked = Seal::find_by_statement(statement(sql, [until.into(), PIECE.into()]));
            let Some(Seal { number, last_id, hash }) = within(ANSWER_WITHIN, asked.one(db)).await? else { break };
            // Outside of the database, where whoever rewrites the chain does not reach: `ops activity verify --seal` takes it.
            tracing::info!(number, last_id, hash, "activity is sealed");
            self.sealed.add(1, &[]);
        }
        Ok(())
    }
}

impl Closing {
    /// Everything that can be seen now. An id is given to a row after its transaction has locked the table for writing, and in order: whoever
    /// has a lower one without having committed is among those who hold that lock when it is asked for afterwards.
    async fn begin(db: &DatabaseConnection) -> Result<Self, DbErr> {
        let sql = "SELECT coalesce(max(id), 0) FROM activity";
        let until = within(ANSWER_WITHIN, scalar(db, statement(sql, []))).await?;
        Ok(Self { until, open: writing(db, None).await?, since: Instant::now(), told: false })
    }
}

/// The transactions that have locked activity for writing, by their virtual ids; all, or those `among` others.
async fn writing(db: &DatabaseConnection, among: Option<Vec<String>>) -> Result<Vec<String>, DbErr> {
    let sql = "SELECT DISTINCT virtualtransaction FROM pg_locks
                WHERE locktype = 'relation' AND granted AND relation = 'activity'::regclass
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                  AND mode NOT IN ('AccessShareLock', 'RowShareLock')
                  AND ($1::text[] IS NULL OR virtualtransaction = ANY ($1))";
    within(ANSWER_WITHIN, column(db, statement(sql, [among.into()]))).await
}

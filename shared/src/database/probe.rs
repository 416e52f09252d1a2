//! What the server says when it is asked: over a connection outside the pool, whether it answers and what operators have decided; and
//! after a failed statement, whether the server or the statement is at fault.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbErr, RuntimeErr, TransactionTrait,
    sqlx::{self, ConnectOptions as _, postgres::PgConnection},
};

use uuid::Uuid;

use super::{
    active_policy,
    connection::{Client, conn_error, options, silence, still_good, unanswered},
    failure::{Trouble, trouble},
    leader,
    pause::{self, Pause},
    rights::{self, Lacking},
    statement,
};
use crate::settings::DatabaseSettings;

/// A connection outside the pool, over which an idle process checks the server. A pool would not do: it may be in use, or
/// hold connections that died long ago.
pub struct Probe {
    settings: DatabaseSettings,
    within: Duration,
    role: Client,
    connection: Option<PgConnection>,
}

impl Probe {
    /// Connects at the first [`Probe::ask`].
    #[must_use]
    pub fn new(settings: &DatabaseSettings, role: Client) -> Self {
        Self { settings: settings.clone(), within: settings.acquire_timeout, role, connection: None }
    }

    /// Checks that the server answers and accepts writes.
    ///
    /// # Errors
    /// A database error; a standby or a read-only server counts as one.
    pub async fn ask(&mut self) -> Result<(), DbErr> {
        if let Some(mut kept) = self.connection.take()
            && matches!(still_good(&mut kept, self.within).await, Ok(true))
        {
            self.connection = Some(kept);
            return Ok(());
        }
        let connected = tokio::time::timeout(self.within, options(&self.settings, self.role)?.connect())
            .await
            .unwrap_or_else(|_| Err(silence()));
        let mut fresh = connected.map_err(conn_error)?;
        if !still_good(&mut fresh, self.within).await.map_err(conn_error)? {
            return Err(DbErr::Conn(RuntimeErr::Internal("PostgreSQL is read-only".to_owned())));
        }
        self.connection = Some(fresh);
        Ok(())
    }

    /// The privileges that the login lacks; call it right after a successful [`Probe::ask`].
    ///
    /// # Errors
    /// A database error.
    pub async fn lacking(&mut self) -> Result<Option<Lacking>, DbErr> {
        let mut kept = self.connection.take().ok_or_else(unanswered)?;
        let asked = tokio::time::timeout(self.within, rights::lacking(&mut kept, self.role)).await;
        let lacking = asked.unwrap_or_else(|_| Err(silence())).map_err(conn_error)?;
        self.connection = Some(kept);
        Ok(lacking)
    }

    /// What operators have decided; call it right after a successful [`Probe::ask`].
    ///
    /// # Errors
    /// A database error.
    pub async fn decided(&mut self) -> Result<Decided, DbErr> {
        let mut kept = self.connection.take().ok_or_else(unanswered)?;
        let sql = format!("SELECT ({}), {}, {}, clock_timestamp()", pause::ALL, active_policy::NUMBER, leader::SILENT_S);
        let asked = sqlx::query_as::<_, (String, Option<i64>, f64, DateTime<Utc>)>(sqlx::AssertSqlSafe(sql)).fetch_one(&mut kept);
        let (pauses, policy, leader_silent_s, now) =
            tokio::time::timeout(self.within, asked).await.unwrap_or_else(|_| Err(silence())).map_err(conn_error)?;
        self.connection = Some(kept);
        Ok(Decided { pauses: pause::read(&pauses)?, policy, leader_silent_s, now })
    }
}

/// The trouble behind an error of a statement. An outage is what the server confirms, not what one statement reports: the server is asked
/// to write, over another connection.
pub async fn judge(db: &DatabaseConnection, error: &DbErr) -> Trouble {
    let reported = trouble(error);
    if reported != Trouble::Away {
        return reported;
    }
    match tokio::time::timeout(JUDGED_WITHIN, writes(db)).await {
        Ok(Ok(())) => Trouble::Unconfirmed,
        _ => Trouble::Away,
    }
}

/// Grows a table by some pages, which a full disk refuses, and takes that back. The table is one that every process may insert into.
async fn writes(db: &DatabaseConnection) -> Result<(), DbErr> {
    let tx = db.begin().await?;
    // Random, because PostgreSQL would compress anything else.
    let filler: String = std::iter::repeat_with(|| Uuid::new_v4().simple().to_string()).take(WRITTEN / 32).collect();
    let sql = "INSERT INTO rungs (queue, exchange) VALUES ('probe ' || gen_random_uuid(), $1)";
    tx.execute_raw(statement(sql, [filler.into()])).await?;
    tx.rollback().await
}

/// How long the server has to confirm that it writes.
const JUDGED_WITHIN: Duration = Duration::from_secs(10);
/// How many characters [`writes`] writes.
const WRITTEN: usize = 128 * 1024;

/// What operators have decided for the whole fleet.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    /// Which kinds are paused.
    pub pauses: Vec<Pause>,
    /// The number of the active policy, if one was applied.
    pub policy: Option<i64>,
    /// For how long no leader has ended a round.
    pub leader_silent_s: f64,
    /// PostgreSQL's clock.
    pub now: DateTime<Utc>,
}

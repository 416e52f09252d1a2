//! A connection outside the pool, over which an idle process checks the server and what operators have decided.

use std::time::Duration;

use sea_orm::{
    DbErr, RuntimeErr,
    sqlx::{
        self, ConnectOptions as _,
        postgres::{PgConnectOptions, PgConnection},
    },
};

use super::{
    active_policy,
    connection::{Client, DatabaseError, conn_error, silence, still_good, tuned, unanswered},
    leader,
    pause::{self, Pause},
    rights::{self, Lacking},
};
use crate::settings::DatabaseSettings;

/// A connection outside the pool, over which an idle process checks the server. A pool would not do: it may be in use, or
/// hold connections that died long ago.
pub struct Probe {
    options: PgConnectOptions,
    within: Duration,
    role: Client,
    connection: Option<PgConnection>,
}

impl Probe {
    /// Connects at the first [`Probe::ask`].
    ///
    /// # Errors
    /// An invalid URL.
    pub fn new(settings: &DatabaseSettings, role: Client) -> Result<Self, DatabaseError> {
        let options = settings.url.expose().parse().map_err(conn_error);
        let options = options.map_err(|error| DatabaseError::Connect { at: settings.url.to_string(), error })?;
        let within = settings.acquire_timeout;
        Ok(Self { options: tuned(settings, role)(options), within, role, connection: None })
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
        let connected = tokio::time::timeout(self.within, self.options.connect()).await.unwrap_or_else(|_| Err(silence()));
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
        let sql = format!("SELECT ({}), {}, {}", pause::ALL, active_policy::NUMBER, leader::SILENT_S);
        let asked = sqlx::query_as::<_, (String, Option<i64>, f64)>(sqlx::AssertSqlSafe(sql)).fetch_one(&mut kept);
        let (pauses, policy, leader_silent_s) =
            tokio::time::timeout(self.within, asked).await.unwrap_or_else(|_| Err(silence())).map_err(conn_error)?;
        self.connection = Some(kept);
        Ok(Decided { pauses: pause::read(&pauses)?, policy, leader_silent_s })
    }
}

/// What operators have decided for the whole fleet.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    /// Which kinds are paused.
    pub pauses: Vec<Pause>,
    /// The number of the active policy, if one was applied.
    pub policy: Option<i64>,
    /// For how long no leader has ended a round.
    pub leader_silent_s: f64,
}

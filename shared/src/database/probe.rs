//! A connection besides the pool, over which a process without work learns how the server is and what operators have decided.

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
    connection::{DatabaseError, Role, conn_error, silence, still_good, tuned, unanswered},
    pause::{self, Pause},
};
use crate::settings::Database;

/// A connection besides the pool, over which a process without work learns how the server is. A pool would not do: it may be in
/// use, or hold connections that died long ago.
pub struct Probe {
    options: PgConnectOptions,
    within: Duration,
    connection: Option<PgConnection>,
}

impl Probe {
    /// Connects when it is first asked.
    ///
    /// # Errors
    /// A URL that is none.
    pub fn new(settings: &Database, role: Role) -> Result<Self, DatabaseError> {
        let options = settings.url.expose().parse().map_err(conn_error);
        let options = options.map_err(|error| DatabaseError::Connect { at: settings.url.to_string(), error })?;
        let within = settings.acquire_timeout;
        Ok(Self { options: tuned(settings, role)(options), within, connection: None })
    }

    /// Whether the server answers and would write.
    ///
    /// # Errors
    /// The database's; a standby or a server set to read only is one.
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

    /// What operators have decided; to be asked of a server that has just answered.
    ///
    /// # Errors
    /// The database's.
    pub async fn decided(&mut self) -> Result<Decided, DbErr> {
        let mut kept = self.connection.take().ok_or_else(unanswered)?;
        let sql = format!("SELECT ({}) AS pauses, {} AS policy", pause::ALL, active_policy::NUMBER);
        let asked = sqlx::query_as::<_, (String, Option<i64>)>(sqlx::AssertSqlSafe(sql)).fetch_one(&mut kept);
        let (pauses, policy) =
            tokio::time::timeout(self.within, asked).await.unwrap_or_else(|_| Err(silence())).map_err(conn_error)?;
        self.connection = Some(kept);
        Ok(Decided { pauses: pause::read(&pauses)?, policy })
    }
}

/// What operators have decided for the whole fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Which kinds are paused.
    pub pauses: Vec<Pause>,
    /// The number of the policy in force, if one was applied.
    pub policy: Option<i64>,
}

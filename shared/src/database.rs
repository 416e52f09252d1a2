//! The database: connecting, and telling an outage from a passing conflict from a real failure, in one place, so that task
//! code uses a plain `?`.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database as SeaDatabase, DatabaseConnection, DbBackend, DbErr, RuntimeErr, Statement, Value,
    sqlx::{
        self, ConnectOptions as _, Connection as _,
        postgres::{PgConnectOptions, PgConnection},
    },
};
use tokio_util::sync::CancellationToken;

use crate::{
    broker::backoff,
    migration,
    outage::Outage,
    pause::{self, Pause},
    policy::in_force,
    roles,
    settings::Database,
    topology::{Role as QueueRole, Topology},
};

mod told;

pub use told::told;

/// Who a connection is, shown in `pg_stat_activity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Producer,
    /// Its sessions set `kyhan.effect`: what they change raises events by itself, so the outbox triggers stay quiet.
    Worker,
    Ops,
    /// Whoever serves customers by name, and may read what is personal.
    CustomerCare,
    /// For migrations: whoever logs in acts as the tables' owner.
    Owner,
}

impl Role {
    const fn application_name(self) -> &'static str {
        match self {
            Self::Producer => "kyhan producer",
            Self::Worker => "kyhan worker",
            Self::Ops => "kyhan ops",
            Self::CustomerCare => "kyhan customer care",
            Self::Owner => "kyhan owner",
        }
    }
}

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("cannot connect to PostgreSQL at {at}: {error}")]
    Connect { at: String, error: DbErr },
    #[error("the database at {at} lacks Kỳ Hạn's schema or is behind ({pending} migrations to go): run `ops migrate up`")]
    Schema { at: String, pending: usize },
    #[error("the policy in force in the database at {at} cannot be told: {error}")]
    Policy { at: String, error: DbErr },
}

impl DatabaseError {
    /// Whether the server is away, as far as one can tell.
    fn is_outage(&self) -> bool {
        // A login that may not even see the schema will not by waiting.
        matches!(self, Self::Connect { error, .. } if trouble(error).is_outage() && !is_refused(error))
    }
}

/// Connects once.
///
/// # Errors
/// [`DatabaseError::Connect`], with the address but never its password.
pub async fn connect(settings: &Database, role: Role) -> Result<DatabaseConnection, DatabaseError> {
    let refused = |error| DatabaseError::Connect { at: settings.url.to_string(), error };
    let acquire_timeout = Duration::from_millis(settings.acquire_timeout_ms);
    let tuned = tuned(settings, role);
    // A pool waits for a server that is not there and then says only that it waited; a connection says at once why.
    let probe = tuned(settings.url.expose().parse().map_err(|error| refused(conn_error(error)))?);
    let probed = tokio::time::timeout(acquire_timeout, probe.connect()).await.unwrap_or_else(|_| Err(silence()));
    let farewell = probed.map_err(|error| refused(conn_error(error)))?.close();
    let _ = tokio::time::timeout(acquire_timeout, farewell).await;
    let mut options = ConnectOptions::new(settings.url.expose());
    options
        .max_connections(settings.max_connections)
        .min_connections(0)
        .acquire_timeout(acquire_timeout)
        // A ping on every acquire costs a tenth of the throughput; a dead connection shows itself at its first statement.
        .test_before_acquire(false)
        .sqlx_logging(false)
        .map_sqlx_postgres_opts(tuned)
        .map_sqlx_postgres_pool_opts(move |pool| {
            pool.after_release(move |connection, _| Box::pin(async move { still_good(connection, acquire_timeout).await }))
        });
    SeaDatabase::connect(options).await.map_err(refused)
}

/// What every session of ours is set to.
fn tuned(settings: &Database, role: Role) -> impl Fn(PgConnectOptions) -> PgConnectOptions + use<> {
    let (lock, statement) = (
        settings.lock_timeout_ms,
        if matches!(role, Role::Ops | Role::CustomerCare | Role::Owner) { 0 } else { settings.statement_timeout_ms },
    );
    move |options| {
        let options = options.application_name(role.application_name()).options([
            // An operator's question may take its time.
            ("statement_timeout", format!("{statement}ms")),
            ("lock_timeout", format!("{lock}ms")),
            // The recheck is a statement of its own after the locks: it must see what they waited for.
            ("default_transaction_isolation", "read committed".to_owned()),
            // "Already exists, skipping" is no news, and a warning of the order system's triggers may name whom it is about: sqlx logs both.
            ("client_min_messages", "error".to_owned()),
        ]);
        match role {
            Role::Worker => options.options([("kyhan.effect", "on")]),
            Role::Owner => options.options([("role", roles::OWNER)]),
            Role::Producer | Role::Ops | Role::CustomerCare => options,
        }
    }
}

/// A connection besides the pool, over which a process without work learns how the server is. A pool would not do: it may be in
/// use, or hold connections that died long ago.
pub struct Watch {
    options: PgConnectOptions,
    within: Duration,
    connection: Option<PgConnection>,
}

impl Watch {
    /// Connects when it is first asked.
    ///
    /// # Errors
    /// A URL that is none.
    pub fn new(settings: &Database, role: Role) -> Result<Self, DatabaseError> {
        let options = settings.url.expose().parse().map_err(conn_error);
        let options = options.map_err(|error| DatabaseError::Connect { at: settings.url.to_string(), error })?;
        let within = Duration::from_millis(settings.acquire_timeout_ms);
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
        let sql = format!("SELECT ({}) AS pauses, {} AS policy", pause::ALL, in_force::NUMBER);
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

/// Whether a connection that comes back into the pool may be used again. sqlx waits for ever for one that comes back with an
/// answer still to come: one that a network swallowed would never be missed. A session that may not write stays so when its
/// database may be written again, so it goes.
async fn still_good(connection: &mut PgConnection, within: Duration) -> Result<bool, sqlx::Error> {
    let writes = sqlx::query_scalar("SELECT current_setting('transaction_read_only') = 'off'").fetch_one(connection);
    tokio::time::timeout(within, writes).await.unwrap_or_else(|_| Err(silence()))
}

fn conn_error(error: sqlx::Error) -> DbErr {
    DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error)))
}

fn silence() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time"))
}

/// An error for what a server has not answered for `timeout`: its host or the network is gone, and nobody says so.
#[must_use]
pub fn unanswered() -> DbErr {
    conn_error(silence())
}

/// How long a question that takes no time may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What a query answers, or [`unanswered`] after so long: sqlx would wait for ever.
///
/// # Errors
/// The database's.
pub async fn within<T>(span: Duration, query: impl Future<Output = Result<T, DbErr>>) -> Result<T, DbErr> {
    tokio::time::timeout(span, query).await.unwrap_or_else(|_| Err(unanswered()))
}

/// Connects and checks that the schema is there, trying again with backoff while the server is away; `None` when told to
/// shut down.
///
/// # Errors
/// [`DatabaseError::Schema`], and a connection refused for a reason that waiting does not change.
pub async fn connect_until(
    settings: &Database,
    role: Role,
    shutdown: &CancellationToken,
) -> Result<Option<DatabaseConnection>, DatabaseError> {
    let mut pauses = backoff();
    let outage = Outage::of("PostgreSQL");
    loop {
        let Some(connected) = shutdown.run_until_cancelled(connect(settings, role)).await else { return Ok(None) };
        let connected = match connected {
            Ok(db) => match tokio::time::timeout(ANSWER_WITHIN, require_schema(settings, &db)).await {
                Ok(answer) => answer.map(|()| db),
                Err(_) => Err(DatabaseError::Connect { at: settings.url.to_string(), error: unanswered() }),
            },
            Err(error) => Err(error),
        };
        match connected {
            Err(error @ DatabaseError::Connect { .. }) if error.is_outage() => {
                outage.begins(&error);
                let pause = pauses.next().unwrap_or_default();
                if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                    return Ok(None);
                }
            }
            answer => {
                outage.ends();
                return answer.map(Some);
            }
        }
    }
}

/// Checks that every migration was applied.
///
/// # Errors
/// [`DatabaseError::Schema`], which says what to run.
pub async fn require_schema(settings: &Database, db: &DatabaseConnection) -> Result<(), DatabaseError> {
    let at = || settings.url.to_string();
    match migration::pending(db).await {
        Ok(0) => Ok(()),
        Ok(pending) => Err(DatabaseError::Schema { at: at(), pending }),
        Err(error) => Err(DatabaseError::Connect { at: at(), error }),
    }
}

/// A statement for PostgreSQL.
pub fn statement(sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    Statement::from_sql_and_values(DbBackend::Postgres, sql, values)
}

/// The database's clock, the only one that decides.
///
/// # Errors
/// The database's.
pub async fn now(db: &impl ConnectionTrait) -> Result<DateTime<Utc>, DbErr> {
    let row = db.query_one_raw(statement("SELECT clock_timestamp() AS now", [])).await?;
    row.ok_or_else(|| DbErr::RecordNotFound("clock_timestamp()".into()))?.try_get("", "now")
}

/// Remembers the rungs that were declared, so that `ops topology prune` finds those the policy forgets.
///
/// # Errors
/// The database's.
pub async fn remember_rungs(db: &impl ConnectionTrait, topology: &Topology) -> Result<(), DbErr> {
    let (queues, exchanges): (Vec<String>, Vec<String>) =
        topology.queues().into_iter().filter(|q| q.role == QueueRole::Rung).map(|q| (q.name, q.exchange)).unzip();
    let sql = "INSERT INTO rungs (queue, exchange) SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING";
    within(ANSWER_WITHIN, db.execute_raw(statement(sql, [queues.into(), exchanges.into()]))).await.map(|_| ())
}

/// What a database error asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The server is away, starting, read-only or full: wait until it is back. Nobody's fault, no attempt spent.
    Away,
    /// The connection broke under the statement: the server or the network has gone, or, where that happens to the same
    /// statement again and again while others are answered, it breaks its server process.
    Cut,
    /// A conflict with other transactions: the same again may succeed at once.
    Conflict,
    /// The statement itself fails: with the same rows it will fail again.
    Failure,
}

impl Trouble {
    /// Whether the server, and no statement, is to blame as far as one can tell.
    #[must_use]
    pub const fn is_outage(self) -> bool {
        matches!(self, Self::Away | Self::Cut)
    }
}

/// Tells what an error asks for, by its SQLSTATE.
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
#[must_use]
pub fn trouble(error: &DbErr) -> Trouble {
    let (DbErr::Conn(RuntimeErr::SqlxError(cause))
    | DbErr::Exec(RuntimeErr::SqlxError(cause))
    | DbErr::Query(RuntimeErr::SqlxError(cause))) = error
    else {
        return if matches!(error, DbErr::ConnectionAcquire(_) | DbErr::Conn(_)) { Trouble::Away } else { Trouble::Failure };
    };
    match cause.as_ref() {
        sqlx::Error::Database(said) => by_sqlstate(said.code().as_deref().unwrap_or_default()),
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => Trouble::Cut,
        sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => Trouble::Away,
        _ => Trouble::Failure,
    }
}

/// Whether something is there already that was to be made.
pub(crate) fn is_duplicate(error: &DbErr) -> bool {
    matches!(sqlstate(error).as_deref(), Some("23505" | "42710"))
}

/// Whether the login may not do what was asked of it, which no trying again changes.
#[must_use]
pub fn is_refused(error: &DbErr) -> bool {
    sqlstate(error).as_deref() == Some("42501")
}

/// The code by which PostgreSQL names an error.
fn sqlstate(error: &DbErr) -> Option<String> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(cause))
        | DbErr::Exec(RuntimeErr::SqlxError(cause))
        | DbErr::Query(RuntimeErr::SqlxError(cause)) => match cause.as_ref() {
            sqlx::Error::Database(said) => said.code().map(Into::into),
            _ => None,
        },
        _ => None,
    }
}

fn by_sqlstate(code: &str) -> Trouble {
    match code {
        // serialization_failure, deadlock_detected, lock_not_available, query_canceled (the statement timeout)
        "40001" | "40P01" | "55P03" | "57014" => Trouble::Conflict,
        // read_only_sql_transaction: a standby, or a server about to be replaced
        "25006" => Trouble::Away,
        // admin_shutdown, of this one connection perhaps; timeouts of sessions and transactions, which end it
        // insufficient_privilege: rights are being changed under a running fleet, or were taken from it, which is no wake-up's fault; or one
        // row's trigger says so
        "57P01" | "57P05" | "25P03" | "25P04" | "42501" => Trouble::Cut,
        // 08 connection; 58 system error: a disk that cannot be read, or one damaged row that says so
        code if code.starts_with("08") || code.starts_with("58") => Trouble::Cut,
        // 53 out of disk, memory or connections, 57P shutdown or start
        code if code.starts_with("53") || code.starts_with("57P") => Trouble::Away,
        _ => Trouble::Failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_a_conflict_and_a_failure_are_told_apart() {
        assert_eq!(by_sqlstate("57P01"), Trouble::Cut);
        assert_eq!(by_sqlstate("57P03"), Trouble::Away);
        for cut in ["08006", "25P03", "58030", "58P01", "42501"] {
            assert_eq!(by_sqlstate(cut), Trouble::Cut, "{cut}");
        }
        assert_eq!(by_sqlstate("53100"), Trouble::Away);
        assert_eq!(by_sqlstate("25006"), Trouble::Away);
        assert_eq!(by_sqlstate("40P01"), Trouble::Conflict);
        assert_eq!(by_sqlstate("23514"), Trouble::Failure);
        assert_eq!(trouble(&DbErr::Custom("x".into())), Trouble::Failure);
    }
}

//! Connecting to PostgreSQL under one of the roles, and waiting while it is away.

use std::{sync::Arc, time::Duration};

use sea_orm::{
    ConnectOptions, Database as SeaDatabase, DatabaseConnection, DbErr, RuntimeErr,
    sqlx::{
        self, ConnectOptions as _, Connection as _,
        postgres::{PgConnectOptions, PgConnection},
    },
};
use tokio_util::sync::CancellationToken;

use super::{
    failure::trouble,
    rights::{Lacking, lacking},
    roles, schema,
};
use crate::{
    process::{backoff::backoff, outage::Outage},
    settings::{DatabaseSettings, SecretUrl},
};

/// The program of a connection, shown in `pg_stat_activity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Producer,
    Worker,
    Ops,
    /// Commands for a single customer, which may read personal data.
    CustomerCare,
    /// For migrations: the login acts as the tables' owner.
    Owner,
}

impl Client {
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
    Connect {
        at: String,
        #[source]
        error: DbErr,
    },
    #[error("the database at {at} lacks {pending} of Kỳ Hạn's migrations: run `ops migrate up`")]
    Schema { at: String, pending: usize },
    #[error("the active policy in the database at {at} cannot be read: {error}")]
    Policy {
        at: String,
        #[source]
        error: DbErr,
    },
    #[error("in the database at {at}, {lacking}")]
    Rights { at: String, lacking: Lacking },
}

impl DatabaseError {
    /// Whether the server appears to be away.
    fn is_outage(&self) -> bool {
        matches!(self, Self::Connect { error, .. } if trouble(error).is_outage())
    }
}

/// Connects once.
///
/// # Errors
/// [`DatabaseError::Connect`], with the address but never its password.
pub async fn connect(settings: &DatabaseSettings, role: Client) -> Result<DatabaseConnection, DatabaseError> {
    let url = settings.url.current();
    let refused = |error| DatabaseError::Connect { at: url.to_string(), error };
    let acquire_timeout = settings.acquire_timeout;
    // A pool waits for an unreachable server and then reports only that it waited; a connection reports the cause at once.
    let probe = options(settings, role).map_err(refused)?;
    let probed = tokio::time::timeout(acquire_timeout, probe.connect()).await.unwrap_or_else(|_| Err(silence()));
    let farewell = probed.map_err(|error| refused(conn_error(error)))?.close();
    let _ = tokio::time::timeout(acquire_timeout, farewell).await;
    let (probed, mut pool) = (probe, ConnectOptions::new(url.expose()));
    pool.max_connections(settings.max_connections)
        .min_connections(0)
        .acquire_timeout(acquire_timeout)
        // A ping on every acquire costs a tenth of the throughput; a dead connection fails at its first statement.
        .test_before_acquire(false)
        .sqlx_logging(false)
        .map_sqlx_postgres_opts(move |_| probed.clone())
        .map_sqlx_postgres_pool_opts(move |pool| {
            pool.after_release(move |connection, _| Box::pin(async move { still_good(connection, acquire_timeout).await }))
        });
    SeaDatabase::connect(pool).await.map_err(refused)
}

/// Uses the URL's file as it is now for further connections of a pool, because a password may have been rotated.
pub fn refresh(db: &DatabaseConnection, settings: &DatabaseSettings, role: Client) {
    if let Ok(options) = options(settings, role) {
        db.get_postgres_connection_pool().set_connect_options(options);
    }
}

/// What to connect to, and the settings of every session.
pub(super) fn options(settings: &DatabaseSettings, role: Client) -> Result<PgConnectOptions, DbErr> {
    Ok(tuned(target(&settings.url.current())?, settings, role))
}

/// What a URL names.
fn target(url: &SecretUrl) -> Result<PgConnectOptions, DbErr> {
    let options: PgConnectOptions = url.expose().parse().map_err(conn_error)?;
    // The crate keeps the brackets, with which no address resolves.
    Ok(match url.ipv6() {
        Some(address) if options.get_host() == format!("[{address}]") => options.host(&address.to_string()),
        _ => options,
    })
}

fn tuned(options: PgConnectOptions, settings: &DatabaseSettings, role: Client) -> PgConnectOptions {
    let path = settings.search_path();
    let (lock, statement) = (
        settings.lock_timeout,
        if matches!(role, Client::Ops | Client::CustomerCare | Client::Owner) {
            Duration::ZERO
        } else {
            settings.statement_timeout
        },
    );
    let options = options.disable_statement_logging().application_name(role.application_name()).options([
        ("search_path", path),
        // A login may change its own defaults (ALTER ROLE … SET), and a stolen one those of the whole fleet. What an effect
        // committed must be on disk before its wake-up is acked.
        ("synchronous_commit", "on".to_owned()),
        ("row_security", "on".to_owned()),
        ("idle_session_timeout", "0".to_owned()),
        // An operator's query may take its time.
        ("statement_timeout", format!("{}ms", statement.as_millis())),
        ("lock_timeout", format!("{}ms", lock.as_millis())),
        // The recheck is a later statement than the locks: it must see what they waited for.
        ("default_transaction_isolation", "read committed".to_owned()),
        // sqlx logs both notices ("already exists, skipping"), which are noise, and warnings, in which the order system's
        // triggers may name a customer.
        ("client_min_messages", "error".to_owned()),
    ]);
    match role {
        Client::Owner => options.options([("role", roles::OWNER)]),
        Client::Producer | Client::Worker | Client::Ops | Client::CustomerCare => options,
    }
}

/// Whether a connection that returns to the pool may be used again. sqlx waits forever for a returned connection with an
/// answer still to come, so one lost in the network would never be replaced. A read-only session stays so when its database
/// becomes writable again, so it is closed.
pub(super) async fn still_good(connection: &mut PgConnection, within: Duration) -> Result<bool, sqlx::Error> {
    let writes = sqlx::query_scalar("SELECT current_setting('transaction_read_only') = 'off'").fetch_one(connection);
    tokio::time::timeout(within, writes).await.unwrap_or_else(|_| Err(silence()))
}

pub(super) fn conn_error(error: sqlx::Error) -> DbErr {
    DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error)))
}

pub(super) fn silence() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time"))
}

/// The error for a server that has not answered in time: its host or the network is gone, and no error arrived.
#[must_use]
pub fn unanswered() -> DbErr {
    conn_error(silence())
}

/// How long a query that takes no time may take.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The result of a query, or [`unanswered`] after `span`: sqlx would wait forever.
///
/// # Errors
/// A database error.
pub async fn within<T>(span: Duration, query: impl Future<Output = Result<T, DbErr>>) -> Result<T, DbErr> {
    tokio::time::timeout(span, query).await.unwrap_or_else(|_| Err(unanswered()))
}

/// Connects, checks that the login has its program's privileges and that the schema exists, retrying with backoff while the
/// server is away; `None` on shutdown.
///
/// # Errors
/// [`DatabaseError::Rights`], [`DatabaseError::Schema`], and a connection refused for a reason that waiting does not change.
pub async fn connect_until(
    settings: &DatabaseSettings,
    role: Client,
    shutdown: &CancellationToken,
) -> Result<Option<DatabaseConnection>, DatabaseError> {
    let mut pauses = backoff();
    let outage = Outage::of("PostgreSQL");
    loop {
        let Some(connected) = shutdown.run_until_cancelled(connect(settings, role)).await else { return Ok(None) };
        let connected = match connected {
            Ok(db) => match tokio::time::timeout(ANSWER_WITHIN, require(settings, role, &db)).await {
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

/// Before privileges count as missing: `ops migrate up` grants those on new tables just after it made them.
const GRANTED_WITHIN: Duration = Duration::from_secs(2);

/// Checks that the login has its program's privileges, and that every migration was applied.
async fn require(settings: &DatabaseSettings, role: Client, db: &DatabaseConnection) -> Result<(), DatabaseError> {
    let refused = |error| DatabaseError::Connect { at: settings.url.to_string(), error: conn_error(error) };
    let pool = db.get_postgres_connection_pool();
    if lacking(pool, role).await.map_err(refused)?.is_some() {
        tokio::time::sleep(GRANTED_WITHIN).await;
        if let Some(lacking) = lacking(pool, role).await.map_err(refused)? {
            return Err(DatabaseError::Rights { at: settings.url.to_string(), lacking });
        }
    }
    require_schema(settings, db).await
}

/// Checks that every migration was applied.
///
/// # Errors
/// [`DatabaseError::Schema`], which names the command to run.
pub async fn require_schema(settings: &DatabaseSettings, db: &DatabaseConnection) -> Result<(), DatabaseError> {
    let at = || settings.url.to_string();
    match schema::pending(db).await {
        Ok(0) => Ok(()),
        Ok(pending) => Err(DatabaseError::Schema { at: at(), pending }),
        Err(error) => Err(DatabaseError::Connect { at: at(), error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_connected_to_is_what_the_url_names() {
        for (url, host, port, database) in [
            ("postgres://u:p@db.example:6432/shop", "db.example", 6432, "shop"),
            ("postgres://u@10.0.0.1/shop", "10.0.0.1", 5432, "shop"),
            ("postgres://u@[::1]:6432/shop", "::1", 6432, "shop"),
            ("postgres://u@[2001:db8::1]/c%E1%BB%ADa%20h%C3%A0ng", "2001:db8::1", 5432, "cửa hàng"),
            ("postgres://u@[::1]/shop?host=db.example&port=7432&dbname=other", "db.example", 7432, "other"),
        ] {
            let options = target(&SecretUrl::postgresql(url).unwrap()).unwrap();
            assert_eq!((options.get_host(), options.get_port(), options.get_database()), (host, port, Some(database)), "{url}");
            assert_eq!(options.get_username(), "u", "{url}");
        }
        let socket = target(&SecretUrl::postgresql("postgres://u@%2Frun%2Fpostgresql/shop").unwrap()).unwrap();
        assert_eq!(socket.get_socket().unwrap().to_str(), Some("/run/postgresql"));
    }
}

//! Distinguishes outages, conflicts and failures by SQLSTATE, in one place, so that task code uses a plain `?`.

use sea_orm::{DbErr, RuntimeErr, sqlx};

/// The kind of a database error, which decides what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The server is away, starting, read-only or full: wait until it is back. No attempt is spent.
    Away,
    /// A statement reports an outage that the server, when asked, does not confirm ([`super::probe::judge`]): a trigger may raise any
    /// SQLSTATE for one row, and a write into a mirror fails as on a standby.
    Unconfirmed,
    /// The connection broke during the statement: the server or the network is gone, or, if the same statement causes it
    /// again and again while others are answered, the statement breaks its server process.
    Cut,
    /// A conflict with other transactions: the same statement may succeed at once.
    Conflict,
    /// The statement itself fails, and will fail again with the same rows.
    Failure,
}

impl Trouble {
    /// Whether the server, and not a statement, appears to be the cause.
    #[must_use]
    pub const fn is_outage(self) -> bool {
        matches!(self, Self::Away | Self::Cut)
    }
}

/// Classifies an error by its SQLSTATE.
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

/// Whether the object to create exists already.
pub(super) fn is_duplicate(error: &DbErr) -> bool {
    matches!(sqlstate(error).as_deref(), Some("23505" | "42710"))
}

/// Whether the login lacks a privilege, which no retry changes.
#[must_use]
pub fn is_refused(error: &DbErr) -> bool {
    sqlstate(error).as_deref() == Some("42501")
}

/// The code of a PostgreSQL error.
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
        // admin_shutdown, perhaps of this connection alone; timeouts of sessions and transactions, which end it
        "57P01" | "57P05" | "25P03" | "25P04" => Trouble::Cut,
        // 08 connection
        code if code.starts_with("08") => Trouble::Cut,
        // 53 out of disk, memory or connections, 57P shutdown or start
        code if code.starts_with("53") || code.starts_with("57P") => Trouble::Away,
        _ => Trouble::Failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_a_conflict_and_a_failure_are_distinguished() {
        assert_eq!(by_sqlstate("57P01"), Trouble::Cut);
        assert_eq!(by_sqlstate("57P03"), Trouble::Away);
        for cut in ["08006", "25P03"] {
            assert_eq!(by_sqlstate(cut), Trouble::Cut, "{cut}");
        }
        // A file that is not there, and a privilege that is missing: the connection is good.
        for failure in ["58030", "58P01", "42501", "23514"] {
            assert_eq!(by_sqlstate(failure), Trouble::Failure, "{failure}");
        }
        assert_eq!(by_sqlstate("53100"), Trouble::Away);
        assert_eq!(by_sqlstate("25006"), Trouble::Away);
        assert_eq!(by_sqlstate("40P01"), Trouble::Conflict);
        assert_eq!(trouble(&DbErr::Custom("x".into())), Trouble::Failure);
    }
}

//! Tells an outage, a conflict and a failure apart by SQLSTATE, in one place, so that task code uses a plain `?`.

use sea_orm::{DbErr, RuntimeErr, sqlx};

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
pub(super) fn is_duplicate(error: &DbErr) -> bool {
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

//! PostgreSQL: connecting, the schema and its roles, and what the fleet keeps in it.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, FromQueryResult, QueryResult, Statement, TryGetable, Value};

pub mod active_policy;
pub mod attempts;
pub mod canaries;
pub mod clock;
mod confidential;
mod connection;
mod decided;
pub mod entity;
pub mod failure;
pub mod leader;
pub mod pause;
pub mod probe;
pub mod rights;
pub mod roles;
pub mod rungs;
pub mod schema;
pub mod statements;

pub use connection::{Client, DatabaseError, connect, connect_until, refresh, require_schema, unanswered, within};
pub use decided::sql_decided;

/// A statement for PostgreSQL.
pub fn statement(sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    Statement::from_sql_and_values(DbBackend::Postgres, sql, values)
}

/// The database's clock, the only one that decides.
///
/// # Errors
/// A database error.
pub async fn now(db: &impl ConnectionTrait) -> Result<DateTime<Utc>, DbErr> {
    scalar(db, statement("SELECT clock_timestamp()", [])).await
}

/// When the transaction began, by the database's clock: what SQL calls `now()`.
///
/// # Errors
/// The database's.
pub async fn transaction_began(tx: &impl ConnectionTrait) -> Result<DateTime<Utc>, DbErr> {
    scalar(tx, statement("SELECT now()", [])).await
}

/// The row of a statement that always gives one, like an aggregate.
///
/// # Errors
/// The database's; [`DbErr::RecordNotFound`] where there is no row.
pub async fn one_row(db: &impl ConnectionTrait, asked: Statement) -> Result<QueryResult, DbErr> {
    db.query_one_raw(asked).await?.ok_or_else(|| DbErr::RecordNotFound("a statement that always gives a row gave none".into()))
}

/// [`one_row`], read.
///
/// # Errors
/// As [`one_row`]; [`DbErr::Type`] where it reads otherwise.
pub async fn one<T: FromQueryResult>(db: &impl ConnectionTrait, asked: Statement) -> Result<T, DbErr> {
    T::from_query_result(&one_row(db, asked).await?, "")
}

/// The first column of [`one_row`].
///
/// # Errors
/// As [`one`].
pub async fn scalar<T: TryGetable>(db: &impl ConnectionTrait, asked: Statement) -> Result<T, DbErr> {
    one_row(db, asked).await?.try_get_by_index(0)
}

/// The first column of every row.
///
/// # Errors
/// As [`one`], but for rows: there may be none.
pub async fn column<T: TryGetable>(db: &impl ConnectionTrait, asked: Statement) -> Result<Vec<T>, DbErr> {
    db.query_all_raw(asked).await?.iter().map(|row| row.try_get_by_index(0)).collect()
}

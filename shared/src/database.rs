//! PostgreSQL: connecting, the schema and its roles, and what the fleet keeps in it.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement, Value};

pub mod active_policy;
pub mod canaries;
mod connection;
mod decided;
pub mod entity;
pub mod failure;
pub mod pause;
pub mod probe;
pub mod roles;
pub mod rungs;
pub mod schema;
pub mod statements;

pub use connection::{DatabaseError, Role, connect, connect_until, require_schema, unanswered, within};
pub use decided::sql_decided;

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

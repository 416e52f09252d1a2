//! The leader: the worker that runs the duties of the whole fleet. An advisory lock elects it. Because any login of the database
//! could take that lock, the leader also records the end of each round, and only that record shows that its duties run.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr, FromQueryResult};
use serde::Serialize;

use super::{one, statement};

/// The advisory lock of the leader: "kyhan" in ASCII, then 1. Locks are per database, and so is the leader.
pub const LOCK: i64 = 0x6b_7968_616e_0001;

/// SQL, a scalar: for how many seconds no round of a leader has ended; in a database without any, since it was migrated.
pub(super) const SILENT_S: &str = "(SELECT greatest(extract(epoch FROM clock_timestamp() - coalesce((SELECT beat_at FROM leader),
                 (SELECT to_timestamp(max(applied_at)) FROM kyhan_migrations), now())), 0)::float8)";

/// What is known about the leader.
#[derive(Debug, Clone, PartialEq, Serialize, FromQueryResult)]
pub struct Leader {
    /// The worker that ended the last round: host and process. `None`: no round has ended yet.
    pub instance: Option<String>,
    /// Since when it leads.
    pub since: Option<DateTime<Utc>>,
    /// When its last round ended.
    pub beat_at: Option<DateTime<Utc>>,
    /// For how long no round has ended; without any, since the database was migrated.
    pub silent_s: f64,
    /// The login and the server process of the session that holds the lock. `None`: no session does.
    pub holder: Option<String>,
    pub holder_pid: Option<i32>,
}

/// Records the end of a round.
///
/// # Errors
/// A database error.
pub async fn beat(db: &impl ConnectionTrait, instance: &str) -> Result<(), DbErr> {
    let sql = "INSERT INTO leader (instance) VALUES ($1)
               ON CONFLICT (is_the_only_row) DO UPDATE
               SET instance = $1, beat_at = now(), since = CASE leader.instance WHEN $1 THEN leader.since ELSE now() END";
    db.execute_raw(statement(sql, [instance.into()])).await.map(|_| ())
}

/// SQL, a query: the login (`usename`) and the server process (`pid`) that hold the advisory lock `$1` of this database. PostgreSQL
/// shows a lock's 64-bit key as two halves.
pub(super) const HOLDER: &str = "
    SELECT pid, usename::text FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
     WHERE locktype = 'advisory' AND granted AND objsubid = 1
       AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND classid::bigint = $1 >> 32 AND objid::bigint = $1 & 4294967295 LIMIT 1";

/// Reads what is known about the leader.
///
/// # Errors
/// A database error.
pub async fn read(db: &impl ConnectionTrait) -> Result<Leader, DbErr> {
    let sql = format!(
        "SELECT leader.instance, leader.since, leader.beat_at, {SILENT_S} AS silent_s, holder.usename AS holder, holder.pid AS holder_pid
           FROM (SELECT) AS one LEFT JOIN leader ON true LEFT JOIN LATERAL ({HOLDER}) AS holder ON true"
    );
    one(db, statement(&sql, [LOCK.into()])).await
}

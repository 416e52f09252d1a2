//! The schema (schema.md), as migrations in plain SQL. A released migration never changes; a later one corrects it.

use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, TransactionTrait};
use sea_orm_migration::{MigrationName, MigrationTrait, MigratorTrait, SchemaManager, async_trait::async_trait};

use super::{column, scalar, statement};

pub mod triggers;

/// Every migration, in order.
pub struct Migrator;

/// Each migration is a name, an `.up.sql` and a `.down.sql`, in the folder of its part.
macro_rules! migrations {
    ($($part:literal { $($name:literal,)* })*) => {
        /// The names alone, with which every process checks the schema; only `ops` contains the SQL.
        const NAMES: &[&str] = &[$($($name),*),*];

        const MIGRATIONS: &[Sql] = &[$($(Sql {
            name: $name,
            up: include_str!(concat!("schema/", $part, "/", $name, ".up.sql")),
            down: include_str!(concat!("schema/", $part, "/", $name, ".down.sql")),
        }),*),*];
    };
}

migrations! {
    // The reference order system. It needs no other part.
    "order_system" {
        "m0001_orders",
        "m0002_ledger",
        "m0003_confidentiality",
        "m0004_guards",
    }
    // The fleet's own tables. From m0106_retention on they read the order system's.
    "fleet" {
        "m0101_outbox",
        "m0102_activity",
        "m0103_wakeups",
        "m0104_dead_letters",
        "m0105_policies",
        "m0106_retention",
        "m0107_statistics",
    }
    // Triggers on the tables of one part that read or write the tables of the other.
    "links" {
        "m0201_news",
        "m0202_records",
        "m0203_fleet",
        "m0204_approvals",
    }
}

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        MIGRATIONS.iter().map(|migration| Box::new(*migration) as Box<dyn MigrationTrait>).collect()
    }
}

/// The table in which sea-orm records which migrations were applied.
pub(crate) const TABLE: &str = "seaql_migrations";

/// The tables, views and functions that each migration creates, by the migration's name. Those of the optional triggers
/// belong to the last migration.
pub(crate) fn objects() -> impl Iterator<Item = (&'static str, Vec<String>)> {
    let last = MIGRATIONS.last().map_or("", |migration| migration.name);
    let triggers = (last, triggers::INSTALL);
    MIGRATIONS.iter().map(|migration| (migration.name, migration.up)).chain([triggers]).map(|(name, sql)| (name, created(sql)))
}

/// The names in a file's `CREATE TABLE`, `CREATE VIEW` and `CREATE FUNCTION`, each of which begins its line.
fn created(sql: &str) -> Vec<String> {
    let object = |line: &str| {
        let rest = line.strip_prefix("CREATE ")?;
        let rest = rest.strip_prefix("OR REPLACE ").unwrap_or(rest);
        let rest = ["TABLE ", "VIEW ", "FUNCTION "].iter().find_map(|kind| rest.strip_prefix(kind))?;
        rest.split([' ', '(']).next().map(ToOwned::to_owned)
    };
    sql.lines().filter_map(object).collect()
}

/// The advisory lock for migrations: "kyhan" in ASCII, then 2.
const MIGRATING: i64 = 0x6b_7968_616e_0002;

/// Applies what is pending and pins the functions' `search_path`, one process at a time; the others wait and find nothing to
/// do. Returns how many migrations it applied. [`super::roles::grant`] sets what the roles may do with new tables.
///
/// # Errors
/// A database error.
pub async fn up(db: &DatabaseConnection) -> Result<usize, DbErr> {
    let turn = turn(db).await?;
    let pending = Migrator::get_pending_migrations(db).await?.len();
    Migrator::up(db, None).await?;
    pin(db).await?;
    turn.commit().await?;
    Ok(pending)
}

/// Makes every function of ours find its tables in its own schema, whatever the session's `search_path` is.
///
/// # Errors
/// A database error.
pub(crate) async fn pin(db: &impl ConnectionTrait) -> Result<(), DbErr> {
    db.execute_unprepared(include_str!("schema/pin.sql")).await.map(|_| ())
}

/// Whether every migration was applied.
pub(crate) async fn is_complete(db: &impl ConnectionTrait) -> Result<bool, DbErr> {
    Ok(pending(db).await? == 0)
}

/// How many migrations are pending.
pub(crate) async fn pending(db: &impl ConnectionTrait) -> Result<usize, DbErr> {
    let applied = applied(db).await?;
    Ok(NAMES.iter().filter(|name| !applied.iter().any(|applied| applied == *name)).count())
}

/// The names of our migrations that were applied in the current schema. It only reads: the migrator's own query creates its
/// table if it is missing.
pub(crate) async fn applied(db: &impl ConnectionTrait) -> Result<Vec<String>, DbErr> {
    let kept = format!("SELECT to_regclass('{TABLE}') IS NOT NULL");
    if !scalar::<bool>(db, statement(&kept, [])).await? {
        return Ok(Vec::new());
    }
    let names: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
    let sql = format!("SELECT version FROM {TABLE} WHERE version = ANY($1)");
    column(db, statement(&sql, [names.into()])).await
}

/// Reverts the newest `steps` migrations; returns how many it reverted.
///
/// # Errors
/// A database error.
pub async fn down(db: &DatabaseConnection, steps: u32) -> Result<usize, DbErr> {
    let turn = turn(db).await?;
    let applied = Migrator::get_applied_migrations(db).await?.len();
    Migrator::down(db, Some(steps)).await?;
    turn.commit().await?;
    Ok(applied.min(steps as usize))
}

/// Waits for this process's turn, which lasts as long as the transaction.
pub(crate) async fn turn(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    let turn = db.begin().await?;
    // The lock timeout is for rows; another migration may take its time.
    turn.execute_unprepared("SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0").await?;
    turn.execute_raw(statement("SELECT pg_advisory_xact_lock($1)", [MIGRATING.into()])).await?;
    Ok(turn)
}

#[derive(Clone, Copy)]
struct Sql {
    name: &'static str,
    up: &'static str,
    down: &'static str,
}

impl MigrationName for Sql {
    fn name(&self) -> &str {
        self.name
    }
}

#[async_trait]
impl MigrationTrait for Sql {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        db.execute_unprepared(self.up).await?;
        // In the migration's own transaction, so that no function is ever visible unpinned.
        pin(db).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(self.down).await.map(|_| ())
    }
}

//! The tables, as migrations in plain SQL. A released migration never changes; a later one corrects it. The fleet's tables are in
//! a schema of their own (`database.schema`), so that no name of theirs meets one of the order system's.

use std::time::{Duration, Instant};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, DynIden, TransactionTrait, sea_query::IntoIden as _,
};
use sea_orm_migration::{MigrationName, MigrationTrait, MigratorTrait, SchemaManager, async_trait::async_trait};

use super::{column, leader::HOLDER, scalar, statement};
use crate::process::cli::remark;

pub mod triggers;

/// Every migration, in order.
pub struct Migrator;

/// Each migration is a name, an `.up.sql` and a `.down.sql`, in the folder of its part, and its part's schema.
macro_rules! migrations {
    ($($part:literal in $schema:ident { $($name:literal,)* })*) => {
        /// The names alone, with which every process checks the schema; only `ops` contains the SQL.
        const NAMES: &[&str] = &[$($($name),*),*];

        const MIGRATIONS: &[Sql] = &[$($(Sql {
            name: $name,
            schema: Schema::$schema,
            up: include_str!(concat!("schema/", $part, "/", $name, ".up.sql")),
            down: include_str!(concat!("schema/", $part, "/", $name, ".down.sql")),
        }),*),*];
    };
}

migrations! {
    // The reference order system. It needs no other part.
    "order_system" in OrderSystem {
        "m0001_orders",
        "m0002_ledger",
        "m0003_confidentiality",
        "m0004_guards",
    }
    // The fleet's own tables. They need no other part.
    "fleet" in Fleet {
        "m0101_outbox",
        "m0102_activity",
        "m0103_wakeups",
        "m0104_dead_letters",
        "m0105_policies",
    }
    // What the fleet keeps about orders, and triggers on the tables of one part that read or write those of the other.
    "links" in Fleet {
        "m0201_retention",
        "m0202_statistics",
        "m0203_news",
        "m0204_records",
        "m0205_fleet",
        "m0206_approvals",
    }
}

/// Whose schema an object is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Schema {
    /// `database.schema`.
    Fleet,
    /// `database.order_system_schema`.
    OrderSystem,
}

impl Schema {
    pub const ALL: [Self; 2] = [Self::Fleet, Self::OrderSystem];

    /// Its name, without quotes: the settings allow only names that need none. Every session of ours has both in its
    /// `search_path`: [`super::connection`].
    ///
    /// # Errors
    /// A database error.
    pub async fn name(self, db: &impl ConnectionTrait) -> Result<String, DbErr> {
        let sql = "SELECT trim(split_part(current_setting('search_path'), ',', $1)) AS name";
        scalar(db, statement(sql, [(self as i32 + 1).into()])).await
    }
}

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        MIGRATIONS.iter().map(|migration| Box::new(*migration) as Box<dyn MigrationTrait>).collect()
    }

    /// A name of its own: an order system that uses sea-orm has a table of the default name.
    fn migration_table_name() -> DynIden {
        TABLE.into_iden()
    }
}

/// The table, in the fleet's schema, that records which migrations were applied.
pub(crate) const TABLE: &str = "kyhan_migrations";

/// The tables, views and functions that each migration creates in a schema, by the migration's name. Those of the optional
/// triggers belong to the last migration.
pub(crate) fn objects(schema: Schema) -> impl Iterator<Item = (&'static str, Vec<String>)> {
    let triggers = MIGRATIONS.last().map(|last| Sql { up: triggers::INSTALL, ..*last });
    let all = MIGRATIONS.iter().copied().chain(triggers);
    all.filter(move |migration| migration.schema == schema).map(|migration| (migration.name, created(migration.up)))
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

/// Creates the fleet's schema and applies what is pending, one process at a time; the others wait and find nothing to do.
/// Returns how many migrations it applied. [`super::roles::grant`] sets what the roles may do with new tables.
///
/// # Errors
/// A database error.
pub async fn up(db: &DatabaseConnection) -> Result<usize, DbErr> {
    let turn = turn(db).await?;
    let fleet = Schema::Fleet.name(&turn).await?;
    // IF NOT EXISTS requires the right to create schemas even where it does nothing.
    if !scalar::<bool>(&turn, statement("SELECT to_regnamespace($1) IS NOT NULL", [fleet.as_str().into()])).await? {
        db.execute_unprepared(&format!("CREATE SCHEMA {fleet}")).await?;
    }
    let pending = Migrator::get_pending_migrations(db).await?.len();
    Migrator::up(db, None).await?;
    turn.commit().await?;
    Ok(pending)
}

/// Makes every function of ours in the session's first schema find its tables along the session's present `search_path`, whatever
/// that of its callers is.
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

/// The names of our migrations that were applied. It only reads: the migrator's own query creates its table if it is missing.
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

/// After how long a wait for the turn is reported, with the session that is waited for; and the pause between two tries.
const REPORTED_AFTER: Duration = Duration::from_secs(2);
const TRY_EVERY: Duration = Duration::from_millis(100);

/// Waits for this process's turn, which lasts as long as the transaction. Another migration may take its time, but any login may
/// hold the lock, so a long wait names the session that does.
pub(crate) async fn turn(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    let (began, mut reported) = (Instant::now(), false);
    let turn = db.begin().await?;
    // The lock timeout is for rows.
    turn.execute_unprepared("SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0").await?;
    while !scalar::<bool>(&turn, statement("SELECT pg_try_advisory_xact_lock($1)", [MIGRATING.into()])).await? {
        if !reported && began.elapsed() >= REPORTED_AFTER {
            reported = true;
            if let Some(holder) = turn.query_one_raw(statement(HOLDER, [MIGRATING.into()])).await? {
                let (pid, login): (i32, Option<String>) = (holder.try_get("", "pid")?, holder.try_get("", "usename")?);
                remark(&format!(
                    "waiting for another migration: login {}, server process {pid}; `SELECT pg_terminate_backend({pid})` ends it",
                    login.unwrap_or_default()
                ));
            }
        }
        tokio::time::sleep(TRY_EVERY).await;
    }
    Ok(turn)
}

#[derive(Clone, Copy)]
struct Sql {
    name: &'static str,
    schema: Schema,
    up: &'static str,
    down: &'static str,
}

impl Sql {
    /// Runs one of its files with its schema first in the `search_path`. The order system's part does not see the fleet's schema.
    async fn run(&self, manager: &SchemaManager<'_>, sql: &str) -> Result<(), DbErr> {
        let db = manager.get_connection();
        let ours: String = scalar(db, statement("SELECT current_setting('search_path')", [])).await?;
        if self.schema == Schema::OrderSystem {
            let path = format!("SET LOCAL search_path = {}, pg_temp", Schema::OrderSystem.name(db).await?);
            db.execute_unprepared(&path).await?;
        }
        db.execute_unprepared(sql).await?;
        // In the migration's own transaction, so that no function is ever visible unpinned.
        pin(db).await?;
        db.execute_unprepared(&format!("SET LOCAL search_path = {ours}")).await.map(|_| ())
    }
}

impl MigrationName for Sql {
    fn name(&self) -> &str {
        self.name
    }
}

#[async_trait]
impl MigrationTrait for Sql {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        self.run(manager, self.up).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        self.run(manager, self.down).await
    }
}

//! The schema (schema.md), as migrations in plain SQL. A migration that has landed never changes; the next one corrects it.

use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, TransactionTrait};
use sea_orm_migration::{MigrationName, MigrationTrait, MigratorTrait, SchemaManager, async_trait::async_trait};

use crate::{
    database::statement,
    roles::{self, Deletes},
};

/// Every migration, in order.
pub struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        macro_rules! sql {
            ($name:literal) => {
                Box::new(Sql {
                    name: $name,
                    up: include_str!(concat!("migration/", $name, ".up.sql")),
                    down: include_str!(concat!("migration/", $name, ".down.sql")),
                }) as Box<dyn MigrationTrait>
            };
        }
        vec![
            sql!("m0001_order_system"),
            sql!("m0002_ledger"),
            sql!("m0003_kyhan"),
            sql!("m0004_sweep"),
            sql!("m0005_rebuild"),
            sql!("m0006_canaries"),
            sql!("m0007_heap_only"),
            sql!("m0008_dead_letters"),
            sql!("m0009_policies"),
            sql!("m0010_retention"),
            sql!("m0011_confidentiality"),
            sql!("m0012_seals"),
            sql!("m0013_guards"),
        ]
    }
}

/// The advisory lock of whoever migrates: "kyhan" in ASCII, then 2.
const MIGRATING: i64 = 0x6b_7968_616e_0002;

/// Applies what is to go, one process at a time, and grants; the others wait and find nothing to do. How many it applied.
///
/// # Errors
/// The database's.
pub async fn up(db: &DatabaseConnection, deletes: Deletes) -> Result<usize, DbErr> {
    let turn = turn(db).await?;
    let pending = Migrator::get_pending_migrations(db).await?.len();
    Migrator::up(db, None).await?;
    roles::grant(db, deletes).await?;
    turn.commit().await?;
    Ok(pending)
}

/// Whether every migration was applied.
pub(crate) async fn is_complete(db: &impl ConnectionTrait) -> Result<bool, DbErr> {
    Ok(pending(db).await? == 0)
}

/// How many migrations are to go. It only reads: the migrator's own question creates its table where there is none.
pub(crate) async fn pending(db: &impl ConnectionTrait) -> Result<usize, DbErr> {
    let kept = db.query_one_raw(statement("SELECT to_regclass('seaql_migrations') IS NOT NULL AS kept", [])).await?;
    let mut applied = Vec::new();
    if kept.is_some_and(|row| row.try_get("", "kept").unwrap_or(false)) {
        for row in db.query_all_raw(statement("SELECT version FROM seaql_migrations", [])).await? {
            applied.push(row.try_get::<String>("", "version")?);
        }
    }
    Ok(Migrator::migrations().iter().filter(|migration| !applied.iter().any(|name| name == migration.name())).count())
}

/// Takes back the newest `steps` migrations. How many there were to take back.
///
/// # Errors
/// The database's.
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
        manager.get_connection().execute_unprepared(self.up).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(self.down).await.map(|_| ())
    }
}

//! The schema (schema.md), as migrations in plain SQL. A migration that has landed never changes; the next one corrects it.

use sea_orm::{ConnectionTrait, DbErr};
use sea_orm_migration::{MigrationName, MigrationTrait, MigratorTrait, SchemaManager, async_trait::async_trait};

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
        vec![sql!("m0001_order_system"), sql!("m0002_ledger"), sql!("m0003_kyhan"), sql!("m0004_sweep"), sql!("m0005_rebuild")]
    }
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

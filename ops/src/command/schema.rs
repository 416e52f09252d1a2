//! `ops migrate` and `ops triggers`: the database's schema, and its optional outbox triggers.

use anyhow::Context;
use clap::Subcommand;
use sea_orm_migration::{MigrationStatus, MigratorTrait};
use shared::{
    cli::say,
    database::{self, Role},
    migration::{self, Migrator},
    settings::Settings,
    triggers,
};

use super::{table, with_schema};

#[derive(Subcommand)]
pub enum Migrate {
    /// Apply every migration that is to go
    Up,
    /// Take migrations back, newest first; their tables' data is gone
    Down {
        /// How many
        #[arg(long, default_value_t = 1)]
        steps: u32,
    },
    /// Show which migrations were applied
    Status,
}

#[derive(Subcommand)]
pub enum Triggers {
    /// Install them; again is no harm
    Install,
    /// Remove them; again is no harm
    Remove,
}

pub async fn migrate(command: Migrate, settings: &Settings) -> anyhow::Result<()> {
    let db = database::connect(&settings.database, Role::Ops).await?;
    match command {
        Migrate::Up => {
            let applied = migration::up(&db).await.context("migrating up")?;
            say(&format!("{applied} migrations applied; the schema is up to date"));
        }
        Migrate::Down { steps } => {
            let taken_back = migration::down(&db, steps).await.context("migrating down")?;
            say(&format!("{taken_back} migrations taken back"));
        }
        Migrate::Status => {
            let mut table = table(["migration", "state"]);
            for migration in Migrator::get_migration_with_status(&db).await? {
                let state = match migration.status() {
                    MigrationStatus::Applied => "applied",
                    MigrationStatus::Pending => "to go",
                };
                table.add_row([migration.name(), state]);
            }
            say(&table.to_string());
        }
    }
    Ok(())
}

pub async fn triggers(command: Triggers, settings: &Settings) -> anyhow::Result<()> {
    let db = with_schema(settings).await?;
    match command {
        Triggers::Install => {
            triggers::install(&db).await?;
            say("changes of orders and cart_items, and refunds, are events now");
        }
        Triggers::Remove => {
            triggers::remove(&db).await?;
            say("the triggers are removed; events come from the order system itself");
        }
    }
    Ok(())
}

//! `ops migrate` and `ops triggers`: the schema of the database, and its optional outbox triggers.

use anyhow::Context;
use clap::Subcommand;
use ops::actor::{Operator, id_of};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, TransactionTrait};
use sea_orm_migration::{MigrationStatus, MigratorTrait};
use serde_json::{Value, json};
use shared::{
    database::{
        self,
        active_policy::{self, Applied},
        roles::{self, Deletes},
        schema::{self, Migrator, triggers},
        statement,
    },
    settings::Settings,
};

use super::{answer, options::Json, table};

#[derive(Subcommand)]
pub enum MigrateCommand {
    /// Apply every pending migration. Idempotent
    Up(Json),
    /// Take migrations back, newest first; this deletes the data of their tables
    Down {
        /// How many migrations to take back
        #[arg(long, default_value_t = 1)]
        steps: u32,
        #[command(flatten)]
        json: Json,
    },
    /// List migrations, applied and pending
    Status(Json),
}

#[derive(Subcommand)]
pub enum TriggersCommand {
    /// Install the triggers. Idempotent
    Install(Json),
    /// Remove the triggers. Idempotent
    Remove(Json),
}

pub async fn migrate(command: MigrateCommand, settings: &Settings, actor: &Operator) -> anyhow::Result<()> {
    let db = roles::connect_as_owner(&settings.database).await?;
    match command {
        MigrateCommand::Up(Json { json }) => {
            let applied = schema::up(&db).await.context("migrating up")?;
            let tx = db.begin().await?;
            if applied > 0 {
                record(&tx, actor, "schema.migrated", json!({ "applied": applied })).await?;
                if let Some(Applied { number, why, .. }) = active_policy::propose(&tx, settings, actor.name()).await? {
                    actor
                        .record(&tx, "policy.applied", ("policy", id_of("policy")), Some(&why), json!({ "number": number }))
                        .await?;
                }
            }
            tx.commit().await?;
            let active = active_policy::read(&db).await?;
            let deletes = Deletes(active_policy::under(settings, active.as_ref()).retention.deletes());
            roles::grant(&db, deletes).await.context("granting")?;
            answer(json, &json!({ "applied": applied }), &format!("{applied} migrations applied; the schema is up to date"))
        }
        MigrateCommand::Down { steps, json: Json { json } } => {
            let taken_back = schema::down(&db, steps).await.context("migrating down")?;
            // Unless the table `activity` itself was taken back.
            if taken_back > 0 && has_record(&db).await? {
                record(&db, actor, "schema.taken_back", json!({ "taken_back": taken_back })).await?;
            }
            answer(json, &json!({ "taken_back": taken_back }), &format!("{taken_back} migrations taken back"))
        }
        MigrateCommand::Status(Json { json }) => {
            let (mut table, mut document) = (table(["migration", "state"]), Vec::new());
            for migration in Migrator::get_migration_with_status(&db).await? {
                let state = match migration.status() {
                    MigrationStatus::Applied => "applied",
                    MigrationStatus::Pending => "to go",
                };
                table.add_row([migration.name(), state]);
                document
                    .push(json!({ "migration": migration.name(), "applied": migration.status() == MigrationStatus::Applied }));
            }
            answer(json, &document.into(), &table.to_string())
        }
    }
}

pub async fn triggers(command: TriggersCommand, settings: &Settings, actor: &Operator) -> anyhow::Result<()> {
    let db = roles::connect_as_owner(&settings.database).await?;
    database::require_schema(&settings.database, &db).await?;
    let tx = db.begin().await?;
    match command {
        TriggersCommand::Install(Json { json }) => {
            triggers::install(&tx).await?;
            record(&tx, actor, "triggers.installed", json!({ "installed": true })).await?;
            tx.commit().await?;
            answer(
                json,
                &json!({ "installed": true }),
                "the triggers are installed; changes of orders and cart_items, and refunds, now become events",
            )
        }
        TriggersCommand::Remove(Json { json }) => {
            triggers::remove(&tx).await?;
            record(&tx, actor, "triggers.removed", json!({ "installed": false })).await?;
            tx.commit().await?;
            answer(json, &json!({ "installed": false }), "the triggers are removed; the order system must now write the events")
        }
    }
}

async fn record(db: &impl ConnectionTrait, actor: &Operator, action: &str, changed: Value) -> Result<(), DbErr> {
    actor.record(db, action, ("schema", id_of("schema")), None, changed).await
}

async fn has_record(db: &DatabaseConnection) -> Result<bool, DbErr> {
    database::scalar(db, statement("SELECT to_regclass('activity') IS NOT NULL", [])).await
}

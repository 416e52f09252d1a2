//! The commands of `ops`, one file each, and what they share.

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use sea_orm::DatabaseConnection;
use serde_json::Value;
use shared::{
    database::{
        self, Role,
        active_policy::{self, Governed},
    },
    domain::{
        task::{Shown, Task},
        tasks,
    },
    process::cli::say,
    settings::Settings,
};

pub mod activity;
pub mod audit;
pub mod completions;
pub mod confirm;
pub mod customer;
pub mod dead;
pub mod explain;
pub mod forecast;
pub mod options;
pub mod pause;
pub mod policy;
pub mod progress;
pub mod rebuild;
pub mod retention;
pub mod roles;
pub mod schema;
pub mod set_aside;
pub mod status;
pub mod topology;

/// Arguments that cannot hold, found out only when the command ran: exit code 2, as for those that clap refuses.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongUse(pub String);

/// A kind of the list of tasks.
fn kind(name: &str) -> Result<&'static str, String> {
    task(name).map(Task::kind)
}

/// The database, whatever its policy is.
async fn with_schema(settings: &Settings) -> anyhow::Result<DatabaseConnection> {
    let db = database::connect(&settings.database, Role::Ops).await?;
    database::require_schema(&settings.database, &db).await?;
    Ok(db)
}

/// The database, and the settings with the policy that is in force in it.
async fn governed(settings: &Settings) -> anyhow::Result<Governed> {
    let db = database::connect(&settings.database, Role::Ops).await?;
    Ok(active_policy::of(db, settings).await?)
}

/// What a command came to, for machines or for people.
fn answer(json: bool, document: &Value, text: &str) -> anyhow::Result<()> {
    say(&if json { serde_json::to_string_pretty(document)? } else { text.to_owned() });
    Ok(())
}

/// A kind of the list of tasks, from an argument.
fn task(kind: &str) -> Result<&'static dyn Shown, String> {
    tasks::find(kind).ok_or_else(|| format!("known are {}", tasks::kinds().collect::<Vec<_>>().join(", ")))
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    // What is copied from a table must not be broken over lines, however narrow the terminal.
    for (column, name) in table.column_iter_mut().zip(header) {
        if ["id", "subject", "group", "example", "queue", "arguments"].contains(&name) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table
}

//! The commands of `ops`, one file each, and the functions that they share.

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use sea_orm::DatabaseConnection;
use serde_json::Value;
use shared::{
    database::{
        self, Client,
        active_policy::{self, Governed},
    },
    domain::{
        task::{Shown, Task},
        tasks,
    },
    process::cli::{remark, say},
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
pub mod rebuild;
pub mod retention;
pub mod roles;
pub mod schema;
pub mod set_aside;
pub mod status;
pub mod topology;

/// An error in the arguments that only the command itself can find. Exit code 2, as for the errors that clap finds.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// A kind of the list of tasks, from an argument.
fn kind(name: &str) -> Result<&'static str, String> {
    task(name).map(Task::kind)
}

/// The database, with its schema checked. For commands that need no policy.
async fn with_schema(settings: &Settings) -> anyhow::Result<DatabaseConnection> {
    let db = database::connect(&settings.database, Client::Ops).await?;
    database::require_schema(&settings.database, &db).await?;
    Ok(db)
}

/// The database, and the settings with its active policy. Prints a line where there is none.
async fn governed(settings: &Settings) -> anyhow::Result<Governed> {
    let db = database::connect(&settings.database, Client::Ops).await?;
    let governed = active_policy::of(db, settings).await?;
    if governed.settings.policy.number().is_none() {
        remark(&format!("ops: {}", active_policy::NONE));
    }
    Ok(governed)
}

/// Prints a command's result, as JSON or as text.
fn answer(json: bool, document: &Value, text: &str) -> anyhow::Result<()> {
    say(&if json { serde_json::to_string_pretty(document)? } else { text.to_owned() });
    Ok(())
}

/// A task of the list of tasks, from an argument.
fn task(kind: &str) -> Result<&'static dyn Shown, String> {
    tasks::find(kind).ok_or_else(|| format!("must be one of {}", tasks::kinds().collect::<Vec<_>>().join(", ")))
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    // Cells that people copy must not wrap, even in a narrow terminal.
    for (column, name) in table.column_iter_mut().zip(header) {
        if ["id", "subject", "group", "example", "queue", "arguments"].contains(&name) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table
}

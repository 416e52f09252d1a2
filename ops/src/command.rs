//! The commands of `ops`, one file each, and what they share.

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use sea_orm::DatabaseConnection;
use shared::{
    database::{self, Role},
    settings::Settings,
};

pub mod audit;
pub mod completions;
pub mod dead;
pub mod explain;
pub mod forecast;
pub mod policy;
pub mod rebuild;
pub mod schema;
pub mod set_aside;
pub mod status;
pub mod topology;

async fn with_schema(settings: &Settings) -> anyhow::Result<DatabaseConnection> {
    let db = database::connect(&settings.database, Role::Ops).await?;
    database::require_schema(&settings.database, &db).await?;
    Ok(db)
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    // What is copied from a table must not be broken over lines, however narrow the terminal.
    for (column, name) in table.column_iter_mut().zip(header) {
        if ["id", "subject", "queue", "arguments"].contains(&name) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table
}

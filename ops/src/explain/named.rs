//! Finds every row of the tasks' tables that has a name as its code or its id. If two rows match, it returns both.

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr};
use shared::{
    database::{column, statement},
    domain::tasks,
};
use uuid::Uuid;

/// A row by its table, or an id that no row has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedRow {
    pub table: Option<&'static str>,
    pub id: Uuid,
    pub code: Option<String>,
}

/// Finds rows, by code first and then by id. An id without a row is returned too, because there may be records of it.
pub(super) async fn find(snapshot: &DatabaseTransaction, name: &str) -> Result<Vec<NamedRow>, DbErr> {
    let tables = tables();
    let mut found: Vec<NamedRow> = Vec::new();
    for (table, code) in tables.iter().filter_map(|(table, known_by)| Some((*table, (*known_by)?))) {
        let sql = format!("SELECT id FROM {table} WHERE {code} = $1");
        let ids: Vec<Uuid> = column(snapshot, statement(&sql, [name.into()])).await?;
        found.extend(ids.into_iter().map(|id| NamedRow { table: Some(table), id, code: Some(name.to_owned()) }));
    }
    let Ok(id) = Uuid::parse_str(name.trim()) else { return Ok(found) };
    let mut is_row = false;
    for (table, known_by) in tables {
        let sql = format!("SELECT {}::text FROM {table} WHERE id = $1", known_by.unwrap_or("NULL"));
        if let Some(row) = snapshot.query_one_raw(statement(&sql, [id.into()])).await? {
            is_row = true;
            let named = NamedRow { table: Some(table), id, code: row.try_get_by_index(0)? };
            if !found.contains(&named) {
                found.push(named);
            }
        }
    }
    if !is_row {
        found.push(NamedRow { table: None, id, code: None });
    }
    Ok(found)
}

/// Each table once, with the column of its code, if it has one.
fn tables() -> Vec<(&'static str, Option<&'static str>)> {
    let mut tables: Vec<(&'static str, Option<&'static str>)> = Vec::new();
    for task in tasks::ALL {
        match tables.iter_mut().find(|(table, _)| *table == task.table()) {
            Some((_, known_by)) => *known_by = known_by.or(task.known_by()),
            None => tables.push((task.table(), task.known_by())),
        }
    }
    tables
}

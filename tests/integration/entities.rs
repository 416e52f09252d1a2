//! The entities match the migrated schema: every column, its type, and whether it is nullable. Nothing is missing on either side.

use std::{collections::BTreeSet, fs, path::Path};

use sea_orm::{
    FromQueryResult,
    sea_query::{ColumnType, TableCreateStatement, TableRef},
};
use shared::database::{entity, statement};

use crate::harness::{QUICK, with_harness};

/// A column: its name, its type as in `information_schema`, and whether it is nullable.
type TableColumn = (String, String, bool);

#[tokio::test(flavor = "multi_thread")]
async fn every_entity_has_exactly_the_columns_of_its_table() {
    #[derive(FromQueryResult)]
    struct FoundColumn {
        column_name: String,
        data_type: String,
        nullable: bool,
    }
    with_harness(QUICK, async |harness| {
        for table in entity::tables() {
            let name = name(&table);
            let sql = "SELECT column_name::text, data_type::text, is_nullable = 'YES' AS nullable FROM information_schema.columns
                        WHERE table_schema IN ('kyhan', 'public') AND table_name = $1";
            let found = FoundColumn::find_by_statement(statement(sql, [name.clone().into()])).all(&harness.sandbox.db).await;
            let found = found.expect("the columns").into_iter();
            let migrated: BTreeSet<TableColumn> =
                found.map(|found| (found.column_name, found.data_type, found.nullable)).collect();
            assert_eq!(columns(&table), migrated, "{name}");
        }
    })
    .await;
}

#[test]
fn every_file_of_an_entity_is_compared() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/src/database/entity");
    let files = fs::read_dir(folder).expect("the entities").map(|file| file.expect("a file").path());
    let files: BTreeSet<String> = files.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    assert_eq!(
        files,
        entity::tables().iter().map(name).collect(),
        "entity::tables() lists every file, each named after its table"
    );
}

fn name(table: &TableCreateStatement) -> String {
    match table.get_table_name() {
        Some(TableRef::Table(name, _)) => name.1.to_string(),
        other => panic!("not a table: {other:?}"),
    }
}

fn columns(table: &TableCreateStatement) -> BTreeSet<TableColumn> {
    let column = |column: &sea_orm::sea_query::ColumnDef| {
        let kind = match column.get_column_type() {
            Some(ColumnType::Uuid) => "uuid",
            Some(ColumnType::Text) => "text",
            Some(ColumnType::Integer) => "integer",
            Some(ColumnType::BigInteger) => "bigint",
            Some(ColumnType::Boolean) => "boolean",
            Some(ColumnType::TimestampWithTimeZone) => "timestamp with time zone",
            Some(ColumnType::JsonBinary) => "jsonb",
            Some(ColumnType::VarBinary(_) | ColumnType::Blob) => "bytea",
            other => panic!("{}: no type of this schema: {other:?}", column.get_column_name()),
        };
        (column.get_column_name(), kind.to_owned(), column.get_column_spec().nullable.unwrap_or(true))
    };
    table.get_columns().iter().map(column).collect()
}

//! Transfers exactly what this system's migrations made to `kyhan_owner`. Another program's objects stay untouched: if one is
//! in the way, nothing is changed and the error names it.

use sea_orm::{ConnectionTrait, DbErr, FromQueryResult};

use super::OWNER;
use crate::database::{scalar, schema, statement};

/// Why a schema cannot be taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    #[error("no schema in the login's search_path exists")]
    NoSchema,
    #[error(
        "schema {schema} contains objects with Kỳ Hạn's names that its migrations did not make: {}; nothing was changed. \
         Use another database, or rename them", .objects.join(", ")
    )]
    Objects { schema: String, objects: Vec<String> },
    #[error(
        "PUBLIC may create objects in schema {0}, and it contains objects of other programs; nothing was changed. \
         If no other program needs that privilege, run: REVOKE CREATE ON SCHEMA {0} FROM PUBLIC"
    )]
    OpenSchema(String),
}

/// A schema as the migrations left it.
pub(super) struct Schema {
    name: String,
    /// What `ALTER … OWNER TO` takes: a keyword and a qualified name.
    ours: Vec<(&'static str, String)>,
    /// Whether PUBLIC may create objects in it.
    open: bool,
}

/// The schema in which unqualified names are created.
#[derive(FromQueryResult)]
struct Current {
    name: String,
    open: bool,
}

/// An object of the schema.
#[derive(FromQueryResult)]
struct SchemaObject {
    kind: String,
    name: String,
    owner: String,
    /// Whether it is the owner's already.
    owned: bool,
    /// Whether our migrations made it.
    made: bool,
    ours_by_name: bool,
}

impl Schema {
    /// Reads which objects of the current schema the migrations made.
    ///
    /// # Errors
    /// [`Foreign`], as [`DbErr::Custom`]; a database error.
    pub async fn read(db: &impl ConnectionTrait) -> Result<Self, DbErr> {
        let sql = "SELECT quote_ident(nspname) AS name,
                          EXISTS (SELECT FROM aclexplode(coalesce(nspacl, acldefault('n', nspowner))) AS acl
                                   WHERE acl.grantee = 0 AND acl.privilege_type = 'CREATE') AS open
                     FROM pg_namespace WHERE nspname = current_schema()";
        let current = Current::find_by_statement(statement(sql, [])).one(db).await?;
        let Some(Current { name, open }) = current else { return Err(custom(&Foreign::NoSchema)) };
        let mut schema = Self { name, ours: Vec::new(), open };

        let (mut made, mut others) = (vec![schema::TABLE.to_owned()], Vec::new());
        let applied = schema::applied(db).await?;
        for (migration, objects) in schema::objects() {
            let list = if applied.iter().any(|name| name == migration) { &mut made } else { &mut others };
            list.extend(objects);
        }
        if applied.is_empty() {
            // A migration table of this name may be another program's.
            made.clear();
        }
        let sql = format!(
            "WITH maker AS (SELECT relowner AS role FROM pg_class
                             WHERE relname = '{}' AND relnamespace = current_schema()::regnamespace),
                  found AS (
                      SELECT 'TABLE' AS kind, oid::regclass::text AS name, relname::text AS plain, relowner AS owner FROM pg_class
                       WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')
                       UNION ALL
                      SELECT 'FUNCTION', oid::regprocedure::text, proname::text, proowner FROM pg_proc
                       WHERE pronamespace = current_schema()::regnamespace)
             SELECT kind, name, pg_get_userbyid(owner)::text AS owner, pg_get_userbyid(owner) = '{OWNER}' AS owned,
                    plain = ANY($1) AND (pg_get_userbyid(owner) = '{OWNER}'
                                         OR coalesce(pg_has_role(owner, (SELECT role FROM maker), 'USAGE'), false)) AS made,
                    plain = ANY($1) OR plain = ANY($2) OR kind = 'FUNCTION' AND plain LIKE 'kyhan\\_%' AS ours_by_name
               FROM found ORDER BY kind DESC, name",
            schema::TABLE
        );
        let mut objects = Vec::new();
        for found in SchemaObject::find_by_statement(statement(&sql, [made.into(), others.into()])).all(db).await? {
            if found.made {
                if !found.owned {
                    schema.ours.push((if found.kind == "TABLE" { "TABLE" } else { "FUNCTION" }, found.name));
                }
            } else if found.ours_by_name {
                objects.push(format!("{} (of {})", found.name, found.owner));
            }
        }
        if !objects.is_empty() {
            return Err(custom(&Foreign::Objects { schema: schema.name, objects }));
        }
        if schema.open && shared_with_others(db).await? {
            return Err(custom(&Foreign::OpenSchema(schema.name)));
        }
        Ok(schema)
    }

    /// Transfers them to the owner, and lets the roles use the schema.
    ///
    /// # Errors
    /// A database error.
    pub async fn give(&self, db: &impl ConnectionTrait) -> Result<(), DbErr> {
        let Self { name, ours, open } = self;
        let mut statements = vec![
            format!("GRANT USAGE, CREATE ON SCHEMA {name} TO {OWNER}"),
            format!("GRANT USAGE ON SCHEMA {name} TO kyhan_producer, kyhan_worker, kyhan_ops, kyhan_order_system"),
        ];
        if *open {
            // The default since PostgreSQL 15: a role that may create a table here could make it hide ours.
            statements.push(format!("REVOKE CREATE ON SCHEMA {name} FROM PUBLIC"));
        }
        statements.extend(ours.iter().map(|(kind, name)| format!("ALTER {kind} {name} OWNER TO {OWNER}")));
        db.execute_unprepared(&statements.join(";\n")).await.map(|_| ())
    }
}

/// Whether the current schema contains tables or views that are neither ours nor an extension's.
async fn shared_with_others(db: &impl ConnectionTrait) -> Result<bool, DbErr> {
    let ours: Vec<String> = schema::objects().flat_map(|(_, objects)| objects).chain([schema::TABLE.to_owned()]).collect();
    let sql = "SELECT EXISTS (SELECT FROM pg_class
                               WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')
                                 AND NOT relname = ANY($1)
                                 AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype = 'e')) AS others";
    scalar(db, statement(sql, [ours.into()])).await
}

fn custom(foreign: &Foreign) -> DbErr {
    DbErr::Custom(foreign.to_string())
}

//! Transfers exactly what this system's migrations made to `kyhan_owner`. Another program's objects stay untouched: if one is
//! in the way, nothing is changed and the error names it.

use sea_orm::{ConnectionTrait, DbErr, FromQueryResult};

use super::OWNER;
use crate::database::{
    scalar,
    schema::{self, Schema},
    statement,
};

/// Why a schema cannot be taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    #[error(
        "schema {0} does not exist: set database.order_system_schema to the schema of the order system's tables, or create it"
    )]
    NoSchema(String),
    #[error(
        "schema {schema} contains objects with Kỳ Hạn's names that its migrations did not make: {}; nothing was changed. \
         Use another schema or database, or rename them", .objects.join(", ")
    )]
    Objects { schema: String, objects: Vec<String> },
    #[error(
        "PUBLIC may create objects in schema {0}, and it contains objects of other programs; nothing was changed. \
         If no other program needs that privilege, run: REVOKE CREATE ON SCHEMA {0} FROM PUBLIC"
    )]
    OpenSchema(String),
}

/// Both schemas as the migrations left them.
pub(super) struct Made(Vec<Part>);

/// A schema.
struct Part {
    name: String,
    exists: bool,
    /// What `ALTER … OWNER TO` takes: a keyword and a qualified name.
    ours: Vec<(&'static str, String)>,
    /// Whether PUBLIC may create objects in it.
    open: bool,
}

/// An object of a schema.
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

impl Made {
    /// Reads which objects of the two schemas the migrations made.
    ///
    /// # Errors
    /// [`Foreign`], as [`DbErr::Custom`]; a database error.
    pub async fn read(db: &impl ConnectionTrait) -> Result<Self, DbErr> {
        let mut parts = Vec::new();
        for schema in Schema::ALL {
            parts.push(Part::read(db, schema).await?);
        }
        Ok(Self(parts))
    }

    /// Transfers them to the owner, and lets the roles use the schemas. Creates the fleet's if it is missing.
    ///
    /// # Errors
    /// A database error.
    pub async fn give(&self, db: &impl ConnectionTrait) -> Result<(), DbErr> {
        for Part { name, exists, ours, open } in &self.0 {
            let mut statements = Vec::new();
            if !exists {
                statements.push(format!("CREATE SCHEMA {name} AUTHORIZATION {OWNER}"));
            }
            statements.push(format!("GRANT USAGE, CREATE ON SCHEMA {name} TO {OWNER}"));
            statements
                .push(format!("GRANT USAGE ON SCHEMA {name} TO kyhan_producer, kyhan_worker, kyhan_ops, kyhan_order_system"));
            if *open {
                // The default of `public` before PostgreSQL 15: a role that may create a table here could make it hide ours.
                statements.push(format!("REVOKE CREATE ON SCHEMA {name} FROM PUBLIC"));
            }
            statements.extend(ours.iter().map(|(kind, name)| format!("ALTER {kind} {name} OWNER TO {OWNER}")));
            db.execute_unprepared(&statements.join(";\n")).await?;
        }
        Ok(())
    }
}

impl Part {
    async fn read(db: &impl ConnectionTrait, schema: Schema) -> Result<Self, DbErr> {
        let name = schema.name(db).await?;
        let sql = "SELECT EXISTS (SELECT FROM aclexplode(coalesce(nspacl, acldefault('n', nspowner))) AS acl
                                   WHERE acl.grantee = 0 AND acl.privilege_type = 'CREATE') AS open
                     FROM pg_namespace WHERE nspname = $1";
        let Some(row) = db.query_one_raw(statement(sql, [name.as_str().into()])).await? else {
            return match schema {
                Schema::Fleet => Ok(Self { name, exists: false, ours: Vec::new(), open: false }),
                Schema::OrderSystem => Err(custom(&Foreign::NoSchema(name))),
            };
        };
        let mut part = Self { name, exists: true, ours: Vec::new(), open: row.try_get_by_index(0)? };

        let (mut made, mut others) = (Vec::new(), Vec::new());
        if schema == Schema::Fleet {
            made.push(schema::TABLE.to_owned());
        }
        let applied = schema::applied(db).await?;
        for (migration, objects) in schema::objects(schema) {
            let list = if applied.iter().any(|name| name == migration) { &mut made } else { &mut others };
            list.extend(objects);
        }
        if applied.is_empty() {
            // A migration table of this name may be another program's.
            made.clear();
        }
        let sql = format!(
            "WITH maker AS (SELECT relowner AS role FROM pg_class WHERE oid = to_regclass('{}')),
                  found AS (
                      SELECT 'TABLE' AS kind, oid::regclass::text AS name, relname::text AS plain, relowner AS owner FROM pg_class
                       WHERE relnamespace = to_regnamespace($3) AND relkind IN ('r', 'p', 'v', 'm', 'f')
                       UNION ALL
                      SELECT 'FUNCTION', oid::regprocedure::text, proname::text, proowner FROM pg_proc
                       WHERE pronamespace = to_regnamespace($3))
             SELECT kind, name, pg_get_userbyid(owner)::text AS owner, pg_get_userbyid(owner) = '{OWNER}' AS owned,
                    plain = ANY($1) AND (pg_get_userbyid(owner) = '{OWNER}'
                                         OR coalesce(pg_has_role(owner, (SELECT role FROM maker), 'USAGE'), false)) AS made,
                    plain = ANY($1) OR plain = ANY($2) OR kind = 'FUNCTION' AND plain LIKE 'kyhan\\_%' AS ours_by_name
               FROM found ORDER BY kind DESC, name",
            schema::TABLE
        );
        let mut objects = Vec::new();
        let asked = statement(&sql, [made.into(), others.into(), part.name.as_str().into()]);
        for found in SchemaObject::find_by_statement(asked).all(db).await? {
            if found.made {
                if !found.owned {
                    part.ours.push((if found.kind == "TABLE" { "TABLE" } else { "FUNCTION" }, found.name));
                }
            } else if found.ours_by_name && !found.owned {
                objects.push(format!("{} (of {})", found.name, found.owner));
            }
        }
        if !objects.is_empty() {
            return Err(custom(&Foreign::Objects { schema: part.name, objects }));
        }
        if part.open && shared_with_others(db, schema, &part.name).await? {
            return Err(custom(&Foreign::OpenSchema(part.name)));
        }
        Ok(part)
    }
}

/// Whether a schema contains tables or views that are neither ours nor an extension's.
async fn shared_with_others(db: &impl ConnectionTrait, schema: Schema, name: &str) -> Result<bool, DbErr> {
    let ours: Vec<String> = schema::objects(schema).flat_map(|(_, objects)| objects).chain([schema::TABLE.to_owned()]).collect();
    let sql = "SELECT EXISTS (SELECT FROM pg_class
                               WHERE relnamespace = to_regnamespace($2) AND relkind IN ('r', 'p', 'v', 'm', 'f')
                                 AND NOT relname = ANY($1)
                                 AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype = 'e')) AS others";
    scalar(db, statement(sql, [ours.into(), name.into()])).await
}

fn custom(foreign: &Foreign) -> DbErr {
    DbErr::Custom(foreign.to_string())
}

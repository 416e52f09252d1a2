//! The roles of PostgreSQL under which everything runs: who may log in as which, whose the tables are, and which role may do what with
//! them (`roles/grants.sql`). Least privilege is the server's own refusal; no code of ours stands in for it.

use std::{collections::BTreeMap, fmt};

use postgres_protocol::password::scram_sha_256;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr};

use super::{DatabaseError, Role, connection, failure::is_duplicate, scalar, schema, statement};
use crate::{domain::confidential::Confidential, settings::Database};

mod own;

/// A role. Roles are the whole server's, grants are a database's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Named {
    /// The relay, and the library for Rust callers.
    Producer,
    /// The fleet.
    Worker,
    /// Operators.
    Ops,
    /// The order system, and whoever serves customers by name.
    OrderSystem,
    /// Owns the tables, for migrations alone.
    Owner,
}

impl Named {
    pub const ALL: [Self; 5] = [Self::Producer, Self::Worker, Self::Ops, Self::OrderSystem, Self::Owner];

    /// Its name in PostgreSQL.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Producer => "kyhan_producer",
            Self::Worker => "kyhan_worker",
            Self::Ops => "kyhan_ops",
            Self::OrderSystem => "kyhan_order_system",
            Self::Owner => OWNER,
        }
    }

    /// The environment variable of its password, without which it cannot log in unless it could before; with `_FILE` behind it, that
    /// of a file that holds it.
    #[must_use]
    pub const fn password_variable(self) -> &'static str {
        match self {
            Self::Producer => "KYHAN_ROLES_PRODUCER_PASSWORD",
            Self::Worker => "KYHAN_ROLES_WORKER_PASSWORD",
            Self::Ops => "KYHAN_ROLES_OPS_PASSWORD",
            Self::OrderSystem => "KYHAN_ROLES_ORDER_SYSTEM_PASSWORD",
            Self::Owner => "KYHAN_ROLES_OWNER_PASSWORD",
        }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of [`Named::Owner`].
pub(crate) const OWNER: &str = "kyhan_owner";

/// Passwords of some roles.
pub type Passwords = BTreeMap<Named, Confidential<String>>;

/// Whether workers may delete what is old enough, see `retention.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deletes(pub bool);

/// What [`install`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Roles that were not there before.
    pub created: Vec<Named>,
    /// Roles that got a password, and so may log in.
    pub logins: Vec<Named>,
    /// Whether the schema is there, so that something could be granted. Else `ops migrate up` does it.
    pub granted: bool,
}

/// Creates the roles that are missing, sets passwords, gives what the migrations made to its owner, and grants. Idempotent. It needs a
/// login that may create roles and change the owner of tables: a superuser, as a rule.
///
/// # Errors
/// An object of the schema that has one of our names and is another program's; then nothing is changed. The database's; then
/// everything is rolled back but the roles, which belong to the whole server.
pub async fn install(db: &DatabaseConnection, passwords: &Passwords, deletes: Deletes) -> Result<Installed, DbErr> {
    // Before a role is made, and once more when it is this process's turn.
    own::Schema::read(db).await?;
    let mut installed = Installed::default();
    for role in Named::ALL {
        if create(db, role).await? {
            installed.created.push(role);
        }
        if let Some(password) = passwords.get(&role) {
            // As a verifier: the server's log may hold statements.
            let verifier = scram_sha_256(password.expose().as_bytes());
            db.execute_unprepared(&format!("ALTER ROLE {role} LOGIN PASSWORD '{verifier}'")).await?;
            installed.logins.push(role);
        }
    }
    let turn = schema::turn(db).await?;
    own::Schema::read(&turn).await?.give(&turn).await?;
    installed.granted = schema::is_complete(&turn).await?;
    if installed.granted {
        give(&turn, deletes).await?;
    }
    turn.commit().await?;
    Ok(installed)
}

async fn give(db: &impl ConnectionTrait, Deletes(deletes): Deletes) -> Result<(), DbErr> {
    db.execute_unprepared(GRANTS).await?;
    if deletes {
        db.execute_unprepared(include_str!("roles/deletion.sql")).await?;
    }
    Ok(())
}

const GRANTS: &str = include_str!("roles/grants.sql");

/// Grants anew after the migrations, where the roles own this database's tables. Idempotent.
///
/// # Errors
/// The database's; nothing is changed then.
pub async fn grant(db: &DatabaseConnection, deletes: Deletes) -> Result<(), DbErr> {
    let sql = "SELECT EXISTS (SELECT FROM pg_class JOIN pg_roles ON pg_roles.oid = relowner
                               WHERE pg_class.oid = to_regclass('activity_seals') AND rolname = $1) AS owned";
    let turn = schema::turn(db).await?;
    if scalar(&turn, statement(sql, [OWNER.into()])).await? {
        give(&turn, deletes).await?;
    }
    turn.commit().await
}

/// Creates a role that may do nothing and not log in; whether it was not there before. Somebody else may be creating it right now, in
/// another database. One that may do more than a role of ours is refused.
async fn create(db: &DatabaseConnection, role: Named) -> Result<bool, DbErr> {
    let sql = "SELECT rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication
                      OR (rolname <> $2 AND EXISTS (SELECT FROM pg_auth_members WHERE member = pg_roles.oid)) AS powerful
                 FROM pg_roles WHERE rolname = $1";
    if let Some(row) = db.query_one_raw(statement(sql, [role.name().into(), OWNER.into()])).await? {
        if row.try_get_by_index(0)? {
            let why =
                "is a superuser, may pass over row-level security, make roles or databases, replicate, or is a member of others";
            return Err(DbErr::Custom(format!("the role {role} is there already, and {why}; take that from it first")));
        }
        return Ok(false);
    }
    match db.execute_unprepared(&format!("CREATE ROLE {role}")).await {
        Ok(_) => Ok(true),
        Err(error) if is_duplicate(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Connects as the tables' owner, where the login may be that; else as itself, for a database without roles.
///
/// # Errors
/// [`DatabaseError`].
pub async fn connect_as_owner(settings: &Database) -> Result<DatabaseConnection, DatabaseError> {
    let db = connection::connect(settings, Role::Ops).await?;
    let refused = |error| DatabaseError::Connect { at: settings.url.to_string(), error };
    // Not every role of this name is this database's: it has a right here only once the roles were installed here.
    let sql = "SELECT coalesce((SELECT pg_has_role(oid, 'MEMBER') AND has_schema_privilege(oid, current_schema(), 'CREATE')
                                  FROM pg_roles WHERE rolname = $1), false) AS may";
    if scalar(&db, statement(sql, [OWNER.into()])).await.map_err(refused)? {
        let _ = db.close().await;
        return connection::connect(settings, Role::Owner).await;
    }
    Ok(db)
}

//! The PostgreSQL roles of all programs: which logins exist, which role owns the tables, and what each role may do with them
//! (`roles/grants.sql`). The server itself enforces least privilege; no code of ours stands in for it.

use std::{collections::BTreeMap, fmt};

use postgres_protocol::password::scram_sha_256;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr};

use super::{
    Client, DatabaseError, connection,
    failure::{is_duplicate, is_refused},
    scalar, schema, statement,
};
use crate::{domain::confidential::Confidential, settings::DatabaseSettings};

mod door;
pub mod operators;
mod own;

pub use door::Door;

/// A role. Roles belong to the whole server, grants to a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DatabaseRole {
    /// The relay, and the library for Rust callers.
    Producer,
    /// The fleet.
    Worker,
    /// Operators.
    Ops,
    /// The order system, and staff who serve customers by name.
    OrderSystem,
    /// Owns the tables, for migrations only.
    Owner,
}

impl DatabaseRole {
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

    /// The environment variable of its password; with `_FILE` appended, that of a file that contains it. Without a password,
    /// the role cannot log in unless it could before.
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

impl fmt::Display for DatabaseRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of [`DatabaseRole::Owner`].
pub(crate) const OWNER: &str = "kyhan_owner";

/// Passwords of some roles.
pub type Passwords = BTreeMap<DatabaseRole, Confidential<String>>;

/// Whether workers may delete what is old enough, see `retention.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deletes(pub bool);

/// What [`install`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Roles that did not exist before.
    pub created: Vec<DatabaseRole>,
    /// Roles that received a password, and so may log in.
    pub logins: Vec<DatabaseRole>,
    /// Whether the schema exists, so that privileges on it were granted. Otherwise `ops migrate up` grants them.
    pub granted: bool,
    /// Who may connect to the database.
    pub door: Door,
}

/// Creates missing roles, sets passwords, transfers what the migrations made to its owner, and grants privileges. Idempotent.
/// It needs a login that may create roles and change the owner of tables, usually a superuser.
///
/// # Errors
/// An object in the schema that has one of our names and belongs to another program; then nothing is changed. A database
/// error; then everything is rolled back except the roles, which belong to the whole server.
pub async fn install(db: &DatabaseConnection, passwords: &Passwords, deletes: Deletes) -> Result<Installed, DbErr> {
    // Before a role is created, and once more when it is this process's turn.
    own::Made::read(db).await?;
    let mut installed = Installed::default();
    for role in DatabaseRole::ALL {
        if create(db, role).await? {
            installed.created.push(role);
        }
    }
    become_able_to_own(db).await?;
    for role in DatabaseRole::ALL {
        if let Some(password) = passwords.get(&role) {
            // As a verifier: the server's log may contain statements.
            let verifier = scram_sha_256(password.expose().as_bytes());
            db.execute_unprepared(&format!("ALTER ROLE {role} LOGIN PASSWORD '{verifier}'")).await?;
            installed.logins.push(role);
        }
    }
    let turn = schema::turn(db).await?;
    own::Made::read(&turn).await?.give(&turn).await?;
    installed.door = door::close(&turn).await?;
    installed.granted = schema::is_complete(&turn).await?;
    if installed.granted {
        give(&turn, deletes).await?;
    }
    turn.commit().await?;
    Ok(installed)
}

/// Lets this login act as the owner, without which it can neither transfer nor grant: an administrator of a managed server is no superuser.
/// One who may create roles grants it to themselves.
///
/// # Errors
/// The command that is missing; a database error.
pub async fn become_able_to_own(db: &DatabaseConnection) -> Result<(), DbErr> {
    let sql = format!(
        "SELECT quote_ident(current_user) AS login FROM pg_roles WHERE rolname = '{OWNER}' AND NOT {}",
        may_be_owner("oid")
    );
    let Some(row) = db.query_one_raw(statement(&sql, [])).await? else { return Ok(()) };
    let login: String = row.try_get("", "login")?;
    let grant = format!("GRANT {OWNER} TO {login}");
    db.execute_unprepared(&grant).await.map(|_| ()).map_err(|error| {
        if is_refused(&error) {
            DbErr::Custom(format!(
                "this login may not act as {OWNER}; let a superuser, or the creator of that role, run: {grant}"
            ))
        } else {
            error
        }
    })
}

/// SQL: whether the session may become the owner. Since PostgreSQL 16, a member may lack that.
fn may_be_owner(owner: &str) -> String {
    format!("pg_has_role({owner}, CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END)")
}

/// In a transaction, whose rest then runs as the owner.
async fn give(db: &impl ConnectionTrait, Deletes(deletes): Deletes) -> Result<(), DbErr> {
    db.execute_unprepared(&format!("SET LOCAL ROLE {OWNER}")).await?;
    db.execute_unprepared(GRANTS).await?;
    if deletes {
        db.execute_unprepared(include_str!("roles/deletion.sql")).await?;
    }
    Ok(())
}

pub(super) const GRANTS: &str = include_str!("roles/grants.sql");

/// Grants privileges again after the migrations, if the roles own this database's tables. Idempotent.
///
/// # Errors
/// A database error; nothing is changed then.
pub async fn grant(db: &DatabaseConnection, deletes: Deletes) -> Result<(), DbErr> {
    let sql = "SELECT EXISTS (SELECT FROM pg_class JOIN pg_roles ON pg_roles.oid = relowner
                               WHERE pg_class.oid = to_regclass('activity_seals') AND rolname = $1) AS owned";
    let turn = schema::turn(db).await?;
    if scalar(&turn, statement(sql, [OWNER.into()])).await? {
        give(&turn, deletes).await?;
    }
    turn.commit().await
}

/// Creates a role without privileges that cannot log in; returns whether it did not exist before. Another process may be
/// creating it right now, in another database. A role with more privileges than ours is refused.
async fn create(db: &DatabaseConnection, role: DatabaseRole) -> Result<bool, DbErr> {
    let sql = "SELECT rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication
                      OR (rolname <> $2 AND EXISTS (SELECT FROM pg_auth_members WHERE member = pg_roles.oid)) AS powerful
                 FROM pg_roles WHERE rolname = $1";
    if let Some(row) = db.query_one_raw(statement(sql, [role.name().into(), OWNER.into()])).await? {
        if row.try_get_by_index(0)? {
            let why =
                "is a superuser, may bypass row-level security, create roles or databases, replicate, or is a member of others";
            return Err(DbErr::Custom(format!("the role {role} exists already and {why}; revoke that first")));
        }
        return Ok(false);
    }
    match db.execute_unprepared(&format!("CREATE ROLE {role}")).await {
        Ok(_) => Ok(true),
        Err(error) if is_duplicate(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A name as an SQL identifier.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Connects as the tables' owner, if the login may act as it; else as itself, for a database without roles.
///
/// # Errors
/// [`DatabaseError`].
pub async fn connect_as_owner(settings: &DatabaseSettings) -> Result<DatabaseConnection, DatabaseError> {
    let db = connection::connect(settings, Client::Ops).await?;
    let refused = |error| DatabaseError::Connect { at: settings.url.to_string(), error };
    // A role of this name may be another database's: it has a privilege here only if the roles were installed here.
    let sql = format!(
        "SELECT coalesce((SELECT {} AND has_schema_privilege(pg_roles.oid, pg_namespace.oid, 'CREATE')
                            FROM pg_roles, pg_namespace WHERE rolname = $1 AND nspname = $2), false) AS may",
        may_be_owner("pg_roles.oid")
    );
    if scalar(&db, statement(&sql, [OWNER.into(), settings.schema.as_str().into()])).await.map_err(refused)? {
        let _ = db.close().await;
        return connection::connect(settings, Client::Owner).await;
    }
    Ok(db)
}

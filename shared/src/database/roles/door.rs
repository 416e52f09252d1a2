//! Who may connect to the database. By default every login of the server may, and any session can take an advisory lock, such as
//! the leader's, or fill the disk with temporary tables. The privileges CONNECT and TEMPORARY of PUBLIC are revoked and granted
//! by name: to our roles, and to the roles of other programs that use this database.

use sea_orm::{ConnectionTrait, DbErr};

use super::DatabaseRole;
use crate::database::{column, scalar, statement};

/// Who may connect now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Door {
    /// Whether only roles with a privilege of their own may connect. If not, the login that installed the roles does not own the
    /// database.
    pub closed: bool,
    /// Roles of other programs that use this database, and were granted CONNECT and TEMPORARY instead.
    pub kept: Vec<String>,
    /// Logins that could connect before, use nothing in this database, and cannot connect any more.
    pub shut_out: Vec<String>,
}

/// Roles that use this database: they own an object in it, have a privilege on one, or are connected. Not superusers, whom no
/// privilege restricts, and not ours.
const USERS: &str = "
    SELECT quote_ident(rolname) FROM pg_roles
     WHERE NOT rolsuper AND NOT rolname = ANY ($1) AND rolname NOT LIKE 'pg\\_%'
       AND NOT EXISTS (SELECT FROM unnest($1) AS ours (name) WHERE pg_has_role(pg_roles.oid, ours.name, 'MEMBER'))
       AND (EXISTS (SELECT FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND refobjid = pg_roles.oid
                       AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database()))
            OR EXISTS (SELECT FROM pg_stat_activity WHERE usesysid = pg_roles.oid AND datname = current_database()))
       AND has_database_privilege(pg_roles.oid, current_database(), 'CONNECT')
     ORDER BY rolname";

/// Logins that may connect.
const LOGINS: &str = "SELECT quote_ident(rolname) FROM pg_roles
                       WHERE rolcanlogin AND has_database_privilege(oid, current_database(), 'CONNECT') ORDER BY rolname";

/// Closes the database to roles without a privilege of their own. Idempotent.
///
/// # Errors
/// A database error.
pub(super) async fn close(db: &impl ConnectionTrait) -> Result<Door, DbErr> {
    let name: String = scalar(db, statement("SELECT quote_ident(current_database())", [])).await?;
    let ours: Vec<String> = DatabaseRole::ALL.map(|role| role.name().to_owned()).to_vec();
    let owns = "SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = current_database()";
    if !scalar::<bool>(db, statement(owns, [])).await? {
        return Ok(Door::default());
    }
    let before: Vec<String> = column(db, statement(LOGINS, [])).await?;
    let open = "SELECT EXISTS (SELECT FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba))) AS acl
                                WHERE datname = current_database() AND acl.grantee = 0)";
    let kept = if scalar(db, statement(open, [])).await? {
        column(db, statement(USERS, [ours.clone().into()])).await?
    } else {
        Vec::new()
    };
    // The order system is a program of its own, which may work with temporary tables; ours do not.
    let mut sql = format!(
        "REVOKE ALL ON DATABASE {name} FROM PUBLIC; GRANT CONNECT ON DATABASE {name} TO {}; GRANT TEMPORARY ON DATABASE {name} TO {}",
        ours.join(", "),
        DatabaseRole::OrderSystem
    );
    if !kept.is_empty() {
        sql = format!("{sql}; GRANT CONNECT, TEMPORARY ON DATABASE {name} TO {}", kept.join(", "));
    }
    db.execute_unprepared(&sql).await?;
    let now: Vec<String> = column(db, statement(LOGINS, [])).await?;
    let shut_out = before.into_iter().filter(|login| !now.contains(login)).collect();
    Ok(Door { closed: true, kept, shut_out })
}

//! Checks that a login holds every privilege that its program needs, so that a missing one is reported by name, with the
//! command that grants it. What a program needs is what `roles/grants.sql` gives to its role.

use std::fmt;

use sea_orm::sqlx::{self, PgExecutor};

use super::{
    connection::Client,
    roles::{DatabaseRole, GRANTS},
};

/// Most privileges that a message lists.
const LISTED_MAX: usize = 8;

/// The privileges that a login lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the login {login} lacks {}; run as an administrator: {mend}", Listed(.privileges))]
pub struct Lacking {
    pub login: String,
    /// Like `SELECT on policies`; never empty.
    pub privileges: Vec<String>,
    /// The command that grants them.
    pub mend: String,
}

struct Listed<'a>(&'a [String]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = self.0.len().min(LISTED_MAX);
        f.write_str(&self.0[..listed].join(", "))?;
        match self.0.len() - listed {
            0 => Ok(()),
            more => write!(f, " and {more} more privileges"),
        }
    }
}

/// A privilege on a table or view, on one column of it (else empty), or on a function.
#[derive(Debug, PartialEq, Eq)]
struct Need {
    privilege: String,
    column: String,
    object: String,
}

/// The privileges that the login of this connection lacks for a program; `None`: it holds all. Objects that do not exist are
/// skipped: the check of the migrations reports them.
///
/// # Errors
/// A database error.
pub async fn lacking(db: impl PgExecutor<'_>, client: Client) -> Result<Option<Lacking>, sqlx::Error> {
    let Some(role) = role(client) else { return Ok(None) };
    let (mut privileges, mut columns, mut objects) = (Vec::new(), Vec::new(), Vec::new());
    for Need { privilege, column, object } in needs(role) {
        privileges.push(privilege);
        columns.push(column);
        objects.push(object);
    }
    let asked = sqlx::query_as::<_, (String, Option<bool>, Vec<String>)>(SQL);
    let asked = asked.bind(privileges).bind(columns).bind(objects).bind(role.name());
    let (login, member, privileges) = asked.fetch_one(db).await?;
    if privileges.is_empty() {
        return Ok(None);
    }
    let mend = match member {
        Some(true) => "`ops roles install`".to_owned(),
        Some(false) => format!("GRANT {role} TO {login}"),
        None => format!("`ops roles install`, then GRANT {role} TO {login}"),
    };
    Ok(Some(Lacking { login, privileges, mend }))
}

/// `$1`, `$2`, `$3`: the privileges, their columns and objects; `$4`: the role. Tables are looked up in the catalog, which shows them
/// also in a schema that the login may not use.
const SQL: &str = "
    WITH path AS (
        SELECT oid, nspname FROM pg_namespace
         WHERE nspname = ANY (regexp_split_to_array(current_setting('search_path'), ', *')) AND nspname NOT LIKE 'pg\\_%'
    ), need AS (
        SELECT privilege || CASE WHEN col = '' THEN '' ELSE ' of ' END AS shown, privilege, col, object, place,
               (SELECT pg_class.oid FROM pg_class JOIN path ON path.oid = relnamespace WHERE relname = object LIMIT 1) AS relation,
               CASE WHEN privilege = 'EXECUTE' THEN to_regprocedure(object) END AS function
          FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS need (privilege, col, object, place)
    )
    SELECT quote_ident(session_user), (SELECT pg_has_role(session_user, oid, 'USAGE') FROM pg_roles WHERE rolname = $4),
           ARRAY(SELECT 'USAGE on schema ' || nspname FROM path WHERE NOT has_schema_privilege(oid, 'USAGE') ORDER BY nspname)
           || ARRAY(SELECT shown || string_agg(col, ', ' ORDER BY place) || ' on ' || object FROM need
                     WHERE NOT coalesce(CASE
                               WHEN privilege = 'EXECUTE' THEN has_function_privilege(function, privilege)
                               WHEN col = '' THEN has_table_privilege(relation, privilege)
                               ELSE has_column_privilege(relation, (SELECT attnum FROM pg_attribute
                                        WHERE attrelid = relation AND attname = col), privilege) END, true)
                     GROUP BY shown, object ORDER BY min(place))";

/// The role whose privileges a program needs. Commands of operators report a missing privilege at once.
const fn role(client: Client) -> Option<DatabaseRole> {
    match client {
        Client::Producer => Some(DatabaseRole::Producer),
        Client::Worker => Some(DatabaseRole::Worker),
        Client::Ops | Client::CustomerCare | Client::Owner => None,
    }
}

/// What `grants.sql` gives to a role.
fn needs(role: DatabaseRole) -> Vec<Need> {
    let sql: String = GRANTS.lines().map(|line| line.split("--").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut needs = Vec::new();
    for granted in sql.split(';').filter_map(|statement| statement.trim().strip_prefix("GRANT ")) {
        let granted = granted.split_whitespace().collect::<Vec<_>>().join(" ");
        let Some((what, roles)) = granted.rsplit_once(" TO ") else { continue };
        let Some((privileges, objects)) = what.split_once(" ON ") else { continue };
        if !roles.split(", ").any(|name| name == role.name()) {
            continue;
        }
        for object in parts(objects.strip_prefix("FUNCTION ").unwrap_or(objects)) {
            for privilege in parts(privileges) {
                let (privilege, columns) = privilege.split_once(" (").unwrap_or((privilege, ""));
                needs.extend(columns.trim_end_matches(')').split(", ").map(|column| Need {
                    privilege: privilege.to_owned(),
                    column: column.to_owned(),
                    object: object.to_owned(),
                }));
            }
        }
    }
    needs
}

/// The parts between the commas that are not in brackets.
fn parts(list: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    let comma = |letter: char| {
        depth += i32::from(letter == '(') - i32::from(letter == ')');
        letter == ',' && depth == 0
    };
    list.split(comma).map(str::trim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(privilege: &str, column: &str, object: &str) -> Need {
        Need { privilege: privilege.into(), column: column.into(), object: object.into() }
    }

    #[test]
    fn what_a_program_needs_is_what_its_role_is_granted() {
        let (worker, producer) = (needs(DatabaseRole::Worker), needs(DatabaseRole::Producer));
        for of_worker in [
            need("SELECT", "", "policies"),
            need("UPDATE", "hidden_at", "orders"),
            need("DELETE", "", "cart_items"),
            need("SELECT", "order_id", "cart_items"),
        ] {
            assert!(worker.contains(&of_worker), "{of_worker:?} is not in {worker:?}");
        }
        assert!(worker.iter().any(|need| need.privilege == "EXECUTE" && need.object.starts_with("kyhan_seal_activity(")));
        assert!(producer.contains(&need("DELETE", "", "outbox")) && !producer.contains(&need("DELETE", "", "cart_items")));
        let whole = |need: &Need| !need.object.is_empty() && need.object.contains(' ') == need.object.contains('(');
        assert!(worker.iter().chain(&producer).all(whole), "{worker:?}");
    }

    #[test]
    fn a_long_list_is_cut() {
        let privileges = (0..12).map(|n| format!("SELECT on t{n}")).collect();
        let lacking = Lacking { login: "baogam".into(), privileges, mend: "GRANT kyhan_worker TO baogam".into() };
        let said = lacking.to_string();
        assert!(
            said.starts_with("the login baogam lacks SELECT on t0, ") && said.contains("t7 and 4 more privileges;"),
            "{said}"
        );
        assert!(said.ends_with("run as an administrator: GRANT kyhan_worker TO baogam"), "{said}");
    }
}

//! `ops roles`: installs the PostgreSQL roles under which everything runs.

use std::{env, fs};

use clap::Subcommand;
use ops::actor::{Operator, id_of};
use serde_json::json;
use shared::{
    database::{
        self, Client, active_policy,
        roles::{self, DatabaseRole, Deletes, Door, Passwords, operators},
    },
    domain::confidential::Confidential,
    settings::Settings,
};

use super::{UsageError, answer, options::Json};

#[derive(Subcommand)]
pub enum RolesCommand {
    /// Create the roles, set the owner of the tables, and grant each role exactly what it needs. Idempotent
    #[command(after_help = "\
This needs a login that may create roles and change the owner of tables: an administrator of PostgreSQL. Run it before or after the first \
`ops migrate up`. After that, run `ops migrate up` with a login of kyhan_owner; it grants what its migrations add.

A role can log in once its password is set, in one of these variables or in a file that the variable with the suffix _FILE names:

  KYHAN_ROLES_PRODUCER_PASSWORD      kyhan_producer      the relay
  KYHAN_ROLES_WORKER_PASSWORD        kyhan_worker        workers
  KYHAN_ROLES_OPS_PASSWORD           kyhan_ops           operators
  KYHAN_ROLES_ORDER_SYSTEM_PASSWORD  kyhan_order_system  the order system, customer export and erase
  KYHAN_ROLES_OWNER_PASSWORD         kyhan_owner         migrations

The passwords of other roles stay unchanged. You can also use logins of your own: GRANT kyhan_worker TO your_login.

Only roles that are granted CONNECT may connect to the database afterwards: these roles, and those of other programs that own something in \
it, have a privilege in it, or are connected. The output names both them and the logins that cannot connect any more. With retention.mode \
\"delete\" workers may also delete old rows: run this command again after a change of retention.mode.")]
    Install(Json),
    /// Create an operator's login, a member of kyhan_ops, or set its password again
    #[command(after_help = "\
This needs an administrator of PostgreSQL, and a schema. The password is read from KYHAN_ROLES_OPERATOR_PASSWORD, or from the file that \
KYHAN_ROLES_OPERATOR_PASSWORD_FILE names. Give each operator a login of their own: approvals compare logins, and the shared login kyhan_ops \
approves nothing.")]
    AddOperator {
        /// The login: a-z, 0-9 and _
        login: String,
        #[command(flatten)]
        json: Json,
    },
    /// Remove an operator's login and end its sessions
    RemoveOperator {
        login: String,
        #[command(flatten)]
        json: Json,
    },
}

pub async fn roles(command: RolesCommand, settings: &Settings, actor: &Operator) -> anyhow::Result<()> {
    let db = database::connect(&settings.database, Client::Ops).await?;
    let json = match command {
        RolesCommand::Install(Json { json }) => json,
        RolesCommand::AddOperator { login, json } => {
            let Some(password) = password("KYHAN_ROLES_OPERATOR_PASSWORD")? else {
                return Err(
                    UsageError("set KYHAN_ROLES_OPERATOR_PASSWORD or KYHAN_ROLES_OPERATOR_PASSWORD_FILE".to_owned()).into()
                );
            };
            database::require_schema(&settings.database, &db).await?;
            let new = operators::add(&db, &login, &password, actor.name()).await?;
            actor
                .record(&db, "operator.added", ("operator", id_of(&login)), None, json!({ "operator": login, "new": new }))
                .await?;
            let text = format!("operator {login}: {}", if new { "login created" } else { "password set" });
            return answer(json.json, &json!({ "login": login, "new": new }), &text);
        }
        RolesCommand::RemoveOperator { login, json } => {
            database::require_schema(&settings.database, &db).await?;
            operators::remove(&db, &login).await?;
            actor.record(&db, "operator.removed", ("operator", id_of(&login)), None, json!({ "operator": login })).await?;
            return answer(json.json, &json!({ "login": login }), &format!("operator {login}: login removed"));
        }
    };
    let passwords = passwords()?;
    roles::become_able_to_own(&db).await?;
    // The database's policy decides, once there is one.
    let active = match database::require_schema(&settings.database, &db).await {
        Ok(()) => active_policy::read(&db).await?,
        Err(_) => None,
    };
    let deletes = Deletes(active_policy::under(settings, active.as_ref()).retention.deletes());
    let installed = roles::install(&db, &passwords, deletes).await?;
    let names = |roles: &[DatabaseRole]| roles.iter().map(|role| role.name()).collect::<Vec<_>>();
    let (created, logins) = (names(&installed.created), names(&installed.logins));
    if installed.granted {
        let changed = json!({ "created": created, "passwords": logins });
        actor.record(&db, "roles.installed", ("schema", id_of("schema")), None, changed).await?;
    }
    let listed = |names: &[&str]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let granted = if installed.granted { "granted" } else { "nothing to grant yet; run `ops migrate up`" };
    let text = format!(
        "roles created: {}; passwords set: {}; {granted}\n{}",
        listed(&created),
        listed(&logins),
        connections(&installed.door)
    );
    let Door { closed, kept, shut_out } = &installed.door;
    let connect = json!({ "public": !closed, "kept": kept, "shut_out": shut_out });
    answer(json, &json!({ "created": created, "passwords": logins, "granted": installed.granted, "connect": connect }), &text)
}

/// Who may connect to the database now, and how to change that.
fn connections(door: &Door) -> String {
    const NAMED_MAX: usize = 10;
    let Door { closed, kept, shut_out } = door;
    if !closed {
        return "connections: unchanged, because this login does not own the database. Its owner should run: \
                REVOKE ALL ON DATABASE … FROM PUBLIC; GRANT CONNECT ON DATABASE … TO kyhan_owner, kyhan_producer, kyhan_worker, \
                kyhan_ops, kyhan_order_system, and every other role that uses it"
            .to_owned();
    }
    let mut lines = vec!["connections: only for roles with CONNECT on the database; PUBLIC has none".to_owned()];
    if !kept.is_empty() {
        lines.push(format!("  granted to other roles that use the database: {}", kept.join(", ")));
    }
    if !shut_out.is_empty() {
        let named = &shut_out[..shut_out.len().min(NAMED_MAX)];
        let more = match shut_out.len() - named.len() {
            0 => String::new(),
            more => format!(" and {more} more (see --json)"),
        };
        lines.push(format!(
            "  WARNING: these logins could connect before and use nothing here, and cannot connect any more: {}{more}. To admit one: \
             GRANT CONNECT ON DATABASE … TO …",
            named.join(", ")
        ));
    }
    lines.join("\n")
}

/// The passwords from the environment, or from the files that it names.
fn passwords() -> Result<Passwords, UsageError> {
    let mut passwords = Passwords::new();
    for role in DatabaseRole::ALL {
        if let Some(password) = password(role.password_variable())? {
            passwords.insert(role, password);
        }
    }
    Ok(passwords)
}

/// The password in a variable, or in the file that the variable with the suffix `_FILE` names.
fn password(name: &str) -> Result<Option<Confidential<String>>, UsageError> {
    let file = format!("{name}_FILE");
    let password = match (env::var(name).ok(), env::var_os(&file)) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(UsageError(format!("{name} and {file} are both set; set one of them"))),
        (Some(password), None) => password,
        (None, Some(path)) => fs::read_to_string(&path).map_err(|error| UsageError(format!("{file}: {error}")))?,
    };
    let password = password.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(UsageError(format!("{name}: a password must not be empty")));
    }
    Ok(Some(Confidential::new(password.to_owned())))
}

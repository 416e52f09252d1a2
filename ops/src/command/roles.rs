//! `ops roles`: installs the PostgreSQL roles under which everything runs.

use std::{env, fs};

use clap::Subcommand;
use ops::actor::{Actor, id_of};
use serde_json::json;
use shared::{
    database::{
        self, Client,
        roles::{self, DatabaseRole, Deletes, Door, Passwords},
    },
    domain::confidential::Confidential,
    settings::Settings,
};

use super::{UsageError, answer, options::Json};

#[derive(Subcommand)]
pub enum Roles {
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
}

pub async fn roles(command: Roles, settings: &Settings, actor: &Actor) -> anyhow::Result<()> {
    let Roles::Install(Json { json }) = command;
    let passwords = passwords()?;
    let db = database::connect(&settings.database, Client::Ops).await?;
    let installed = roles::install(&db, &passwords, Deletes(settings.retention.deletes())).await?;
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
        let name = role.password_variable();
        let file = format!("{name}_FILE");
        let password = match (env::var(name).ok(), env::var_os(&file)) {
            (None, None) => continue,
            (Some(_), Some(_)) => return Err(UsageError(format!("{name} and {file} are both set; set one of them"))),
            (Some(password), None) => password,
            (None, Some(path)) => fs::read_to_string(&path).map_err(|error| UsageError(format!("{file}: {error}")))?,
        };
        let password = password.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(UsageError(format!("{name}: a password must not be empty")));
        }
        passwords.insert(role, Confidential::new(password.to_owned()));
    }
    Ok(passwords)
}

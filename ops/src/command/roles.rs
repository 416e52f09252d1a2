//! `ops roles`: the roles of PostgreSQL under which everything runs.

use std::{env, fs};

use clap::Subcommand;
use ops::actor::{Actor, id_of};
use serde_json::json;
use shared::{
    database::{
        self, Role,
        roles::{self, Deletes, Named, Passwords},
    },
    domain::confidential::Confidential,
    settings::Settings,
};

use super::{WrongUse, answer, options::Json};

#[derive(Subcommand)]
pub enum Roles {
    /// Make the roles, give the tables to their owner and grant each role exactly what it needs; again is no harm
    #[command(after_help = "\
It wants a login that may make roles and change the owner of tables: an administrator of PostgreSQL. It may run before `ops migrate up` \
or after it; from then on `ops migrate up` runs with a login of kyhan_owner, and grants what its migrations add.

A role may log in once it has a password here, in the environment or in a file (with _FILE behind the name):

  KYHAN_ROLES_PRODUCER_PASSWORD      kyhan_producer      the relay
  KYHAN_ROLES_WORKER_PASSWORD        kyhan_worker        workers
  KYHAN_ROLES_OPS_PASSWORD           kyhan_ops           operators
  KYHAN_ROLES_ORDER_SYSTEM_PASSWORD  kyhan_order_system  the order system, and `ops customer export` and `erase`
  KYHAN_ROLES_OWNER_PASSWORD         kyhan_owner         migrations

In the retention.mode \"delete\" workers may also ask for what is old enough to be deleted; run it again after that has changed. \
Roles without a password here stay as they are. Logins of your own do as well: GRANT kyhan_worker TO somebody.")]
    Install(Json),
}

pub async fn roles(command: Roles, settings: &Settings, actor: &Actor) -> anyhow::Result<()> {
    let Roles::Install(Json { json }) = command;
    let passwords = passwords()?;
    let db = database::connect(&settings.database, Role::Ops).await?;
    let installed = roles::install(&db, &passwords, Deletes(settings.retention.deletes())).await?;
    let names = |roles: &[Named]| roles.iter().map(|role| role.name()).collect::<Vec<_>>();
    let (created, logins) = (names(&installed.created), names(&installed.logins));
    if installed.granted {
        let changed = json!({ "created": created, "passwords": logins });
        actor.record(&db, "roles.installed", ("schema", id_of("schema")), None, changed).await?;
    }
    let listed = |names: &[&str]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let granted = if installed.granted { "granted" } else { "nothing to grant yet: run `ops migrate up`" };
    let text = format!("roles made: {}; passwords set: {}; {granted}", listed(&created), listed(&logins));
    answer(json, &json!({ "created": created, "passwords": logins, "granted": installed.granted }), &text)
}

/// Those that the environment gives, itself or by a file.
fn passwords() -> Result<Passwords, WrongUse> {
    let mut passwords = Passwords::new();
    for role in Named::ALL {
        let name = role.password_variable();
        let file = format!("{name}_FILE");
        let password = match (env::var(name).ok(), env::var_os(&file)) {
            (None, None) => continue,
            (Some(_), Some(_)) => return Err(WrongUse(format!("{name} and {file} are both set; set one of them"))),
            (Some(password), None) => password,
            (None, Some(path)) => fs::read_to_string(&path).map_err(|error| WrongUse(format!("{file}: {error}")))?,
        };
        let password = password.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(WrongUse(format!("{name}: a password cannot be empty")));
        }
        passwords.insert(role, Confidential::new(password.to_owned()));
    }
    Ok(passwords)
}

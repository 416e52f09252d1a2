//! Starts the fleet's processes as an operator would.

use std::{
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use shared::database::roles::DatabaseRole;
use tokio::process::{Child, Command};

use crate::sandbox::{OPERATORS, url_as_operator, url_as_role};

/// The path of a built binary, which lies beside the running one.
///
/// # Errors
/// When it was not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = env::current_exe()?;
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("the binary {name} is not built; run `cargo build --workspace --bins`"))
}

/// The role with which a command logs in to PostgreSQL; `None` for an administrator.
fn role(name: &str, arguments: &[OsString]) -> Option<DatabaseRole> {
    const TELLING: [&str; 4] = ["migrate", "triggers", "roles", "customer"];
    // Options may stand before the command.
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    let at = words.iter().position(|word| TELLING.contains(word)).unwrap_or(0);
    let word = |at: usize| words.get(at).copied().unwrap_or_default();
    match (name, word(at), word(at + 1)) {
        ("worker", ..) => Some(DatabaseRole::Worker),
        ("producer", ..) => Some(DatabaseRole::Producer),
        ("ops", "migrate" | "triggers", _) => Some(DatabaseRole::Owner),
        ("ops", "customer", "export" | "erase") => Some(DatabaseRole::OrderSystem),
        ("ops", "roles", _) => None,
        ("ops", ..) => Some(DatabaseRole::Ops),
        _ => None,
    }
}

/// The operator whose login a command uses: the one named with `--as`.
fn operator(arguments: &[OsString]) -> Option<&'static str> {
    let named = arguments.iter().position(|word| word == "--as").and_then(|at| arguments.get(at + 1))?;
    OPERATORS.into_iter().find(|name| *named == **name)
}

/// The AMQP URL of a role. A broker that `deploy/services` started has a user for each program; with another broker all programs use the
/// given URL.
fn broker_user(role: DatabaseRole, broker: Option<&String>) -> Option<String> {
    let name = match role {
        DatabaseRole::Producer => "KYHAN_SERVICES_PRODUCER_AMQP_URL",
        DatabaseRole::Worker => "KYHAN_SERVICES_WORKER_AMQP_URL",
        DatabaseRole::Ops => "KYHAN_SERVICES_OPS_AMQP_URL",
        DatabaseRole::OrderSystem | DatabaseRole::Owner => return None,
    };
    env::var(name).ok().filter(|_| env::var("KYHAN_AMQP_URL").ok().as_ref() == broker)
}

/// A command of a binary with a sandbox's environment, without other settings, and with the logins of its role.
///
/// # Errors
/// When the binary was not built.
pub fn command(
    name: &str,
    settings: &BTreeMap<String, String>,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<Command> {
    let mut command = Command::new(binary(name)?);
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("KYHAN_")) {
        command.env_remove(name);
    }
    let arguments: Vec<OsString> = arguments.into_iter().map(|word| word.as_ref().to_owned()).collect();
    command.args(&arguments).envs(settings);
    if let (Some(role), Some(url)) = (role(name, &arguments), settings.get("KYHAN_DATABASE_URL")) {
        let own = match role {
            DatabaseRole::Ops => operator(&arguments),
            _ => None,
        };
        let url = own.map_or_else(|| url_as_role(url, role), |name| url_as_operator(url, name))?;
        command.env("KYHAN_DATABASE_URL", url);
        if let Some(url) = broker_user(role, settings.get("KYHAN_AMQP_URL")) {
            command.env("KYHAN_AMQP_URL", url);
        }
    }
    command.env_remove("OTEL_EXPORTER_OTLP_ENDPOINT").stdin(Stdio::null()).kill_on_drop(true);
    Ok(command)
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// When it fails, with its stderr.
pub async fn output(mut command: Command) -> Result<String> {
    let done = command.output().await?;
    if !done.status.success() {
        bail!("{:?}: {}\n{}", command.as_std(), done.status, String::from_utf8_lossy(&done.stderr));
    }
    Ok(String::from_utf8(done.stdout)?)
}

/// Starts a process in the background that logs to a file.
///
/// # Errors
/// When it cannot start.
pub fn start(mut command: Command, log: &Path) -> Result<Child> {
    let log = std::fs::File::options().create(true).append(true).open(log)?;
    Ok(command.stdout(Stdio::null()).stderr(log).spawn()?)
}

/// Sends SIGTERM.
///
/// # Errors
/// When the process has already ended.
pub async fn terminate(child: &Child) -> Result<()> {
    let pid = child.id().context("the process is gone")?;
    let sent = Command::new("kill").arg(pid.to_string()).status().await?;
    anyhow::ensure!(sent.success(), "no SIGTERM for {pid}");
    Ok(())
}

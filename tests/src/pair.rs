//! A private PostgreSQL and RabbitMQ, started by `deploy/services` on free ports. Tests may kill, stop, wipe and observe them. They affect
//! no other server, and nothing of them remains.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{process::Command, time::Instant};

use crate::sandbox::Servers;

/// How long a server may take to stop after the signal.
const LEAVE: Duration = Duration::from_secs(60);

/// Both servers. Dropping it stops and removes them.
pub struct Pair {
    home: PathBuf,
    postgres: PathBuf,
    rabbitmq: PathBuf,
    /// The name of RabbitMQ's node, and the port of its epmd.
    node: String,
    epmd_port: String,
    pub servers: Servers,
    pub users: Users,
}

/// The AMQP URL of each program, with only the permissions that it needs (`deploy/rabbitmq/users`).
#[derive(Clone, Debug)]
pub struct Users {
    pub producer: String,
    pub worker: String,
    pub ops: String,
}

/// Selects one of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    Postgres,
    RabbitMq,
}

impl Pair {
    /// Starts both. `folder` must belong to the caller alone.
    ///
    /// # Errors
    /// When one cannot be started.
    pub async fn start(folder: &Path) -> Result<Self> {
        remove_remains(folder);
        let home = folder.join(format!("services-{}", std::process::id()));
        std::fs::create_dir_all(&home)?;
        let mut pair = Self {
            home,
            postgres: PathBuf::new(),
            rabbitmq: PathBuf::new(),
            node: String::new(),
            epmd_port: String::new(),
            servers: Servers { database_url: String::new(), amqp_url: String::new() },
            users: Users { producer: String::new(), worker: String::new(), ops: String::new() },
        };
        services(&pair.home, "up").await?;
        let state = std::fs::read_to_string(pair.home.join("services.state"))?;
        let value = |key: &str| {
            let begins = format!("{key}=");
            state.lines().find_map(|line| line.strip_prefix(&begins)).filter(|value| !value.is_empty()).map(str::to_owned)
        };
        let own = |key: &str| value(key).with_context(|| format!("deploy/services started no private server ({key})"));
        pair.postgres = own("postgres_dir")?.into();
        pair.rabbitmq = own("rabbitmq_dir")?.into();
        (pair.node, pair.epmd_port) = (own("rabbitmq_node")?, own("rabbitmq_epmd_port")?);
        pair.servers = Servers { database_url: own("postgres_own_url")?, amqp_url: own("rabbitmq_own_url")? };
        pair.users =
            Users { producer: own("rabbitmq_producer_url")?, worker: own("rabbitmq_worker_url")?, ops: own("rabbitmq_ops_url")? };
        Ok(pair)
    }

    /// Stops a server (PostgreSQL by a fast shutdown) and waits until it has ended.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(&self, server: Server) -> Result<()> {
        self.signal(server, if server == Server::Postgres { "INT" } else { "TERM" }).await
    }

    /// Kills a server with `kill -9`. PostgreSQL's child processes then end by themselves.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn kill(&self, server: Server) -> Result<()> {
        self.signal(server, "KILL").await
    }

    /// Starts the stopped servers with their data, and waits until they answer. RabbitMQ then has its users, even if its data was wiped.
    ///
    /// # Errors
    /// When one does not answer, or came back on another port.
    pub async fn up(&self) -> Result<()> {
        services(&self.home, "up").await?;
        let state = std::fs::read_to_string(self.home.join("services.state"))?;
        let Users { producer, worker, ops } = &self.users;
        for url in [&self.servers.database_url, &self.servers.amqp_url, producer, worker, ops] {
            anyhow::ensure!(state.contains(url.as_str()), "a server came back on another port, or with other users");
        }
        Ok(())
    }

    /// Runs `rabbitmqctl` against this node.
    ///
    /// # Errors
    /// When it fails, with its stderr.
    pub async fn rabbitmqctl(&self, arguments: &[&str]) -> Result<()> {
        self.asked(arguments).await.map(|_| ())
    }

    /// RabbitMQ's version.
    ///
    /// # Errors
    /// When `rabbitmqctl` does not report it.
    pub async fn rabbitmq_version(&self) -> Result<String> {
        Ok(self.asked(&["version"]).await?.trim().to_owned())
    }

    async fn asked(&self, arguments: &[&str]) -> Result<String> {
        let program = binaries().context("RabbitMQ's own scripts are not found")?.join("rabbitmqctl");
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.rabbitmq.join("home"))
            .env("LANG", "C.UTF-8")
            .env("ERL_EPMD_PORT", &self.epmd_port)
            .args(["--node", &self.node, "--timeout", "20"])
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let done = command.output().await?;
        anyhow::ensure!(done.status.success(), "rabbitmqctl {}: {}", arguments.join(" "), String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8(done.stdout)?)
    }

    /// Removes all data of RabbitMQ, which must be stopped, from disk.
    ///
    /// # Errors
    /// The file system's.
    pub fn wipe_rabbitmq(&self) -> Result<()> {
        let data = self.rabbitmq.join("mnesia");
        std::fs::remove_dir_all(&data)?;
        std::fs::create_dir(&data)?;
        Ok(())
    }

    /// The process id of PostgreSQL's postmaster or RabbitMQ's `beam.smp`.
    ///
    /// # Errors
    /// When it was not started.
    pub fn pid(&self, server: Server) -> Result<u32> {
        let file = self.pid_file(server);
        let text = std::fs::read_to_string(&file).with_context(|| format!("{server:?} has no pid file {}", file.display()))?;
        text.lines().next().unwrap_or_default().trim().parse().context("a pid file without a pid")
    }

    fn pid_file(&self, server: Server) -> PathBuf {
        match server {
            Server::Postgres => self.postgres.join("data/postmaster.pid"),
            Server::RabbitMq => self.rabbitmq.join("pid"),
        }
    }

    async fn signal(&self, server: Server, signal: &str) -> Result<()> {
        let pid = self.pid(server)?;
        send(pid, signal).await?;
        let deadline = Instant::now() + LEAVE;
        while is_alive(pid) {
            anyhow::ensure!(Instant::now() < deadline, "{server:?} (pid {pid}) does not end after SIG{signal}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        down(&self.home);
    }
}

/// Sends a signal to one of our processes.
///
/// # Errors
/// When it has ended.
pub async fn send(pid: u32, signal: &str) -> Result<()> {
    let sent = Command::new("kill").args(["-s", signal, &pid.to_string()]).stderr(Stdio::null()).status().await?;
    anyhow::ensure!(sent.success(), "no SIG{signal} for process {pid}: it is gone");
    Ok(())
}

/// Whether a process is alive. A zombie is not.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X'])))
}

/// The folder of RabbitMQ's own scripts. The wrappers in PATH, which packages install, switch to a user who may not read our folders.
#[must_use]
pub fn binaries() -> Option<PathBuf> {
    let known = ["/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin", "/opt/homebrew/sbin", "/usr/local/sbin"];
    known.iter().map(PathBuf::from).find(|folder| folder.join("rabbitmq-server").is_file())
}

/// The root folder of the checkout.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

async fn services(home: &Path, verb: &str) -> Result<()> {
    let mut command = Command::new(root().join("deploy/services"));
    command
        .arg(verb)
        .env("KYHAN_SERVICES_HOME", home)
        .env("KYHAN_SERVICES_SKIP_STANDARD_PORTS", "1")
        .env_remove("KYHAN_DATABASE_URL")
        .env_remove("KYHAN_AMQP_URL")
        // Servers in Docker have no local pid to kill.
        .env("DOCKER_HOST", "unix:///nonexistent")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let done = command.output().await?;
    if !done.status.success() {
        bail!("deploy/services {verb}: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}

/// Stops and removes the servers of a folder. Blocks, because `Drop` cannot await.
fn down(home: &Path) {
    let done = std::process::Command::new(root().join("deploy/services"))
        .arg("down")
        .env("KYHAN_SERVICES_HOME", home)
        .stdin(Stdio::null())
        .output();
    if let Ok(done) = done
        && !done.status.success()
    {
        eprintln!("deploy/services down: {}", String::from_utf8_lossy(&done.stderr));
    }
    let _ = std::fs::remove_dir(home);
}

/// Removes the servers of earlier runs that were killed with `kill -9`.
fn remove_remains(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("services-").and_then(|pid| pid.parse().ok());
        if owner.is_some_and(|pid| !is_alive(pid)) {
            down(&entry.path());
        }
    }
}

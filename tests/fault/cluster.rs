//! A cluster of three RabbitMQ nodes on this machine, and a proxy to a node that answers. If root may create network namespaces, each node
//! has its own, and a partition is a link that is down. Otherwise the nodes share 127.0.0.1, and a partition is Erlang's distribution refused
//! on both sides. Everything is removed with the scenario.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tests::{
    pair::{self, binaries},
    sandbox::Servers,
};
use tokio::time::Instant;

use crate::{
    disk::run,
    proxy::{Conduct, Proxy},
};

const NODES: usize = 3;
const COOKIE: &str = "kyhanfaultcookie";
const PASSWORD: &str = "kyhan";
/// How long a node may take to start or to rejoin.
const START: Duration = Duration::from_secs(90);

pub struct Cluster {
    nodes: Vec<Node>,
    net: Net,
    proxy: Proxy,
    binaries: PathBuf,
    epmd_port: u16,
}

struct Node {
    name: String,
    host: String,
    port: u16,
    distribution: u16,
    folder: PathBuf,
    running: Option<Child>,
    epmd: Option<Child>,
}

enum Net {
    /// The bridge, and each node's namespace with the link on our side.
    Namespaces {
        bridge: String,
        nodes: Vec<(String, String)>,
    },
    Shared,
}

/// Why no cluster can be started here, if so.
pub fn lacks() -> Option<String> {
    (binaries().is_none() || epmd().is_none()).then(|| "RabbitMQ's own scripts and Erlang's epmd are not found here".to_owned())
}

fn epmd() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("epmd")).find(|path| path.is_file())
}

impl Net {
    /// Network namespaces if they can be created.
    fn make() -> Self {
        let id = std::process::id() % 10_000;
        let (bridge, subnet) = (format!("kyf{id}b"), id % 250);
        let nodes: Vec<(String, String)> =
            (1..=NODES).map(|n| (format!("kyhan-fault-{id}-{n}"), format!("kyf{id}v{n}"))).collect();
        let net = Self::Namespaces { bridge: bridge.clone(), nodes: nodes.clone() };
        let made = || -> Result<()> {
            run("ip", &["link", "add", &bridge, "type", "bridge"])?;
            // 198.18.0.0/15 is reserved for tests.
            run("ip", &["addr", "add", &format!("198.18.{subnet}.1/24"), "dev", &bridge])?;
            run("ip", &["link", "set", &bridge, "up"])?;
            for (n, (namespace, link)) in nodes.iter().enumerate() {
                run("ip", &["netns", "add", namespace])?;
                run("ip", &["link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace])?;
                run("ip", &["link", "set", link, "master", &bridge, "up"])?;
                let address = format!("198.18.{subnet}.{}/24", n + 11);
                run("ip", &["-n", namespace, "addr", "add", &address, "dev", "eth0"])?;
                run("ip", &["-n", namespace, "link", "set", "eth0", "up"])?;
                run("ip", &["-n", namespace, "link", "set", "lo", "up"])?;
            }
            Ok(())
        }();
        if made.is_ok() { net } else { Self::Shared }
    }

    fn host(&self, n: usize) -> String {
        match self {
            Self::Namespaces { .. } => format!("198.18.{}.{}", std::process::id() % 10_000 % 250, n + 11),
            Self::Shared => "127.0.0.1".to_owned(),
        }
    }

    /// Restricts Erlang's distribution to 127.0.0.1, because everyone who reaches it with the cookie controls the node. A namespace is not
    /// reachable from outside.
    fn only_here(&self) -> &'static str {
        match self {
            Self::Namespaces { .. } => "",
            Self::Shared => " -kernel inet_dist_use_interface {127,0,0,1}",
        }
    }

    /// A command in the namespace of node `n`.
    fn command(&self, n: usize, program: &Path) -> Command {
        match self {
            Self::Namespaces { nodes, .. } => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &nodes[n].0]).arg(program);
                command
            }
            Self::Shared => Command::new(program),
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if let Self::Namespaces { bridge, nodes } = self {
            for (namespace, link) in nodes {
                let _ = (run("ip", &["link", "del", link]), run("ip", &["netns", "del", namespace]));
            }
            let _ = run("ip", &["link", "del", bridge]);
        }
    }
}

impl Cluster {
    pub async fn start(folder: &Path, namespaces: bool) -> Result<Self> {
        let net = if namespaces { Net::make() } else { Net::Shared };
        let mut nodes = Vec::new();
        for n in 0..NODES {
            let host = net.host(n);
            let (port, distribution) = (free_port(&host)?, free_port(&host)?);
            let folder = folder.join(format!("node-{}", n + 1));
            nodes.push(Node {
                name: format!("kyhan{}@{host}", n + 1),
                host,
                port,
                distribution,
                folder,
                running: None,
                epmd: None,
            });
        }
        let targets = nodes.iter().map(|node| Ok(format!("{}:{}", node.host, node.port).parse()?)).collect::<Result<_>>()?;
        let proxy = Proxy::start(targets, Conduct::Plain).await?;
        let epmd_port = free_port("127.0.0.1")?;
        let binaries = binaries().context("RabbitMQ's scripts")?;
        let mut cluster = Self { nodes, net, proxy, binaries, epmd_port };
        for n in 0..NODES {
            cluster.prepare(n)?;
        }
        // The first node alone, then the nodes that join it.
        for n in 0..NODES {
            cluster.start_node(n)?;
            if n != 1 {
                cluster.await_nodes(n + 1).await?;
            }
        }
        Ok(cluster)
    }

    /// The shared PostgreSQL, and this cluster through its proxy.
    pub fn servers(&self, servers: &Servers) -> Servers {
        let amqp_url = format!("amqp://kyhan:{PASSWORD}@127.0.0.1:{}/%2f", self.proxy.port);
        Servers { database_url: servers.database_url.clone(), amqp_url }
    }

    /// How a partition is made here, for the report.
    pub fn means(&self) -> &'static str {
        match self.net {
            Net::Namespaces { .. } => "network namespaces, its link down",
            Net::Shared => "Erlang's distribution refused on both sides",
        }
    }

    /// Which node leads a queue.
    pub async fn leader(&self, queue: &str) -> Result<usize> {
        let said = self.ctl(&["list_queues", "--quiet", "--no-table-headers", "name", "leader"]).await?;
        let line =
            said.lines().find(|line| line.split('\t').next() == Some(queue)).with_context(|| format!("no queue {queue}"))?;
        let leader = line.split('\t').nth(1).unwrap_or_default().trim();
        self.nodes.iter().position(|node| node.name == leader).with_context(|| format!("{leader} leads {queue}"))
    }

    /// Kills a node with `kill -9`.
    pub fn kill(&mut self, n: usize) -> Result<()> {
        let mut node = self.nodes[n].running.take().context("it does not run")?;
        node.kill()?;
        node.wait()?;
        Ok(())
    }

    /// Restarts a node and waits until the cluster is complete.
    pub async fn revive(&mut self, n: usize) -> Result<()> {
        self.start_node(n)?;
        self.await_nodes(NODES).await
    }

    /// Cuts a node off from the others, or joins it again.
    pub async fn partition(&self, n: usize, cut: bool) -> Result<()> {
        match &self.net {
            Net::Namespaces { nodes, .. } => run("ip", &["link", "set", &nodes[n].1, if cut { "down" } else { "up" }]),
            Net::Shared => {
                let cookie = if cut { "wrong" } else { COOKIE };
                let others: Vec<usize> = (0..NODES).filter(|other| *other != n).collect();
                for (at, of) in others.iter().flat_map(|other| [(n, *other), (*other, n)]) {
                    let of = &self.nodes[of].name;
                    self.eval(at, &format!("erlang:set_cookie('{of}', {cookie}), erlang:disconnect_node('{of}').")).await?;
                }
                Ok(())
            }
        }
    }

    /// Waits until this many nodes see each other.
    pub async fn await_nodes(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + START;
        for n in (0..NODES).filter(|n| self.nodes[*n].running.is_some()) {
            // A node that is starting or paused does not answer yet.
            while let Err(error) = self.ctl_at(n, &["await_online_nodes", &count.to_string()]).await {
                ensure!(Instant::now() < deadline, "not {count} nodes within {} s: {error:#}", START.as_secs());
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
        Ok(())
    }

    async fn eval(&self, n: usize, expression: &str) -> Result<String> {
        self.ctl_at(n, &["eval", expression]).await
    }

    /// Runs `rabbitmqctl` against a running node.
    async fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let n = self.nodes.iter().position(|node| node.running.is_some()).context("no node runs")?;
        self.ctl_at(n, arguments).await
    }

    async fn ctl_at(&self, n: usize, arguments: &[&str]) -> Result<String> {
        let mut command = self.net.command(n, &self.binaries.join("rabbitmqctl"));
        self.environment(n, &mut command);
        command.args(["--longnames", "--node", &self.nodes[n].name, "--timeout", "20"]).args(arguments).stdin(Stdio::null());
        let done = tokio::process::Command::from(command).kill_on_drop(true).output().await?;
        ensure!(done.status.success(), "rabbitmqctl {}: {}", arguments.join(" "), String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8(done.stdout)?)
    }

    fn prepare(&mut self, n: usize) -> Result<()> {
        let names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        let node = &self.nodes[n];
        for folder in ["home", "log", "mnesia"] {
            std::fs::create_dir_all(node.folder.join(folder))?;
        }
        let cookie = node.folder.join("home/.erlang.cookie");
        std::fs::write(&cookie, COOKIE)?;
        std::fs::set_permissions(&cookie, std::os::unix::fs::PermissionsExt::from_mode(0o400))?;
        // The first node has no peers and so starts at once.
        let peers = if n == 0 { &names[..1] } else { &names[..] };
        let peers: Vec<String> =
            (1..).zip(peers).map(|(i, name)| format!("cluster_formation.classic_config.nodes.{i} = {name}")).collect();
        let peers = peers.join("\n");
        let conf = format!(
            "listeners.tcp.1 = {host}:{port}\ndefault_user = kyhan\ndefault_pass = {PASSWORD}\nloopback_users = none\n\
             log.file = rabbit.log\ncluster_partition_handling = pause_minority\n\
             cluster_formation.peer_discovery_backend = classic_config\n{peers}\n",
            host = node.host,
            port = node.port,
        );
        std::fs::write(node.folder.join("rabbitmq.conf"), conf)?;
        std::fs::write(node.folder.join("enabled_plugins"), "[].\n")?;
        std::fs::write(node.folder.join("rabbitmq-env.conf"), "")?;
        std::fs::copy(pair::root().join("deploy/rabbitmq/advanced.config"), node.folder.join("advanced.config"))?;
        // One port mapper per namespace, or one for all nodes that share 127.0.0.1.
        if n == 0 || matches!(self.net, Net::Namespaces { .. }) {
            let mut command = self.net.command(n, &epmd().context("epmd")?);
            command.args(["-port", &self.epmd_port.to_string()]);
            if matches!(self.net, Net::Shared) {
                command.args(["-address", "127.0.0.1"]);
            }
            self.nodes[n].epmd = Some(detached(&mut command).spawn()?);
        }
        Ok(())
    }

    fn start_node(&mut self, n: usize) -> Result<()> {
        let mut command = self.net.command(n, &self.binaries.join("rabbitmq-server"));
        self.environment(n, &mut command);
        let log = std::fs::File::options().create(true).append(true).open(self.nodes[n].folder.join("log/start.log"))?;
        detached(&mut command).stdout(log.try_clone()?).stderr(log);
        self.nodes[n].running = Some(command.spawn()?);
        Ok(())
    }

    /// Starts a node as `deploy/services` does: without the user's environment, and the script execs the node.
    fn environment(&self, n: usize, command: &mut Command) {
        let node = &self.nodes[n];
        let at = |name: &str| node.folder.join(name).into_os_string();
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs([("HOME", at("home")), ("LANG", "C.UTF-8".into()), ("RUNNING_UNDER_SYSTEMD", "true".into())]);
        command.envs([
            ("ERL_EPMD_PORT", self.epmd_port.to_string()),
            ("ERL_CRASH_DUMP_SECONDS", "0".to_owned()),
            ("RABBITMQ_NODENAME", node.name.clone()),
            ("RABBITMQ_USE_LONGNAME", "true".to_owned()),
            ("RABBITMQ_DIST_PORT", node.distribution.to_string()),
            // A silent node counts as down after five seconds instead of a minute.
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", format!("-kernel net_ticktime 5{}", self.net.only_here())),
        ]);
        command.envs([
            ("RABBITMQ_CONF_ENV_FILE", at("rabbitmq-env.conf")),
            ("RABBITMQ_CONFIG_FILE", at("rabbitmq.conf")),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", at("advanced.config")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", at("enabled_plugins")),
            ("RABBITMQ_GENERATED_CONFIG_DIR", at("generated")),
            ("RABBITMQ_SCHEMA_DIR", at("schema")),
            ("RABBITMQ_MNESIA_BASE", at("mnesia")),
            ("RABBITMQ_LOG_BASE", at("log")),
            ("RABBITMQ_PID_FILE", at("pid")),
        ]);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            for child in [node.running.take(), node.epmd.take()].iter_mut().flatten() {
                let _ = (child.kill(), child.wait());
            }
            // Keep the logs for diagnosis.
            let _ = std::fs::remove_dir_all(node.folder.join("mnesia"));
        }
    }
}

/// A process group of its own, so that Ctrl-C reaches only the suite, which then stops the process.
fn detached(command: &mut Command) -> &mut Command {
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

/// A port that is free on the host.
fn free_port(host: &str) -> Result<u16> {
    // The address of a namespace cannot be bound from the host, and nothing else listens there.
    let listener = std::net::TcpListener::bind((host, 0)).or_else(|_| std::net::TcpListener::bind("127.0.0.1:0"))?;
    Ok(listener.local_addr()?.port())
}

//! The machine of the measurement, read from the machine and its servers. A figure means nothing without it.

use std::process::Command;

use anyhow::{Context, Result};
use procfs::{CpuInfo, Current, Meminfo, process::Process};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection};
use shared::database::statement;

use crate::harness::{BenchHarness, FOLDER};

/// Settings of PostgreSQL that affect its speed.
const SETTINGS: [&str; 8] = [
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "shared_buffers",
    "max_wal_size",
    "wal_compression",
    "track_commit_timestamp",
    "autovacuum",
];

/// Names and values of the machine's properties.
pub struct Machine(Vec<(&'static str, String)>);

pub async fn describe(harness: &BenchHarness) -> Result<Machine> {
    let cpu = CpuInfo::current()?;
    let memory = Meminfo::current()?.mem_total / (1 << 20);
    let db = Database::connect(&harness.pair.servers.database_url).await?;
    let mut settings = Vec::new();
    for name in SETTINGS {
        settings.push(format!("{name} = {}", setting(&db, &format!("SELECT current_setting('{name}')")).await?));
    }
    let machine = Machine(vec![
        ("date", setting(&db, "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')").await?),
        ("commit", commit()),
        ("CPU", cpu.model_name(0).unwrap_or("unnamed").to_owned()),
        ("cores", std::thread::available_parallelism()?.to_string()),
        ("memory", format!("{memory} MiB")),
        ("kernel", std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned()),
        ("disk", disk()?),
        ("PostgreSQL", format!("{}; {}", setting(&db, "SELECT current_setting('server_version')").await?, settings.join(", "))),
        ("RabbitMQ", format!("{}, one node, quorum queues", harness.pair.rabbitmq_version().await?)),
        ("processes", "servers, fleet and bench together on this machine, over 127.0.0.1".to_owned()),
    ]);
    db.close().await?;
    Ok(machine)
}

impl Machine {
    pub fn markdown(&self) -> String {
        let rows = self.0.iter().map(|(name, what)| format!("| {name} | {what} |"));
        ["| measured on | |", "| --- | --- |"]
            .map(str::to_owned)
            .into_iter()
            .chain(rows)
            .chain([String::new()])
            .collect::<Vec<_>>()
            .join("\n")
    }
}

async fn setting(db: &DatabaseConnection, sql: &str) -> Result<String> {
    let row = db.query_one_raw(statement(sql, [])).await?.context("no row")?;
    Ok(row.try_get_by_index(0)?)
}

/// The commit of the checkout, and whether it has local changes.
fn commit() -> String {
    let said = Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(tests::pair::root()).output();
    said.ok()
        .filter(|said| said.status.success())
        .map_or("unknown".to_owned(), |said| String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

/// The file system of the servers' data, and its device.
fn disk() -> Result<String> {
    let folder = tests::pair::root().join(FOLDER).canonicalize()?;
    let mounts = Process::myself()?.mountinfo()?;
    let under = mounts.into_iter().filter(|mount| folder.starts_with(&mount.mount_point));
    let mount = under.max_by_key(|mount| mount.mount_point.as_os_str().len()).context("no mount holds it")?;
    Ok(format!("{} on {}", mount.fs_type, mount.mount_source.unwrap_or_else(|| "nothing named".to_owned())))
}

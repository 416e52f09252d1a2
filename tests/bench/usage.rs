//! The CPU time and memory of processes, as Linux counts it. CPU time includes the children that a process has waited for and all living
//! descendants, so that a session that ends in between is included.

use std::collections::HashMap;

use anyhow::{Context, Result};
use procfs::process::{Process, Stat, all_processes};
use tests::pair::{Pair, Server};

use crate::figure::number;

/// CPU seconds, user and system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// All workers.
    pub workers: f64,
    pub broker: f64,
    pub database: f64,
    /// This process.
    pub own: f64,
}

impl Cpu {
    /// The CPU time of all processes so far.
    pub fn now(pair: &Pair, workers: &[u32]) -> Result<Self> {
        let living = Living::look()?;
        let below = |pid: u32| living.used_below(i32::try_from(pid)?);
        Ok(Self {
            workers: workers.iter().map(|pid| below(*pid)).sum::<Result<f64>>()?,
            broker: below(pair.pid(Server::RabbitMq)?)?,
            database: below(pair.pid(Server::Postgres)?)?,
            own: seconds(&Process::myself()?.stat()?),
        })
    }

    pub fn since(self, before: Self) -> Self {
        Self {
            workers: self.workers - before.workers,
            broker: self.broker - before.broker,
            database: self.database - before.database,
            own: self.own - before.own,
        }
    }

    pub fn sum(self) -> f64 {
        self.workers + self.broker + self.database + self.own
    }
}

/// Every process and its parent, at one moment.
struct Living {
    children: HashMap<i32, Vec<Stat>>,
}

impl Living {
    fn look() -> Result<Self> {
        let mut children: HashMap<i32, Vec<Stat>> = HashMap::new();
        // Skip a process that ends while it is read.
        for stat in all_processes()?.flatten().filter_map(|process| process.stat().ok()) {
            children.entry(stat.ppid).or_default().push(stat);
        }
        Ok(Self { children })
    }

    fn used_below(&self, root: i32) -> Result<f64> {
        let own = Process::new(root).and_then(|process| process.stat()).with_context(|| format!("process {root} is gone"))?;
        let (mut used, mut open) = (with_waited_for(&own), vec![root]);
        while let Some(pid) = open.pop() {
            for child in self.children.get(&pid).into_iter().flatten() {
                used += with_waited_for(child);
                open.push(child.pid);
            }
        }
        Ok(used)
    }
}

fn with_waited_for(stat: &Stat) -> f64 {
    let waited_for = u64::try_from(stat.cutime + stat.cstime).unwrap_or_default();
    ticks(stat.utime + stat.stime + waited_for)
}

fn seconds(stat: &Stat) -> f64 {
    // Leave out this process's waited children: they are the fleet's processes, which are counted separately.
    ticks(stat.utime + stat.stime)
}

fn ticks(count: u64) -> f64 {
    let number_of = |count: u64| number(usize::try_from(count).unwrap_or(usize::MAX));
    number_of(count) / number_of(procfs::ticks_per_second())
}

/// Memory of a process in MiB: its peak and its current value.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub most: f64,
    pub now: f64,
}

impl Memory {
    pub fn of(pid: u32) -> Result<Self> {
        let status = Process::new(i32::try_from(pid)?)?.status()?;
        let mib = |kib: Option<u64>| kib.map(|kib| number(usize::try_from(kib).unwrap_or_default()) / 1_024.0);
        Ok(Self { most: mib(status.vmhwm).context("no VmHWM")?, now: mib(status.vmrss).context("no VmRSS")? })
    }
}

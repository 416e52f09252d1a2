//! Processes of the fleet: the built binaries with their default settings. Dropping one kills it.

use std::time::Duration;

use anyhow::{Context, Result};
use tests::{fleet, sandbox::Sandbox};
use tokio::process::Child;

use crate::harness::FOLDER;

/// How long a process may take to stop.
const STOP: Duration = Duration::from_secs(60);

pub struct RunningProcess {
    name: &'static str,
    child: Child,
    pub pid: u32,
}

impl RunningProcess {
    pub fn worker(sandbox: &Sandbox) -> Result<Self> {
        Self::start("worker", sandbox, &[])
    }

    pub fn relay(sandbox: &Sandbox) -> Result<Self> {
        Self::start("producer", sandbox, &["relay"])
    }

    fn start(name: &'static str, sandbox: &Sandbox, arguments: &[&str]) -> Result<Self> {
        let log = tests::pair::root().join(FOLDER).join(format!("{name}.log"));
        let child = fleet::start(fleet::command(name, &sandbox.env, arguments)?, &log)?;
        let pid = child.id().context("it ended at once")?;
        Ok(Self { name, child, pid })
    }

    /// Stops the process and waits until it has ended.
    pub async fn stop(mut self) -> Result<()> {
        fleet::terminate(&self.child).await.with_context(|| format!("{} died; its log is in {FOLDER}", self.name))?;
        let status =
            tokio::time::timeout(STOP, self.child.wait()).await.with_context(|| format!("{} does not stop", self.name))??;
        anyhow::ensure!(status.success(), "{} stopped with {status}; its log is in {FOLDER}", self.name);
        Ok(())
    }
}

//! The driver of one fleet process. It captures stdout, stderr and the answers of the admin port.

use std::{net::SocketAddr, path::PathBuf, process::Stdio};

use anyhow::Context;
use serde_json::Value;
use tests::{fleet, sandbox::eventually};
use tokio::process::Child;

use super::{search::Capture, surroundings::Surroundings};
use crate::{admin, harness::SOON};

pub struct MarkedProcess {
    name: String,
    child: Child,
    folder: PathBuf,
    answers: Vec<Capture>,
}

impl MarkedProcess {
    /// Starts the process, with a folder of its own for its files.
    pub fn start(surroundings: &Surroundings, name: &str, binary: &str, arguments: &[&str]) -> Self {
        let folder = surroundings.folder.join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = |name: &str| Stdio::from(std::fs::File::create(folder.join(name)).expect("a file"));
        let child = surroundings.command(binary, arguments).stdout(file("stdout")).stderr(file("stderr")).spawn();
        Self { name: name.to_owned(), child: child.expect("started"), folder, answers: Vec::new() }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.join("stderr")).expect("a log")).into_owned()
    }

    /// The address of its admin port, as it logs it.
    async fn address(&self) -> SocketAddr {
        let mut address = None;
        eventually("the admin port listens", SOON, async || {
            let said = self.said();
            let line = said.lines().find(|line| line.ends_with('}') && line.contains("admin port listens"));
            if let Some(line) = line {
                let line: Value = serde_json::from_str(line)?;
                address = Some(line["address"].as_str().context("an address")?.parse()?);
            }
            Ok(address.is_some())
        })
        .await;
        address.expect("an address")
    }

    /// Waits until its readiness is as given.
    pub async fn until_ready(&mut self, ready: bool) {
        self.until_answered(&format!("ready: {ready}"), |status, _| (status == 200) == ready).await;
    }

    /// Waits until its readiness endpoint gives such an answer. All answers are kept.
    pub async fn until_answered(&mut self, what: &str, so: impl Fn(u16, &str) -> bool) {
        let address = self.address().await;
        let (name, answers) = (&self.name, &mut self.answers);
        let mut asked = async |request: &str| {
            let (status, body) = admin::ask(address, request)?;
            answers.push(Capture::new(format!("answer of {name} to {request}"), body.as_bytes()));
            anyhow::Ok((status, body))
        };
        eventually(what, SOON, async || {
            asked("GET /healthz").await?;
            let (status, body) = asked("GET /readyz").await?;
            Ok(so(status, &body))
        })
        .await;
    }

    /// Waits until it has logged this text.
    pub async fn until_said(&self, text: &str) {
        eventually(&format!("{} says {text:?}", self.name), SOON, async || Ok(self.said().contains(text))).await;
    }

    /// Kills it with SIGKILL.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("killed");
    }

    /// Sends SIGTERM and waits until it has exited.
    pub async fn stop(&mut self) {
        fleet::terminate(&self.child).await.expect("SIGTERM sent");
        let status = tokio::time::timeout(SOON, self.child.wait()).await.expect("it leaves").expect("a status");
        assert!(status.success(), "{}: {status}", self.name);
    }

    /// All its output. The process must have exited.
    pub fn captures(self) -> Vec<Capture> {
        let file =
            |name: &str| Capture::new(format!("{name} of {}", self.name), std::fs::read(self.folder.join(name)).expect("a file"));
        [file("stdout"), file("stderr")].into_iter().chain(self.answers).collect()
    }
}

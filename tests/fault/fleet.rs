//! A scenario's processes under a supervisor, which restarts a process that crashes or is killed, as in production. All end with the
//! scenario.

use std::{
    collections::BTreeMap,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tests::fleet;
use tokio::{
    process::Child,
    task::JoinHandle,
    time::{Instant, timeout},
};

/// The pause between a crash and the restart.
const PAUSE: Duration = Duration::from_millis(200);
/// How often the supervisor checks the processes.
const LOOK: Duration = Duration::from_millis(20);
/// How long a process may take to stop; longer than a worker's grace.
const STOP: Duration = Duration::from_secs(45);

const SIGTERM: i32 = 15;

type Env = BTreeMap<String, String>;

pub struct FaultFleet {
    drivers: Drivers,
    folder: PathBuf,
    watch: JoinHandle<()>,
}

/// The running processes; a proxy, for example, uses it to kill one.
#[derive(Clone, Default)]
pub struct Drivers(Arc<Mutex<Vec<ProcessDriver>>>, Arc<AtomicU32>);

struct ProcessDriver {
    name: String,
    binary: &'static str,
    arguments: Vec<&'static str>,
    env: Env,
    log: PathBuf,
    child: Option<Child>,
    died: Option<Instant>,
}

impl FaultFleet {
    /// What a process has logged.
    pub fn said(&self, name: &str) -> Result<String> {
        Ok(std::fs::read_to_string(self.folder.join(format!("{name}.log")))?)
    }

    /// A fleet without processes, which will log to `folder`.
    pub fn new(folder: &Path) -> Self {
        let drivers = Drivers::default();
        let watched = drivers.clone();
        let watch = tokio::spawn(async move {
            loop {
                watched.look();
                tokio::time::sleep(LOOK).await;
            }
        });
        Self { drivers, folder: folder.to_owned(), watch }
    }

    pub fn drivers(&self) -> Drivers {
        self.drivers.clone()
    }

    /// Starts a process and keeps it running.
    pub fn start(&self, name: &str, binary: &'static str, arguments: &[&'static str], env: &Env) -> Result<()> {
        let mut driver = ProcessDriver {
            name: name.to_owned(),
            binary,
            arguments: arguments.to_vec(),
            env: env.clone(),
            log: self.folder.join(format!("{name}.log")),
            child: None,
            died: None,
        };
        driver.spawn()?;
        self.drivers.all().push(driver);
        Ok(())
    }

    /// Stops a process with SIGTERM and waits until it has exited successfully.
    pub async fn stop(&self, name: &str) -> Result<()> {
        let mut driver = self.drivers.take(name)?;
        let Some(mut child) = driver.child.take() else { return Ok(()) };
        if fleet::terminate(&child).await.is_err() {
            // It crashed just before.
            return Ok(());
        }
        let Ok(status) = timeout(STOP, child.wait()).await else {
            child.kill().await?;
            bail!("{name} does not stop {} s after SIGTERM; see {}", STOP.as_secs(), driver.log.display());
        };
        let status = status?;
        // A process that has just started has no signal handler yet, and nothing to finish.
        ensure!(
            status.success() || status.signal() == Some(SIGTERM),
            "{name}: {status} after SIGTERM; see {}",
            driver.log.display()
        );
        Ok(())
    }

    /// Stops every process.
    pub async fn stop_all(&self) -> Result<()> {
        let names = self.drivers.all().iter().map(|driver| driver.name.clone()).collect::<Vec<_>>();
        futures::future::try_join_all(names.iter().map(|name| self.stop(name))).await.map(|_| ())
    }

    /// The running process of this name.
    pub fn pid(&self, name: &str) -> Option<u32> {
        self.drivers.all().iter().find(|driver| driver.name == name)?.child.as_ref()?.id()
    }

    /// How often processes were restarted.
    pub fn restarts(&self) -> u32 {
        self.drivers.1.load(Ordering::Relaxed)
    }
}

impl Drop for FaultFleet {
    fn drop(&mut self) {
        self.watch.abort();
        // Dropping the processes kills them.
        self.drivers.all().clear();
    }
}

impl Drivers {
    fn all(&self) -> MutexGuard<'_, Vec<ProcessDriver>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, name: &str) -> Result<ProcessDriver> {
        let mut drivers = self.all();
        let at = drivers.iter().position(|driver| driver.name == name).with_context(|| format!("no process {name}"))?;
        Ok(drivers.remove(at))
    }

    /// Kills a process with `kill -9`; returns whether it was alive.
    pub fn kill(&self, name: &str) -> bool {
        let mut drivers = self.all();
        let child = drivers.iter_mut().find(|driver| driver.name == name).and_then(|driver| driver.child.as_mut());
        child.is_some_and(|child| matches!(child.try_wait(), Ok(None)) && child.start_kill().is_ok())
    }

    fn look(&self) {
        for driver in self.all().iter_mut() {
            if driver.child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None))) {
                driver.child = None;
                driver.died = Some(Instant::now());
            }
            if driver.died.is_some_and(|died| died.elapsed() > PAUSE) && driver.spawn().is_ok() {
                self.1.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl ProcessDriver {
    fn spawn(&mut self) -> Result<()> {
        self.child = Some(fleet::start(fleet::command(self.binary, &self.env, &self.arguments)?, &self.log)?);
        self.died = None;
        Ok(())
    }
}

//! Live progress: one line with the current day and the counts of each outcome.

use std::{
    collections::BTreeMap,
    io::IsTerminal,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use indicatif::ProgressBar;
use ops::progress;
use sea_orm::ConnectionTrait;
use shared::{broker::Broker, database::statement};
use tests::sandbox::Sandbox;

/// How often a line is printed without a terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

pub struct Progress<'a> {
    sandbox: &'a Sandbox,
    broker: &'a Broker,
    bar: ProgressBar,
    said: Option<Instant>,
    quiet: bool,
    live: bool,
}

impl<'a> Progress<'a> {
    pub fn new(sandbox: &'a Sandbox, broker: &'a Broker, orders: u32) -> Result<Self> {
        let bar = progress::spinner("")?;
        eprintln!(
            "population: {orders} orders and {} cart items in every situation of the policy; a day is a second",
            orders / 3
        );
        Ok(Self { sandbox, broker, bar, said: None, quiet: false, live: std::io::stderr().is_terminal() })
    }

    /// Reads the state of the fleet and prints it.
    pub async fn show(&mut self, elapsed: Duration, logs: &Path) -> Result<()> {
        let row = self.sandbox.db.query_one_raw(statement("SELECT count(*) AS outbox FROM outbox", [])).await?;
        let outbox: i64 = row.map(|row| row.try_get("", "outbox")).transpose()?.unwrap_or_default();
        let waiting = self.sandbox.depth(self.broker, "rung.").await?;
        let due = self.sandbox.depth(self.broker, "due.").await?;
        self.quiet = outbox == 0 && due == 0;
        let counts = logged(logs)?;
        let of = |name: &str| counts.get(name).copied().unwrap_or_default();
        let line = format!(
            "day {:>2} · events {} · waiting wake-ups {waiting} · due {due} · applied {} · stale {} · postponed {} · retried {} · dead {}",
            elapsed.as_secs(),
            of("events"),
            of("applied"),
            of("stale"),
            of("postponed"),
            of("retried"),
            of("rejected") + of("malformed"),
        );
        if self.live {
            self.bar.set_message(line);
            self.bar.tick();
        } else if self.said.is_none_or(|said| said.elapsed() >= LINE_EVERY) {
            eprintln!("{line}");
            self.said = Some(Instant::now());
        }
        Ok(())
    }

    /// Whether nothing was due and no event waited at the last look. Arrears below the wallet floor wait forever.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    pub fn finish(&self) {
        self.bar.finish();
    }
}

/// The sum of the last counts that each process has logged. A restarted process counts from zero, so the last counts of each run are
/// added.
fn logged(logs: &Path) -> Result<BTreeMap<String, u64>> {
    let mut sums = BTreeMap::new();
    for file in std::fs::read_dir(logs)?.flatten().filter(|file| file.path().extension().is_some_and(|end| end == "log")) {
        let mut life = BTreeMap::new();
        for line in std::fs::read_to_string(file.path())?.lines() {
            if line.contains("started\"") {
                add(&mut sums, std::mem::take(&mut life));
            } else if line.contains(" so far\"") {
                // The last line may be incomplete.
                let Ok(serde_json::Value::Object(said)) = serde_json::from_str(line) else { continue };
                life = said.into_iter().filter_map(|(name, value)| Some((name, value.as_u64()?))).collect();
            }
        }
        add(&mut sums, life);
    }
    Ok(sums)
}

fn add(sums: &mut BTreeMap<String, u64>, life: BTreeMap<String, u64>) {
    for (name, count) in life {
        *sums.entry(name).or_default() += count;
    }
}

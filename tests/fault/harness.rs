//! The harness of a scenario: a sandbox with the book, a relay and two workers under a supervisor, the population, and the end, which waits
//! for every expected effect and then counts them.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use shared::{
    message::{
        ladder::Ladder,
        outgoing::Outgoing,
        pack::{WaitingSubject, pack},
        wakeup::TraceContext,
    },
    settings::Settings,
};
use tests::{pair::Pair, sandbox::Sandbox};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    book,
    checker::{self, Counts, Spans},
    fleet::FaultFleet,
    place::{BuiltServers, ServerLayout},
    population::{Pace, populate},
};

/// The pause between two checks for the end.
const LOOK: Duration = Duration::from_millis(200);
/// How often in a row the queues must be empty, because unacked messages do not show in their counts.
const EMPTY_TIMES: u32 = 5;

/// The options of this run.
#[derive(Clone)]
pub struct Setting {
    pub pair: Arc<Pair>,
    /// Longer outages, more rounds.
    pub long: bool,
    pub seed: u64,
    pub subjects: u32,
    /// Whether network namespaces may be created.
    pub namespaces: bool,
    /// For logs and files.
    pub folder: PathBuf,
}

impl Setting {
    /// The first value in the quick form, the second in the long form.
    pub fn form<T>(&self, quick: T, long: T) -> T {
        if self.long { long } else { quick }
    }
}

/// The settings and servers of a scenario, as far as they differ from the defaults.
#[derive(Clone)]
pub struct ScenarioSettings {
    pub spans: Spans,
    /// Environment variables that override the settings file.
    pub env: Vec<(&'static str, &'static str)>,
    pub place: ServerLayout,
    /// How long to wait for the end.
    pub patience: Duration,
}

impl Default for ScenarioSettings {
    fn default() -> Self {
        Self {
            spans: Spans { confirm: 4_000, arrears: 2_000, purge: 3_000 },
            env: Vec::new(),
            place: ServerLayout::Pair,
            patience: Duration::from_secs(120),
        }
    }
}

impl ScenarioSettings {
    pub fn with(env: &[(&'static str, &'static str)]) -> Self {
        Self { env: env.to_vec(), ..Self::default() }
    }
}

/// A settings file with a policy of seconds.
pub fn file(spans: Spans) -> String {
    let Spans { confirm, arrears, purge } = spans;
    format!(
        r#"
        [[policy]]
        on = "order.shipped"
        task = "confirm-receipt"
        after = "{confirm}ms"
        [[policy]]
        on = ["order.shipped", "order.received", "order.out_of_stock", "order.fees_changed"]
        task = "collect-arrears"
        after = "{arrears}ms"
        [[policy]]
        on = "cart.item_added"
        task = "purge-cart-item"
        after = "{purge}ms"
        [topology]
        ladder = ["1s", "5s"]
        # Many messages, as they are what gets lost.
        pack_max = 8
        [amqp]
        confirm_timeout_ms = 10000
        [relay]
        batch_max = 500
        poll_ms = 200
        [worker]
        batch_max = 64
        prefetch = 256
        retry = ["1s"]
        attempts_max = 20
        [sweep]
        every_ms = 2000
        grace_ms = 5000
        "#
    )
}

pub struct FaultHarness {
    pub sandbox: Sandbox,
    pub setting: Setting,
    pub fleet: FaultFleet,
    pub standing: BuiltServers,
    pub folder: PathBuf,
    terms: ScenarioSettings,
    end: Mutex<ScenarioEnd>,
}

/// What the end is judged by.
struct ScenarioEnd {
    spans: Spans,
    letters: i64,
    more: i64,
    notes: Vec<String>,
    remarks: Vec<String>,
}

/// A scenario's counts, with notes and remarks for the report.
pub struct Ended {
    pub counts: Counts,
    pub notes: Vec<String>,
    pub remarks: Vec<String>,
}

impl FaultHarness {
    pub async fn set(setting: &Setting, name: &str, terms: &ScenarioSettings) -> Result<Self> {
        let folder = setting.folder.join("logs").join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        let standing = BuiltServers::at(terms.place, setting, &folder).await?;
        let tablespace = standing.tablespace();
        let sandbox = Sandbox::on(standing.servers(setting), "fault", &file(terms.spans), &terms.env, tablespace).await?;
        sandbox.declare().await?;
        book::open(&sandbox.db).await?;
        let end = ScenarioEnd { spans: terms.spans, letters: 0, more: 0, notes: Vec::new(), remarks: Vec::new() };
        let (setting, fleet, terms) = (setting.clone(), FaultFleet::new(&folder), terms.clone());
        Ok(Self { sandbox, setting, fleet, standing, folder, terms, end: Mutex::new(end) })
    }

    pub fn settings(&self) -> &Settings {
        &self.sandbox.settings
    }

    /// Starts the relay and two workers.
    pub fn start(&self) -> Result<()> {
        self.start_with(&[])
    }

    /// Starts them with further variables.
    pub fn start_with(&self, more: &[(&str, String)]) -> Result<()> {
        self.relay(more)?;
        self.worker("worker-1", more)?;
        self.worker("worker-2", more)
    }

    pub fn relay(&self, more: &[(&str, String)]) -> Result<()> {
        self.fleet.start("relay", "producer", &["relay"], &self.env(more))
    }

    pub fn worker(&self, name: &str, more: &[(&str, String)]) -> Result<()> {
        self.fleet.start(name, "worker", &[], &self.env(more))
    }

    /// The environment of a process.
    pub fn env(&self, more: &[(&str, String)]) -> std::collections::BTreeMap<String, String> {
        let mut env = self.sandbox.env.clone();
        env.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        env
    }

    /// Makes the population during the fault; returns when both have ended.
    pub async fn populate_during(&self, fault: impl Future<Output = Result<()>>) -> Result<()> {
        self.populate_at(Pace::STEADY, fault).await
    }

    pub async fn populate_at(&self, pace: Pace, fault: impl Future<Output = Result<()>>) -> Result<()> {
        let making = populate(&self.sandbox.db, self.setting.subjects, self.setting.seed, pace);
        futures::try_join!(making, fault).map(|_| ())
    }

    /// Adds a note to the report.
    pub fn note(&self, note: impl Into<String>) {
        self.end().notes.push(note.into());
    }

    /// Adds something unexpected that the checker does not find.
    pub fn unexpected(&self, count: i64, what: impl Into<String>) {
        let mut end = self.end();
        end.more += count;
        end.remarks.push(what.into());
    }

    /// Whether the log of a process contains the text.
    pub fn logs_contain(&self, text: &str) -> Result<bool> {
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") && std::fs::read_to_string(path)?.contains(text) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes another policy the active one, at once.
    pub async fn apply(&self, spans: Spans) -> Result<()> {
        let path = self.folder.join(format!("{}ms.toml", spans.confirm));
        std::fs::write(&path, file(spans))?;
        let settings = Settings::read(Some(&path), self.sandbox.env.clone())?;
        self.sandbox.apply(&settings.policy).await?;
        Ok(())
    }

    pub fn spans_at_first(&self) -> Spans {
        self.terms.spans
    }

    /// Judges early and late by these spans from now on.
    pub fn judge_by(&self, spans: Spans) {
        self.end().spans = spans;
    }

    /// Adds to the number of expected dead letters.
    pub fn expect_letters(&self, count: i64) {
        self.end().letters += count;
    }

    fn end(&self) -> std::sync::MutexGuard<'_, ScenarioEnd> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until every effect is there and nothing is in flight, or until the patience is over.
    pub async fn until_over(&self) -> Result<()> {
        let began = Instant::now();
        let mut empty = 0;
        while empty < EMPTY_TIMES && began.elapsed() < self.terms.patience {
            // A server may still be starting; a queue that cannot be read does not count as empty.
            empty = if self.is_over().await.unwrap_or(false) { empty + 1 } else { 0 };
            tokio::time::sleep(LOOK).await;
        }
        if empty < EMPTY_TIMES {
            let over = self.terms.patience.as_secs();
            self.unexpected(0, format!("wake-ups were still waiting or effects missing after {over} s"));
        }
        Ok(())
    }

    /// Waits for the end, stops the fleet, and counts.
    pub async fn finish(&self) -> Result<Ended> {
        self.until_over().await?;
        let restarts = self.fleet.restarts();
        if let Err(error) = self.fleet.stop_all().await {
            self.unexpected(1, format!("{error:#}"));
        }
        let letters = self.letters().await.context("counting the dead letters")?;
        let (spans, expected) = {
            let end = self.end();
            (end.spans, end.letters)
        };
        let (mut counts, mut remarks) = checker::check(&self.sandbox.db, spans, (letters - expected).abs()).await?;
        let swept = checker::ask(&self.sandbox.db, "SELECT coalesce(sum(times), 0)::bigint FROM swept").await?;
        let end = self.end();
        counts.unexpected += end.more;
        remarks.extend(end.remarks.iter().cloned());
        let mut notes = end.notes.clone();
        if expected > 0 {
            notes.push(format!("{letters} dead letters, as many as there was garbage"));
        }
        if swept > 0 {
            notes.push(format!("{swept} woken by the sweep"));
        }
        if restarts > 0 {
            notes.push(format!("{restarts} restarts"));
        }
        Ok(Ended { counts, notes, remarks })
    }

    async fn is_over(&self) -> Result<bool> {
        let waiting = "SELECT count(*) FROM outbox";
        let quiet = checker::missing(&self.sandbox.db).await? == 0 && checker::ask(&self.sandbox.db, waiting).await? == 0;
        // While a worker runs, canaries are in the rungs; one that is long overdue was lost with its broker.
        let canaries = "SELECT count(*) FROM canaries WHERE arrived_at IS NULL AND due_at > now() - interval '5 s'";
        let canaries = checker::ask(&self.sandbox.db, canaries).await?;
        // All dead letters must be stored.
        let unstored = self.depth(&["dead", "unrouted"]).await?;
        Ok(quiet && unstored == 0 && i64::from(self.depth(&["rung.", "due.", "quarantine"]).await?) <= canaries)
    }

    /// The number of dead letters, stored or still in the broker.
    async fn letters(&self) -> Result<i64> {
        let stored = checker::ask(&self.sandbox.db, "SELECT count(*) FROM dead_letters").await?;
        Ok(stored + i64::from(self.depth(&["dead", "unrouted"]).await?))
    }

    /// How many messages are in the queues whose names begin with one of these texts.
    pub async fn depth(&self, begins: &[&str]) -> Result<u32> {
        let broker = self.sandbox.broker().await?;
        let depths = futures::future::try_join_all(begins.iter().map(|begins| self.sandbox.depth(&broker, begins))).await;
        broker.close().await;
        Ok(depths?.iter().sum())
    }

    /// Publishes a wake-up that is due now directly into its lane.
    pub fn wakeup(&self, kind: &'static str, subjects: &[Uuid]) -> Vec<Outgoing> {
        let due_at = chrono::DateTime::UNIX_EPOCH;
        let wait = chrono::TimeDelta::zero();
        let waiting = subjects.iter().map(|subject| WaitingSubject { kind, subject: *subject, due_at, wait, attempt: 0 });
        let topology = self.settings().topology();
        let packed =
            pack(waiting, &Ladder::new([]), topology.shards(), self.settings().naming.pack_max, &TraceContext::default());
        packed.iter().map(|packed| Outgoing::of(packed, &topology)).collect()
    }

    /// Publishes messages and waits for their confirms.
    pub async fn publish(&self, messages: Vec<Outgoing>) -> Result<()> {
        let broker = self.sandbox.broker().await?;
        let publisher = broker.publisher().await?;
        let published = publisher.publish_all(&messages).await;
        publisher.close().await;
        broker.close().await;
        Ok(published?)
    }

    /// Stops what still runs and removes everything, in any state.
    pub async fn clear(self) -> Result<()> {
        drop(self.fleet);
        // The database first, because a full disk can be unmounted only then.
        let removed = self.sandbox.remove().await;
        let cleared = self.standing.clear().await;
        removed.and(cleared)
    }
}

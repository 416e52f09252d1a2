//! The harness: the private servers, the counts, and the steps of every measurement before its clock starts. Each run begins with fresh
//! tables, vacuumed, analyzed and checkpointed.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use sea_orm::{ConnectionTrait, Database, FromQueryResult, Statement};
use shared::{broker::Broker, database::statement};
use tests::{
    pair::{Pair, Server},
    sandbox::Sandbox,
};
use tokio::time::Instant;

use crate::{figure::shown, usage::Cpu};

/// The folder of the reports and of the processes' logs.
pub const FOLDER: &str = "target/bench";
/// Timeout of each wait.
pub const PATIENCE: Duration = Duration::from_secs(300);

pub struct BenchHarness {
    pub pair: Pair,
    pub quick: bool,
    rounds: usize,
    only: Vec<String>,
    waiting: Option<u32>,
    began: Instant,
}

impl BenchHarness {
    /// Starts the servers, with commit timestamps enabled.
    pub async fn set(quick: bool, rounds: usize, only: Vec<String>, waiting: Option<u32>) -> Result<Self> {
        let began = Instant::now();
        let folder = tests::pair::root().join(FOLDER);
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let pair = Pair::start(&folder).await?;
        let admin = Database::connect(&pair.servers.database_url).await?;
        admin.execute_unprepared("ALTER SYSTEM SET track_commit_timestamp = on").await?;
        admin.close().await?;
        pair.stop(Server::Postgres).await?;
        pair.up().await?;
        Ok(Self { pair, quick, rounds, only, waiting, began })
    }

    /// Whether a figure of this name is to be measured.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.contains(only.as_str()))
    }

    /// The first count in a full run, the second in a quick run.
    pub const fn of<T: Copy>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// How many messages wait in the rungs, in the figures about that.
    pub fn waiting(&self) -> usize {
        self.waiting.map_or_else(|| self.of(1_000_000, 100_000), |waiting| waiting as usize)
    }

    /// The number of rounds: the requested one, but at most `most`.
    pub fn rounds(&self, most: usize) -> std::ops::RangeInclusive<usize> {
        1..=self.rounds.min(most)
    }

    /// A sandbox under this policy, with every other setting at its default, except that nothing is logged.
    pub async fn sandbox(&self, name: &str, policy: &str, more: &[(&str, &str)]) -> Result<Sandbox> {
        let mut all = vec![("KYHAN_TELEMETRY_LOG", "off")];
        all.extend(more);
        let sandbox = Sandbox::on(self.pair.servers.clone(), name, policy, &all, None).await?;
        sandbox.declare().await?;
        Ok(sandbox)
    }

    /// Prints on stderr what was just measured.
    pub fn say(&self, what: &str, round: usize, value: f64, ceiling: Option<f64>, unit: &str) {
        let beside = ceiling.map_or(String::new(), |ceiling| format!(" beside {}", shown(ceiling)));
        eprintln!("{:>5} s  {what}, round {round}: {}{beside} {unit}", self.began.elapsed().as_secs(), shown(value));
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

/// Brings the database to the state in which every timed run begins.
pub async fn settle(sandbox: &Sandbox) -> Result<()> {
    sandbox.db.execute_unprepared("VACUUM (ANALYZE)").await?;
    sandbox.db.execute_unprepared("CHECKPOINT").await?;
    Ok(())
}

/// Waits until the broker uses less than a tenth of a core, because it goes on writing for a while after publishing.
pub async fn rest(harness: &BenchHarness) -> Result<()> {
    const LOOK: Duration = Duration::from_millis(500);
    until("the broker has come to rest", Duration::ZERO, async || {
        let before = Cpu::now(&harness.pair, &[])?;
        tokio::time::sleep(LOOK).await;
        Ok(Cpu::now(&harness.pair, &[])?.since(before).broker < LOOK.as_secs_f64() / 10.0)
    })
    .await
}

/// One number from the database.
pub async fn ask<T: sea_orm::TryGetable>(sandbox: &Sandbox, sql: &str) -> Result<T> {
    let row = sandbox.db.query_one_raw(statement(sql, [])).await.with_context(|| sql.to_owned())?.context("no row")?;
    row.try_get_by_index(0).with_context(|| sql.to_owned())
}

/// All rows of a query.
pub async fn rows<T: FromQueryResult>(sandbox: &Sandbox, question: Statement) -> Result<Vec<T>> {
    let rows = sandbox.db.query_all_raw(question).await?;
    rows.iter().map(|row| Ok(T::from_query_result(row, "")?)).collect()
}

/// Polls until the condition holds; an error if it does not within [`PATIENCE`].
pub async fn until(what: &str, pause: Duration, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await? {
        if Instant::now() > deadline {
            bail!("waited in vain until {what}");
        }
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

/// Waits until the queues whose names begin with the text hold `count` messages.
pub async fn until_depth(sandbox: &Sandbox, broker: &Broker, begins: &str, count: usize) -> Result<()> {
    let wanted = u32::try_from(count)?;
    let what = format!("{begins} holds {count} messages");
    until(&what, Duration::from_millis(20), async || Ok(sandbox.depth(broker, begins).await? == wanted)).await
}

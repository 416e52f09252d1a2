//! The stage: servers of the bench's own, how much is measured, and what every measurement does before its clock starts. Runs
//! are alike: each begins with fresh tables, vacuumed, analyzed and checkpointed.

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

/// Where reports and the processes' logs go.
pub const FOLDER: &str = "target/bench";
/// Longest time that anything measured may take.
pub const PATIENCE: Duration = Duration::from_secs(300);

pub struct Stage {
    pub pair: Pair,
    pub quick: bool,
    rounds: usize,
    only: Vec<String>,
    waiting: Option<u32>,
    began: Instant,
}

impl Stage {
    /// Starts the servers, with commit timestamps kept.
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

    /// Whether a figure of this name was asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.contains(only.as_str()))
    }

    /// How many of something: in full, or in a quick run.
    pub const fn of<T: Copy>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// How many messages wait, where that is measured.
    pub fn waiting(&self) -> usize {
        self.waiting.map_or_else(|| self.of(1_000_000, 100_000), |waiting| waiting as usize)
    }

    /// How often a measurement is made: as often as asked for, and no more than `most`.
    pub fn rounds(&self, most: usize) -> std::ops::RangeInclusive<usize> {
        1..=self.rounds.min(most)
    }

    /// A database and a prefix under this policy, with every other setting at its default but for the log, which is silent.
    pub async fn sandbox(&self, name: &str, policy: &str, more: &[(&str, &str)]) -> Result<Sandbox> {
        let mut all = vec![("KYHAN_TELEMETRY_LOG", "off")];
        all.extend(more);
        let sandbox = Sandbox::on(self.pair.servers.clone(), name, policy, &all, None).await?;
        sandbox.declare().await?;
        Ok(sandbox)
    }

    /// Says on stderr what was measured just now.
    pub fn say(&self, what: &str, round: usize, value: f64, ceiling: Option<f64>, unit: &str) {
        let beside = ceiling.map_or(String::new(), |ceiling| format!(" beside {}", shown(ceiling)));
        eprintln!("{:>5} s  {what}, round {round}: {}{beside} {unit}", self.began.elapsed().as_secs(), shown(value));
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

/// The database as every timed run finds it.
pub async fn settle(sandbox: &Sandbox) -> Result<()> {
    sandbox.db.execute_unprepared("VACUUM (ANALYZE)").await?;
    sandbox.db.execute_unprepared("CHECKPOINT").await?;
    Ok(())
}

/// Waits until the broker uses less than a tenth of a core: what was published goes on being written for a while.
pub async fn rest(stage: &Stage) -> Result<()> {
    const LOOK: Duration = Duration::from_millis(500);
    until("the broker has come to rest", Duration::ZERO, async || {
        let before = Cpu::now(&stage.pair, &[])?;
        tokio::time::sleep(LOOK).await;
        Ok(Cpu::now(&stage.pair, &[])?.since(before).broker < LOOK.as_secs_f64() / 10.0)
    })
    .await
}

/// One number out of the database.
pub async fn ask<T: sea_orm::TryGetable>(sandbox: &Sandbox, sql: &str) -> Result<T> {
    let row = sandbox.db.query_one_raw(statement(sql, [])).await.with_context(|| sql.to_owned())?.context("no row")?;
    row.try_get_by_index(0).with_context(|| sql.to_owned())
}

/// Every row of a question.
pub async fn rows<T: FromQueryResult>(sandbox: &Sandbox, question: Statement) -> Result<Vec<T>> {
    let rows = sandbox.db.query_all_raw(question).await?;
    rows.iter().map(|row| Ok(T::from_query_result(row, "")?)).collect()
}

/// Asks again and again until it holds; an error when it does not within [`PATIENCE`].
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

/// Waits until the queues whose names begin so hold `count` messages.
pub async fn until_depth(sandbox: &Sandbox, broker: &Broker, begins: &str, count: usize) -> Result<()> {
    let wanted = u32::try_from(count)?;
    let what = format!("{begins} holds {count} messages");
    until(&what, Duration::from_millis(20), async || Ok(sandbox.depth(broker, begins).await? == wanted)).await
}

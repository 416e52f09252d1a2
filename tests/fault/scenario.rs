//! THE list of scenarios, in the order of the report. A scenario is a claim, what it stands on, and what is done to it.

use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;
use rand::{SeedableRng, rngs::StdRng};

use crate::{
    report::{Line, Verdict},
    stage::{Ended, Setting, Stage, Terms},
    worker,
};

/// What a scenario does: starts the fleet, makes the population, and disturbs both. The end is the same for all.
pub type Play<'a> = BoxFuture<'a, Result<()>>;

pub struct Scenario {
    pub name: &'static str,
    /// Whether it disturbs the servers that all share; then it runs alone.
    pub alone: bool,
    pub terms: fn() -> Terms,
    /// Why it cannot run on this machine, if so.
    pub lacks: fn() -> Option<String>,
    pub play: for<'a> fn(&'a Stage, StdRng) -> Play<'a>,
}

impl Scenario {
    const fn calm(name: &'static str, play: for<'a> fn(&'a Stage, StdRng) -> Play<'a>) -> Self {
        Self { name, alone: false, terms: Terms::default, lacks: || None, play }
    }

    const fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    const fn on(self, terms: fn() -> Terms) -> Self {
        Self { terms, ..self }
    }
}

pub const ALL: &[Scenario] = &[Scenario::calm("workers_are_killed_ten_times", worker::killed_ten_times)];

/// Longer than any should take: one that hangs must not hold up the others.
const LONGEST: Duration = Duration::from_secs(420);

impl Scenario {
    /// Plays it on a stage of its own, which is removed whatever happens. Its randomness follows from the seed and its name.
    pub async fn run(&self, setting: &Setting, interrupted: &tokio_util::sync::CancellationToken) -> Line {
        let began = tokio::time::Instant::now();
        let verdict = match (self.lacks)() {
            Some(why) => Verdict::NotRun(why),
            None => match self.played(setting, interrupted).await {
                Ok(ended) => Verdict::Counted(ended),
                Err(error) => Verdict::Broken(format!("{error:#}")),
            },
        };
        Line { scenario: self.name, verdict, took: began.elapsed() }
    }

    async fn played(&self, setting: &Setting, interrupted: &tokio_util::sync::CancellationToken) -> Result<Ended> {
        let rng = StdRng::seed_from_u64(setting.seed ^ hash(self.name));
        let terms = (self.terms)();
        let stage = tokio::select! {
            () = interrupted.cancelled() => anyhow::bail!("interrupted"),
            stage = Stage::set(setting, self.name, &terms) => stage?,
        };
        let ended = tokio::select! {
            () = interrupted.cancelled() => Err(anyhow::anyhow!("interrupted")),
            () = tokio::time::sleep(LONGEST) => Err(anyhow::anyhow!("not over after {} s", LONGEST.as_secs())),
            ended = async {
                (self.play)(&stage, rng).await?;
                stage.finish().await
            } => ended,
        };
        let folder = stage.folder.clone();
        let cleared = stage.clear().await;
        let ended = ended?;
        cleared?;
        if ended.counts.is_right() {
            let _ = std::fs::remove_dir_all(folder);
        }
        Ok(ended)
    }
}

/// FNV-1a: the same on every machine and with every compiler.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

//! Draining: worker processes apply, record and ack the due wake-ups of a lane. Timed from the first to the last commit by PostgreSQL's
//! timestamps, so that starting a process does not count. Afterwards every row is checked.

use std::time::Duration;

use anyhow::{Result, ensure};
use chrono::{DateTime, Utc};
use sea_orm::FromQueryResult;
use shared::database::statement;
use tests::sandbox::Sandbox;

use crate::{
    clock::millis,
    figure::number,
    harness::{BenchHarness, ask, rest, rows, settle, until, until_depth},
    population::{Load, due_of},
    process::RunningProcess,
    usage::{Cpu, Memory},
    wakeups,
};

/// What is drained, and by how many workers.
#[derive(Clone, Copy)]
pub struct Drain<'a> {
    pub load: &'a Load,
    pub count: usize,
    /// Subjects that a wake-up names.
    pub each: usize,
    pub workers: usize,
}

/// The result of a drain.
pub struct Drained {
    /// Subjects per second, including stale ones.
    pub rate: f64,
    pub cpu: Cpu,
    /// The peak memory of a worker, in MiB.
    pub memory: f64,
    pub wal: Wal,
}

/// The volume of the write-ahead log.
#[derive(Clone, Copy)]
pub struct Wal {
    pub bytes: f64,
    pub records: f64,
    pub images: f64,
}

#[derive(FromQueryResult)]
struct Commit {
    at: DateTime<Utc>,
    effects: i64,
}

impl Drain<'_> {
    pub async fn run(&self, harness: &BenchHarness, sandbox: &Sandbox) -> Result<Drained> {
        let Self { load, count, each, workers } = *self;
        let ids = load.make(sandbox, count).await?;
        let broker = sandbox.broker().await?;
        let lane = format!("due.{}.", load.kind);
        let messages = wakeups::put(sandbox, &broker, load.kind, &ids, each).await?;
        until_depth(sandbox, &broker, &lane, messages).await?;
        settle(sandbox).await?;
        rest(harness).await?;

        let wal = Wal::so_far(sandbox).await?;
        let before = Cpu::now(&harness.pair, &[])?;
        let running = (0..workers).map(|_| RunningProcess::worker(sandbox)).collect::<Result<Vec<_>>>()?;
        let pids: Vec<u32> = running.iter().map(|worker| worker.pid).collect();
        self.until_applied(sandbox).await?;
        let cpu = Cpu::now(&harness.pair, &pids)?.since(before);
        let memory = pids.iter().map(|pid| Ok(Memory::of(*pid)?.most)).collect::<Result<Vec<_>>>()?;
        // Only stale subjects can be left in the lane now, and they are about to be taken.
        until_depth(sandbox, &broker, &lane, 0).await?;
        tokio::time::sleep(SETTLED).await;
        for worker in running {
            worker.stop().await?;
        }
        // Without a worker, unacked messages are back in the lane.
        for queue in ["due.", "quarantine", "dead", "unrouted"] {
            let left = sandbox.depth(&broker, queue).await?;
            ensure!(left == 0, "{}: {left} messages are left in {queue}", load.kind);
        }
        let letters: i64 = ask(sandbox, "SELECT count(*) FROM dead_letters").await?;
        ensure!(letters == 0, "{}: {letters} dead letters", load.kind);
        broker.close().await;
        // A session reports its WAL statistics when it ends.
        let wal = Wal::so_far(sandbox).await?.since(wal);
        load.check(sandbox, count).await?;
        Ok(Drained { rate: self.rate(sandbox).await?, cpu, memory: memory.into_iter().fold(0.0, f64::max), wal })
    }

    /// Waits until every effect is committed, with cheap queries.
    async fn until_applied(&self, sandbox: &Sandbox) -> Result<()> {
        let (load, due) = (self.load, due_of(self.count));
        let what = format!("{due} effects of {} are there", load.kind);
        until(&what, Duration::from_millis(50), async || {
            Ok(load.begun(sandbox).await? >= due && load.applied(sandbox).await? >= due)
        })
        .await
    }

    /// Subjects per second. The first commit only starts the clock, because its work was done before.
    async fn rate(&self, sandbox: &Sandbox) -> Result<f64> {
        let Load { record, record_is, .. } = self.load;
        let sql = format!(
            "SELECT pg_xact_commit_timestamp(xmin) AS at, count(*) AS effects FROM {record} WHERE {record_is} GROUP BY xmin ORDER BY 1"
        );
        let commits: Vec<Commit> = rows(sandbox, statement(&sql, [])).await?;
        let [first, .., last] = commits.as_slice() else { anyhow::bail!("too few commits to time") };
        let effects = due_of(self.count) - usize::try_from(first.effects)?;
        let subjects = number(effects) * number(self.count) / number(due_of(self.count));
        Ok(subjects * 1_000.0 / millis(last.at - first.at))
    }
}

/// How long to wait after the lane is empty; by then the last batch is settled.
const SETTLED: Duration = Duration::from_millis(300);

impl Wal {
    async fn so_far(sandbox: &Sandbox) -> Result<Self> {
        let number = async |what: &str| ask::<f64>(sandbox, &format!("SELECT ({what})::float8 FROM pg_stat_wal")).await;
        Ok(Self {
            bytes: number("pg_current_wal_lsn() - '0/0'").await?,
            records: number("wal_records").await?,
            images: number("wal_fpi").await?,
        })
    }

    fn since(self, before: Self) -> Self {
        Self { bytes: self.bytes - before.bytes, records: self.records - before.records, images: self.images - before.images }
    }
}

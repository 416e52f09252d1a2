//! Scenarios of PostgreSQL: restarted, stopped, sessions cut, rows locked by other clients, disk full.

use std::time::Duration;

use anyhow::{Context, Result};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sea_orm::{ConnectionTrait, Database, TransactionTrait};
use shared::database::statement;
use tests::pair::Server;

use crate::{
    harness::{FaultHarness, ScenarioSettings},
    place::ServerLayout,
    scenario::ScenarioRun,
};

pub fn restarted(harness: &FaultHarness, mut rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move {
        harness.start()?;
        let times = harness.setting.form(2, 5);
        harness
            .populate_during(async {
                for _ in 0..times {
                    tokio::time::sleep(Duration::from_millis(rng.random_range(500..=2_000))).await;
                    let pair = &harness.setting.pair;
                    // Sometimes crash it, so that it recovers from its write-ahead log.
                    if rng.random_bool(0.5) {
                        pair.kill(Server::Postgres).await?;
                    } else {
                        pair.stop(Server::Postgres).await?;
                    }
                    pair.up().await?;
                }
                Ok(())
            })
            .await?;
        harness.note(format!("{times} restarts of the server"));
        Ok(())
    })
}

pub fn stopped(harness: &FaultHarness, rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(stopped_for_a_while(harness, rng, Server::Postgres))
}

/// Stops a server while the population is made, and restarts it after a while.
pub async fn stopped_for_a_while(harness: &FaultHarness, mut rng: StdRng, server: Server) -> Result<()> {
    harness.start()?;
    let span = harness.setting.form(Duration::from_secs(5), Duration::from_secs(20));
    harness
        .populate_during(async {
            tokio::time::sleep(Duration::from_millis(rng.random_range(1_000..=2_500))).await;
            harness.setting.pair.stop(server).await?;
            tokio::time::sleep(span).await;
            harness.setting.pair.up().await
        })
        .await?;
    harness.note(format!("away for {} s", span.as_secs()));
    Ok(())
}

pub fn cut_mid_statement(harness: &FaultHarness, mut rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move {
        harness.start()?;
        let admin = Database::connect(&harness.setting.pair.servers.database_url).await?;
        // Sessions that run a statement, or that are at least inside a transaction.
        let cut = "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) AS cut FROM pg_stat_activity
                    WHERE datname = $1 AND application_name IN ('kyhan worker', 'kyhan producer') AND state <> 'idle'";
        let (database, rounds) = (harness.sandbox.database(), harness.setting.form(150, 600));
        let mut sessions: i64 = 0;
        harness
            .populate_during(async {
                for _ in 0..rounds {
                    tokio::time::sleep(Duration::from_millis(rng.random_range(5..=80))).await;
                    let row = admin.query_one_raw(statement(cut, [database.into()])).await?.context("no row")?;
                    sessions += row.try_get::<i64>("", "cut")?;
                }
                Ok(())
            })
            .await?;
        harness.note(format!("{sessions} sessions cut while they worked"));
        admin.close().await?;
        Ok(())
    })
}

/// Other clients lock rows and wallets in the opposite order, some for longer than the lock timeout.
pub fn locked_by_others(harness: &FaultHarness, mut rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move {
        // Deadlocks must be detected before a lock timeout ends the wait.
        let sql = format!("ALTER DATABASE {} SET deadlock_timeout = '30ms'", harness.sandbox.database());
        harness.sandbox.db.execute_unprepared(&sql).await?;
        harness.start()?;
        let span = harness.setting.form(Duration::from_secs(7), Duration::from_secs(25));
        let mut troubles = [0; 3];
        let before = conflicts(harness).await?;
        harness
            .populate_during(async {
                let clients =
                    troubles.iter_mut().map(|troubles| locks(harness, StdRng::seed_from_u64(rng.random()), span, troubles));
                futures::future::try_join_all(clients).await.map(|_| ())
            })
            .await?;
        let met = troubles.iter().sum::<u32>();
        harness.note(format!("{} deadlocks, {met} times another client lost to the fleet", conflicts(harness).await? - before));
        Ok(())
    })
}

async fn locks(harness: &FaultHarness, mut rng: StdRng, span: Duration, troubles: &mut u32) -> Result<()> {
    let end = tokio::time::Instant::now() + span;
    while tokio::time::Instant::now() < end {
        let hold =
            Duration::from_millis(if rng.random_bool(0.2) { rng.random_range(500..=2_500) } else { rng.random_range(10..=100) });
        let turn = rng.random::<u32>().to_string();
        let locked = async {
            let tx = harness.sandbox.db.begin().await?;
            // In reverse order, and in two steps.
            for _ in 0..2 {
                let sql = "SELECT id FROM orders WHERE id IN (
                               SELECT subject FROM fault_book WHERE final IS NOT NULL ORDER BY md5(subject::text || $1) LIMIT 30)
                            ORDER BY id DESC FOR UPDATE";
                tx.execute_raw(statement(sql, [turn.clone().into()])).await?;
                let sql = "SELECT id FROM accounts WHERE kind = 'wallet' ORDER BY md5(id::text || $1) LIMIT 20 FOR UPDATE";
                tx.execute_raw(statement(sql, [turn.clone().into()])).await?;
                tokio::time::sleep(hold / 2).await;
            }
            tx.rollback().await
        };
        if locked.await.is_err() {
            *troubles += 1;
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(5..=60))).await;
    }
    Ok(())
}

async fn conflicts(harness: &FaultHarness) -> Result<i64> {
    let sql = format!("SELECT deadlocks FROM pg_stat_database WHERE datname = '{}'", harness.sandbox.database());
    crate::checker::ask(&harness.sandbox.db, &sql).await
}

/// Short timeouts, so that they occur.
pub fn impatient() -> ScenarioSettings {
    ScenarioSettings::with(&[("KYHAN_DATABASE_LOCK_TIMEOUT_MS", "300")])
}

pub fn disk_full(harness: &FaultHarness, mut rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move {
        harness.start()?;
        let (times, span) = harness.setting.form((1, Duration::from_secs(5)), (3, Duration::from_secs(10)));
        let disk = harness.standing.disk().context("no disk to fill")?;
        let mut refused = 0;
        harness
            .populate_during(async {
                for _ in 0..times {
                    tokio::time::sleep(Duration::from_millis(rng.random_range(800..=1_600))).await;
                    disk.fill()?;
                    // Growing a table shows whether the disk is full.
                    let grow =
                        "CREATE TABLE fault_growth AS SELECT repeat(n::text, 100) AS filler FROM generate_series(1, 100000) n";
                    if let Err(error) = harness.sandbox.db.execute_unprepared(grow).await
                        && error.to_string().contains("No space left on device")
                    {
                        refused += 1;
                    }
                    tokio::time::sleep(span).await;
                    disk.empty()?;
                }
                Ok(())
            })
            .await?;
        harness.note(format!("full {times} times for {} s (a tmpfs as the database's tablespace)", span.as_secs()));
        if refused != times {
            harness.unexpected(1, "the disk was not full");
        }
        Ok(())
    })
}

pub fn small_disk() -> ScenarioSettings {
    ScenarioSettings { place: ServerLayout::SmallDisk, ..ScenarioSettings::default() }
}

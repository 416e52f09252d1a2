//! Scenarios of PostgreSQL: restarted, stopped, sessions cut, rows locked by other clients, disk full.

use std::time::Duration;

use anyhow::{Context, Result};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sea_orm::{ConnectionTrait, Database, TransactionTrait};
use shared::database::statement;
use tests::pair::Server;

use crate::{
    place::Place,
    scenario::Play,
    stage::{Stage, Terms},
};

pub fn restarted(stage: &Stage, mut rng: StdRng) -> Play<'_> {
    Box::pin(async move {
        stage.start()?;
        let times = stage.setting.form(2, 5);
        stage
            .populate_during(async {
                for _ in 0..times {
                    tokio::time::sleep(Duration::from_millis(rng.random_range(500..=2_000))).await;
                    let pair = &stage.setting.pair;
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
        stage.note(format!("{times} restarts of the server"));
        Ok(())
    })
}

pub fn stopped(stage: &Stage, rng: StdRng) -> Play<'_> {
    Box::pin(stopped_for_a_while(stage, rng, Server::Postgres))
}

/// Stops a server while the population is made, and restarts it after a while.
pub async fn stopped_for_a_while(stage: &Stage, mut rng: StdRng, server: Server) -> Result<()> {
    stage.start()?;
    let span = stage.setting.form(Duration::from_secs(5), Duration::from_secs(20));
    stage
        .populate_during(async {
            tokio::time::sleep(Duration::from_millis(rng.random_range(1_000..=2_500))).await;
            stage.setting.pair.stop(server).await?;
            tokio::time::sleep(span).await;
            stage.setting.pair.up().await
        })
        .await?;
    stage.note(format!("away for {} s", span.as_secs()));
    Ok(())
}

pub fn cut_mid_statement(stage: &Stage, mut rng: StdRng) -> Play<'_> {
    Box::pin(async move {
        stage.start()?;
        let admin = Database::connect(&stage.setting.pair.servers.database_url).await?;
        // Sessions that run a statement, or that are at least inside a transaction.
        let cut = "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) AS cut FROM pg_stat_activity
                    WHERE datname = $1 AND application_name IN ('kyhan worker', 'kyhan producer') AND state <> 'idle'";
        let (database, rounds) = (stage.sandbox.database(), stage.setting.form(150, 600));
        let mut sessions: i64 = 0;
        stage
            .populate_during(async {
                for _ in 0..rounds {
                    tokio::time::sleep(Duration::from_millis(rng.random_range(5..=80))).await;
                    let row = admin.query_one_raw(statement(cut, [database.into()])).await?.context("no row")?;
                    sessions += row.try_get::<i64>("", "cut")?;
                }
                Ok(())
            })
            .await?;
        stage.note(format!("{sessions} sessions cut while they worked"));
        admin.close().await?;
        Ok(())
    })
}

/// Other clients lock rows and wallets in the opposite order, some for longer than the lock timeout.
pub fn locked_by_others(stage: &Stage, mut rng: StdRng) -> Play<'_> {
    Box::pin(async move {
        // Deadlocks must be detected before a lock timeout ends the wait.
        let sql = format!("ALTER DATABASE {} SET deadlock_timeout = '30ms'", stage.sandbox.database());
        stage.sandbox.db.execute_unprepared(&sql).await?;
        stage.start()?;
        let span = stage.setting.form(Duration::from_secs(7), Duration::from_secs(25));
        let mut troubles = [0; 3];
        let before = conflicts(stage).await?;
        stage
            .populate_during(async {
                let clients =
                    troubles.iter_mut().map(|troubles| locks(stage, StdRng::seed_from_u64(rng.random()), span, troubles));
                futures::future::try_join_all(clients).await.map(|_| ())
            })
            .await?;
        let met = troubles.iter().sum::<u32>();
        stage.note(format!("{} deadlocks, {met} times another client lost to the fleet", conflicts(stage).await? - before));
        Ok(())
    })
}

async fn locks(stage: &Stage, mut rng: StdRng, span: Duration, troubles: &mut u32) -> Result<()> {
    let end = tokio::time::Instant::now() + span;
    while tokio::time::Instant::now() < end {
        let hold =
            Duration::from_millis(if rng.random_bool(0.2) { rng.random_range(500..=2_500) } else { rng.random_range(10..=100) });
        let turn = rng.random::<u32>().to_string();
        let locked = async {
            let tx = stage.sandbox.db.begin().await?;
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

async fn conflicts(stage: &Stage) -> Result<i64> {
    let sql = format!("SELECT deadlocks FROM pg_stat_database WHERE datname = '{}'", stage.sandbox.database());
    crate::checker::ask(&stage.sandbox.db, &sql).await
}

/// Short timeouts, so that they occur.
pub fn impatient() -> Terms {
    Terms::with(&[("KYHAN_DATABASE_LOCK_TIMEOUT_MS", "300")])
}

pub fn disk_full(stage: &Stage, mut rng: StdRng) -> Play<'_> {
    Box::pin(async move {
        stage.start()?;
        let (times, span) = stage.setting.form((1, Duration::from_secs(5)), (3, Duration::from_secs(10)));
        let disk = stage.standing.disk().context("no disk to fill")?;
        let mut refused = 0;
        stage
            .populate_during(async {
                for _ in 0..times {
                    tokio::time::sleep(Duration::from_millis(rng.random_range(800..=1_600))).await;
                    disk.fill()?;
                    // Growing a table shows whether the disk is full.
                    let grow =
                        "CREATE TABLE fault_growth AS SELECT repeat(n::text, 100) AS filler FROM generate_series(1, 100000) n";
                    if let Err(error) = stage.sandbox.db.execute_unprepared(grow).await
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
        stage.note(format!("full {times} times for {} s (a tmpfs as the database's tablespace)", span.as_secs()));
        if refused != times {
            stage.unexpected(1, "the disk was not full");
        }
        Ok(())
    })
}

pub fn small_disk() -> Terms {
    Terms { place: Place::SmallDisk, ..Terms::default() }
}

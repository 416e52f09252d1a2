//! The relay: the built process drains a filled outbox until all wake-ups are confirmed and all rows are gone. The ceiling deletes the same
//! rows in the same batches and publishes nothing.
//!
//! The clock starts when the first row is gone. Its batch does not count, because it includes the start of the process. Looking up one row
//! by its key costs the database almost nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sea_orm::{
    ConnectionTrait, TransactionTrait,
    sqlx::{self, Connection},
};
use shared::database::{self, Client};
use tests::sandbox::Sandbox;
use tokio::time::Instant;

use crate::{
    bare::Bare,
    figure::{Figure, Reach, number},
    harness::{BenchHarness, ask, settle, until},
    population::CONFIRM_RECEIPT,
    process::RunningProcess,
    wakeups,
};

const RELAY: &str = "relay";

pub const NAMES: &[&str] = &[RELAY];

/// The pause between two looks for a row.
const LOOK: Duration = Duration::from_millis(2);

pub async fn measure(harness: &BenchHarness) -> Result<Vec<Figure>> {
    let sandbox = harness.sandbox("relay", CONFIRM_RECEIPT.policy, &[]).await?;
    let bare = Bare::connect(&sandbox.settings).await?;
    let count = harness.of(300_000, 30_000);
    let subjects = CONFIRM_RECEIPT.make(&sandbox, count).await?;
    let (mut values, mut ceilings) = (Vec::new(), Vec::new());
    for round in harness.rounds(usize::MAX) {
        fill(&sandbox).await?;
        let value = relayed(&sandbox, count).await?;
        wakeups::take_all(&sandbox, &bare, &subjects).await?;
        fill(&sandbox).await?;
        let ceiling = deleted(&sandbox, count).await?;
        harness.say(RELAY, round, value, Some(ceiling), "rows/s");
        values.push(value);
        ceilings.push(ceiling);
    }
    bare.close().await?;
    sandbox.remove().await?;
    Ok(vec![Figure::beside(RELAY, "rows/s", &values, &ceilings, Reach::OfCeiling(0.6))])
}

/// SQL: every order ships, in another order than that of the rows. Ids begin with 1.
async fn fill(sandbox: &Sandbox) -> Result<()> {
    let tx = sandbox.db.begin().await?;
    tx.execute_unprepared("TRUNCATE outbox RESTART IDENTITY").await?;
    let sql = "INSERT INTO outbox (event_type, subject_id) SELECT 'order.shipped', id FROM orders ORDER BY random()";
    tx.execute_unprepared(sql).await?;
    tx.commit().await?;
    settle(sandbox).await
}

async fn relayed(sandbox: &Sandbox, count: usize) -> Result<f64> {
    let batch = usize::try_from(sandbox.settings.relay.batch_max)?;
    ensure!(count > batch, "one batch takes it all");
    let relay = RunningProcess::relay(sandbox)?;
    let gone = async |row: usize| {
        let there = format!("SELECT EXISTS (SELECT FROM outbox WHERE id = {row})");
        until("the relay takes rows", LOOK, async || Ok(!ask::<bool>(sandbox, &there).await?)).await?;
        anyhow::Ok(Instant::now())
    };
    // The relay takes the oldest first, so the first row is in the first batch and the last row in the last.
    let began = gone(1).await?;
    let ended = gone(count).await?;
    relay.stop().await?;
    let left: i64 = ask(sandbox, "SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM set_aside)").await?;
    ensure!(left == 0, "{left} rows were not relayed");
    Ok(number(count - batch) / (ended - began).as_secs_f64())
}

/// Takes rows as the relay does, and does nothing with them. The first batch does not count here either.
async fn deleted(sandbox: &Sandbox, count: usize) -> Result<f64> {
    const TAKE: &str =
        "DELETE FROM outbox WHERE id = ANY (ARRAY(SELECT id FROM outbox ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED))
                        RETURNING event_id, event_type, subject_id, data::text, occurred_at";
    let db = database::connect(&sandbox.settings.database, Client::Producer).await?;
    let mut connection = db.get_postgres_connection_pool().acquire().await?;
    let (mut began, mut taken) = (None, 0);
    loop {
        let mut tx = connection.begin().await?;
        let rows = sqlx::query(TAKE).bind(i64::from(sandbox.settings.relay.batch_max)).fetch_all(&mut *tx).await?.len();
        tx.commit().await?;
        match began {
            _ if rows == 0 => break,
            None => began = Some(Instant::now()),
            Some(_) => taken += rows,
        }
        if taken + usize::try_from(sandbox.settings.relay.batch_max)? >= count {
            break;
        }
    }
    let took = began.context("no rows")?.elapsed();
    drop(connection);
    db.close().await?;
    let left: i64 = ask(sandbox, "SELECT count(*) FROM outbox").await?;
    ensure!(left == 0, "{left} rows were not taken");
    Ok(number(taken) / took.as_secs_f64())
}

//! The ceiling of the drains: runs a worker's statements in the same transactions over ids in memory, without broker, worker or any code of
//! the fleet except its SQL.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result};
use sea_orm::{
    DbErr, RuntimeErr,
    sqlx::{self, AssertSqlSafe, Connection, PgConnection},
};
use shared::{
    database::{
        failure::{Trouble, trouble},
        roles::DatabaseRole,
        statements::Statements,
    },
    domain::tasks,
};
use tests::sandbox::Sandbox;
use tokio::{sync::Barrier, task::JoinSet, time::Instant};
use uuid::Uuid;

use crate::{
    figure::{number, shown},
    harness::{BenchHarness, settle},
    population::Load,
};

/// After this many conflicts of one batch the bench fails.
const CONFLICTS_MAX: u32 = 50;

/// The connections and the batch size of a run.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub connections: usize,
    pub batch: usize,
}

/// The best of 1, 2 and 4 connections, with a worker's batches and with batches four times as large, each over a slice of one population.
/// A slice with fewer than two batches per connection is not run with several connections.
pub async fn best_shape(harness: &BenchHarness, sandbox: &Sandbox, load: &Load, count: usize) -> Result<Shape> {
    let batch = sandbox.settings.worker.batch_max;
    let shapes: Vec<Shape> =
        [batch, 4 * batch].into_iter().flat_map(|batch| [1, 2, 4].map(|connections| Shape { connections, batch })).collect();
    let ids = load.make(sandbox, count).await?;
    settle(sandbox).await?;
    let mut best: Option<(f64, Shape)> = None;
    for (shape, slice) in shapes.iter().zip(ids.chunks(count.div_ceil(shapes.len()))) {
        if best.is_some() && slice.len() < 2 * shape.connections * shape.batch {
            continue;
        }
        let rate = run(sandbox, load, slice, *shape).await?;
        if best.is_none_or(|(fastest, _)| rate > fastest) {
            best = Some((rate, *shape));
        }
    }
    let (rate, shape) = best.context("no shape")?;
    let Shape { connections, batch } = shape;
    let at = harness.elapsed().as_secs();
    eprintln!(
        "{at:>5} s  {}: its SQL alone is fastest over {connections} connections in batches of {batch}: {}/s",
        load.kind,
        shown(rate)
    );
    Ok(shape)
}

/// Runs a task's statements over `ids`, batch by batch in this order, and returns the subjects per second.
pub async fn run(sandbox: &Sandbox, load: &Load, ids: &[Uuid], shape: Shape) -> Result<f64> {
    let task = tasks::find(load.kind).context("no such kind")?;
    let texts: Vec<Arc<str>> =
        Statements::new(task, &sandbox.settings.policy, sandbox.settings.arrears.wallet_floor).texts().map(Arc::from).collect();
    // A worker's login and its session settings: the triggers judge both.
    let db = sandbox.connect_as(DatabaseRole::Worker).await?;
    let pool = db.get_postgres_connection_pool();
    let batches: Arc<Vec<Vec<Uuid>>> = Arc::new(ids.chunks(shape.batch).map(<[Uuid]>::to_vec).collect());
    let (next, ready) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(shape.connections + 1)));
    let mut running = JoinSet::new();
    for _ in 0..shape.connections {
        let mut connection = pool.acquire().await?;
        let (texts, batches, next, ready) = (texts.clone(), Arc::clone(&batches), Arc::clone(&next), Arc::clone(&ready));
        running.spawn(async move {
            // A run without ids prepares each statement before the clock starts.
            batch(&mut connection, &texts, &[]).await?;
            ready.wait().await;
            while let Some(ids) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                again(&mut connection, &texts, ids).await?;
            }
            anyhow::Ok(())
        });
    }
    ready.wait().await;
    let began = Instant::now();
    while let Some(done) = running.join_next().await {
        done??;
    }
    let took = began.elapsed();
    db.close().await?;
    Ok(number(ids.len()) / took.as_secs_f64())
}

/// One batch. A conflict with other connections over a customer's wallet is retried, as a worker does.
async fn again(connection: &mut PgConnection, texts: &[Arc<str>], ids: &[Uuid]) -> Result<(), DbErr> {
    let mut tries = 0;
    while let Err(error) = batch(connection, texts, ids).await {
        let error = DbErr::Query(RuntimeErr::SqlxError(Arc::new(error)));
        tries += 1;
        if trouble(&error) != Trouble::Conflict || tries == CONFLICTS_MAX {
            return Err(error);
        }
    }
    Ok(())
}

/// One transaction of a worker. A single statement is its own transaction.
async fn batch(connection: &mut PgConnection, texts: &[Arc<str>], ids: &[Uuid]) -> Result<(), sqlx::Error> {
    let Some((answers, before)) = texts.split_last() else { return Ok(()) };
    let wakeups: Vec<Uuid> = ids.iter().map(|_| Uuid::new_v4()).collect();
    let answers = || sqlx::query(AssertSqlSafe(Arc::clone(answers))).bind(ids).bind(&wakeups);
    if before.is_empty() {
        answers().fetch_all(connection).await?;
        return Ok(());
    }
    let mut tx = connection.begin().await?;
    for text in before {
        sqlx::query(AssertSqlSafe(Arc::clone(text))).bind(ids).execute(&mut *tx).await?;
    }
    answers().fetch_all(&mut *tx).await?;
    tx.commit().await?;
    Ok(())
}

//! The order system's inserts: 24 clients commit one event each, again and again. The ceiling is the same in a table without triggers. What
//! an insert into the outbox makes other commits wait for shows here.

use std::time::Duration;

use anyhow::Result;
use futures::future::try_join_all;
use sea_orm::{ConnectionTrait, DatabaseConnection};
use shared::database::{self, Client, roles::DatabaseRole};
use tests::sandbox::{Sandbox, as_role};
use tokio::time::Instant;

use crate::{
    figure::{Figure, Reach, number},
    harness::{BenchHarness, settle},
    population::CONFIRM_RECEIPT,
};

const INSERTS: &str = "inserts into the outbox";

pub const NAMES: &[&str] = &[INSERTS];

const CLIENTS: u32 = 24;

pub async fn measure(harness: &BenchHarness) -> Result<Vec<Figure>> {
    let sandbox = harness.sandbox("inserts", CONFIRM_RECEIPT.policy, &[]).await?;
    for sql in ["CREATE TABLE bare_outbox (LIKE outbox INCLUDING ALL)", "GRANT INSERT ON bare_outbox TO kyhan_order_system"] {
        sandbox.db.execute_unprepared(sql).await?;
    }
    let mut settings = as_role(sandbox.settings.clone(), DatabaseRole::OrderSystem)?.database;
    settings.max_connections = CLIENTS;
    let db = database::connect(&settings, Client::Ops).await?;
    let span = harness.of(Duration::from_secs(5), Duration::from_secs(1));
    let (mut values, mut ceilings) = (Vec::new(), Vec::new());
    for round in harness.rounds(usize::MAX) {
        let value = inserted(&sandbox, &db, "outbox", span).await?;
        let ceiling = inserted(&sandbox, &db, "bare_outbox", span).await?;
        harness.say(INSERTS, round, value, Some(ceiling), "commits/s");
        values.push(value);
        ceilings.push(ceiling);
    }
    db.close().await?;
    sandbox.remove().await?;
    Ok(vec![Figure::beside(INSERTS, "commits/s", &values, &ceilings, Reach::OfCeiling(0.8))])
}

/// Commits per second of all clients.
async fn inserted(sandbox: &Sandbox, db: &DatabaseConnection, table: &str, span: Duration) -> Result<f64> {
    sandbox.db.execute_unprepared(&format!("TRUNCATE {table}")).await?;
    settle(sandbox).await?;
    let sql = format!("INSERT INTO {table} (event_type, subject_id) VALUES ('order.shipped', gen_random_uuid())");
    let began = Instant::now();
    let client = async |_| {
        let mut commits = 0;
        while began.elapsed() < span {
            db.execute_unprepared(&sql).await?;
            commits += 1;
        }
        anyhow::Ok(commits)
    };
    let commits = try_join_all((0..CLIENTS).map(client)).await?.into_iter().sum::<usize>();
    Ok(number(commits) / began.elapsed().as_secs_f64())
}

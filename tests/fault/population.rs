//! The population: subjects of every situation, made slice by slice during the fault, with retries. The same seed makes the same subjects,
//! and no slice is made twice.

use std::time::Duration;

use anyhow::Result;
use sea_orm::{ConnectionTrait, DatabaseConnection, TransactionTrait};
use shared::database::statement;
use tokio::time::Instant;

use crate::{acts, book::SITUATIONS};

/// The pause before a retry, and between two rounds of acts.
const PAUSE: Duration = Duration::from_millis(100);

/// How fast the subjects are made.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub slices: i64,
    pub over: Duration,
}

impl Pace {
    /// Over some seconds, so that the fault affects every harness of the pipeline.
    pub const STEADY: Self = Self { slices: 20, over: Duration::from_millis(2_500) };
    /// At once, so that everything falls due at once.
    pub const BURST: Self = Self { slices: 4, over: Duration::from_millis(100) };
}

/// Makes the population and runs the acts until all of them are done.
pub async fn populate(db: &DatabaseConnection, subjects: u32, seed: u64, pace: Pace) -> Result<()> {
    let made = tokio::sync::watch::channel(false);
    let making = async {
        let began = Instant::now();
        for slice in 0..pace.slices {
            while let Err(error) = make(db, slice, pace.slices, i64::from(subjects), seed).await {
                tolerable(&error)?;
                tokio::time::sleep(PAUSE).await;
            }
            let share = f64::from(u32::try_from(slice + 1)?) / f64::from(u32::try_from(pace.slices)?);
            tokio::time::sleep_until(began + pace.over.mul_f64(share)).await;
        }
        made.0.send_replace(true);
        anyhow::Ok(())
    };
    let acting = async {
        loop {
            let (last, mut idle) = (*made.1.borrow(), true);
            for act in acts::MEANWHILE {
                match act.meanwhile(db).await {
                    Ok(acted) => idle &= !acted,
                    Err(error) => {
                        idle = false;
                        tolerable(&error)?;
                    }
                }
            }
            if last && idle && all_acted(db).await.unwrap_or(false) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    futures::try_join!(making, acting).map(|_| ())
}

/// Ignores outages and conflicts, which the scenario causes; every other error fails the scenario.
pub fn tolerable(error: &anyhow::Error) -> Result<()> {
    use shared::database::failure::{Trouble, trouble};
    match error.downcast_ref::<sea_orm::DbErr>() {
        Some(error) if trouble(error) != Trouble::Failure => Ok(()),
        _ => anyhow::bail!("the order system: {error:#}"),
    }
}

/// Makes a slice of every situation, each in a transaction with one statement. Several statements that pay from the same wallets would lock
/// them in another order than the fleet, and deadlock.
async fn make(db: &DatabaseConnection, slice: i64, slices: i64, subjects: i64, seed: u64) -> Result<()> {
    for situation in SITUATIONS {
        // Round up, so that there are at least as many as requested.
        let all = (subjects * situation.share + 49) / 50;
        let (from, to) = (all * slice / slices, all * (slice + 1) / slices - 1);
        let tx = db.begin().await?;
        // A slice whose commit got no answer may already exist.
        let first = "INSERT INTO fault_slices VALUES ($1, $2) ON CONFLICT DO NOTHING";
        let first = tx.execute_raw(statement(first, [slice.into(), situation.name.into()])).await?.rows_affected();
        if first == 1 && from <= to {
            tx.execute_raw(statement(&situation.sql(), [from.into(), to.into(), seed.to_string().into()])).await?;
        }
        tx.commit().await?;
    }
    Ok(())
}

async fn all_acted(db: &DatabaseConnection) -> Result<bool> {
    let names: Vec<String> = acts::MEANWHILE.iter().flat_map(acts::FaultAct::names).collect();
    let sql = "SELECT NOT EXISTS (SELECT FROM fault_book WHERE situation = ANY($1) AND NOT acted) AS done";
    let row = db.query_one_raw(statement(sql, [names.into()])).await?;
    Ok(row.map(|row| row.try_get("", "done")).transpose()?.unwrap_or(false))
}

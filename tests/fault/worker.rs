//! Workers that are killed: at random moments, and at the two instants that matter most.

use std::time::Duration;

use rand::{RngExt, rngs::StdRng};

use crate::{scenario::Play, stage::Stage};

const WORKERS: [&str; 2] = ["worker-1", "worker-2"];

pub fn killed_ten_times(stage: &Stage, mut rng: StdRng) -> Play<'_> {
    Box::pin(async move {
        stage.start()?;
        let kills = 10;
        stage
            .populate_during(async {
                for _ in 0..kills {
                    tokio::time::sleep(Duration::from_millis(rng.random_range(100..=900))).await;
                    // The one may still be starting; the other is not.
                    let first = rng.random_range(0..WORKERS.len());
                    while !(stage.fleet.players().kill(WORKERS[first]) || stage.fleet.players().kill(WORKERS[1 - first])) {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
                Ok(())
            })
            .await?;
        stage.note(format!("{kills} kills"));
        Ok(())
    })
}

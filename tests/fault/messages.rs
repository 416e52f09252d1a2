//! Scenarios of messages that no producer would send: duplicates, out of order, garbage. And workers with wrong clocks.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use anyhow::Result;
use rand::{RngExt, rngs::StdRng, seq::SliceRandom};
use sea_orm::ConnectionTrait;
use shared::{database::statement, message::outgoing::Outgoing};
use uuid::Uuid;

use crate::{harness::FaultHarness, scenario::ScenarioRun};

/// A trigger that writes every event of the outbox twice.
const TWICE: &str = "
    CREATE FUNCTION fault_twice() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        IF pg_trigger_depth() < 2 THEN
            INSERT INTO outbox (event_type, subject_id, occurred_at, data) SELECT event_type, subject_id, occurred_at, data FROM added;
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER fault_twice AFTER INSERT ON outbox REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION fault_twice();";

pub fn twice_and_out_of_order(harness: &FaultHarness, mut rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move {
        harness.sandbox.db.execute_unprepared(TWICE).await?;
        harness.start()?;
        let mut copies = 0;
        harness
            .populate_during(async {
                // Also publish two copies of each wake-up directly into the lanes, due or not, in random order.
                for _ in 0..8 {
                    tokio::time::sleep(Duration::from_millis(600)).await;
                    let mut messages = all(harness).await?;
                    messages.extend(messages.clone());
                    messages.shuffle(&mut rng);
                    copies += messages.len();
                    harness.publish(messages).await?;
                }
                Ok(())
            })
            .await?;
        harness.note(format!("every event twice, {copies} copies of wake-ups on top"));
        Ok(())
    })
}

/// Wake-ups of each kind for everything in the book so far.
async fn all(harness: &FaultHarness) -> Result<Vec<Outgoing>> {
    let mut messages = Vec::new();
    for (kind, is_item) in [("confirm-receipt", false), ("collect-arrears", false), ("purge-cart-item", true)] {
        let sql = "SELECT coalesce(array_agg(subject), '{}') AS subjects FROM fault_book WHERE (final IS NULL) = $1";
        let row = harness.sandbox.db.query_one_raw(statement(sql, [is_item.into()])).await?;
        let subjects: Vec<Uuid> = row.map(|row| row.try_get("", "subjects")).transpose()?.unwrap_or_default();
        messages.extend(harness.wakeup(kind, &subjects));
    }
    Ok(messages)
}

pub fn garbage_mixed_in(harness: &FaultHarness, mut rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move {
        harness.start()?;
        let count = harness.setting.subjects / 100;
        // Identical garbage is stored as one letter.
        let mut different = BTreeSet::new();
        harness
            .populate_during(async {
                for _ in 0..count {
                    tokio::time::sleep(Duration::from_millis(rng.random_range(20..=80))).await;
                    let sound = harness.wakeup("confirm-receipt", &[Uuid::from_u128(rng.random())]);
                    let garbage = sound.into_iter().map(|message| Outgoing { body: garbage(&message.body, &mut rng), ..message });
                    let garbage: Vec<Outgoing> = garbage.collect();
                    different.extend(garbage.iter().map(|message| message.body.clone()));
                    harness.publish(garbage).await?;
                }
                Ok(())
            })
            .await?;
        harness.expect_letters(i64::try_from(different.len())?);
        Ok(())
    })
}

/// A body that is not a wake-up.
fn garbage(sound: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let text = String::from_utf8_lossy(sound);
    let replaced = |from: &str, to: &str| text.replace(from, to).into_bytes();
    match rng.random_range(0..8) {
        0 => (0..rng.random_range(1..2_000)).map(|_| rng.random_range(0x80..=0xff)).collect(),
        1 => sound[..rng.random_range(1..sound.len())].to_vec(),
        2 => replaced("\"v\":1", "\"v\":0"),
        3 => replaced("confirm-receipt", "refuse-receipt"),
        4 => Vec::new(),
        5 => replaced("\"subjects\":[\"", "\"subjects\":[\"x"),
        6 => replaced("\"due_at\":\"", "\"due_at\":\"soon "),
        _ => vec![b'['; 70_000],
    }
}

/// The folder of libfaketime in Debian and other distributions.
fn faketime() -> Option<PathBuf> {
    let folders =
        ["/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime", "/usr/lib64/faketime", "/usr/lib/faketime"];
    folders.iter().map(|folder| PathBuf::from(folder).join("libfaketimeMT.so.1")).find(|path| path.is_file())
}

pub fn lacks_faketime() -> Option<String> {
    faketime()
        .is_none()
        .then(|| "a worker's clock is set by libfaketime, which is not installed (apt-get install faketime)".to_owned())
}

pub fn clocks_an_hour_wrong(harness: &FaultHarness, _rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move {
        let library = faketime().unwrap_or_default().to_string_lossy().into_owned();
        harness.relay(&[])?;
        // The first two may differ by that much, and their clocks decide nothing. The third may not, and applies nothing.
        let (hours, default) = ("86400000", "60000");
        for (name, skew, most) in [("worker-1", "+3600", hours), ("worker-2", "-3600", hours), ("worker-3", "+40d", default)] {
            let clock = [
                ("KYHAN_CLOCK_MAX_SKEW_MS", most.to_owned()),
                ("LD_PRELOAD", library.clone()),
                ("FAKETIME", skew.to_owned()),
                // Durations use the monotonic clock, which an administrator cannot set either.
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
                ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ];
            harness.worker(name, &clock)?;
        }
        harness.populate_during(std::future::ready(Ok(()))).await?;
        let said = harness.fleet.said("worker-3")?;
        if !said.contains("40 days behind this machine's") || said.contains("\"applied\":1") {
            harness.unexpected(1, "a worker whose clock is 40 days ahead does not say so, or applies something");
        }
        harness.note("one worker an hour ahead, one an hour behind, one 40 days ahead, which applied nothing");
        Ok(())
    })
}

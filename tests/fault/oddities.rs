//! Scenarios of what a server or another program does oddly: rows that report outages, queues that a policy limits, passwords that are rotated.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use rand::{RngExt, rngs::StdRng};
use sea_orm::{ConnectionTrait, Database};
use shared::database::roles::DatabaseRole;
use tests::sandbox::url_as_role;
use url::Url;

use crate::{harness::FaultHarness, scenario::ScenarioRun};

/// For a while, a trigger of the order system raises the SQLSTATE of an outage for one row in thirty.
pub fn rows_report_outages(harness: &FaultHarness, _rng: StdRng) -> ScenarioRun<'_> {
    const TRAP: &str = "
        CREATE SEQUENCE trapped;
        CREATE FUNCTION trap() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        DECLARE
            outages text[] := ARRAY['25006', '53100', '53300', '57P03'];
        BEGIN
            PERFORM nextval('trapped');
            RAISE EXCEPTION 'odd' USING ERRCODE = outages[1 + abs(hashtext(NEW.id::text)) / 30 % 4];
        END $$;
        CREATE TRIGGER trap BEFORE UPDATE ON orders FOR EACH ROW
            WHEN (session_user LIKE '%worker' AND hashtext(NEW.id::text) % 30 = 0) EXECUTE FUNCTION trap()";
    Box::pin(async move {
        harness.sandbox.db.execute_unprepared(TRAP).await?;
        harness.start()?;
        let span = harness.setting.form(Duration::from_secs(8), Duration::from_secs(20));
        harness
            .populate_during(async {
                tokio::time::sleep(span).await;
                harness.sandbox.db.execute_unprepared("DROP TRIGGER trap ON orders").await?;
                Ok(())
            })
            .await?;
        let trapped: i64 = crate::checker::ask(&harness.sandbox.db, "SELECT last_value FROM trapped").await?;
        harness.note(format!("for {} s, {trapped} times", span.as_secs()));
        if trapped < 10 {
            harness.unexpected(1, "hardly any row reported an outage");
        }
        Ok(())
    })
}

/// A policy of the broker limits the rungs that the fleet uses most, and the queue of dead letters.
pub fn queues_are_limited(harness: &FaultHarness, _rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move {
        let (name, prefix) = (harness.sandbox.database(), harness.settings().naming.prefix.replace('.', r"\."));
        let queues = format!(r"^{prefix}\.(dead|rung\.(2s|3s|4s))$");
        let pair = &harness.setting.pair;
        pair.rabbitmqctl(&["set_policy", name, &queues, r#"{"max-length": 20}"#, "--apply-to", "queues"]).await?;
        harness.start()?;
        let span = harness.setting.form(Duration::from_secs(8), Duration::from_secs(20));
        harness
            .populate_during(async {
                tokio::time::sleep(span).await;
                pair.rabbitmqctl(&["clear_policy", name]).await
            })
            .await?;
        harness.note(format!("20 messages a queue for {} s", span.as_secs()));
        if !harness.logs_contain("RabbitMQ refuses messages, so a queue is full")? {
            harness.unexpected(1, "no queue was full");
        }
        Ok(())
    })
}

/// The passwords of all processes are changed in PostgreSQL and in their files, again and again, and their sessions ended.
pub fn passwords_are_rotated(harness: &FaultHarness, mut rng: StdRng) -> ScenarioRun<'_> {
    Box::pin(async move {
        let admin = Database::connect(&harness.setting.pair.servers.database_url).await?;
        let url = harness.sandbox.env.get("KYHAN_DATABASE_URL").context("a URL")?;
        let logins = [("producer", DatabaseRole::Producer), ("worker", DatabaseRole::Worker)].map(|(program, role)| {
            let file = harness.folder.join(format!("{program}.url"));
            url_as_role(url, role).map(|url| (program, url, file))
        });
        let [producer, worker] = logins;
        let logins = [producer?, worker?];
        for (_, url, file) in &logins {
            std::fs::write(file, url)?;
        }
        for (name, (program, _, file)) in [("relay", &logins[0]), ("worker-1", &logins[1]), ("worker-2", &logins[1])] {
            let mut env = harness.env(&[("KYHAN_DATABASE_URL_FILE", file.to_string_lossy().into_owned())]);
            env.remove("KYHAN_DATABASE_URL");
            let arguments: &[_] = if name == "relay" { &["relay"] } else { &[] };
            harness.fleet.start(name, program, arguments, &env)?;
        }
        let rounds = harness.setting.form(4, 12);
        harness
            .populate_during(async {
                for round in 0..rounds {
                    tokio::time::sleep(Duration::from_millis(rng.random_range(1_000..=2_500))).await;
                    for (_, url, file) in &logins {
                        rotate(&admin, url, file, &format!("rotated-{round}")).await?;
                    }
                }
                Ok(())
            })
            .await?;
        admin.close().await?;
        harness.note(format!("{rounds} times"));
        Ok(())
    })
}

async fn rotate(admin: &sea_orm::DatabaseConnection, url: &str, file: &Path, password: &str) -> Result<()> {
    let mut url = Url::parse(url)?;
    admin.execute_unprepared(&format!("ALTER ROLE {} PASSWORD '{password}'", url.username())).await?;
    url.set_password(Some(password)).map_err(|()| anyhow::anyhow!("a URL without a host"))?;
    // As a secret that is mounted: replaced at once.
    let next = file.with_extension("next");
    std::fs::write(&next, url.as_str())?;
    std::fs::rename(&next, file)?;
    let end = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}'", url.username());
    admin.execute_unprepared(&end).await?;
    Ok(())
}

//! Backups, as docs/running.md describes them: a dump that is restored in another database is complete, and its seals are sound.

use std::process::Command;

use sea_orm::ConnectionTrait;
use serde_json::Value;
use tests::fleet;
use url::Url;

use crate::{
    harness::{QUICK, with_harness},
    retention::{furnish, heard_of},
};

/// The number of rows of every table, as a superuser sees them.
const COUNTS: &str = "
    SELECT string_agg(format('%s %s', name, (xpath('/row/c/text()', query_to_xml('SELECT count(*) AS c FROM ' || name, false, true, '')))[1]),
                      ', ' ORDER BY name)
      FROM (SELECT nspname || '.' || relname AS name FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
             WHERE relkind = 'r' AND nspname IN ('kyhan', 'public')) AS tables";

fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).output().expect("PostgreSQL's client programs");
    assert!(done.status.success(), "{program}: {done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_is_restored_elsewhere_is_complete_and_its_seals_verify() {
    with_harness(&QUICK.replace("every_ms = 3600000", "every_ms = 100"), async |harness| {
        let order = heard_of(harness, "now() - interval '1 day'").await;
        furnish(harness, order).await;
        harness.in_cart().await;
        let worker = harness.worker();
        harness.until("SELECT coalesce((SELECT max(last_id) FROM activity_seals), 0) >= (SELECT max(id) FROM activity)").await;
        worker.stop().await;

        let mut url = Url::parse(&harness.sandbox.env["KYHAN_DATABASE_URL"]).expect("a URL");
        let restored = harness.sandbox.database().replace("_test_", "_restored_");
        let file = std::env::temp_dir().join(&restored);
        let path = file.to_str().expect("a path");
        run("pg_dump", &["--format=custom", "--file", path, url.as_str()]);
        harness.sandbox.db.execute_unprepared(&format!("CREATE DATABASE {restored}")).await.expect("created");
        url.set_path(&restored);
        run("pg_restore", &["--exit-on-error", "--dbname", url.as_str(), path]);
        std::fs::remove_file(file).expect("removed");

        let copy = sea_orm::Database::connect(url.as_str()).await.expect("a connection");
        let row = copy.query_one_raw(shared::database::statement(COUNTS, [])).await.expect("counted").expect("a row");
        let counts: String = row.try_get_by_index(0).expect("text");
        assert_eq!(counts, harness.ask::<String>(COUNTS).await);
        assert!(counts.contains("public.order_sources 1"), "{counts}");
        copy.close().await.expect("closed");

        let mut env = harness.sandbox.env.clone();
        env.insert("KYHAN_DATABASE_URL".into(), url.into());
        for arguments in [&["roles", "install"][..], &["activity", "verify", "--json"]] {
            let said = fleet::output(fleet::command("ops", &env, arguments).expect("built")).await.expect("a restored database");
            if arguments.contains(&"--json") {
                let said: Value = serde_json::from_str(&said).expect("JSON");
                assert_eq!(said["faults"], serde_json::json!([]), "{said}");
            }
        }
        harness.sandbox.db.execute_unprepared(&format!("DROP DATABASE {restored} WITH (FORCE)")).await.expect("dropped");
    })
    .await;
}

//! The binaries as an operator sees them: what they refuse, what they print, and how they stop.

use std::{fs, io::Write, path::Path, process::Stdio, time::Duration};

use sea_orm::{ConnectionTrait, TransactionTrait};
use serde_json::json;
use shared::{
    database::{roles::DatabaseRole, scalar, statement},
    domain::task::EXAMPLE_CUSTOMER,
};
use tests::fleet;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{
    admin,
    harness::{QUICK, SOON, with_harness},
    letters,
};

/// The definition of every index, trigger and function, as PostgreSQL prints it.
const DEFINITIONS: &str = "SELECT string_agg(definition, E'\\n' ORDER BY definition) FROM (
     SELECT indexdef AS definition FROM pg_indexes WHERE schemaname IN ('kyhan', 'public')
      UNION ALL
     SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
      UNION ALL
     SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace IN ('kyhan'::regnamespace, 'public'::regnamespace)) AS defined";

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_the_schema_says_to_migrate_and_migrations_go_up_and_down() {
    with_harness(QUICK, async |harness| {
        let env = &harness.sandbox.env;
        let ops = async |arguments: &[&str]| fleet::output(fleet::command("ops", env, arguments)?).await;
        assert!(ops(&["migrate", "up"]).await.expect("up").contains("0 migrations applied"));
        assert!(ops(&["set-aside", "retry", "999"]).await.expect_err("refused").to_string().contains("0 events are back"));
        let before = harness.ask::<String>(DEFINITIONS).await;
        harness.without_policy().await;
        // The order system works without the fleet: even without the outbox, its triggers must not fail its writes.
        ops(&["triggers", "install"]).await.expect("triggers");
        let fleet = harness.ask::<i64>("SELECT count(*) FROM kyhan_migrations WHERE version >= 'm01'").await.to_string();
        ops(&["migrate", "down", "--steps", &fleet]).await.expect("down");
        assert!(harness.ask::<bool>("SELECT to_regclass('outbox') IS NULL AND to_regclass('orders') IS NOT NULL").await);
        harness.delivering().await;
        ops(&["migrate", "down", "--steps", "99"]).await.expect("down");
        for (name, arguments) in
            [("worker", &[][..]), ("producer", &["relay"]), ("ops", &["set-aside", "list"]), ("ops", &["triggers", "install"])]
        {
            let refused =
                fleet::output(fleet::command(name, env, arguments).expect("built")).await.expect_err("refused").to_string();
            assert!(refused.contains("run `ops migrate up`"), "{name}: {refused}");
        }
        let status = ops(&["migrate", "status"]).await.expect("a status");
        assert!(status.contains("to go") && !status.contains("applied"), "{status}");
        assert_eq!(
            harness
                .ask::<i64>(
                    "SELECT count(*) FROM pg_tables WHERE schemaname IN ('kyhan', 'public') AND tablename <> 'kyhan_migrations'"
                )
                .await,
            0
        );
        // Several at once, as when many processes start together: one migrates, the others wait.
        let (first, second, third) = tokio::join!(ops(&["migrate", "up"]), ops(&["migrate", "up"]), ops(&["migrate", "up"]));
        let said = [first, second, third].map(|up| up.expect("up again"));
        assert_eq!(said.iter().filter(|said| said.contains("0 migrations applied")).count(), 2, "{said:?}");
        assert_eq!(harness.ask::<String>(DEFINITIONS).await, before);
        harness.run("INSERT INTO customers VALUES ($1, 'x', 'x', 'x', 'x')", [EXAMPLE_CUSTOMER.into()]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_systems_part_and_the_fleets_own_part_each_install_without_the_other() {
    with_harness(QUICK, async |harness| {
        for part in ["order_system", "fleet"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/src/database/schema").join(part);
            let mut files: Vec<_> = fs::read_dir(folder).expect("a part").map(|file| file.expect("a file").path()).collect();
            files.retain(|file| file.to_string_lossy().ends_with(".up.sql"));
            files.sort();
            assert!(files.len() >= 4, "{part}: {files:?}");
            let apart = harness.sandbox.db.begin().await.expect("a transaction");
            apart.execute_unprepared("CREATE SCHEMA apart; SET LOCAL search_path = apart, pg_temp").await.expect("a schema");
            for file in files {
                let sql = fs::read_to_string(&file).expect("a file");
                apart.execute_unprepared(&sql).await.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            }
            apart.rollback().await.expect("rolled back");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_waits_names_the_session_that_holds_its_lock() {
    with_harness(QUICK, async |harness| {
        let login = harness.sandbox.connect_as(DatabaseRole::Producer).await.expect("a login");
        let name: String = scalar(&login, statement("SELECT session_user::text AS name", [])).await.expect("its name");
        let held = login.begin().await.expect("a transaction");
        held.execute_unprepared("SELECT pg_advisory_xact_lock(x'006b7968616e0002'::bigint)").await.expect("the lock");
        let mut command = fleet::command("ops", &harness.sandbox.env, ["migrate", "up"]).expect("built");
        let mut waits = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
        let mut said = BufReader::new(waits.stderr.take().expect("a pipe")).lines();
        let line = tokio::time::timeout(SOON, said.next_line()).await.expect("it says so").expect("read").expect("a line");
        assert!(line.contains(&format!("waiting for another migration: login {name}, server process ")), "{line}");
        held.rollback().await.expect("released");
        assert!(tokio::time::timeout(SOON, waits.wait()).await.expect("it goes on").expect("ended").success());
        login.close().await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_operators_do_is_recorded_with_their_name_and_printed_as_json() {
    with_harness(QUICK, async |harness| {
        harness.delivering().await;
        for (arguments, expected, recorded) in [
            (&["triggers", "install"][..], json!({ "installed": true }), Some("triggers.installed")),
            (&["triggers", "remove"], json!({ "installed": false }), Some("triggers.removed")),
            (&["migrate", "down", "--steps", "1"], json!({ "taken_back": 1 }), Some("schema.taken_back")),
            (&["migrate", "up"], json!({ "applied": 1 }), Some("schema.migrated")),
            (&["migrate", "up"], json!({ "applied": 0 }), None),
            (
                &["rebuild", "--kind", "confirm-receipt"],
                json!([{ "kind": "confirm-receipt", "scheduled": 1 }]),
                Some("wakeups.rebuilt"),
            ),
            (&["rebuild", "--dry-run", "--kind", "purge-cart-item"], json!([{ "kind": "purge-cart-item", "pending": 0 }]), None),
            (&["topology", "prune"], json!({ "removed": [], "waiting": [] }), None),
            (&["set-aside", "list"], json!({ "total": 0, "events": [] }), None),
            (&["set-aside", "retry", "--all"], json!({ "retried": 0 }), None),
            (&["resume", "confirm-receipt", "--why", "calm"], json!({ "kind": "confirm-receipt", "changed": false }), None),
        ] {
            let before: i64 = harness.ask("SELECT count(*) FROM activity").await;
            let said = letters::json(harness, &[&["--as", "lan"], arguments, &["--json"]].concat()).await;
            assert_eq!(said, expected, "{arguments:?}");
            assert_eq!(
                harness.ask::<i64>("SELECT count(*) FROM activity").await - before,
                i64::from(recorded.is_some()),
                "{arguments:?}"
            );
            if let Some(action) = recorded {
                let last = "SELECT action || ' by ' || (detail ->> 'by') FROM activity ORDER BY id DESC LIMIT 1";
                assert_eq!(harness.ask::<String>(last).await, format!("{action} by lan"));
            }
        }
        let declared = letters::json(harness, &["topology", "declare", "--json"]).await;
        let shown = letters::json(harness, &["topology", "show", "--json"]).await;
        assert_eq!(Some(shown.as_array().expect("queues").len() as u64), declared["queues"].as_u64(), "{declared} {shown}");
        assert!(letters::json(harness, &["migrate", "status", "--json"]).await[0]["applied"].as_bool().expect("a state"));
        let paused = letters::json(harness, &["--as", "lan", "pause", "confirm-receipt", "--why", "a test", "--json"]).await;
        assert_eq!((&paused["paused"]["by"], &paused["changed"]), (&"lan".into(), &true.into()), "{paused}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_make_no_sense_are_refused_at_start_and_those_that_hold_are_shown_without_secrets() {
    with_harness(QUICK, async |harness| {
        let mut env = harness.sandbox.env.clone();
        env.insert("KYHAN_WORKER_BATCH_MAX".into(), "none".into());
        env.insert("KYHAN_TOPOLOGY_SHARDS".into(), "0".into());
        for (name, arguments) in [("worker", &[][..]), ("producer", &["relay"]), ("ops", &["dead", "list"])] {
            let refused = fleet::command(name, &env, arguments).expect("built").output().await.expect("run");
            assert_eq!(refused.status.code(), Some(2), "{name}");
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(said.contains("worker.batch_max") && said.contains("topology.shards"), "{said}");
        }
        // A server that answers with a refusal is not an outage: waiting would not help.
        for (variable, value, why) in [
            ("KYHAN_AMQP_URL", "amqp://nobody:hunter2@127.0.0.1:5672/%2f", "cannot connect to RabbitMQ"),
            ("KYHAN_DATABASE_URL", "postgres://postgres@127.0.0.1:5432/kyhan_no_such_database", "PostgreSQL"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "only \"grpc\" is supported"),
        ] {
            let mut wrong = value.to_owned();
            if let (Some(real), Ok(mut url)) = (harness.sandbox.env.get(variable), url::Url::parse(value)) {
                url.set_port(url::Url::parse(real).expect("a URL").port()).expect("a port");
                wrong = url.into();
            }
            let mut command = fleet::command("worker", &harness.sandbox.env, [""; 0]).expect("built");
            command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9").env(variable, wrong);
            let refused = tokio::time::timeout(SOON, command.output()).await.expect("it leaves").expect("run");
            assert!(!refused.status.success(), "{variable}");
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(said.contains(why) && !said.contains("hunter2"), "{said}");
        }
        let mut env = harness.sandbox.env.clone();
        env.insert("KYHAN_AMQP_URL".into(), "amqp://kyhan:hunter2@localhost/%2f".into());
        let shown = fleet::output(fleet::command("worker", &env, ["--print-config"]).expect("built")).await.expect("shown");
        assert!(shown.contains("amqp://kyhan:***@localhost") && !shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("after = \"400ms\""), "{shown}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_worker_settles_what_it_has_in_hand_and_exits() {
    with_harness(QUICK, async |harness| {
        let orders = harness.many_delivering(20000).await;
        let messages = orders.chunks(20).map(|some| harness.wakeup("confirm-receipt", some));
        harness.publish(messages.collect()).await;
        let log = std::env::temp_dir().join(format!("{}.log", uuid::Uuid::new_v4()));
        let mut worker =
            fleet::start(fleet::command("worker", &harness.sandbox.env, [""; 0]).expect("built"), &log).expect("started");
        harness.until("SELECT count(*) > 500 FROM orders WHERE status = 'received'").await;
        fleet::terminate(&worker).await.expect("SIGTERM sent");
        let status = tokio::time::timeout(Duration::from_secs(20), worker.wait()).await.expect("it leaves").expect("a status");
        assert!(status.success(), "{status}");
        let said = std::fs::read_to_string(&log).expect("a log");
        std::fs::remove_file(&log).expect("removed");
        // It settled everything that it applied: nothing is redelivered.
        let applied: i64 = harness.ask("SELECT count(*) FROM orders WHERE status = 'received'").await;
        let last = said.lines().rfind(|line| line.contains("settled so far")).expect("a last word");
        let last: serde_json::Value = serde_json::from_str(last).expect("JSON on no terminal");
        assert_eq!(last["applied"].as_i64(), Some(applied), "{said}");
        let worker = harness.worker();
        harness.until("SELECT count(*) = 20000 FROM orders WHERE status = 'received'").await;
        let totals = worker.stop().await;
        assert_eq!((totals.applied as i64 + applied, totals.stale), (20_000, 0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_accepts_a_connection_and_stays_silent_is_away_and_every_process_can_still_exit() {
    with_harness(QUICK, async |harness| {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut env = harness.sandbox.env.clone();
        let url = format!("postgres://postgres@{}/kyhan", silent.local_addr().expect("an address"));
        env.insert("KYHAN_DATABASE_URL".into(), url);
        env.insert("KYHAN_DATABASE_ACQUIRE_TIMEOUT_MS".into(), "200".into());
        let log = std::env::temp_dir().join(format!("{}.log", uuid::Uuid::new_v4()));
        let mut worker = fleet::start(fleet::command("worker", &env, [""; 0]).expect("built"), &log).expect("started");
        let away = async || Ok(std::fs::read_to_string(&log)?.contains("PostgreSQL is away"));
        tests::sandbox::eventually("it says so", SOON, away).await;
        fleet::terminate(&worker).await.expect("SIGTERM sent");
        let status = tokio::time::timeout(Duration::from_secs(10), worker.wait()).await.expect("it leaves").expect("a status");
        assert!(status.success(), "{status}");
        std::fs::remove_file(&log).expect("removed");
    })
    .await;
}

/// How many bytes a pipe of Linux holds.
const PIPE: usize = 64 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_log_that_stalls_holds_up_no_work_and_no_shutdown() {
    with_harness(QUICK, async |harness| {
        let mut env = harness.sandbox.env.clone();
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a free port");
        env.insert("KYHAN_TELEMETRY_LOG".into(), "trace".into());
        env.insert("KYHAN_ADMIN_LISTEN".into(), port.to_string());
        for (program, arguments) in [("worker", &[][..]), ("producer", &["relay"])] {
            // Full from the start, and never read.
            let (_reader, mut pipe) = std::io::pipe().expect("a pipe");
            pipe.write_all(&vec![b' '; PIPE]).expect("filled");
            let mut command = fleet::command(program, &env, arguments).expect("built");
            let mut process = command.stderr(pipe).kill_on_drop(true).spawn().expect("started");
            tests::sandbox::eventually("it is ready", SOON, async || {
                Ok(admin::readiness(port).is_ok_and(|(status, _)| status == 200))
            })
            .await;
            if program == "worker" {
                for _ in 0..30 {
                    let order = harness.delivering().await;
                    harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
                }
                harness.until("SELECT count(*) = 30 FROM orders WHERE status = 'received'").await;
            } else {
                let order = harness.delivering().await;
                for _ in 0..300 {
                    harness.event("order.shipped", order).await;
                }
                harness.until("SELECT count(*) = 0 FROM outbox").await;
            }
            assert_eq!(admin::readiness(port).expect("an answer").0, 200);
            fleet::terminate(&process).await.expect("SIGTERM sent");
            let status = tokio::time::timeout(SOON, process.wait()).await.expect("it leaves").expect("a status");
            assert!(status.success(), "{program}: {status}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_workers_wakeups_are_applied_by_another_once() {
    with_harness(QUICK, async |harness| {
        let orders = harness.many_delivering(5000).await;
        let messages = orders.chunks(10).map(|some| harness.wakeup("confirm-receipt", some));
        harness.publish(messages.collect()).await;
        for _ in 0..3 {
            let mut worker = fleet::command("worker", &harness.sandbox.env, [""; 0]).expect("built").spawn().expect("started");
            let before: i64 = harness.ask("SELECT count(*) FROM order_status_history").await;
            harness.until(&format!("SELECT count(*) > least({before} + 100, 4999) FROM order_status_history")).await;
            worker.kill().await.expect("killed");
        }
        let worker = harness.worker();
        harness.until("SELECT count(*) = 5000 FROM orders WHERE status = 'received'").await;
        harness.until_settled().await;
        worker.stop().await;
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM order_status_history").await, 5000);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_travels_in_the_message() {
    with_harness(QUICK, async |harness| {
        let order = harness.delivering().await;
        harness.event("order.shipped", order).await;
        // A missing collector must not disturb anything.
        let mut relay = fleet::command("producer", &harness.sandbox.env, ["relay"]).expect("built");
        relay.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9");
        let mut relay = relay.spawn().expect("started");
        harness.until("SELECT count(*) = 0 FROM outbox").await;
        relay.kill().await.expect("killed");
        let lane = harness.topology().lane("confirm-receipt", 0);
        let broker = harness.sandbox.broker().await.expect("a broker");
        let channel = broker.channel().await.expect("a channel");
        let mut traced = None;
        tests::sandbox::eventually("it is due", SOON, async || {
            let got = channel.basic_get(lane.as_str().into(), lapin::options::BasicGetOptions::default()).await?;
            traced = got.map(|got| {
                worker::pipeline::intake::take(got.delivery, Some("confirm-receipt")).content.expect("a wake-up").trace
            });
            Ok(traced.is_some())
        })
        .await;
        let traceparent = traced.and_then(|trace| trace.traceparent).expect("a traceparent");
        assert!(traceparent.len() == 55 && traceparent.starts_with("00-") && traceparent.ends_with("-01"), "{traceparent}");
        shared::broker::close_channel(&channel).await;
        broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_thread_has_room_for_headers_as_deep_as_a_frame_allows() {
    with_harness(QUICK, async |harness| {
        let mut worker = fleet::command("worker", &harness.sandbox.env, [""; 0]).expect("built").spawn().expect("started");
        let pid = worker.id().expect("a pid");
        harness.until_consumed().await;
        // The thread that reads from RabbitMQ, and the memory reserved for its stack.
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"));
        if let Ok(maps) = maps {
            let size = |line: &str| {
                let (from, to) = line.split(' ').next()?.split_once('-')?;
                Some(u64::from_str_radix(to, 16).ok()? - u64::from_str_radix(from, 16).ok()?)
            };
            // Newer C libraries map the guard page with the stack.
            let (least, most) = (64 * 1024 * 1024, 65 * 1024 * 1024);
            let stacks = maps.lines().filter_map(size).filter(|size| (least..=most).contains(size)).count();
            assert!(stacks >= 2, "{stacks} stacks of 64 MiB");
        }
        worker.kill().await.expect("killed");
    })
    .await;
}

#[test]
fn production_binaries_contain_no_rows_of_tests_and_no_schema() {
    let contains = |name: &str, text: &str| {
        let bytes = std::fs::read(fleet::binary(name).expect("built")).expect("a binary");
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    };
    for name in ["worker", "producer"] {
        for text in ["CREATE TABLE orders", "INSERT INTO orders (id, code", "INSERT INTO cart_items (id, customer_id"] {
            assert!(!contains(name, text), "{name} contains {text:?}");
        }
        assert!(
            contains(name, "FOR UPDATE SKIP LOCKED") || contains(name, "FOR NO KEY UPDATE"),
            "nothing was searched in {name}"
        );
    }
    assert!(contains("ops", "CREATE TABLE orders"), "ops migrates");
}

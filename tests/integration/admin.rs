//! The admin port as a supervisor sees it: alive, ready, or neither.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use sea_orm::ConnectionTrait;
use serde_json::Value;
use tests::{fleet, sandbox::eventually};
use tokio::process::{Child, Command};

use crate::harness::{QUICK, SOON, with_harness};

/// The long-running binaries, each with its arguments.
const LONG_RUNNING: [(&str, &[&str]); 2] = [("worker", &[]), ("producer", &["relay"])];

/// A process with its log.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub fn start(name: &str, arguments: &[&str], env: &BTreeMap<String, String>) -> Self {
        Self::of(fleet::command(name, env, arguments).expect("built"))
    }

    pub fn of(command: Command) -> Self {
        let log = std::env::temp_dir().join(format!("{}.log", uuid::Uuid::new_v4()));
        let child = fleet::start(command, &log).expect("started");
        Self { child, log }
    }

    pub fn said(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }

    /// The address of its admin port, as it logs it.
    pub async fn address(&self) -> SocketAddr {
        let mut address = None;
        eventually("the admin port listens", SOON, async || {
            let said = self.said()?;
            let line = said.lines().find(|line| line.ends_with('}') && line.contains("admin port listens"));
            if let Some(line) = line {
                let line: Value = serde_json::from_str(line)?;
                address = Some(line["address"].as_str().context("an address")?.parse()?);
            }
            Ok(address.is_some())
        })
        .await;
        address.expect("an address")
    }

    pub async fn stop(mut self) {
        fleet::terminate(&self.child).await.expect("SIGTERM sent");
        let status = tokio::time::timeout(SOON, self.child.wait()).await.expect("it leaves").expect("a status");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.log);
    }
}

/// Sends a request and returns the status and the body.
pub fn ask(address: SocketAddr, request: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    write!(stream, "{request} HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| answer.clone())?;
    Ok((head.split(' ').nth(1).context("a status")?.parse()?, body.to_owned()))
}

fn alive(address: SocketAddr) -> bool {
    ask(address, "GET /healthz").expect("an answer") == (200, r#"{"alive":true}"#.to_owned())
}

/// The status and the readiness report.
pub fn readiness(address: SocketAddr) -> Result<(u16, Value)> {
    let (status, body) = ask(address, "GET /readyz")?;
    Ok((status, serde_json::from_str(&body)?))
}

/// Waits until it is ready and returns its report.
pub async fn until_ready(address: SocketAddr) -> Value {
    let mut report = Value::Null;
    eventually("it is ready", SOON, async || {
        let (status, said) = readiness(address)?;
        report = said;
        Ok(status == 200)
    })
    .await;
    report
}

/// The reason why a part is down.
pub fn why<'a>(report: &'a Value, part: &str) -> Option<&'a str> {
    report["parts"].as_array()?.iter().find(|of| of["name"] == part)?["why"].as_str()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_is_ready_once_it_has_its_servers_and_answers_nothing_else() {
    with_harness(QUICK, async |harness| {
        for (name, arguments) in LONG_RUNNING {
            let process = Process::start(name, arguments, &harness.sandbox.env);
            let address = process.address().await;
            assert!(alive(address), "{name}");
            let report = until_ready(address).await;
            assert!(report["ready"] == true && report["stopping"] == false, "{name}: {report}");
            let parts = report["parts"].as_array().expect("parts");
            assert!(parts.iter().any(|part| part["name"] == "postgresql") && parts.iter().all(|part| part["up"] == true));
            for (request, status) in [("GET /", 404), ("GET /metrics", 404), ("POST /readyz", 405), ("DELETE /healthz", 405)] {
                assert_eq!(ask(address, request).expect("an answer").0, status, "{request}");
            }
            process.stop().await;
            assert!(TcpStream::connect(address).is_err(), "{name} closes its port");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_server_is_away_is_alive_and_names_what_it_waits_for() {
    with_harness(QUICK, async |harness| {
        for (name, arguments) in LONG_RUNNING {
            for (variable, closed, part) in [
                ("KYHAN_DATABASE_URL", "postgres://kyhan:hunter2@127.0.0.1:9/kyhan", "postgresql"),
                ("KYHAN_AMQP_URL", "amqp://kyhan:hunter2@127.0.0.1:9/%2f", "rabbitmq"),
            ] {
                let mut env = harness.sandbox.env.clone();
                env.insert(variable.into(), closed.into());
                let process = Process::start(name, arguments, &env);
                let address = process.address().await;
                eventually("it logs what it waits for", SOON, async || {
                    let (status, report) = readiness(address)?;
                    assert_eq!((status, &report["ready"]), (503, &Value::Bool(false)), "{name}: {report}");
                    assert!(!report.to_string().contains("hunter2"), "{name}: {report}");
                    Ok(why(&report, part).is_some_and(|why| why.starts_with("not reached yet")))
                })
                .await;
                assert!(alive(address), "{name} without {part}");
                process.stop().await;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_loses_its_database_is_not_ready_until_it_is_back() {
    with_harness(QUICK, async |harness| {
        let relay = Process::start("producer", &["relay"], &harness.sandbox.env);
        let address = relay.address().await;
        until_ready(address).await;
        let name: String = harness.ask("SELECT current_database()::text").await;
        let admin = sea_orm::Database::connect(std::env::var("KYHAN_DATABASE_URL").expect("a URL")).await.expect("a server");
        for sql in [
            format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"),
            format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"),
        ] {
            admin.execute_unprepared(&sql).await.expect("an outage");
        }
        eventually("it is not ready", SOON, async || {
            let (status, report) = readiness(address)?;
            Ok(status == 503 && why(&report, "postgresql").is_some() && why(&report, "rabbitmq").is_none())
        })
        .await;
        assert!(alive(address));
        admin.execute_unprepared(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await.expect("the end of it");
        admin.close().await.expect("closed");
        until_ready(address).await;
        relay.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_process_notices_too_that_rabbitmq_is_gone() {
    with_harness(QUICK, async |harness| {
        for (name, arguments) in LONG_RUNNING {
            // Its connection to RabbitMQ, which the test can close.
            let way = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let mut env = harness.sandbox.env.clone();
            let mut url = url::Url::parse(&env["KYHAN_AMQP_URL"]).expect("a URL");
            let there = (url.host_str().expect("a host").to_owned(), url.port().unwrap_or(5672));
            url.set_port(way.local_addr().ok().map(|own| own.port())).expect("a port");
            env.insert("KYHAN_AMQP_URL".into(), url.into());
            let forwarding = tokio::spawn(async move {
                let mut open = tokio::task::JoinSet::new();
                while let Ok((mut here, _)) = way.accept().await {
                    let there = there.clone();
                    open.spawn(async move {
                        let mut there = tokio::net::TcpStream::connect(there).await.expect("RabbitMQ");
                        let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
                    });
                }
            });
            let process = Process::start(name, arguments, &env);
            let address = process.address().await;
            until_ready(address).await;
            forwarding.abort();
            eventually("it notices", SOON, async || Ok(readiness(address)?.0 == 503)).await;
            assert!(alive(address));
            process.stop().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_worker_is_alive_and_not_ready_while_it_finishes() {
    with_harness(QUICK, async |harness| {
        let worker = Process::start("worker", &[], &harness.sandbox.env);
        let address = worker.address().await;
        until_ready(address).await;
        // It cannot finish while the transaction holds the lock.
        let subject = harness.delivering().await;
        let blocker = harness.locked("orders").await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &[subject])]).await;
        let waiting = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        harness.until(waiting).await;
        fleet::terminate(&worker.child).await.expect("SIGTERM sent");
        eventually("it is stopping", SOON, async || {
            let (status, report) = readiness(address)?;
            Ok(status == 503 && report["stopping"] == true)
        })
        .await;
        assert!(alive(address));
        blocker.rollback().await.expect("unlocked");
        let mut worker = worker;
        let status = tokio::time::timeout(SOON, worker.child.wait()).await.expect("it leaves").expect("a status");
        assert!(status.success(), "{status}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_refused_by_name_and_does_not_concern_commands_that_end() {
    with_harness(QUICK, async |harness| {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("an address").to_string();
        let mut env = harness.sandbox.env.clone();
        env.insert("KYHAN_ADMIN_LISTEN".into(), address.clone());
        for (name, arguments) in LONG_RUNNING {
            let refused = tokio::time::timeout(SOON, fleet::command(name, &env, arguments).expect("built").output());
            let refused = refused.await.expect("it leaves").expect("run");
            assert_eq!(refused.status.code(), Some(1), "{name}");
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(said.contains("admin.listen: cannot listen on") && said.contains(&address), "{said}");
        }
        let order = harness.delivering().await.to_string();
        for (name, arguments) in [("producer", &["emit", "order.shipped", &order][..]), ("ops", &["dead", "list"])] {
            fleet::output(fleet::command(name, &env, arguments).expect("built")).await.expect("it needs no port");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn none_opens_no_port() {
    with_harness(QUICK, async |harness| {
        let mut env = harness.sandbox.env.clone();
        env.insert("KYHAN_ADMIN_LISTEN".into(), "none".into());
        let worker = Process::start("worker", &[], &env);
        harness.until_consumed().await;
        let said = worker.said().expect("a log");
        assert!(said.contains("worker started") && !said.contains("admin port"), "{said}");
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_silent_clients_keep_no_probe_waiting() {
    with_harness(QUICK, async |harness| {
        let relay = Process::start("producer", &["relay"], &harness.sandbox.env);
        let address = relay.address().await;
        let mut silent = Vec::new();
        for _ in 0..6 {
            silent.extend((0..50).map(|_| TcpStream::connect(address).expect("a connection")));
            let asked = Instant::now();
            assert!(alive(address));
            // Kubernetes waits one second for a probe.
            assert!(asked.elapsed() < Duration::from_secs(1), "{:?} behind {} connections", asked.elapsed(), silent.len());
        }
        // One that begins a request and does not end it gets no longer.
        let mut slow = TcpStream::connect(address).expect("a connection");
        write!(slow, "GET /healthz HTTP/1.1\r\n").expect("sent");
        let began = Instant::now();
        silent.push(slow);
        // The server closes all of them.
        for mut stream in silent {
            stream.set_read_timeout(Some(SOON)).expect("a timeout");
            // A closed connection, or one that was closed with bytes still unread.
            assert!(stream.read(&mut [0]).map_or(true, |read| read == 0));
        }
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        let huge = ask(address, &format!("GET /{}", "x".repeat(64 * 1_024)));
        assert!(huge.as_ref().map_or(true, |(status, _)| (400..500).contains(status)), "{huge:?}");
        relay.stop().await;
    })
    .await;
}

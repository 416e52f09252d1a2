//! The surroundings of every process in the scenario: its connections to RabbitMQ and PostgreSQL go through recorders, its
//! telemetry goes to a collector, and it logs as much as possible.

use std::{collections::BTreeMap, path::PathBuf};

use opentelemetry_proto::tonic::collector::{
    logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest,
};
use prost::Message;
use tests::fleet;
use tokio::process::Command;

use super::{postgres::sorted, recorder::Recorder, search::Capture};
use crate::{
    harness::Harness,
    telemetry::{Received, collector},
};

/// The most verbose log filter in use: our crates at `trace`, others at `debug` (see `shared::process::telemetry`).
const LOUD: &str = "trace";

/// Settings with which the exporters drop nothing, and export within the scenario.
const EXPORT: [(&str, &str); 5] = [
    ("OTEL_BLRP_MAX_QUEUE_SIZE", "50000"),
    ("OTEL_BLRP_SCHEDULE_DELAY", "200"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "50000"),
    ("OTEL_BSP_SCHEDULE_DELAY", "200"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
];

pub struct Surroundings {
    env: BTreeMap<String, String>,
    pub rabbitmq: Recorder,
    pub postgres: Recorder,
    collector: String,
    received: Received,
    /// Removed when dropped.
    pub folder: PathBuf,
}

impl Surroundings {
    /// With these settings in addition to the harness's.
    pub async fn new(harness: &Harness, settings: &[(&str, &str)]) -> Self {
        let mut env = harness.sandbox.env.clone();
        let rabbitmq = Recorder::before(&env["KYHAN_AMQP_URL"], 5672).await;
        let postgres = Recorder::before(&env["KYHAN_DATABASE_URL"], 5432).await;
        let (collector, received) = collector().await;
        for (name, url) in &mut env {
            if name.ends_with("AMQP_URL") {
                *url = rabbitmq.url(url);
            } else if name.ends_with("DATABASE_URL") {
                // TLS would hide the bytes.
                let mut way = url::Url::parse(&postgres.url(url)).expect("a URL");
                way.query_pairs_mut().append_pair("sslmode", "disable");
                *url = way.into();
            }
        }
        let more = settings.iter().chain(&[("KYHAN_TELEMETRY_LOG", LOUD)]).chain(&EXPORT);
        env.extend(more.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let folder = std::env::temp_dir().join(format!("{}-markers", harness.sandbox.database()));
        std::fs::create_dir_all(&folder).expect("a folder");
        Self { env, rabbitmq, postgres, collector, received, folder }
    }

    /// A command that runs a binary.
    pub fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = fleet::command(name, &self.env, arguments).expect("built");
        command.env("RUST_BACKTRACE", "full").env("OTEL_EXPORTER_OTLP_ENDPOINT", &self.collector);
        command
    }

    /// All bytes that were sent, by sender; and PostgreSQL's errors and notices separately: see [`sorted`].
    pub fn captures(&self) -> (Vec<Capture>, Vec<Capture>) {
        let (sql, complaints) = self.sql();
        ([self.amqp(), sql, self.otlp()].concat(), complaints)
    }

    /// The bytes sent to and by RabbitMQ.
    fn amqp(&self) -> Vec<Capture> {
        let connections = self.rabbitmq.passed().into_iter().enumerate();
        let ways = connections.flat_map(|(at, passed)| {
            [
                Capture::new(format!("AMQP connection {at} to RabbitMQ"), passed.to_server),
                Capture::new(format!("AMQP connection {at} from RabbitMQ"), passed.to_client),
            ]
        });
        ways.collect()
    }

    /// The bytes sent to and by PostgreSQL, and its errors and notices.
    fn sql(&self) -> (Vec<Capture>, Vec<Capture>) {
        let (mut passed, mut complaints) = (Vec::new(), Vec::new());
        for (at, of) in self.postgres.passed().into_iter().enumerate() {
            let (answers, complained) = sorted(&of.to_client);
            let whose = format!("PostgreSQL to {} ({at})", application(&of.to_server));
            passed.push(Capture::new(format!("{whose}, asked"), of.to_server));
            passed.push(Capture::new(format!("{whose}, answered"), answers));
            complaints.push(Capture::new(format!("{whose}, errors"), complained));
        }
        (passed, complaints)
    }

    /// The exported telemetry, both raw and decoded.
    fn otlp(&self) -> Vec<Capture> {
        let received = self.received.lock().expect("no panic");
        let captures = received.iter().enumerate().flat_map(|(at, (path, bytes))| {
            let decoded = match path {
                path if path.contains("TraceService") => said::<ExportTraceServiceRequest>(bytes),
                path if path.contains("MetricsService") => said::<ExportMetricsServiceRequest>(bytes),
                path if path.contains("LogsService") => said::<ExportLogsServiceRequest>(bytes),
                other => panic!("{other} is exported but not decoded"),
            };
            [
                Capture::new(format!("OTLP {at} {path}"), bytes.to_vec()),
                Capture::new(format!("OTLP {at} {path}, decoded"), decoded),
            ]
        });
        captures.collect()
    }
}

impl Drop for Surroundings {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The client of a connection, by the name in its first message.
fn application(to_server: &[u8]) -> String {
    const NAME: &[u8] = b"application_name\0";
    let begins = to_server.windows(NAME.len()).position(|window| window == NAME).map(|at| at + NAME.len());
    let name = begins.and_then(|at| to_server[at..].split(|byte| *byte == 0).next());
    name.map_or_else(|| "unnamed".to_owned(), |name| String::from_utf8_lossy(name).into_owned())
}

fn said<T: Message + Default + std::fmt::Debug>(bytes: &[u8]) -> String {
    format!("{:?}", T::decode(bytes).expect("a message"))
}

//! Telemetry: logs on stderr, as text on a terminal and as JSON otherwise; traces, metrics and logs over OTLP if the standard
//! `OTEL_EXPORTER_OTLP_ENDPOINT` is set. None of it contains personal data: spans and logs hold kinds, ids and counts.
//!
//! No work waits for a log line to be written: a thread of its own writes to stderr. While the reader of stderr stalls, lines are dropped
//! and counted.

use std::{collections::HashMap, io::IsTerminal, time::Duration};

use opentelemetry::{global, propagation::TextMapPropagator, trace::TracerProvider as _};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{ExporterBuildError, LogExporter, MetricExporter, SpanExporter};
use opentelemetry_sdk::{
    Resource, logs::SdkLoggerProvider, metrics::SdkMeterProvider, propagation::TraceContextPropagator, trace::SdkTracerProvider,
};
use tokio_util::task::AbortOnDropHandle;
use tracing::Span;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::message::wakeup::TraceContext;

/// The endpoint variable of the OpenTelemetry specification; setting it turns the export on.
/// <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// The protocol variable of the same specification.
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
/// The exporter's own crates: exporting their logs about exporting would never end.
const EXPORTER_CRATES: [&str; 6] = ["opentelemetry", "opentelemetry_sdk", "opentelemetry_otlp", "tonic", "h2", "hyper"];

/// Our crates, whose logs and spans contain no secret at any level. Other crates log at [`OTHERS`] at most, whatever the
/// settings are: below it lapin logs the password of a login, sea-orm the database's URL, and HTTP/2 the headers of an
/// exporter.
const OWN_CRATES: [&str; 4] = ["shared", "producer", "worker", "ops"];
const OTHERS: LevelFilter = LevelFilter::DEBUG;

/// How many log lines wait for the reader of stderr before further ones are dropped.
const LINES_MAX: usize = 10_000;
/// How often the number of dropped lines is checked.
const DROPPED_EVERY: Duration = Duration::from_secs(10);

/// Holds the exporters and the writer of stderr; [`Telemetry::shutdown`] sends what they have buffered.
pub struct Telemetry {
    /// Writes, for at most about a second, what waits when it is dropped.
    _stderr: WorkerGuard,
    _dropped: AbortOnDropHandle<()>,
    exporters: Option<(SdkTracerProvider, SdkMeterProvider, SdkLoggerProvider)>,
}

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("cannot start the OTLP exporter: {0}; set {ENDPOINT} to a URL like http://collector:4317")]
    Exporter(#[from] ExporterBuildError),
    #[error("{PROTOCOL} is {0:?}, but only \"grpc\" is supported (usually a collector's port 4317)")]
    Protocol(String),
    #[error("telemetry.log: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("logging was set up twice: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

impl Telemetry {
    /// Starts logging at `filter`, and exporting as `service` if an endpoint is set, which needs a tokio runtime.
    ///
    /// # Errors
    /// [`TelemetryError`].
    pub fn start(service: &'static str, filter: &str) -> Result<Self, TelemetryError> {
        let lines = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX).thread_name("log");
        let (lines, written) = lines.finish(std::io::stderr());
        let dropped = AbortOnDropHandle::new(tokio::spawn(count_dropped(lines.error_counter())));
        let stderr = tracing_subscriber::fmt::layer().with_writer(lines);
        let stderr = if std::io::stderr().is_terminal() {
            stderr.boxed()
        } else {
            stderr.json().flatten_event(true).with_span_list(false).boxed()
        };
        let filter = EnvFilter::try_new(filter)?;
        let secretive = Targets::new().with_default(OTHERS).with_targets(OWN_CRATES.map(|own| (own, LevelFilter::TRACE)));
        let registry = tracing_subscriber::registry().with(filter).with(secretive).with(stderr);
        if std::env::var_os(ENDPOINT).is_none_or(|endpoint| endpoint.is_empty()) {
            registry.try_init()?;
            return Ok(Self { _stderr: written, _dropped: dropped, exporters: None });
        }
        if let Some(other) = std::env::var(PROTOCOL).ok().filter(|protocol| !["", "grpc"].contains(&protocol.as_str())) {
            return Err(TelemetryError::Protocol(other));
        }
        let resource = Resource::builder().with_service_name(service).build();
        let traces = SdkTracerProvider::builder()
            .with_batch_exporter(SpanExporter::builder().with_tonic().build()?)
            .with_resource(resource.clone())
            .build();
        let metrics = SdkMeterProvider::builder()
            .with_periodic_exporter(MetricExporter::builder().with_tonic().build()?)
            .with_resource(resource.clone())
            .build();
        let logs = SdkLoggerProvider::builder()
            .with_batch_exporter(LogExporter::builder().with_tonic().build()?)
            .with_resource(resource)
            .build();
        global::set_meter_provider(metrics.clone());
        let ours = tracing_subscriber::filter::filter_fn(|metadata| {
            !EXPORTER_CRATES.iter().any(|name| metadata.target().split("::").next() == Some(name))
        });
        registry
            .with(tracing_opentelemetry::layer().with_tracer(traces.tracer("kyhan")).with_filter(ours.clone()))
            .with(OpenTelemetryTracingBridge::new(&logs).with_filter(ours))
            .try_init()?;
        Ok(Self { _stderr: written, _dropped: dropped, exporters: Some((traces, metrics, logs)) })
    }

    /// Sends what is still buffered. If a collector is away, its data is lost, and the process goes on.
    pub fn shutdown(self) {
        let Some((traces, metrics, logs)) = self.exporters else { return };
        for (signal, result) in [("traces", traces.shutdown()), ("metrics", metrics.shutdown()), ("logs", logs.shutdown())] {
            if let Err(error) = result {
                tracing::debug!(signal, %error, "not all telemetry was exported");
            }
        }
    }
}

/// Reports dropped log lines, in a metric and in the log itself.
async fn count_dropped(lines: ErrorCounter) {
    let mut reported = 0;
    let mut ticks = tokio::time::interval(DROPPED_EVERY);
    loop {
        ticks.tick().await;
        let dropped = lines.dropped_lines() as u64;
        if dropped > reported {
            let counter = global::meter("kyhan").u64_counter("kyhan.log.dropped").with_description("Log lines dropped").build();
            counter.add(dropped - reported, &[]);
            tracing::warn!(dropped, "log lines were dropped, because the reader of stderr stalled");
            reported = dropped;
        }
    }
}

/// The trace context of a span, for a message's headers; empty if nothing is exported.
#[must_use]
pub fn trace_context(span: &Span) -> TraceContext {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut carrier);
    TraceContext {
        traceparent: carrier.remove("traceparent"),
        tracestate: carrier.remove("tracestate").filter(|state| !state.is_empty()),
    }
}

/// Links a span to the one whose context came with a message. An invalid `traceparent` is ignored.
pub fn link(span: &Span, trace: &TraceContext) {
    use opentelemetry::trace::TraceContextExt;

    let Some(traceparent) = &trace.traceparent else { return };
    let mut carrier = HashMap::from([("traceparent".to_owned(), traceparent.clone())]);
    carrier.extend(trace.tracestate.clone().map(|state| ("tracestate".to_owned(), state)));
    let context = TraceContextPropagator::new().extract(&carrier);
    let there = context.span().span_context().clone();
    if there.is_valid() {
        span.add_link(there);
    }
}

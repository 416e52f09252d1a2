//! Telemetry over OTLP, received by a collector that implements just enough gRPC: the worker's span links to the producer's, the
//! counters and the lateness histogram are present, and none of it contains personal data.

use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes};
use http::{HeaderMap, Response};
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest,
    },
    metrics::v1::{metric::Data, number_data_point},
    trace::v1::Span,
};
use prost::Message;
use tests::{fleet, sandbox::eventually};
use tokio::net::TcpListener;

use crate::harness::{QUICK, SOON, with_harness};

/// What a collector received: the path of the gRPC method, and the message.
pub type Received = Arc<Mutex<Vec<(String, Bytes)>>>;

/// Listens on a free port, and acknowledges and keeps everything it receives.
pub async fn collector() -> (String, Received) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let received = Received::default();
    let kept = Arc::clone(&received);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let kept = Arc::clone(&kept);
            tokio::spawn(async move {
                // Without it, each answer consists of several small writes, which wait for the client's delayed acknowledgement.
                socket.set_nodelay(true).expect("a socket");
                let mut connection = h2::server::handshake(socket).await.expect("HTTP/2");
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(take(request, respond, Arc::clone(&kept)));
                }
            });
        }
    });
    (endpoint, received)
}

async fn take(request: http::Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>, kept: Received) {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let mut whole = Vec::new();
    while let Some(Ok(part)) = body.data().await {
        let _ = body.flow_control().release_capacity(part.len());
        whole.extend_from_slice(&part);
    }
    // gRPC: one byte for the compression, four for the length, then the message. A killed process may send only a part.
    let Some((&[compressed, ref length @ ..], message)) = whole.split_first_chunk::<5>() else { return };
    if message.len() < u32::from_be_bytes(*length) as usize {
        return;
    }
    assert_eq!(compressed, 0, "uncompressed");
    kept.lock().expect("no panic").push((path, Bytes::from(whole).slice(5..)));
    let answer = Response::builder().header("content-type", "application/grpc").body(()).expect("an answer");
    if let Ok(mut stream) = respond.send_response(answer, false) {
        let _ = stream.send_data(Bytes::from_static(&[0; 5]), false);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        let _ = stream.send_trailers(trailers);
    }
}

pub fn messages<T: Message + Default>(received: &Received, service: &str) -> Vec<T> {
    let received = received.lock().expect("no panic");
    received
        .iter()
        .filter(|(path, _)| path.contains(service))
        .map(|(_, bytes)| T::decode(bytes.chunk()).expect("a message"))
        .collect()
}

fn spans(received: &Received, name: &str) -> Vec<Span> {
    let requests: Vec<ExportTraceServiceRequest> = messages(received, "TraceService");
    let spans =
        requests.into_iter().flat_map(|request| request.resource_spans).flat_map(|of| of.scope_spans).flat_map(|of| of.spans);
    spans.filter(|span| span.name == name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_metrics_and_logs_are_exported_and_the_workers_span_links_to_the_producers() {
    with_harness(QUICK, async |harness| {
        let (endpoint, received) = collector().await;
        let start = |name: &str, arguments: &[&str]| {
            let mut command = fleet::command(name, &harness.sandbox.env, arguments).expect("built");
            command
                .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
                .env("KYHAN_TELEMETRY_LOG", "debug")
                .stderr(std::process::Stdio::null());
            command.spawn().expect("started")
        };
        let mut drivers = [start("producer", &["relay"]), start("worker", &[])];
        let order = harness.delivering().await;
        harness.run("UPDATE orders SET goods_due = 1000 WHERE id = $1", [order.into()]).await;
        let item = harness.in_cart().await;
        harness.event("order.shipped", order).await;
        harness.event("cart.item_added", item).await;
        harness.until("SELECT count(*) = 1 FROM orders WHERE status = 'received'").await;
        harness.until("SELECT count(*) = 0 FROM cart_items").await;
        harness.until("SELECT count(*) = 1 FROM transfers").await;
        harness.run("INSERT INTO pauses (kind, paused_by, why) VALUES ('purge-cart-item', 'lan', 'x')", []).await;
        let (broker, lane) = (harness.sandbox.broker().await.expect("a broker"), harness.topology().lane("purge-cart-item", 0));
        let left = async || Ok(broker.observe(&lane).await?.is_some_and(|seen| seen.consumers == 0));
        eventually("the worker has noticed the pause", SOON, left).await;
        broker.close().await;
        for driver in &mut drivers {
            fleet::terminate(driver).await.expect("SIGTERM sent");
            assert!(driver.wait().await.expect("a status").success());
        }

        let relayed: Vec<_> = spans(&received, "relay").into_iter().map(|span| (span.trace_id, span.span_id)).collect();
        let batches = spans(&received, "batch");
        assert!(batches.len() >= 3 && !relayed.is_empty(), "{} batches, {} relays", batches.len(), relayed.len());
        let linked = batches
            .iter()
            .flat_map(|batch| &batch.links)
            .filter(|link| relayed.contains(&(link.trace_id.clone(), link.span_id.clone())));
        assert!(linked.count() >= 3, "the worker's spans link to the relay's");

        let requests: Vec<ExportMetricsServiceRequest> = messages(&received, "MetricsService");
        let metrics: Vec<_> = requests
            .into_iter()
            .flat_map(|request| request.resource_metrics)
            .flat_map(|of| of.scope_metrics)
            .flat_map(|of| of.metrics)
            .collect();
        let lateness = metrics.iter().find(|metric| metric.name == "kyhan.worker.lateness").expect("the lateness");
        let Some(Data::Histogram(histogram)) = &lateness.data else { panic!("{lateness:?}") };
        assert_eq!(histogram.data_points.iter().map(|point| point.count).sum::<u64>(), 3);
        let subjects = metrics.iter().find(|metric| metric.name == "kyhan.worker.subjects").expect("the counter");
        let Some(Data::Sum(sum)) = &subjects.data else { panic!("{subjects:?}") };
        let attributes = format!("{:?}", sum.data_points);
        for expected in ["confirm-receipt", "purge-cart-item", "collect-arrears", "applied"] {
            assert!(attributes.contains(expected), "{expected}: {attributes}");
        }
        assert!(metrics.iter().any(|metric| metric.name == "kyhan.relay.events"));
        let paused = metrics.iter().find(|metric| metric.name == "kyhan.paused").expect("the pauses");
        let Some(Data::Gauge(gauge)) = &paused.data else { panic!("{paused:?}") };
        let points: Vec<_> = gauge.data_points.iter().map(|point| (format!("{:?}", point.attributes), point.value)).collect();
        assert!(
            points.iter().all(|(kind, value)| {
                *value == Some(number_data_point::Value::AsInt(kind.contains("purge-cart-item").into()))
            }) && points.len() == shared::domain::tasks::EXAMPLED.len(),
            "{points:?}"
        );
        assert!(!messages::<ExportLogsServiceRequest>(&received, "LogsService").is_empty());

        // Even at debug level.
        for (path, bytes) in received.lock().expect("no panic").iter() {
            let text = String::from_utf8_lossy(bytes);
            for personal in ["Nguyễn Thị Mẫu", "0901234567", "mau@example.vn", "taobao", "Áo khoác"] {
                assert!(!text.contains(personal), "{personal} in {path}");
            }
        }
    })
    .await;
}

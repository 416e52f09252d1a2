//! The forecast: its numbers match the rows, per kind, and only the leader reports them.

use std::{collections::BTreeMap, process::Stdio, time::Duration};

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{KeyValue, any_value::Value::StringValue},
    metrics::v1::{metric::Data, number_data_point::Value::AsInt},
};
use sea_orm::{ConnectionTrait, TransactionTrait};
use shared::{database::statement, domain::task::EXAMPLE_CUSTOMER};
use tests::{
    fleet,
    sandbox::{always, eventually},
};
use tokio::process::Child;

use crate::{
    harness::{Harness, SOON, with_harness},
    telemetry::{Received, collector, messages},
};

/// The default policy, with an early leader. Nothing is swept, so overdue rows stay overdue.
const FILE: &str = r"
    [sweep]
    every_ms = 100
    grace_ms = 86400000
    [forecast]
    every_ms = 100
";

/// Settings of a sweep and a forecast every 100 ms.
const SEVERAL_ROUNDS: Duration = Duration::from_millis(800);

/// Counts by kind and `within`.
type CountsByKind = BTreeMap<(String, String), i64>;

/// Due in that many seconds: the number of orders being delivered and of products in carts. None crosses a boundary while a test
/// runs.
const ROWS: [(i64, i64, i64); 8] = [
    (-3_630, 40, 41), // overdue for longer than an hour
    (-1_800, 1, 2),
    (55, 3, 5),
    (230, 7, 11),
    (800, 13, 17),
    (3_000, 19, 23),
    (3_900, 50, 51), // later than an hour from now
    (86_400, 60, 61),
];

async fn fill(harness: &Harness) {
    for (in_seconds, orders, items) in ROWS {
        // An order that has been received and an item that has been ordered are no longer due.
        for (status, count) in [("delivering", orders), ("received", 9)] {
            let sql = "INSERT INTO orders (id, code, customer_id, status, delivering_since)
                       SELECT gen_random_uuid(), gen_random_uuid()::text, $1, $2, now() - interval '14 days' + $3 * interval '1 s'
                         FROM generate_series(1, $4::bigint)";
            harness.run(sql, [EXAMPLE_CUSTOMER.into(), status.into(), in_seconds.into(), count.into()]).await;
        }
        for (order, count) in [("NULL", items), ("(SELECT id FROM orders LIMIT 1)", 8)] {
            let sql = format!(
                "INSERT INTO cart_items (id, customer_id, product_ref, product_name, quantity, added_at, order_id)
                 SELECT gen_random_uuid(), $1, 'ref', 'name', 1, now() - interval '30 days' + $2 * interval '1 s', {order}
                   FROM generate_series(1, $3::bigint)"
            );
            harness.run(&sql, [EXAMPLE_CUSTOMER.into(), in_seconds.into(), count.into()]).await;
        }
    }
    // Short of money and collected within minutes. Arrears depend on several times, so they are not forecast.
    let short = "UPDATE orders SET goods_due = 1000, fees_changed_at = now() - interval '23 hours 58 minutes'";
    harness.run(short, []).await;
}

fn forecast(kinds: &[(&str, [i64; 5])]) -> CountsByKind {
    let points = kinds.iter().flat_map(|(kind, due)| {
        ["-1h", "1m", "5m", "15m", "1h"].iter().zip(due).map(|(within, due)| (((*kind).to_owned(), (*within).to_owned()), *due))
    });
    points.collect()
}

/// The values in the latest export.
fn newest(received: &Received) -> Option<CountsByKind> {
    let text = |attributes: &[KeyValue], key: &str| {
        let value = attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value?;
        if let StringValue(text) = value { Some(text) } else { None }
    };
    let newest = messages::<ExportMetricsServiceRequest>(received, "MetricsService").pop()?;
    let metrics = newest.resource_metrics.into_iter().flat_map(|of| of.scope_metrics).flat_map(|of| of.metrics);
    let mut points = CountsByKind::new();
    for metric in metrics.filter(|metric| metric.name == "kyhan.forecast.due") {
        assert_eq!(metric.unit, "{subject}");
        let Some(Data::Gauge(gauge)) = metric.data else { panic!("no gauge") };
        for point in gauge.data_points {
            let Some(AsInt(due)) = point.value else { panic!("no whole number") };
            let of = (text(&point.attributes, "kind").expect("a kind"), text(&point.attributes, "within").expect("a stretch"));
            assert_eq!(points.insert(of, due), None, "reported once");
        }
    }
    Some(points)
}

async fn until_reported(received: &Received, what: &str, expected: &CountsByKind) {
    eventually(what, SOON, async || Ok(newest(received).as_ref() == Some(expected))).await;
}

fn worker(harness: &Harness, endpoint: &str, more: &[(&str, &str)]) -> Child {
    let mut command = fleet::command("worker", &harness.sandbox.env, [""; 0]).expect("built");
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_METRIC_EXPORT_INTERVAL", "100");
    command.envs(more.iter().copied()).stderr(Stdio::null()).spawn().expect("started")
}

/// Stops it, long before the end of its grace period.
async fn stop(mut worker: Child) {
    fleet::terminate(&worker).await.expect("SIGTERM sent");
    let ended = tokio::time::timeout(Duration::from_secs(10), worker.wait()).await.expect("it leaves at once");
    assert!(ended.expect("a status").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_falls_due_is_counted_exactly_by_kind_and_by_how_soon() {
    with_harness(FILE, async |harness| {
        fill(harness).await;
        let (endpoint, received) = collector().await;
        let worker = worker(harness, &endpoint, &[]);
        let expected = forecast(&[("confirm-receipt", [1, 3, 10, 23, 42]), ("purge-cart-item", [2, 5, 16, 33, 56])]);
        until_reported(&received, "every row is counted in its interval and the longer ones", &expected).await;
        stop(worker).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_so_many_are_counted_in_one_stretch() {
    with_harness(FILE, async |harness| {
        fill(harness).await;
        let (endpoint, received) = collector().await;
        let worker = worker(harness, &endpoint, &[("KYHAN_FORECAST_COUNT_MAX", "10")]);
        let expected = forecast(&[("confirm-receipt", [1, 3, 10, 20, 30]), ("purge-cart-item", [2, 5, 15, 25, 35])]);
        until_reported(&received, "ten per interval", &expected).await;
        stop(worker).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_leader_and_one_that_cannot_count_publish_no_old_numbers() {
    with_harness(FILE, async |harness| {
        let (endpoint, received) = collector().await;
        let worker = worker(harness, &endpoint, &[]);
        let (orders, items) = (("confirm-receipt", [0; 5]), ("purge-cart-item", [0; 5]));
        until_reported(&received, "both kinds are reported", &forecast(&[orders, items])).await;

        let locked = harness.sandbox.db.begin().await.expect("a transaction");
        locked.execute_unprepared("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE").await.expect("locked");
        until_reported(&received, "a kind that cannot be counted is not reported", &forecast(&[items])).await;
        locked.rollback().await.expect("unlocked");
        until_reported(&received, "it is reported again", &forecast(&[orders, items])).await;

        // A session that waits for the lock gets it as soon as its holder is gone.
        let of_leader = "locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        let leader = format!("SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE {of_leader} AND granted");
        let key: i64 = harness.ask(&leader).await;
        let usurper = harness.sandbox.db.begin().await.expect("a transaction");
        usurper.execute_unprepared("SET LOCAL lock_timeout = 0").await.expect("patience");
        let waiting = usurper.execute_raw(statement("SELECT pg_advisory_xact_lock($1)", [key.into()]));
        let deposing = async {
            harness.until(&format!("SELECT count(*) = 1 FROM pg_locks WHERE {of_leader} AND NOT granted")).await;
            let end = format!("SELECT bool_and(pg_terminate_backend(pid)) FROM pg_locks WHERE {of_leader} AND granted");
            assert!(harness.ask::<bool>(&end).await);
        };
        let (waited, ()) = tokio::join!(waiting, deposing);
        waited.expect("the lock");
        let nothing = CountsByKind::new();
        until_reported(&received, "a worker that does not lead reports nothing", &nothing).await;
        always("nothing is reported", SEVERAL_ROUNDS, async || Ok(newest(&received).as_ref() == Some(&nothing))).await;
        usurper.rollback().await.expect("unlocked");
        until_reported(&received, "it reports again when it leads again", &forecast(&[orders, items])).await;
        stop(worker).await;
    })
    .await;
}

//! No personal data and no source of goods leaves the database (policy points 6 and 7). Unmistakable markers are put into every
//! column that may hold either, a scenario runs everything that can happen to a fleet, all output is captured, and no capture may
//! contain a marker.

use crate::harness::{QUICK, every_kind, with_harness};

mod commands;
mod demo;
mod driver;
mod obstacles;
mod population;
mod postgres;
mod recorder;
mod scenario;
mod search;
mod surroundings;

use commands::Runner;
use driver::MarkedProcess;
use search::{Capture, Encoding, Find, Search, report};
use surroundings::Surroundings;

fn search() -> Search {
    Search::new(population::MARKED.iter().map(|of| (of.table, of.name)))
}

/// Whether a capture whose name has this prefix contains the text.
fn says(captures: &[Capture], begins: &str, text: &str) -> bool {
    captures.iter().any(|capture| capture.name.starts_with(begins) && capture.says(text))
}

/// Whether a worker has counted this outcome among its settled wake-ups.
fn says_of_settled(captures: &[Capture], what: &str) -> bool {
    let logs = captures.iter().filter(|capture| capture.name.starts_with("stderr of") && capture.says("settled so far"));
    let text = logs.map(|log| String::from_utf8_lossy(&log.bytes).into_owned()).collect::<String>();
    text.lines().filter(|line| line.contains("settled so far") && line.ends_with('}')).any(|line| {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON on no terminal");
        line[what].as_i64().is_some_and(|count| count > 0)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_personal_and_no_source_of_goods_leaves_the_database() {
    // Long enough that subjects whose deadline counts from now are postponed.
    let file = ["400ms", "200ms", "300ms"].iter().fold(every_kind(QUICK), |file, span| file.replace(span, "1500ms"));
    with_harness(&file, async |harness| {
        let scenario::Captured { searched, complaints } = scenario::run(harness, &file).await;
        let search = search();
        // A session for a named customer may read that customer's data; no other connection has this name.
        let kept_from = |capture: &&Capture| !capture.name.starts_with("PostgreSQL to kyhan customer");
        let finds: Vec<Find> = searched.iter().filter(kept_from).flat_map(|capture| search.finds(capture)).collect();
        assert!(finds.is_empty(), "{}", report(&finds));

        // The scenario did produce all of these outputs.
        let settled = |what: &str| says_of_settled(&searched, what);
        assert!(
            ["applied", "stale", "postponed", "retried", "malformed", "stored"].into_iter().all(settled),
            "not everything ran"
        );
        for (capture, said) in [
            ("AMQP", "confirm-receipt.0"),
            ("AMQP", "purge-cart-item.0"),
            ("AMQP", "collect-arrears.0"),
            ("AMQP", "hide-order.0"),
            ("AMQP", "kyhan.wakeup"),
            ("AMQP", "kyhan.dead-letter"),
            ("AMQP", "attempts-exhausted"),
            ("PostgreSQL to kyhan worker", "FOR NO KEY UPDATE"),
            ("PostgreSQL to kyhan producer", "DELETE FROM outbox"),
            ("PostgreSQL to kyhan ops", "FROM order_status_history"),
            ("stderr of worker", "a dead letter"),
            ("stderr of worker", "will be retried"),
            ("stderr of worker", "\"level\":\"DEBUG\""),
            ("stderr of killed-worker", "worker started"),
            ("stderr of relay", "an event was set aside"),
            ("stderr of `explain", "\"level\":\"DEBUG\""),
            ("answer of worker to GET /readyz", "postgresql"),
            ("answer of relay to GET /healthz", "alive"),
            ("OTLP", "kyhan.worker.lateness"),
            ("OTLP", "a dead letter"),
            ("OTLP", "confirm-receipt"),
            ("table dead_letters", "attempts-exhausted"),
            ("table activity", "dead_letter.replayed"),
            ("table activity", "order.hidden"),
            ("table activity_seals", "(1,"),
        ] {
            assert!(says(&searched, capture, said), "no {said:?} in {capture}: not everything ran, or was kept");
        }
        for dropped in ["LogsDropped", "SpansDropped"] {
            assert!(!says(&searched, "stderr", dropped), "not everything was exported: {dropped}");
        }
        // PostgreSQL did quote the rows, in the details of its errors.
        let named: std::collections::BTreeSet<String> =
            complaints.iter().flat_map(|complaint| search.finds(complaint)).map(|find| find.column).collect();
        for column in ["full_name", "phone", "email", "address"].map(|column| format!("customers.{column}")) {
            assert!(named.contains(&column), "no error named {column}, only {named:?}");
        }
        for column in ["order_sources.supplier_name", "cart_items.product_name"] {
            assert!(named.contains(column), "no error named {column}, only {named:?}");
        }
    })
    .await;
}

/// Text that can go every way out at once: the reason of a pause, and a message that is not a wake-up.
#[tokio::test(flavor = "multi_thread")]
async fn a_marker_is_found_on_every_way_out() {
    with_harness(QUICK, async |harness| {
        let (search, planted) = (search(), search::marker("customers", "full_name"));
        let surroundings = Surroundings::new(harness, &[]).await;
        let mut worker = MarkedProcess::start(&surroundings, "worker", "worker", &[]);
        worker.until_ready(true).await;
        let runner = Runner { harness, surroundings: &surroundings, places: vec![("{planted}", planted.clone())] };
        let mut captures = runner.run(&[&["pause purge-cart-item --why {planted}", "~explain {planted}"], &["~status"]]).await;
        worker.until_said(&planted).await;
        worker.until_answered("the pause", |_, body| body.contains(&planted)).await;
        harness.publish(vec![scenario::malformed(harness, &planted)]).await;
        harness.until_dead(1).await;
        worker.stop().await;
        captures.extend(population::own_rows(harness).await);
        captures.extend(worker.captures());
        captures.extend(surroundings.captures().0);

        let finds: Vec<Find> = captures.iter().flat_map(|capture| search.finds(capture)).collect();
        for (capture, encoding) in [
            ("stdout of `status`", Encoding::Plain),
            ("stderr of `explain", Encoding::Plain),
            ("stderr of worker", Encoding::Plain),
            ("answer of worker to GET /readyz", Encoding::Plain),
            ("PostgreSQL to kyhan ops", Encoding::Plain),
            ("PostgreSQL to kyhan worker", Encoding::Plain),
            ("OTLP", Encoding::Plain),
            ("table pauses", Encoding::Plain),
            ("table activity", Encoding::Plain),
            ("table dead_letter_bodies", Encoding::Hex),
        ] {
            let found = finds.iter().find(|find| find.capture.starts_with(capture) && find.encoding == encoding);
            let found = found.unwrap_or_else(|| panic!("not found in {capture} as {encoding:?}; {}", report(&finds)));
            assert_eq!(found.column, "customers.full_name", "{found}");
        }
        assert!(finds.iter().any(|find| find.capture.ends_with("from RabbitMQ")), "{}", report(&finds));
        assert!(finds.iter().any(|find| find.capture.ends_with("LogsService/Export, decoded")), "{}", report(&finds));
    })
    .await;
}

/// Places where error text appears besides a letter's cause: the log of a worker that retries, the log of a relay, and a
/// terminal.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_trigger_says_is_redacted_wherever_an_error_is_shown() {
    with_harness(QUICK, async |harness| {
        let (search, planted) = (search(), search::marker("customers", "full_name"));
        let order = harness.delivering().await;
        let function = format!(
            "CREATE FUNCTION say_it() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION USING ERRCODE = TG_ARGV[0], MESSAGE = 'no label for {planted}'; END $$"
        );
        harness.run(&function, []).await;
        // Each is reported in its own way: a possibly missing privilege, a permanent failure, and a refused command.
        for (event, code) in [
            ("UPDATE ON orders", "42501"),
            ("DELETE ON outbox", "P0001"),
            ("INSERT ON retention_holds", "23514"),
            ("UPDATE ON customers", "P0002"),
        ] {
            harness
                .run(&format!("CREATE TRIGGER say_it BEFORE {event} FOR EACH ROW EXECUTE FUNCTION say_it('{code}')"), [])
                .await;
        }
        let surroundings = Surroundings::new(harness, &[]).await;
        let mut worker = MarkedProcess::start(&surroundings, "worker", "worker", &[]);
        let mut relay = MarkedProcess::start(&surroundings, "relay", "producer", &["relay"]);
        worker.until_ready(true).await;
        harness.publish(vec![harness.wakeup("confirm-receipt", &[order])]).await;
        worker.until_said("will be retried").await;
        harness.event("order.shipped", order).await;
        relay.until_said("the relay cannot use PostgreSQL").await;
        relay.until_ready(false).await;
        let customer = uuid::Uuid::new_v4();
        harness.run("INSERT INTO customers VALUES ($1, 'x', 'x', 'x', 'x')", [customer.into()]).await;
        let places = vec![("{order}", order.to_string()), ("{customer}", customer.to_string())];
        let runner = Runner { harness, surroundings: &surroundings, places };
        let mut captures = runner
            .run(&[&["~retention hold {order} --why asked", "~customer erase {customer} --why asked --yes", "~status"]])
            .await;
        worker.stop().await;
        relay.stop().await;
        captures.extend([worker, relay].into_iter().flat_map(MarkedProcess::captures));
        let (passed, complaints) = surroundings.captures();
        captures.extend(passed);

        let finds: Vec<Find> = captures.iter().flat_map(|capture| search.finds(capture)).collect();
        assert!(finds.is_empty(), "{}", report(&finds));
        for (capture, code) in [
            ("stderr of worker", "42501 (insufficient privilege)"),
            ("stderr of relay", "P0001"),
            ("stderr of `retention hold", "23514 (integrity constraint violation)"),
            ("stderr of `customer erase", "P0002"),
        ] {
            let logged = format!("SQLSTATE {code} in PL/pgSQL function say_it() line 1 at RAISE; its text is redacted");
            assert!(says(&captures, capture, &logged), "not logged in {capture}: {logged}");
        }
        assert!(complaints.iter().any(|complaint| !search.finds(complaint).is_empty()), "PostgreSQL did say it");
    })
    .await;
}

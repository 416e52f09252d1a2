//! Bad input: no message crashes a process or loops forever, and the valid messages beside it are applied.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldArray, FieldTable},
};
use shared::message::{
    outgoing::Outgoing,
    wakeup::{SUBJECTS_MAX, Wakeup},
};
use uuid::Uuid;

use crate::harness::{Harness, QUICK, with_harness};

/// A message for the lane of `confirm-receipt`.
pub fn raw(harness: &Harness, body: impl Into<Vec<u8>>, headers: FieldTable) -> Outgoing {
    Outgoing {
        exchange: harness.topology().due_exchange(),
        routing_key: "confirm-receipt.0".into(),
        properties: BasicProperties::default().with_delivery_mode(2).with_headers(headers),
        body: body.into(),
    }
}

fn wakeup(subjects: &str) -> String {
    format!(
        r#"{{"v":1,"id":"{}","kind":"confirm-receipt","due_at":"2026-01-01T00:00:00Z","attempt":0,"subjects":[{subjects}]}}"#,
        Uuid::new_v4()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_wakeup_is_a_dead_letter_with_its_reason_and_its_bytes_and_its_neighbours_are_applied() {
    with_harness(QUICK, async |harness| {
        let order = format!("\"{}\"", harness.delivering().await);
        let many = vec![order.clone(); SUBJECTS_MAX + 1].join(",");
        // RabbitMQ 4 rejects messages over 16 MiB.
        let many_more = (0..400_000u128).map(|n| format!("\"{}\"", Uuid::from_u128(n))).collect::<Vec<_>>().join(",");
        let bad: Vec<(Vec<u8>, &str)> = vec![
            (b"hello".to_vec(), "not a wake-up"),
            (vec![0xff; 300], "not a wake-up"),
            (vec![], "not a wake-up"),
            (b"{\"v\":1}".to_vec(), "not a wake-up"),
            (b"{\"v\":0}".to_vec(), "version 0"),
            (wakeup(&order).replace("confirm-receipt", "make-coffee").into(), "unknown task"),
            (wakeup(&order).replace("confirm-receipt", "purge-cart-item").into(), "arrived in the lane"),
            (wakeup("\"no-uuid\"").into(), "not a wake-up"),
            (wakeup("17").into(), "not a wake-up"),
            (wakeup("").into(), "no subject"),
            (wakeup(&many).into(), "1001 subjects"),
            (wakeup(&many_more).into(), "bytes"),
            (vec![b' '; 5 * 1024 * 1024], "5242880 bytes"),
            (wakeup(&order).replace("2026-01-01T00:00:00Z", "someday").into(), "not a wake-up"),
            (wakeup(&order).replace("\"attempt\":0", "\"attempt\":-1").into(), "not a wake-up"),
            ("[".repeat(10_000).into(), "not a wake-up"),
        ];
        let mut messages = Vec::new();
        let mut good = Vec::new();
        for (body, _) in &bad {
            messages.push(raw(harness, body.clone(), FieldTable::default()));
            let neighbour = harness.delivering().await;
            messages.push(harness.wakeup("confirm-receipt", &[neighbour]));
            good.push(neighbour);
        }
        harness.publish(messages).await;
        let worker = harness.worker();
        harness.until_dead(bad.len() as u32).await;
        harness.until(&format!("SELECT count(*) = {} FROM orders WHERE status = 'received'", good.len())).await;
        let totals = worker.stop().await;
        assert_eq!((totals.malformed as usize, totals.applied as usize), (bad.len(), good.len()), "{totals:?}");
        let letters = harness.dead_letters().await;
        for (body, reason) in &bad {
            let letter = letters.iter().find(|letter| letter.body == *body).unwrap_or_else(|| panic!("no letter for {reason}"));
            assert_eq!(letter.reason, "malformed");
            assert!(letter.cause.contains(reason), "{reason}: {}", letter.cause);
            assert_eq!(letter.routing_key, "confirm-receipt.0");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strange_but_clear_wakeup_is_taken_for_what_it_says() {
    with_harness(QUICK, async |harness| {
        let order = harness.delivering().await;
        let twice = wakeup(&format!("\"{order}\",\"{order}\""));
        let (past, future) = (harness.delivering().await, harness.delivering().await);
        let at = |subject: Uuid, due: &str| wakeup(&format!("\"{subject}\"")).replace("2026-01-01T00:00:00Z", due);
        let unknown = wakeup(&format!("\"{}\"", Uuid::new_v4()));
        let more = wakeup(&format!("\"{}\"", harness.delivering().await)).replace("\"v\":1", "\"v\":1,\"later\":{\"field\":[1]}");
        let messages = [twice, at(past, "0001-01-01T00:00:00Z"), at(future, "9999-12-31T23:59:59Z"), unknown, more];
        harness.publish(messages.into_iter().map(|body| raw(harness, body, FieldTable::default())).collect()).await;
        let worker = harness.worker();
        harness.until("SELECT count(*) = 4 FROM orders WHERE status = 'received'").await;
        harness.until_settled().await;
        let totals = worker.stop().await;
        assert_eq!((totals.applied, totals.stale, totals.malformed), (4, 1, 0), "{totals:?}");
        assert_eq!(harness.ask::<i64>("SELECT count(*) FROM order_status_history").await, 4);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_headers_do_no_harm() {
    with_harness(QUICK, async |harness| {
        let text = |text: &str| AMQPValue::LongString(text.into());
        let mut deep = AMQPValue::FieldTable(FieldTable::default());
        for _ in 0..50 {
            let mut table = FieldTable::default();
            table.insert("deeper".into(), deep);
            deep = AMQPValue::FieldTable(table);
        }
        let deaths = FieldArray::from(vec![AMQPValue::LongLongInt(7), text("no table")]);
        let headers: Vec<Vec<(&str, AMQPValue)>> = vec![
            vec![("traceparent", text("not a traceparent")), ("tracestate", text(&"x".repeat(9_000)))],
            vec![("traceparent", AMQPValue::LongLongInt(i64::MIN))],
            vec![
                ("x-death", AMQPValue::FieldArray(deaths)),
                ("x-first-death-queue", text("kyhan")),
                ("x-delivery-count", text("many")),
            ],
            vec![("kyhan-reason", text("forged")), ("kyhan-subject", text("forged"))],
            vec![("deep", deep)],
            vec![("long", text(&"y".repeat(100_000)))],
            vec![
                ("void", AMQPValue::Void),
                ("bytes", AMQPValue::ByteArray(vec![0, 255].into())),
                ("half", AMQPValue::Double(0.5)),
            ],
        ];
        let mut messages = Vec::new();
        for entries in &headers {
            let mut table = FieldTable::default();
            for (name, value) in entries {
                table.insert((*name).into(), value.clone());
            }
            let order = harness.delivering().await;
            messages.push(raw(harness, wakeup(&format!("\"{order}\"")), table.clone()));
            messages.push(raw(harness, format!("garbage {}", messages.len()), table));
        }
        harness.publish(messages).await;
        let worker = harness.worker();
        harness.until_dead(headers.len() as u32).await;
        harness.until(&format!("SELECT count(*) = {} FROM orders WHERE status = 'received'", headers.len())).await;
        worker.stop().await;
        let letters = harness.dead_letters().await;
        assert_eq!(letters.len(), headers.len());
        assert!(letters.iter().all(|letter| letter.reason == "malformed" && letter.subject.is_none()), "{letters:?}");
        assert!(letters.iter().all(|letter| !letter.headers.contains_key("x-death")));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_with_impossible_moments_stop_nothing() {
    with_harness(&QUICK.replace("400ms", "14d"), async |harness| {
        let mut orders = Vec::new();
        for moment in ["infinity", "-infinity", "200000-01-01", "4713-01-01 BC", "294276-12-31"] {
            let order = harness.delivering().await;
            harness
                .run("UPDATE orders SET delivering_since = $2::timestamptz WHERE id = $1", [order.into(), moment.into()])
                .await;
            orders.push(order);
        }
        // A deployment's own table may lack the timestamp: then nothing counts from it.
        harness.run("ALTER TABLE orders DROP CONSTRAINT orders_check", []).await;
        let without = harness.delivering().await;
        harness.run("UPDATE orders SET delivering_since = NULL WHERE id = $1", [without.into()]).await;
        orders.push(without);
        let neighbour = harness.delivering().await;
        orders.push(neighbour);
        harness.publish(vec![harness.wakeup("confirm-receipt", &orders)]).await;
        let worker = harness.worker();
        let applied = format!("SELECT status = 'received' FROM orders WHERE id = '{neighbour}'");
        harness.until(&applied).await;
        // `-infinity` and 4713 BC are overdue; `infinity` waits.
        harness.until("SELECT count(*) = 3 FROM orders WHERE status = 'received'").await;
        let totals = worker.stop().await;
        assert_eq!(totals.applied, 3, "{totals:?}");
        assert_eq!(totals.malformed, 0);
    })
    .await;
}

#[test]
fn a_decoded_wakeup_allocates_no_more_than_its_message() {
    // 64 KiB hold at most that many 16-byte subjects, fewer than the bytes they arrived in.
    let body = wakeup(&vec![format!("\"{}\"", Uuid::nil()); SUBJECTS_MAX].join(","));
    let decoded = Wakeup::decode(body.as_bytes(), None).expect("a wake-up");
    assert!(decoded.subjects.capacity() * 16 <= 2 * body.len());
}

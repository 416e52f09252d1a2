//! Wake-up formats: producers and workers can be upgraded in any order.

use std::time::Duration;

use lapin::{
    BasicProperties,
    options::BasicGetOptions,
    types::{AMQPValue, FieldTable, ShortString},
};
use shared::message::outgoing::Outgoing;
use tests::sandbox::{always, eventually};
use uuid::Uuid;

use crate::harness::{QUICK, SOON, with_harness};

fn body(version: u32, order: Uuid) -> String {
    format!(
        r#"{{"v":{version},"id":"{}","kind":"confirm-receipt","due_at":"2026-01-01T00:00:00Z","attempt":0,"subjects":["{order}"]}}"#,
        Uuid::new_v4()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn each_format_up_to_this_one_is_applied() {
    with_harness(QUICK, async |harness| {
        for version in 1..=shared::message::wakeup::VERSION {
            let order = harness.delivering().await;
            let old = Outgoing { body: body(version, order).into(), ..harness.wakeup("confirm-receipt", &[order]) };
            harness.publish(vec![old]).await;
        }
        let worker = harness.worker();
        harness.until("SELECT count(*) = 0 FROM orders WHERE status = 'delivering'").await;
        harness.until_settled().await;
        assert_eq!(worker.stop().await.applied, u64::from(shared::message::wakeup::VERSION));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_format_is_parked_as_it_is_and_tried_again_and_its_neighbours_are_applied() {
    with_harness(QUICK, async |harness| {
        let (later, beside) = (harness.delivering().await, harness.delivering().await);
        let bytes = body(99, later);
        let mut headers = FieldTable::default();
        headers.insert("new".into(), AMQPValue::LongString("kept".into()));
        // A shorter expiration on the message would shorten its time in the rung if it were kept.
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_headers(headers)
            .with_type("kyhan.wakeup".into())
            .with_expiration("60000".into());
        let good = harness.wakeup("confirm-receipt", &[beside]);
        harness.publish(vec![Outgoing { properties, body: bytes.clone().into(), ..good.clone() }, good]).await;
        let (worker, began) = (harness.worker(), std::time::Instant::now());
        harness.until(&format!("SELECT status = 'received' FROM orders WHERE id = '{beside}'")).await;
        always("it is no dead letter", Duration::from_millis(2_500), async || Ok(harness.buried().await == 0)).await;
        let totals = worker.stop().await;
        // The longest rung here has a TTL of one second.
        assert!((2..=began.elapsed().as_secs() + 2).contains(&totals.parked), "once a second: {totals:?}");
        assert_eq!((totals.malformed, totals.applied), (0, 1));

        // A newer worker would take it from the lane unchanged.
        let broker = harness.sandbox.broker().await.expect("a broker");
        let channel = broker.channel().await.expect("a channel");
        let lane = harness.topology().lane("confirm-receipt", 0);
        let mut taken = None;
        eventually("it comes back", SOON, async || {
            taken = channel.basic_get(lane.as_str().into(), BasicGetOptions::default()).await?;
            Ok(taken.is_some())
        })
        .await;
        let delivery = taken.expect("it").delivery;
        assert_eq!(delivery.data, bytes.as_bytes());
        assert_eq!(delivery.properties.kind().as_ref().map(ShortString::as_str), Some("kyhan.wakeup"));
        let headers = delivery.properties.headers().as_ref().expect("headers");
        assert_eq!(headers.inner().get("new"), Some(&AMQPValue::LongString("kept".into())));
        assert!(delivery.properties.expiration().is_none());
        shared::broker::close_channel(&channel).await;
        broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_format_published_by_hand_finds_its_way_back_too() {
    with_harness(QUICK, async |harness| {
        let beside = harness.delivering().await;
        let lane = harness.topology().lane("confirm-receipt", 0);
        // The default exchange, whose routing keys are queue names, as in RabbitMQ's documentation.
        let by_hand = Outgoing {
            exchange: String::new(),
            routing_key: lane.clone(),
            body: body(99, beside).into(),
            ..harness.wakeup("confirm-receipt", &[beside])
        };
        harness.publish(vec![by_hand, harness.wakeup("confirm-receipt", &[beside])]).await;
        let worker = harness.worker();
        harness.until(&format!("SELECT status = 'received' FROM orders WHERE id = '{beside}'")).await;
        always("it is no dead letter", Duration::from_millis(2_500), async || Ok(harness.buried().await == 0)).await;
        let totals = worker.stop().await;
        assert!(totals.parked >= 2 && totals.stale == 0, "parked again and again, and no batch came twice: {totals:?}");
    })
    .await;
}

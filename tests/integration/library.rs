//! The library with several concurrent callers: each gets the results of its own events only, and no errors of the others.

use futures::future::join_all;
use producer::{Producer, schedule::event};
use shared::{
    broker::BrokerError,
    domain::event::{Event, EventType},
    message::outgoing::Outgoing,
};
use uuid::Uuid;

use crate::harness::{Harness, QUICK, with_harness};

/// The quick policy with receipts and purges in rungs of their own, long enough that no caller is late for them.
fn two_rungs() -> String {
    let line = |task: &str, after: &str| format!("task = \"{task}\"\n    after = \"{after}\"");
    let slower = [("confirm-receipt", "400ms", "1h"), ("purge-cart-item", "300ms", "2h")];
    slower.into_iter().fold(QUICK.to_owned(), |file, (task, quick, slow)| {
        assert!(file.contains(&line(task, quick)), "{file}");
        file.replace(&line(task, quick), &line(task, slow))
    })
}

/// The rung for an event's task in the policy.
fn rung_of(harness: &Harness, event_type: EventType) -> String {
    let topology = harness.topology();
    let line = *harness.settings().policy.lines_on(event_type).next().expect("a line");
    let hop = topology.ladder().next(line.after.exact().expect("an exact span"));
    topology.exchange_of(hop)
}

async fn without_rung(harness: &Harness, name: &str) {
    let broker = harness.sandbox.broker().await.expect("a broker");
    broker.delete_queue(name).await.expect("deleted");
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_come_together_share_wakeups_and_lose_none() {
    with_harness(QUICK, async |harness| {
        let orders = harness.many_delivering(400).await;
        let producer = Producer::connect(harness.settings()).await.expect("a producer");
        let calls = orders.iter().map(|order| async {
            let events = [event(EventType::OrderShipped, *order)];
            producer.schedule(&events).await
        });
        for scheduled in join_all(calls).await {
            assert_eq!(scheduled.expect("confirmed"), []);
        }
        producer.close().await;
        let messages = harness.depth("rung.").await + harness.depth("due.").await;
        assert!((2..400).contains(&messages), "{messages} messages of 400 callers");
        let worker = harness.worker();
        harness.until("SELECT count(*) = 400 FROM orders WHERE status = 'received'").await;
        worker.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_rung_fails_those_callers_alone_who_need_it() {
    with_harness(&two_rungs(), async |harness| {
        let (purge, confirm) = (rung_of(harness, EventType::CartItemAdded), rung_of(harness, EventType::OrderShipped));
        assert_ne!(purge, confirm, "two rungs");
        let producer = Producer::connect(harness.settings()).await.expect("a producer");
        without_rung(harness, &purge).await;
        for _ in 0..50 {
            let calls = (0..16).map(|n| {
                let event_type = if n % 4 == 0 { EventType::CartItemAdded } else { EventType::OrderShipped };
                let (events, producer): ([Event; 1], _) = ([event(event_type, Uuid::new_v4())], &producer);
                async move { (event_type, producer.schedule(&events).await) }
            });
            for (event_type, scheduled) in join_all(calls).await {
                match event_type {
                    EventType::CartItemAdded => assert!(matches!(scheduled, Err(BrokerError::Returned { .. })), "{scheduled:?}"),
                    _ => assert_eq!(scheduled.expect("confirmed"), []),
                }
            }
        }
        producer.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_returned_message_is_never_taken_for_anothers() {
    with_harness(&two_rungs(), async |harness| {
        let (purge, confirm) = (rung_of(harness, EventType::CartItemAdded), rung_of(harness, EventType::OrderShipped));
        without_rung(harness, &purge).await;
        let broker = harness.sandbox.broker().await.expect("a broker");
        let to = |exchange: &str| {
            let wakeup = harness.wakeup("confirm-receipt", &[Uuid::new_v4()]);
            vec![Outgoing { exchange: exchange.to_owned(), ..wakeup }; 20]
        };
        let (sound, lost) = (to(&confirm), to(&purge));
        for _ in 0..100 {
            let publisher = broker.publisher().await.expect("a channel");
            let (one, other) = tokio::join!(publisher.publish_all(&sound), publisher.publish_all(&lost));
            assert!(!matches!(one, Err(BrokerError::Returned { .. })), "{one:?}");
            assert!(matches!(other, Err(BrokerError::Returned { .. })), "{other:?}");
            // Answers that were still outstanding reach no other caller.
            assert!(matches!(publisher.publish_all(&sound).await, Err(BrokerError::Unsound)));
            publisher.close().await;
        }
        broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_closes_while_callers_wait_answers_them_all() {
    with_harness(QUICK, async |harness| {
        let producer = Producer::connect(harness.settings()).await.expect("a producer");
        let events: Vec<Event> = (0..50_000).map(|_| event(EventType::OrderShipped, Uuid::new_v4())).collect();
        // More than one flush; the caller goes away in the middle.
        tokio::select! {
            scheduled = producer.schedule(&events) => assert_eq!(scheduled.expect("confirmed"), []),
            () = tokio::time::sleep(std::time::Duration::from_millis(5)) => {}
        }
        assert_eq!(producer.schedule(&events[..10]).await.expect("confirmed"), []);
        producer.close().await;
    })
    .await;
}

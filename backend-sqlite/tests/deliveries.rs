//! Publishing, claiming, completing.

mod common;

use std::sync::Arc;

use common::*;
use event_bus_core::backend::{Backend as _, HandlerIndex, Partition, Stored};

#[tokio::test(flavor = "multi_thread")]
async fn an_event_comes_back_equal_to_what_was_published() {
    let store = Store::new().await;
    let event = envelope("hello", Some("order-1"));
    assert_eq!(store.publish(publication(vec![event.clone()], &["a"])).await, Stored::New);

    let session = store.open(&[handler("a")]).await;
    let claimed = claim(&session, 1, 10).await;
    assert_eq!(claimed.deliveries.len(), 1);
    let delivery = &claimed.deliveries[0];
    assert_eq!(delivery.envelope, event);
    assert_eq!(delivery.partition, Partition { handler: HandlerIndex(0), number: Partition::WHOLE });
    assert_eq!((delivery.failures, delivery.crashes, delivery.due_in, delivery.is_held), (0, 0, None, false));
    assert!(delivery.errors.is_empty());

    assert!(claim(&session, 1, 10).await.deliveries.is_empty(), "handed out twice");
    complete(&session, claimed.deliveries).await;
    session.close().await.unwrap();

    let session = store.open(&[handler("a")]).await;
    assert!(claim(&session, 1, 10).await.deliveries.is_empty(), "completed deliveries are gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fan_out_stores_one_delivery_a_handler_in_the_order_of_the_call() {
    let store = Store::new().await;
    let names: Vec<_> = (0..1_300).map(|n| format!("event-{n}")).collect();
    let events = names.iter().map(|name| envelope(name, None)).collect();
    store.publish(publication(events, &["a", "b"])).await;

    let session = store.open(&[handler("b"), handler("a")]).await;
    let mut got = [Vec::new(), Vec::new()];
    loop {
        let claimed = claim(&session, 2, 500).await;
        if claimed.deliveries.is_empty() {
            break;
        }
        for (handler, got) in got.iter_mut().enumerate() {
            let mine: Vec<_> = claimed
                .deliveries
                .iter()
                .filter(|delivery| delivery.handler().get() == handler)
                .cloned()
                .collect();
            assert!(mine.is_sorted_by_key(|delivery| delivery.id));
            assert_eq!(claimed.more.contains(&HandlerIndex(handler as u32)), mine.len() == 500);
            got.extend(texts(&mine));
        }
    }
    assert_eq!(got, [names.clone(), names]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_sees_everything_under_concurrent_publishers_and_each_publisher_in_order() {
    let store = Store::new().await;
    let session = store.open(&[handler("a")]).await;
    let publishers: Vec<_> = (0..8)
        .map(|publisher| {
            // Half of them as another process would.
            let backend = if publisher % 2 == 0 { store.backend.clone() } else { store.another() };
            tokio::spawn(async move {
                for n in 0..50 {
                    backend.publish(events(&[&format!("{publisher}-{n:02}")], None)).await.unwrap();
                }
            })
        })
        .collect();
    let mut got = Vec::new();
    while got.len() < 400 {
        session.wait().await;
        let claimed = claim(&session, 1, 37).await;
        got.extend(texts(&claimed.deliveries));
        complete(&session, claimed.deliveries).await;
    }
    for publisher in publishers {
        publisher.await.unwrap();
    }
    assert!(claim(&session, 1, 1000).await.deliveries.is_empty());
    for publisher in 0..8 {
        let mine: Vec<_> = got.iter().filter(|text| text.starts_with(&format!("{publisher}-"))).collect();
        assert_eq!(mine.len(), 50);
        assert!(mine.is_sorted());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_stops_at_the_bytes_it_was_given_and_goes_on_from_there() {
    let store = Store::new().await;
    let large = "x".repeat(10_000);
    store.publish(events(&[&large, &large, &large, &large], None)).await;
    let session = store.open(&[handler("a")]).await;
    let mut request = demand(1, 100);
    request.max_bytes = 15_000;
    for left in [true, true, false] {
        let claimed = session.claim(&request).await.unwrap();
        assert_eq!(claimed.deliveries.len(), if left { 2 } else { 0 });
        assert_eq!(!claimed.more.is_empty(), left);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_of_unknown_handlers_wait() {
    let store = Store::new().await;
    store.publish(publication(vec![envelope("later", None)], &["unknown"])).await;
    let session = store.open(&[handler("a")]).await;
    assert!(claim(&session, 1, 10).await.deliveries.is_empty());
    session.close().await.unwrap();
    let session: Arc<_> = store.open(&[handler("unknown")]).await;
    assert_eq!(texts(&claim(&session, 1, 10).await.deliveries), ["later"]);
}

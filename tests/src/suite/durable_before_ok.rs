//! *durable-before-ok*: what `publish` answered Ok for is kept until it is through; what it refused left nothing.

use std::task::Poll;
use std::time::{Duration, SystemTime};

use event_bus::ErrorKind;

use super::actor::{FIRST, First, SECOND, Second};
use super::note::{memo, note};
use super::world::{World, assert_refused, counted, quick, ready, rest, stop};

cases! { "durable_before_ok";
    what_was_published_before_a_worker_started_is_delivered [Worker];
    what_one_process_published_another_delivers [Worker];
    a_batch_is_stored_whole [Worker, AtomicPublish];
    several_types_are_stored_in_one_call [Worker, AtomicPublish];
    an_invalid_event_leaves_nothing_of_its_batch [Worker];
    a_dropped_publish_is_stored_whole_or_not_at_all [Worker, AtomicPublish];
    an_event_comes_back_as_it_was_published [Worker];
    the_receipt_names_the_events_and_counts_the_deliveries [Worker];
    many_publishers_at_once_lose_nothing [Worker];
}

async fn what_was_published_before_a_worker_started_is_delivered(world: &World) {
    let bus = world.bus().await;
    for number in 0..20 {
        bus.publish(&note(number)).await.unwrap();
    }
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 20).await;
    stop(worker).await;
    assert_eq!(counted(&bus).await, (0, 0, 0));
}

async fn what_one_process_published_another_delivers(world: &World) {
    let publisher = world.bus().await;
    publisher.publish(&note(1)).await.unwrap();
    drop(publisher);
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    stop(worker).await;
}

async fn a_batch_is_stored_whole(world: &World) {
    let bus =
        ready(world.builder().handler(world.actor::<First>(quick())).handler(world.actor::<Second>(quick())))
            .await;
    let notes: Vec<_> = (0..500).map(|number| note(number).key(format!("k{}", number % 7))).collect();
    let receipt = bus.publish_all(&notes).await.unwrap();
    assert_eq!((receipt.event_ids().len(), receipt.deliveries()), (500, 1_000));
    assert_eq!(counted(&bus).await, (1_000, 0, 0));
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 500).await;
    world.stage.until_done(SECOND, 500).await;
    stop(worker).await;
    assert_eq!((world.stage.begun(FIRST).len(), world.stage.begun(SECOND).len()), (500, 500));
}

async fn several_types_are_stored_in_one_call(world: &World) {
    let bus = world.bus().await;
    let receipt = bus.publish(&note(1)).and(&memo(2)).and(&note(3)).await.unwrap();
    assert_eq!(receipt.deliveries(), 3);
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 3).await;
    assert_eq!(world.stage.told(FIRST, 2)[0].event_name, "suite.memo");
    stop(worker).await;
}

async fn an_invalid_event_leaves_nothing_of_its_batch(world: &World) {
    let bus = world.bus().await;
    let batch = [note(1), note(2).key(""), note(3)];
    assert_refused(bus.publish_all(&batch).await, ErrorKind::InvalidEvent, &["partition key of suite.note"]);
    assert_eq!(counted(&bus).await, (0, 0, 0));
}

/// Polled a few times, then dropped: wherever that was, no half of it is there.
async fn a_dropped_publish_is_stored_whole_or_not_at_all(world: &World) {
    let bus = world.bus().await;
    let batches: Vec<Vec<_>> =
        (0..30).map(|batch| (0..10).map(|number| note(batch * 10 + number)).collect()).collect();
    for (polls, batch) in batches.iter().enumerate() {
        let mut publish = bus.publish_all(batch).into_future();
        for _ in 0..=polls % 3 {
            if std::future::poll_fn(|task| Poll::Ready(publish.as_mut().poll(task).is_ready())).await {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    // Published later, so stored behind all that those calls stored.
    bus.publish(&note(1_000)).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until_begun(FIRST, 1_000).await;
    rest(&bus).await;
    stop(worker).await;
    let done = world.stage.done(FIRST);
    for batch in 0..30 {
        let stored = done.iter().filter(|number| **number / 10 == batch).count();
        assert!(stored == 0 || stored == 10, "{stored} of 10 events of one call were stored");
    }
}

async fn an_event_comes_back_as_it_was_published(world: &World) {
    let bus = world.bus().await;
    let mut event = note(u64::MAX).key("Kunde-ä \u{1F3E0} 'x' \"y\" %");
    event.text = "line\nNUL \0 tab\t \u{10FFFF}".repeat(50);
    let before = SystemTime::UNIX_EPOCH + Duration::from_millis(now_ms());
    let receipt = bus.publish(&event).header("tenant", "north \u{e9}").header("empty", "").await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    stop(worker).await;
    let told = world.stage.told(FIRST, u64::MAX).remove(0);
    assert_eq!(told.paper.note(), &event);
    assert_eq!(told.key.as_deref(), event.key.as_deref());
    assert_eq!(told.event_name, "suite.note");
    assert_eq!([told.event_id], *receipt.event_ids());
    assert_eq!(told.delivery_id, format!("{}/{FIRST}", told.event_id));
    let headers = [("empty".to_owned(), String::new()), ("tenant".to_owned(), "north \u{e9}".to_owned())];
    assert_eq!(told.headers, headers);
    let after = SystemTime::UNIX_EPOCH + Duration::from_millis(now_ms());
    assert!((before..=after).contains(&told.published_at), "{:?}", told.published_at);
}

/// By the clock that the bus uses.
fn now_ms() -> u64 {
    let now = event_bus::clock::Clock::now(&event_bus::clock::SystemClock);
    u64::try_from(now.as_millis()).unwrap()
}

async fn the_receipt_names_the_events_and_counts_the_deliveries(world: &World) {
    let bus =
        ready(world.builder().handler(world.actor::<First>(quick())).handler(world.actor::<Second>(quick())))
            .await;
    let receipt = bus.publish(&note(1)).and(&note(2).read_by(FIRST)).and(&note(3).read_by("nobody")).await;
    let receipt = receipt.unwrap();
    assert_eq!((receipt.event_ids().len(), receipt.deliveries(), receipt.is_duplicate()), (3, 3, false));
    let mut ids = receipt.event_ids().to_vec();
    ids.dedup();
    assert_eq!(ids.len(), 3);
}

async fn many_publishers_at_once_lose_nothing(world: &World) {
    let mut publishers = Vec::new();
    let bus = world.bus().await;
    for process in 0..3_u64 {
        let bus = world.bus().await;
        for task in 0..8_u64 {
            let bus = bus.clone();
            publishers.push(tokio::spawn(async move {
                for number in 0..10 {
                    bus.publish(&note(process * 1_000 + task * 100 + number)).await.unwrap();
                }
            }));
        }
    }
    let worker = bus.start().await.unwrap();
    for publisher in publishers {
        publisher.await.unwrap();
    }
    world.stage.until_done(FIRST, 240).await;
    rest(&bus).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST).len(), 240);
}

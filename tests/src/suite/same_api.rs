//! *same API everywhere*: what a backend offers works alike, what it lacks is refused by name, options do what they say.

use std::sync::Arc;
use std::time::Duration;

use event_bus::ErrorKind;
use event_bus::prelude::*;
use tokio::time::Instant;

use super::actor::{FIRST, First, SECOND, Second, THIRD, Third};
use super::note::{Act, note};
use super::world::{World, assert_refused, counted, quick, ready, rest, stop};

cases! { "same_api";
    capabilities_are_what_is_claimed;
    migrating_is_idempotent_and_safe_from_many_nodes;
    a_delayed_event_waits_at_least_that_long [Worker, Delay];
    a_delayed_batch_keeps_its_order [Worker, Delay];
    a_delay_is_refused_where_it_is_not_offered lacks Delay;
    an_idempotency_key_publishes_once [Worker, IdempotencyKey];
    an_idempotency_key_publishes_once_however_many_try [Worker, IdempotencyKey];
    an_idempotency_key_covers_its_whole_batch [Worker, IdempotencyKey];
    an_idempotency_key_of_a_refused_call_is_free [Worker, IdempotencyKey];
    an_idempotency_key_is_refused_where_it_is_not_offered lacks IdempotencyKey;
    holding_keys_is_refused_where_it_is_not_offered [Worker] lacks HoldKey;
    a_handler_runs_as_many_at_once_as_it_allows [Worker];
    a_worker_runs_as_many_at_once_as_it_allows [Worker];
    urgent_handlers_go_first [Worker];
    an_urgent_event_goes_before_a_flood_of_others [Worker];
    a_handler_can_publish [Worker];
    a_handler_can_publish_to_its_own_key [Worker];
    a_process_publishes_without_working_and_works_without_publishing [Worker];
}

async fn capabilities_are_what_is_claimed(world: &World) {
    assert_eq!(world.sandbox.backend().capabilities(), world.harness.capabilities());
}

async fn migrating_is_idempotent_and_safe_from_many_nodes(world: &World) {
    let nodes: Vec<_> = (0..8)
        .map(|_| {
            let backend = world.sandbox.backend();
            tokio::spawn(async move { backend.prepare().await })
        })
        .collect();
    for node in nodes {
        node.await.unwrap().unwrap();
    }
    let bus = world.bus().await;
    bus.publish(&note(1)).await.unwrap();
    bus.migrate().await.unwrap();
    if world.harness.capabilities().durable {
        assert_eq!(counted(&bus).await, (1, 0, 0));
    }
}

async fn a_delayed_event_waits_at_least_that_long(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    let delay = Duration::from_millis(60);
    let before = Instant::now();
    bus.publish_all(&[note(1), note(2).key("a")]).delay(delay).await.unwrap();
    world.stage.until_done(FIRST, 2).await;
    stop(worker).await;
    let first = world.stage.ask(|seen| seen.moments[0].at);
    assert!(first - before >= delay);
}

async fn a_delayed_batch_keeps_its_order(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    let notes: Vec<_> = (0..50).map(|number| note(number).key("a")).collect();
    bus.publish_all(&notes).delay(Duration::from_millis(30)).await.unwrap();
    world.stage.until_done(FIRST, 50).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST), (0..50).collect::<Vec<_>>());
}

async fn a_delay_is_refused_where_it_is_not_offered(world: &World) {
    let bus = world.bus().await;
    let answer = bus.publish(&note(1)).delay(Duration::from_millis(1)).await;
    assert_refused(answer, ErrorKind::Unsupported, &["a delay", bus.backend().name()]);
    assert!(world.stage.begun(FIRST).is_empty());
}

async fn an_idempotency_key_publishes_once(world: &World) {
    let bus = world.bus().await;
    let first = bus.publish(&note(1)).idempotency_key("charge-42").await.unwrap();
    assert_eq!((first.deliveries(), first.is_duplicate()), (1, false));
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    rest(&bus).await;
    // Remembered though the delivery is gone, and by other processes as well.
    let again = world.bus().await.publish(&note(2)).idempotency_key("charge-42").await.unwrap();
    assert_eq!((again.deliveries(), again.is_duplicate()), (0, true));
    bus.publish(&note(3)).idempotency_key("charge-43").await.unwrap();
    world.stage.until_done(FIRST, 2).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST), [1, 3]);
}

async fn an_idempotency_key_publishes_once_however_many_try(world: &World) {
    let mut tries = Vec::new();
    for process in 0..3 {
        let bus = world.bus().await;
        for number in 0..8 {
            let bus = bus.clone();
            tries.push(tokio::spawn(async move {
                bus.publish(&note(process * 10 + number)).idempotency_key("once").await.unwrap()
            }));
        }
    }
    let mut new = 0;
    for one in tries {
        new += usize::from(!one.await.unwrap().is_duplicate());
    }
    assert_eq!(new, 1);
    assert_eq!(counted(&world.bus().await).await, (1, 0, 0));
}

/// Pain 6: a bulk insert does not ignore it.
async fn an_idempotency_key_covers_its_whole_batch(world: &World) {
    let bus = world.bus().await;
    let batch = [note(1), note(2), note(3)];
    bus.publish_all(&batch).idempotency_key("batch").await.unwrap();
    assert!(bus.publish_all(&batch).idempotency_key("batch").await.unwrap().is_duplicate());
    assert_eq!(counted(&bus).await, (3, 0, 0));
}

async fn an_idempotency_key_of_a_refused_call_is_free(world: &World) {
    let bus = world.bus().await;
    let refused = bus.publish(&note(1).key("")).idempotency_key("once").await;
    assert_refused(refused, ErrorKind::InvalidEvent, &["empty"]);
    assert!(!bus.publish(&note(1)).idempotency_key("once").await.unwrap().is_duplicate());
}

async fn an_idempotency_key_is_refused_where_it_is_not_offered(world: &World) {
    let bus = world.bus().await;
    let answer = bus.publish(&note(1)).idempotency_key("once").await;
    assert_refused(answer, ErrorKind::Unsupported, &["idempotency keys", bus.backend().name()]);
    assert!(world.stage.begun(FIRST).is_empty());
}

async fn holding_keys_is_refused_where_it_is_not_offered(world: &World) {
    let options = quick().on_exhausted(Exhausted::HoldKey);
    let bus = world.builder().handler(world.actor::<First>(options)).build();
    assert_refused(bus, ErrorKind::Unsupported, &["on_exhausted(HoldKey)", FIRST]);
}

async fn a_handler_runs_as_many_at_once_as_it_allows(world: &World) {
    let bus = ready(
        world
            .builder()
            .handler(world.actor::<First>(quick().concurrency(2)))
            .handler(world.actor::<Second>(quick())),
    )
    .await;
    let notes: Vec<_> = (0..10).map(|number| note(number).acts([Act::Wait])).collect();
    bus.publish_all(&notes).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until(|seen| seen.running(FIRST) == 2 && seen.running(SECOND) == 10).await;
    (0..10).for_each(|number| world.stage.open(number));
    world.stage.until_done(FIRST, 10).await;
    world.stage.until_done(SECOND, 10).await;
    stop(worker).await;
    assert_eq!(world.stage.most_at_once(FIRST), 2);
}

async fn a_worker_runs_as_many_at_once_as_it_allows(world: &World) {
    let bus = ready(world.builder().concurrency(3).handler(world.actor::<First>(quick()))).await;
    let acts = [Act::Sleep(Duration::from_millis(1))];
    let notes: Vec<_> = (0..40).map(|number| note(number).acts(acts.clone())).collect();
    bus.publish_all(&notes).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 40).await;
    stop(worker).await;
    assert_eq!(world.stage.most_at_once(FIRST), 3);
}

async fn urgent_handlers_go_first(world: &World) {
    let bus = ready(
        world
            .builder()
            .concurrency(1)
            .handler(world.actor::<First>(quick().priority(9)))
            .handler(world.actor::<Second>(quick().priority(0)))
            .handler(world.actor::<Third>(quick().priority(5))),
    )
    .await;
    let notes: Vec<_> = (0..10).map(note).collect();
    bus.publish_all(&notes).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 10).await;
    stop(worker).await;
    let handlers: Vec<_> =
        world.stage.ask(|seen| seen.moments.iter().step_by(2).map(|moment| moment.handler).collect());
    let expected = [[SECOND; 10], [THIRD; 10], [FIRST; 10]].concat();
    assert_eq!(handlers, expected);
}

async fn an_urgent_event_goes_before_a_flood_of_others(world: &World) {
    let bus = ready(
        world
            .builder()
            .concurrency(1)
            .handler(world.actor::<First>(quick().priority(9)))
            .handler(world.actor::<Second>(quick().priority(0))),
    )
    .await;
    let acts = [Act::Sleep(Duration::from_millis(2))];
    let flood: Vec<_> = (0..300).map(|number| note(number).read_by(FIRST).acts(acts.clone())).collect();
    bus.publish_all(&flood).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until_begun(FIRST, 10).await;
    bus.publish(&note(1_000).read_by(SECOND)).await.unwrap();
    world.stage.until_done(SECOND, 1).await;
    let before = world.stage.begun(FIRST).len();
    stop(worker).await;
    assert!(before < 300, "it had to wait for the flood");
}

async fn a_handler_can_publish(world: &World) {
    chain(world, None).await;
}

async fn a_handler_can_publish_to_its_own_key(world: &World) {
    chain(world, Some("a")).await;
}

/// Each run publishes the next event, until there were ten.
async fn chain(world: &World, key: Option<&'static str>) {
    let publisher: Arc<std::sync::OnceLock<EventBus>> = Arc::default();
    let inside = publisher.clone();
    let actor = world.actor::<First>(quick()).before(move |event, _| {
        let inside = inside.clone();
        Box::pin(async move {
            if let Some(bus) = inside.get().filter(|_| event.number < 10) {
                let mut next = note(event.number + 1);
                next.key = key.map(str::to_owned);
                bus.publish(&next).await?;
            }
            Ok(())
        })
    });
    let bus = ready(world.builder().handler(actor)).await;
    publisher.set(bus.clone()).unwrap();
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1)).await.unwrap();
    world.stage.until_done(FIRST, 10).await;
    rest(&bus).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST), (1..=10).collect::<Vec<_>>());
}

async fn a_process_publishes_without_working_and_works_without_publishing(world: &World) {
    let publisher = world.bus().await;
    let worker = world.bus().await.start().await.unwrap();
    publisher.publish_all(&[note(1), note(2)]).await.unwrap();
    world.stage.until_done(FIRST, 2).await;
    stop(worker).await;
}

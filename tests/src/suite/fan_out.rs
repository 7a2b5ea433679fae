//! *fan-out*: one delivery per registered, interested handler, each with a life of its own.

use super::actor::{FIRST, First, SECOND, Second, Third};
use super::note::{Act, Note, note};
use super::world::{World, counted, dead, quick, ready, rest, stop, until_dead};

cases! { "fan_out";
    every_handler_gets_its_own_delivery [Worker];
    a_failing_handler_does_not_touch_its_siblings [Worker, DeadLetters];
    attempts_are_counted_for_each_handler [Worker];
    an_uninterested_handler_gets_nothing [Worker];
    an_event_without_a_handler_is_no_error;
    an_empty_batch_is_no_error_and_reaches_no_store;
}

async fn every_handler_gets_its_own_delivery(world: &World) {
    let bus = ready(
        world
            .builder()
            .handler(world.actor::<First>(quick()))
            .handler(world.actor::<Second>(quick()))
            .handler(world.actor::<Third>(quick())),
    )
    .await;
    let receipt = bus.publish(&note(1).key("a")).await.unwrap();
    assert_eq!(receipt.deliveries(), 3);
    let worker = bus.start().await.unwrap();
    for handler in [FIRST, SECOND, super::actor::THIRD] {
        world.stage.until_done(handler, 1).await;
        assert_eq!(world.stage.told(handler, 1)[0].event_id, receipt.event_ids()[0]);
    }
    stop(worker).await;
}

async fn a_failing_handler_does_not_touch_its_siblings(world: &World) {
    let bus =
        ready(world.builder().handler(world.actor::<First>(quick())).handler(world.actor::<Second>(quick())))
            .await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1).key("a").always(Act::Panic).only_at(FIRST)).await.unwrap();
    bus.publish(&note(2).key("a")).await.unwrap();
    let dead = until_dead(&bus, 1).await;
    world.stage.until_done(FIRST, 1).await;
    world.stage.until_done(SECOND, 2).await;
    rest(&bus).await;
    stop(worker).await;
    assert_eq!(&*dead[0].handler, FIRST);
    assert_eq!(world.stage.begun(SECOND), [1, 2]);
}

async fn attempts_are_counted_for_each_handler(world: &World) {
    let bus = ready(
        world
            .builder()
            .handler(world.actor::<First>(quick().max_attempts(9)))
            .handler(world.actor::<Second>(quick())),
    )
    .await;
    bus.publish(&note(1).acts([Act::Fail, Act::Fail]).only_at(FIRST)).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    world.stage.until_done(SECOND, 1).await;
    stop(worker).await;
    assert_eq!(world.stage.attempts(FIRST, 1), [1, 2, 3]);
    assert_eq!(world.stage.attempts(SECOND, 1), [1]);
    assert_eq!(world.stage.told(FIRST, 1)[0].max_attempts, 9);
    assert_eq!(world.stage.told(SECOND, 1)[0].max_attempts, 3);
}

async fn an_uninterested_handler_gets_nothing(world: &World) {
    let bus =
        ready(world.builder().handler(world.actor::<First>(quick())).handler(world.actor::<Second>(quick())))
            .await;
    let receipt = bus.publish(&note(1).read_by(SECOND)).await.unwrap();
    assert_eq!(receipt.deliveries(), 1);
    assert_eq!(bus.publish(&note(2).read_by("nobody")).await.unwrap().deliveries(), 0);
    assert_eq!(counted(&bus).await, (1, 0, 0));
    let worker = bus.start().await.unwrap();
    world.stage.until_done(SECOND, 1).await;
    rest(&bus).await;
    stop(worker).await;
    assert!(world.stage.begun(FIRST).is_empty());
    assert!(dead(&bus).await.is_empty());
}

async fn an_event_without_a_handler_is_no_error(world: &World) {
    let bus = ready(world.builder()).await;
    let receipt = bus.publish(&note(1)).await.unwrap();
    assert_eq!((receipt.event_ids().len(), receipt.deliveries()), (1, 0));
}

/// The store was never prepared: a call that reached it would fail.
async fn an_empty_batch_is_no_error_and_reaches_no_store(world: &World) {
    let bus = world.builder().handler(world.actor::<First>(quick())).build().unwrap();
    let receipt = bus.publish_all::<Note>(&[]).await.unwrap();
    assert_eq!((receipt.event_ids().len(), receipt.deliveries()), (0, 0));
}

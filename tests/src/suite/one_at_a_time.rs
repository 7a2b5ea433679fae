//! *one-at-a-time*: two runs of one handler and one key are never under way together, in the whole cluster. The stage
//! watches this in every case; those here try to make it happen.

use std::time::Duration;

use event_bus::prelude::*;

use super::actor::{FIRST, First, SECOND, Second};
use super::note::{Act, note};
use super::world::{World, quick, ready, rest, stop};

cases! { "one_at_a_time";
    a_key_runs_one_at_a_time_however_much_it_has [Worker];
    a_released_key_still_runs_one_at_a_time [Worker];
    different_keys_run_at_the_same_time [Worker];
    events_without_a_key_run_at_the_same_time [Worker];
    two_handlers_of_one_key_run_at_the_same_time [Worker];
    two_workers_never_run_one_key_together [Worker];
    an_event_without_a_key_runs_once_with_two_workers [Worker];
}

/// Pain 4: neither the batch nor the window lets a second one of a key start.
async fn a_key_runs_one_at_a_time_however_much_it_has(world: &World) {
    let bus = world.bus().await;
    let acts = [Act::Sleep(Duration::from_micros(200))];
    let notes: Vec<_> =
        (0..200).map(|number| note(number).key(format!("k{}", number % 5)).acts(acts.clone())).collect();
    bus.publish_all(&notes).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 200).await;
    stop(worker).await;
    assert!(world.stage.most_at_once(FIRST) <= 5);
}

async fn a_released_key_still_runs_one_at_a_time(world: &World) {
    let bus = world.bus_with(quick().on_failure(Order::Release)).await;
    let acts = [Act::Fail, Act::Sleep(Duration::from_micros(200))];
    let notes: Vec<_> = (0..60).map(|number| note(number).key("a").acts(acts.clone())).collect();
    bus.publish_all(&notes).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 60).await;
    stop(worker).await;
    assert_eq!(world.stage.most_at_once(FIRST), 1);
}

async fn different_keys_run_at_the_same_time(world: &World) {
    let bus = world.bus().await;
    let notes: Vec<_> = (0..10).map(|n| note(n).key(format!("k{n}")).acts([Act::Wait])).collect();
    bus.publish_all(&notes).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until(|seen| seen.running(FIRST) == 10).await;
    (0..10).for_each(|number| world.stage.open(number));
    world.stage.until_done(FIRST, 10).await;
    stop(worker).await;
}

async fn events_without_a_key_run_at_the_same_time(world: &World) {
    let bus = world.bus().await;
    let notes: Vec<_> = (0..10).map(|number| note(number).acts([Act::Wait])).collect();
    bus.publish_all(&notes).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until(|seen| seen.running(FIRST) == 10).await;
    (0..10).for_each(|number| world.stage.open(number));
    world.stage.until_done(FIRST, 10).await;
    stop(worker).await;
}

async fn two_handlers_of_one_key_run_at_the_same_time(world: &World) {
    let bus =
        ready(world.builder().handler(world.actor::<First>(quick())).handler(world.actor::<Second>(quick())))
            .await;
    bus.publish(&note(1).key("a").acts([Act::Wait])).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until(|seen| seen.running(FIRST) == 1 && seen.running(SECOND) == 1).await;
    world.stage.open(1);
    world.stage.until_done(FIRST, 1).await;
    world.stage.until_done(SECOND, 1).await;
    stop(worker).await;
}

async fn two_workers_never_run_one_key_together(world: &World) {
    let bus = world.bus().await;
    let one = bus.start().await.unwrap();
    let two = world.bus().await.start().await.unwrap();
    let acts = [Act::Sleep(Duration::from_micros(200))];
    let notes: Vec<_> =
        (0..60).map(|number| note(number).key(format!("k{}", number % 3)).acts(acts.clone())).collect();
    bus.publish_all(&notes).await.unwrap();
    world.stage.until(|seen| seen.begun(FIRST).len() >= 20).await;
    stop(one).await;
    world.stage.until_done(FIRST, 60).await;
    rest(&bus).await;
    stop(two).await;
    assert_eq!(world.stage.begun(FIRST).len(), 60);
}

async fn an_event_without_a_key_runs_once_with_two_workers(world: &World) {
    let bus = world.bus().await;
    let one = bus.start().await.unwrap();
    let two = world.bus().await.start().await.unwrap();
    let notes: Vec<_> = (0..100).map(note).collect();
    bus.publish_all(&notes).await.unwrap();
    world.stage.until_done(FIRST, 100).await;
    rest(&bus).await;
    stop(one).await;
    stop(two).await;
    assert_eq!(world.stage.begun(FIRST).len(), 100);
}

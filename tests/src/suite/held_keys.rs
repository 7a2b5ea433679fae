//! *dead-letters*, `Exhausted::HoldKey`: the key of a dead letter stands still until that dead letter is replayed, in its
//! old place, or purged.

use event_bus::backend::DeadLetterFilter;
use event_bus::prelude::*;

use super::actor::{FIRST, First, SECOND, Second};
use super::note::{Act, note};
use super::world::{World, dead, quick, ready, rest, stop, until_dead};

cases! { "dead_letters";
    a_held_key_stands_still_until_replay [Worker, HoldKey];
    a_held_key_stands_still_until_purge [Worker, HoldKey];
    a_discarded_head_holds_its_key_as_well [Worker, HoldKey];
    a_held_key_leaves_other_keys_and_handlers_alone [Worker, HoldKey];
    a_held_key_survives_the_worker [Worker, HoldKey];
    a_held_key_with_a_long_line_keeps_its_order [Worker, HoldKey];
    a_held_key_can_be_replayed_in_vain [Worker, HoldKey];
    an_event_without_a_key_holds_nothing [Worker, HoldKey];
}

fn hold() -> HandlerOptions {
    quick().on_exhausted(Exhausted::HoldKey)
}

fn everything() -> DeadLetterFilter {
    DeadLetterFilter::default()
}

async fn a_held_key_stands_still_until_replay(world: &World) {
    let bus = world.bus_with(hold()).await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1).key("a").acts(vec![Act::Fail; 3])).await.unwrap();
    bus.publish(&note(2).key("a")).await.unwrap();
    let dead = until_dead(&bus, 1).await;
    assert!(dead[0].holds_key);
    bus.publish(&note(3).key("a")).await.unwrap();
    bus.publish(&note(4).key("b")).await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    assert_eq!(world.stage.done(FIRST), [4]);
    assert_eq!(bus.replay(&everything()).await.unwrap(), 1);
    world.stage.until_done(FIRST, 4).await;
    rest(&bus).await;
    stop(worker).await;
    assert_eq!(world.stage.done(FIRST), [4, 1, 2, 3]);
    assert_eq!(world.stage.attempts(FIRST, 1), [1, 2, 3, 1]);
}

async fn a_held_key_stands_still_until_purge(world: &World) {
    let bus = world.bus_with(hold()).await;
    let worker = bus.start().await.unwrap();
    bus.publish_all(&[note(1).key("a").always(Act::Fail), note(2).key("a"), note(3).key("b")]).await.unwrap();
    until_dead(&bus, 1).await;
    world.stage.until_done(FIRST, 1).await;
    assert_eq!(world.stage.done(FIRST), [3]);
    assert_eq!(bus.purge(&everything()).await.unwrap(), 1);
    world.stage.until_done(FIRST, 2).await;
    rest(&bus).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST).last(), Some(&2));
    assert!(dead(&bus).await.is_empty());
}

async fn a_discarded_head_holds_its_key_as_well(world: &World) {
    let bus = world.bus_with(hold()).await;
    let worker = bus.start().await.unwrap();
    bus.publish_all(&[note(1).key("a").acts([Act::Discard]), note(2).key("a")]).await.unwrap();
    until_dead(&bus, 1).await;
    bus.publish(&note(3).key("b")).await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    assert_eq!(world.stage.done(FIRST), [3]);
    bus.replay(&everything()).await.unwrap();
    world.stage.until_done(FIRST, 3).await;
    stop(worker).await;
    assert_eq!(world.stage.done(FIRST), [3, 1, 2]);
}

async fn a_held_key_leaves_other_keys_and_handlers_alone(world: &World) {
    let bus =
        ready(world.builder().handler(world.actor::<First>(hold())).handler(world.actor::<Second>(hold())))
            .await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(0).key("a").always(Act::Discard).only_at(FIRST)).await.unwrap();
    until_dead(&bus, 1).await;
    let notes: Vec<_> = (1..=20).map(|n| note(n).key(if n % 2 == 0 { "a" } else { "b" })).collect();
    bus.publish_all(&notes).await.unwrap();
    world.stage.until_done(SECOND, 21).await;
    world.stage.until_done(FIRST, 10).await;
    stop(worker).await;
    assert!(world.stage.done(FIRST).iter().all(|number| number % 2 == 1));
}

async fn a_held_key_survives_the_worker(world: &World) {
    let bus = world.bus_with(hold()).await;
    let worker = bus.start().await.unwrap();
    bus.publish_all(&[note(1).key("a").acts([Act::Discard]), note(2).key("a")]).await.unwrap();
    until_dead(&bus, 1).await;
    stop(worker).await;
    bus.publish(&note(3).key("a")).await.unwrap();
    let worker = world.bus_with(hold()).await.start().await.unwrap();
    bus.publish(&note(4).key("b")).await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    assert_eq!(world.stage.begun(FIRST), [1, 4]);
    bus.replay(&everything()).await.unwrap();
    world.stage.until_done(FIRST, 4).await;
    stop(worker).await;
    assert_eq!(world.stage.done(FIRST), [4, 1, 2, 3]);
}

async fn a_held_key_with_a_long_line_keeps_its_order(world: &World) {
    let bus = ready(world.builder().window(16).handler(world.actor::<First>(hold()))).await;
    let worker = bus.start().await.unwrap();
    let head = note(0).key("a").acts([Act::Discard]);
    let line = (1..400).map(|number| note(number).key("a"));
    bus.publish_all(&[head].into_iter().chain(line).collect::<Vec<_>>()).await.unwrap();
    until_dead(&bus, 1).await;
    let others: Vec<_> = (1_000..1_100).map(|n| note(n).key(format!("k{}", n % 9))).collect();
    bus.publish_all(&others).await.unwrap();
    world.stage.until_done(FIRST, 100).await;
    bus.replay(&everything()).await.unwrap();
    world.stage.until_done(FIRST, 500).await;
    rest(&bus).await;
    stop(worker).await;
    let done = world.stage.done(FIRST);
    assert!(done[..100].iter().all(|number| *number >= 1_000));
    assert_eq!(done[100..], (0..400).collect::<Vec<_>>());
}

async fn a_held_key_can_be_replayed_in_vain(world: &World) {
    let bus = world.bus_with(hold()).await;
    let worker = bus.start().await.unwrap();
    bus.publish_all(&[note(1).key("a").acts(vec![Act::Fail; 6]), note(2).key("a")]).await.unwrap();
    until_dead(&bus, 1).await;
    bus.replay(&everything()).await.unwrap();
    world.stage.until(|seen| seen.begun(FIRST).len() == 6).await;
    let again = until_dead(&bus, 1).await;
    assert!(again[0].holds_key);
    assert!(world.stage.done(FIRST).is_empty());
    bus.replay(&everything()).await.unwrap();
    world.stage.until_done(FIRST, 2).await;
    rest(&bus).await;
    stop(worker).await;
    assert_eq!(world.stage.done(FIRST), [1, 2]);
}

async fn an_event_without_a_key_holds_nothing(world: &World) {
    let bus = world.bus_with(hold()).await;
    let worker = bus.start().await.unwrap();
    bus.publish_all(&[note(1).acts([Act::Discard]), note(2)]).await.unwrap();
    let dead = until_dead(&bus, 1).await;
    world.stage.until_done(FIRST, 1).await;
    stop(worker).await;
    assert!(!dead[0].holds_key);
}

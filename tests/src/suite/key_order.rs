//! *key-order*: with `Order::Hold` nothing later of a key starts before the earlier one is through; with `Order::Release`
//! a failed one lets the others pass.

use std::time::Duration;

use event_bus::prelude::*;

use super::actor::{FIRST, First, SECOND, Second};
use super::note::{Act, memo, note};
use super::world::{World, counted, dead, quick, ready, rest, stop, until_dead};

cases! { "key_order";
    a_failing_head_holds_its_key [Worker];
    a_snoozed_head_holds_its_key [Worker];
    a_panicking_head_holds_its_key [Worker];
    a_head_that_takes_too_long_holds_its_key [Worker];
    a_running_head_holds_its_key [Worker];
    a_batch_keeps_its_order [Worker];
    every_event_that_fails_holds_its_key [Worker];
    two_event_types_of_one_handler_share_a_line [Worker];
    two_handlers_of_one_key_do_not_wait_for_one_another [Worker];
    a_head_in_the_dead_letters_lets_the_key_go_on [Worker, DeadLetters];
    a_released_head_lets_the_others_pass [Worker];
    order_holds_through_priorities [Worker];
    order_holds_through_a_handover_in_mid_retry [Worker];
    order_holds_through_a_dropped_worker [Worker];
    what_was_published_first_comes_first_from_whatever_process [Worker];
    a_delayed_event_lets_the_others_pass [Worker, Delay];
}

async fn heads_first(world: &World, head: [Act; 2], options: HandlerOptions) {
    let bus = world.bus_with(options).await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1).key("a").acts(head)).await.unwrap();
    bus.publish_all(&[note(2).key("a"), note(3).key("a")]).await.unwrap();
    bus.publish(&note(4).key("b")).await.unwrap();
    world.stage.until_done(FIRST, 4).await;
    stop(worker).await;
    let mut begun = world.stage.begun(FIRST);
    begun.retain(|number| *number != 4);
    assert_eq!(begun, [1, 1, 1, 2, 3]);
}

/// Pain 1.
async fn a_failing_head_holds_its_key(world: &World) {
    heads_first(world, [Act::Fail, Act::FailFor(Duration::from_millis(20))], quick()).await;
    assert_eq!(world.stage.attempts(FIRST, 1), [1, 2, 3]);
}

async fn a_snoozed_head_holds_its_key(world: &World) {
    let snooze = Act::Snooze(Duration::from_millis(10));
    heads_first(world, [snooze.clone(), snooze], quick().max_attempts(1)).await;
}

async fn a_panicking_head_holds_its_key(world: &World) {
    heads_first(world, [Act::Panic, Act::Panic], quick()).await;
}

async fn a_head_that_takes_too_long_holds_its_key(world: &World) {
    heads_first(world, [Act::Hang, Act::Hang], quick().timeout(Duration::from_millis(20))).await;
}

async fn a_running_head_holds_its_key(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1).key("a").acts([Act::Wait])).await.unwrap();
    world.stage.until_begun(FIRST, 1).await;
    bus.publish(&note(2).key("a")).await.unwrap();
    bus.publish(&note(3).key("b")).await.unwrap();
    world.stage.until_begun(FIRST, 3).await;
    assert_eq!(world.stage.begun(FIRST), [1, 3]);
    world.stage.open(1);
    world.stage.until_done(FIRST, 3).await;
    stop(worker).await;
}

async fn a_batch_keeps_its_order(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    let notes: Vec<_> = (0..300).map(|number| note(number).key("a")).collect();
    for part in notes.chunks(60) {
        bus.publish_all(part).await.unwrap();
    }
    world.stage.until_done(FIRST, 300).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST), (0..300).collect::<Vec<_>>());
}

async fn every_event_that_fails_holds_its_key(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    let acts = |number: u64| match number % 4 {
        0 => vec![Act::Fail],
        1 => vec![Act::Panic, Act::Fail],
        2 => vec![Act::Snooze(Duration::from_millis(1)), Act::Fail],
        _ => vec![],
    };
    let notes: Vec<_> = (0..60).map(|n| note(n).key(format!("k{}", n % 3)).acts(acts(n / 3))).collect();
    bus.publish_all(&notes).await.unwrap();
    world.stage.until_done(FIRST, 60).await;
    stop(worker).await;
    for key in 0..3 {
        let mut begun = world.stage.begun(FIRST);
        begun.retain(|number| number % 3 == key);
        assert!(begun.is_sorted(), "{begun:?}");
    }
}

async fn two_event_types_of_one_handler_share_a_line(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    let (mut one, mut three) = (memo(1), memo(3));
    one.0 = one.0.key("a").acts([Act::Fail, Act::Fail]);
    three.0 = three.0.key("a").acts([Act::Fail]);
    bus.publish(&one).and(&note(2).key("a").acts([Act::Fail])).await.unwrap();
    bus.publish(&three).await.unwrap();
    bus.publish(&note(4).key("a")).await.unwrap();
    world.stage.until_done(FIRST, 4).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST), [1, 1, 1, 2, 2, 3, 3, 4]);
}

async fn two_handlers_of_one_key_do_not_wait_for_one_another(world: &World) {
    let bus =
        ready(world.builder().handler(world.actor::<First>(quick())).handler(world.actor::<Second>(quick())))
            .await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1).key("a").acts([Act::Wait]).only_at(FIRST)).await.unwrap();
    bus.publish(&note(2).key("a")).await.unwrap();
    world.stage.until_done(SECOND, 2).await;
    assert!(world.stage.done(FIRST).is_empty());
    world.stage.open(1);
    world.stage.until_done(FIRST, 2).await;
    stop(worker).await;
}

async fn a_head_in_the_dead_letters_lets_the_key_go_on(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1).key("a").always(Act::Fail)).await.unwrap();
    bus.publish(&note(2).key("a").acts([Act::Discard])).await.unwrap();
    bus.publish(&note(3).key("a")).await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    until_dead(&bus, 2).await;
    rest(&bus).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST), [1, 1, 1, 2, 3]);
}

async fn a_released_head_lets_the_others_pass(world: &World) {
    let bus = world.bus_with(quick().on_failure(Order::Release)).await;
    let worker = bus.start().await.unwrap();
    let head = note(1).key("a").acts([Act::FailFor(Duration::from_secs(3_600))]);
    bus.publish_all(&[head, note(2).key("a"), note(3).key("a")]).await.unwrap();
    world.stage.until_done(FIRST, 2).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST), [1, 2, 3]);
    assert_eq!(counted(&bus).await, (0, 1, 0));
}

/// Pain 3: an urgent handler overtakes another handler, never the head of a key.
async fn order_holds_through_priorities(world: &World) {
    let bus = ready(
        world
            .builder()
            .concurrency(2)
            .handler(world.actor::<First>(quick().priority(9)))
            .handler(world.actor::<Second>(quick().priority(0))),
    )
    .await;
    let notes: Vec<_> = (0..40)
        .map(|n| note(n).key(format!("k{}", n % 2)).acts(if n % 3 == 0 { vec![Act::Fail] } else { vec![] }))
        .collect();
    bus.publish_all(&notes).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 40).await;
    world.stage.until_done(SECOND, 40).await;
    stop(worker).await;
    for handler in [FIRST, SECOND] {
        for key in 0..2 {
            let mut begun = world.stage.begun(handler);
            begun.retain(|number| number % 2 == key);
            assert!(begun.is_sorted(), "{begun:?}");
        }
    }
}

async fn order_holds_through_a_handover_in_mid_retry(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    let head = note(1).key("a").acts([Act::FailFor(Duration::from_millis(150))]);
    bus.publish_all(&[head, note(2).key("a"), note(3).key("a")]).await.unwrap();
    world.stage.until_begun(FIRST, 1).await;
    stop(worker).await;
    let worker = world.bus().await.start().await.unwrap();
    world.stage.until_done(FIRST, 3).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST), [1, 1, 2, 3]);
    assert_eq!(world.stage.attempts(FIRST, 1), [1, 2]);
}

async fn order_holds_through_a_dropped_worker(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    let notes: Vec<_> = (0..40).map(|number| note(number).key("a")).collect();
    bus.publish_all(&notes[..20]).await.unwrap();
    bus.publish(&note(20).key("a").acts([Act::Hang])).await.unwrap();
    bus.publish_all(&notes[21..]).await.unwrap();
    world.stage.until_begun(FIRST, 20).await;
    drop(worker);
    let worker = world.bus().await.start().await.unwrap();
    world.stage.until(|seen| seen.begun(FIRST).contains(&39)).await;
    rest(&bus).await;
    stop(worker).await;
    // A rewind is allowed, a jump forward is not.
    let mut through = 0;
    for number in world.stage.begun(FIRST) {
        assert!(number <= through, "{number} began before {through} was through");
        through = through.max(number + 1);
    }
    assert!(dead(&bus).await.is_empty());
}

async fn what_was_published_first_comes_first_from_whatever_process(world: &World) {
    let (one, two) = (world.bus().await, world.bus().await);
    let worker = world.bus().await.start().await.unwrap();
    for number in (0..40).step_by(2) {
        one.publish(&note(number).key("a")).await.unwrap();
        two.publish(&note(number + 1).key("a")).await.unwrap();
    }
    world.stage.until_done(FIRST, 40).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST), (0..40).collect::<Vec<_>>());
}

async fn a_delayed_event_lets_the_others_pass(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1).key("a")).delay(Duration::from_secs(3_600)).await.unwrap();
    bus.publish(&note(2).key("a")).await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST), [2]);
    assert_eq!(counted(&bus).await, (0, 1, 0));
}

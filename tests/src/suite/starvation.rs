//! *key-order*, its reach: a stuck key holds itself and nothing else, however long its line is.

use std::time::Duration;

use super::actor::{FIRST, First, SECOND, Second};
use super::note::{Act, note};
use super::world::{World, quick, ready, rest, stop};

cases! { "key_order";
    one_stuck_key_does_not_starve_the_others [Worker];
    a_key_that_waits_for_a_retry_does_not_starve_the_others [Worker];
    a_line_longer_than_the_window_keeps_its_order [Worker];
    many_stuck_keys_do_not_starve_a_healthy_one [Worker];
    all_keys_fail_and_heal_in_order [Worker];
    a_stuck_handler_does_not_starve_another [Worker];
}

/// Pain 3: five thousand (or as many as can) stand behind one head, and the window holds 64.
async fn one_stuck_key_does_not_starve_the_others(world: &World) {
    let depth = world.harness.longest_line().map_or(5_000, |limit| limit.min(5_000));
    let bus = ready(world.builder().window(64).handler(world.actor::<First>(quick()))).await;
    bus.publish(&note(0).key("stuck").acts([Act::Wait])).await.unwrap();
    let line: Vec<_> = (1..=depth as u64).map(|number| note(number).key("stuck")).collect();
    for part in line.chunks(1_000) {
        bus.publish_all(part).await.unwrap();
    }
    let others: Vec<_> = (10_000..10_200).map(|n| note(n).key(format!("k{}", n % 20))).collect();
    bus.publish_all(&others).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 200).await;
    assert_eq!(world.stage.ask(|seen| seen.running(FIRST)), 1);
    world.stage.open(0);
    world.stage.until_done(FIRST, depth + 201).await;
    rest(&bus).await;
    stop(worker).await;
    let mut begun = world.stage.begun(FIRST);
    begun.retain(|number| *number < 10_000);
    assert_eq!(begun, (0..=depth as u64).collect::<Vec<_>>());
}

async fn a_key_that_waits_for_a_retry_does_not_starve_the_others(world: &World) {
    let bus = ready(world.builder().window(16).handler(world.actor::<First>(quick()))).await;
    let head = note(0).key("stuck").acts([Act::FailFor(Duration::from_secs(3_600))]);
    bus.publish(&head).await.unwrap();
    let line: Vec<_> = (1..=300).map(|number| note(number).key("stuck")).collect();
    bus.publish_all(&line).await.unwrap();
    let others: Vec<_> = (1_000..1_100).map(|n| note(n).key(format!("k{}", n % 20))).collect();
    bus.publish_all(&others).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 100).await;
    stop(worker).await;
    let mut begun = world.stage.begun(FIRST);
    begun.retain(|number| *number < 1_000);
    assert_eq!(begun, [0]);
}

async fn a_line_longer_than_the_window_keeps_its_order(world: &World) {
    let bus = ready(world.builder().window(8).handler(world.actor::<First>(quick()))).await;
    let worker = bus.start().await.unwrap();
    let acts =
        |n: u64| if n.is_multiple_of(50) { vec![Act::FailFor(Duration::from_millis(60))] } else { vec![] };
    let notes: Vec<_> = (0..200).map(|number| note(number).key("a").acts(acts(number))).collect();
    let (early, late) = notes.split_at(120);
    bus.publish_all(early).await.unwrap();
    world.stage.until_done(FIRST, 20).await;
    bus.publish_all(late).await.unwrap();
    world.stage.until_done(FIRST, 200).await;
    rest(&bus).await;
    stop(worker).await;
    assert_eq!(world.stage.done(FIRST), (0..200).collect::<Vec<_>>());
    assert!(world.stage.begun(FIRST).is_sorted());
}

async fn many_stuck_keys_do_not_starve_a_healthy_one(world: &World) {
    let bus = ready(world.builder().window(32).concurrency(4).handler(world.actor::<First>(quick()))).await;
    let stuck: Vec<_> = (0..100)
        .map(|n| note(n).key(format!("k{}", n % 50)).acts([Act::FailFor(Duration::from_millis(300))]))
        .collect();
    bus.publish_all(&stuck).await.unwrap();
    let healthy: Vec<_> = (1_000..1_050).map(|number| note(number).key("healthy")).collect();
    bus.publish_all(&healthy).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until(|seen| seen.begun(FIRST).contains(&1_049)).await;
    world.stage.until_done(FIRST, 150).await;
    rest(&bus).await;
    stop(worker).await;
    let begun = world.stage.begun(FIRST);
    for key in 0..50 {
        let line: Vec<_> = begun.iter().filter(|n| **n < 1_000 && **n % 50 == key).copied().collect();
        assert_eq!(line, [key, key, key + 50, key + 50]);
    }
}

/// A downstream outage: every key fails, then everything heals.
async fn all_keys_fail_and_heal_in_order(world: &World) {
    let options = quick().max_attempts(1_000).concurrency(16);
    let bus = ready(world.builder().window(32).handler(world.actor::<First>(options).before(|note, cx| {
        Box::pin(async move {
            if note.number < 200 && cx.attempt() <= 3 {
                return Err(event_bus::Failure::retry("downstream is away"));
            }
            Ok(())
        })
    })))
    .await;
    let notes: Vec<_> = (0..200).map(|number| note(number).key(format!("k{}", number % 40))).collect();
    bus.publish_all(&notes).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 200).await;
    rest(&bus).await;
    stop(worker).await;
    let done = world.stage.done(FIRST);
    for key in 0..40 {
        assert!(done.iter().filter(|n| **n % 40 == key).is_sorted());
    }
    assert_eq!(world.stage.begun(FIRST).len(), 800);
}

async fn a_stuck_handler_does_not_starve_another(world: &World) {
    let bus = ready(
        world
            .builder()
            .window(16)
            .concurrency(8)
            .handler(world.actor::<First>(quick().concurrency(2)))
            .handler(world.actor::<Second>(quick().priority(9))),
    )
    .await;
    let notes: Vec<_> = (0..100).map(|n| note(n).acts([Act::Wait]).only_at(FIRST)).collect();
    bus.publish_all(&notes).await.unwrap();
    let worker = bus.start().await.unwrap();
    world.stage.until_done(SECOND, 100).await;
    assert_eq!(world.stage.most_at_once(FIRST), 2);
    (0..100).for_each(|number| world.stage.open(number));
    world.stage.until_done(FIRST, 100).await;
    stop(worker).await;
}

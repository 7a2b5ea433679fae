//! *recover-by-itself*: what is away comes back, and everybody goes on without being told to.

use std::time::Duration;

use super::actor::{FIRST, First};
use super::note::{Act, note};
use super::world::{World, quick, rest, stop};

cases! { "recover_by_itself";
    an_idle_worker_sees_what_another_process_publishes [Worker];
    a_standby_takes_over_when_the_worker_stops [Worker];
    a_standby_takes_over_when_the_worker_is_dropped [Worker];
    a_publish_during_an_outage_is_stored_after_it [Worker, Outage];
    outcomes_of_an_outage_are_stored_after_it_and_nothing_is_repeated [Worker, Outage];
    a_worker_started_during_an_outage_works_after_it [Worker, Outage];
    a_worker_of_a_store_that_was_not_prepared_is_refused_or_waits_for_it [Worker];
}

/// Pain 10: without a notification that reached it.
async fn an_idle_worker_sees_what_another_process_publishes(world: &World) {
    let worker = world.bus().await.start().await.unwrap();
    let other = world.bus().await;
    for number in 0..5 {
        other.publish(&note(number)).await.unwrap();
        world.stage.until_done(FIRST, usize::try_from(number).unwrap() + 1).await;
    }
    stop(worker).await;
}

async fn a_standby_takes_over_when_the_worker_stops(world: &World) {
    let bus = world.bus().await;
    let one = bus.start().await.unwrap();
    let two = world.bus().await.start().await.unwrap();
    bus.publish(&note(1)).await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    stop(one).await;
    bus.publish(&note(2)).await.unwrap();
    world.stage.until_done(FIRST, 2).await;
    stop(two).await;
    assert_eq!(world.stage.begun(FIRST), [1, 2]);
}

async fn a_standby_takes_over_when_the_worker_is_dropped(world: &World) {
    let bus = world.bus().await;
    let one = bus.start().await.unwrap();
    bus.publish(&note(0).key("a").acts([Act::Hang])).await.unwrap();
    world.stage.until_begun(FIRST, 0).await;
    // It comes later: where workers share, the key could be its own from the beginning.
    let two = world.bus().await.start().await.unwrap();
    drop(one);
    world.stage.until_done(FIRST, 1).await;
    stop(two).await;
    assert_eq!(world.stage.attempts(FIRST, 0), [1, 1]);
}

/// Pain 14.
async fn a_publish_during_an_outage_is_stored_after_it(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1)).await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    let outage = world.sandbox.outage().await;
    let publishing = tokio::spawn({
        let bus = bus.clone();
        async move { bus.publish(&note(2).key("a")).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!publishing.is_finished());
    outage.end().await;
    publishing.await.unwrap().unwrap();
    world.stage.until_done(FIRST, 2).await;
    rest(&bus).await;
    stop(worker).await;
}

/// Pain 21: a busy store loses no state.
async fn outcomes_of_an_outage_are_stored_after_it_and_nothing_is_repeated(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    let acts = |n: u64| [Act::Wait].into_iter().chain((n % 2 == 1).then_some(Act::Fail));
    let notes: Vec<_> = (0..10).map(|n| note(n).key(format!("k{n}")).acts(acts(n))).collect();
    bus.publish_all(&notes).await.unwrap();
    let failing = note(10).key("f").acts([Act::WaitAndFail]);
    bus.publish(&failing).await.unwrap();
    world.stage.until(|seen| seen.running(FIRST) == 11).await;
    let outage = world.sandbox.outage().await;
    (0..=10).for_each(|number| world.stage.open(number));
    world.stage.until(|seen| seen.running(FIRST) == 0).await;
    outage.end().await;
    world.stage.until_done(FIRST, 11).await;
    rest(&bus).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST).len(), 12);
    assert_eq!(world.stage.attempts(FIRST, 10), [1, 2]);
}

/// Pain 12.
async fn a_worker_started_during_an_outage_works_after_it(world: &World) {
    let bus = world.bus_with(quick()).await;
    bus.publish(&note(1)).await.unwrap();
    let outage = world.sandbox.outage().await;
    let worker = bus.start().await.unwrap();
    outage.end().await;
    world.stage.until_done(FIRST, 1).await;
    stop(worker).await;
}

async fn a_worker_of_a_store_that_was_not_prepared_is_refused_or_waits_for_it(world: &World) {
    let bus = world.builder().handler(world.actor::<First>(quick())).build().unwrap();
    match bus.start().await {
        Err(refusal) => assert!(event_bus::chain(&refusal).contains("migrate"), "{refusal}"),
        Ok(mut worker) => {
            bus.migrate().await.unwrap();
            bus.publish(&note(1)).await.unwrap();
            tokio::select! {
                () = world.stage.until_done(FIRST, 1) => stop(worker).await,
                end = worker.ended() => {
                    let refusal = end.expect_err("a refusal");
                    assert!(event_bus::chain(&refusal).contains("migrate"), "{refusal}");
                }
            }
        }
    }
}

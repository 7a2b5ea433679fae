//! *at-least-once*: a run that did not come to its end is made again.
//!
//! What a killed process leaves behind is in `processes`.

use super::actor::FIRST;
use super::note::{Act, note};
use super::world::{World, quick, rest, stop};

cases! { "at_least_once";
    a_failed_run_is_made_again_until_it_succeeds [Worker];
    a_run_whose_worker_was_dropped_is_made_again [Worker];
    runs_of_several_dropped_workers_are_all_made_again [Worker];
    what_succeeded_is_not_made_again [Worker];
}

async fn a_failed_run_is_made_again_until_it_succeeds(world: &World) {
    let bus = world.bus_with(quick().max_attempts(6)).await;
    let worker = bus.start().await.unwrap();
    let acts = [Act::Fail, Act::Panic, Act::FailFor(std::time::Duration::ZERO), Act::Fail];
    bus.publish(&note(1).acts(acts)).await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    stop(worker).await;
    assert_eq!(world.stage.attempts(FIRST, 1), [1, 2, 3, 4, 5]);
}

async fn a_run_whose_worker_was_dropped_is_made_again(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1).acts([Act::Hang])).await.unwrap();
    world.stage.until_begun(FIRST, 1).await;
    drop(worker);
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    stop(worker).await;
}

/// Pain 7 and 9: work of a vanished worker is neither lost nor stuck, however often.
async fn runs_of_several_dropped_workers_are_all_made_again(world: &World) {
    let bus = world.bus_with(quick().max_attempts(2)).await;
    let notes: Vec<_> = (0..12).map(|number| note(number).key(format!("k{}", number % 4))).collect();
    let stuck: Vec<_> = notes.iter().cloned().map(|note| note.acts(vec![Act::Hang; 4])).collect();
    bus.publish_all(&stuck).await.unwrap();
    for round in 1..=4 {
        let worker = world.bus_with(quick().max_attempts(2)).await.start().await.unwrap();
        world.stage.until(|seen| seen.begun(FIRST).len() >= round * 4).await;
        drop(worker);
        world.stage.until(|seen| seen.running(FIRST) == 0).await;
    }
    // Each head hung four times, and none of that counts as an attempt.
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 4).await;
    drop(worker);
    for head in 0..4 {
        assert_eq!(world.stage.attempts(FIRST, head), [1; 5]);
    }
}

async fn what_succeeded_is_not_made_again(world: &World) {
    let bus = world.bus().await;
    for round in 0..5 {
        let worker = world.bus().await.start().await.unwrap();
        bus.publish(&note(round)).await.unwrap();
        world.stage.until_done(FIRST, usize::try_from(round).unwrap() + 1).await;
        stop(worker).await;
    }
    let worker = bus.start().await.unwrap();
    rest(&bus).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST), [0, 1, 2, 3, 4]);
}

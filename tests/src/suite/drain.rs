//! *drain*: a shutdown takes no more, lets runs end, stores their outcomes and gives the rest back; nothing repeats.

use std::time::Duration;

use super::actor::{FIRST, First};
use super::note::{Act, note};
use super::world::{World, counted, quick, ready, rest, stop};

cases! { "drain";
    a_shutdown_lets_runs_end_and_repeats_nothing [Worker];
    a_run_over_the_grace_time_is_cancelled_and_comes_back_uncounted [Worker];
    what_waited_in_memory_is_given_back_at_once [Worker];
    nothing_is_taken_after_a_shutdown_began [Worker];
    a_handler_is_told_of_the_shutdown [Worker];
    an_idle_worker_stops [Worker];
    a_standby_stops [Worker];
    run_until_works_until_it_is_told_to_stop [Worker];
    repeated_restarts_under_load_repeat_nothing [Worker];
}

async fn a_shutdown_lets_runs_end_and_repeats_nothing(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    let notes: Vec<_> = (0..6).map(|n| note(n).key(format!("k{n}")).acts([Act::Wait])).collect();
    bus.publish_all(&notes).await.unwrap();
    world.stage.until(|seen| seen.running(FIRST) == 6).await;
    let stopping = tokio::spawn(worker.shutdown(Duration::from_secs(20)));
    (0..6).for_each(|number| world.stage.open(number));
    let drained = stopping.await.unwrap().unwrap();
    assert_eq!(drained.cancelled, 0);
    assert_eq!(counted(&bus).await, (0, 0, 0));
    let worker = world.bus().await.start().await.unwrap();
    bus.publish(&note(6)).await.unwrap();
    world.stage.until_done(FIRST, 7).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST).len(), 7);
}

async fn a_run_over_the_grace_time_is_cancelled_and_comes_back_uncounted(world: &World) {
    let bus = world.bus_with(quick().max_attempts(1)).await;
    let worker = bus.start().await.unwrap();
    bus.publish_all(&[note(1).key("a").acts([Act::Hang]), note(2).key("a"), note(3).acts([Act::Hang])])
        .await
        .unwrap();
    world.stage.until(|seen| seen.running(FIRST) == 2).await;
    let drained = worker.shutdown(Duration::from_millis(20)).await.unwrap();
    assert_eq!((drained.finished, drained.cancelled), (0, 2));
    assert_eq!(counted(&bus).await, (3, 0, 0));
    let worker = world.bus_with(quick().max_attempts(1)).await.start().await.unwrap();
    world.stage.until_done(FIRST, 3).await;
    stop(worker).await;
    assert_eq!(world.stage.attempts(FIRST, 1), [1, 1]);
    assert_eq!(world.stage.attempts(FIRST, 3), [1, 1]);
}

async fn what_waited_in_memory_is_given_back_at_once(world: &World) {
    // The run that is under way ends when the shutdown has begun.
    let actor = world.actor::<First>(quick()).before(|_, cx| {
        Box::pin(async move {
            cx.shutdown().triggered().await;
            Ok(())
        })
    });
    let bus = ready(world.builder().concurrency(1).handler(actor)).await;
    let worker = bus.start().await.unwrap();
    let notes: Vec<_> = (0..50).map(|n| note(n).key(format!("k{}", n % 5))).collect();
    bus.publish_all(&notes).await.unwrap();
    world.stage.until(|seen| seen.running(FIRST) == 1).await;
    let drained = worker.shutdown(Duration::from_secs(20)).await.unwrap();
    assert_eq!((drained.finished, drained.cancelled), (1, 0));
    assert_eq!(world.stage.done(FIRST).len(), 1);
    assert_eq!(counted(&bus).await, (49, 0, 0));
    let worker = world.bus().await.start().await.unwrap();
    world.stage.until_done(FIRST, 50).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST).len(), 50);
}

async fn nothing_is_taken_after_a_shutdown_began(world: &World) {
    let (told, hears) = tokio::sync::watch::channel(false);
    let actor = world.actor::<First>(quick()).before(move |_, cx| {
        let told = told.clone();
        Box::pin(async move {
            cx.shutdown().triggered().await;
            told.send_replace(true);
            Ok(())
        })
    });
    let bus = ready(world.builder().handler(actor)).await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1).key("a").acts([Act::Wait])).await.unwrap();
    world.stage.until_begun(FIRST, 1).await;
    let stopping = tokio::spawn(worker.shutdown(Duration::from_secs(20)));
    hears.clone().wait_for(|has_begun| *has_begun).await.unwrap();
    bus.publish_all(&[note(2).key("a"), note(3).key("b"), note(4)]).await.unwrap();
    world.stage.open(1);
    stopping.await.unwrap().unwrap();
    assert_eq!(world.stage.begun(FIRST), [1]);
    assert_eq!(counted(&bus).await, (3, 0, 0));
}

async fn a_handler_is_told_of_the_shutdown(world: &World) {
    let actor = world.actor::<First>(quick()).before(|_, cx| {
        Box::pin(async move {
            cx.shutdown().triggered().await;
            assert!(cx.shutdown().is_triggered());
            Ok(())
        })
    });
    let bus = ready(world.builder().handler(actor)).await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1)).await.unwrap();
    world.stage.until_begun(FIRST, 1).await;
    let drained = worker.shutdown(Duration::from_secs(20)).await.unwrap();
    assert_eq!((drained.finished, drained.cancelled), (1, 0));
    assert_eq!(world.stage.done(FIRST), [1]);
}

async fn an_idle_worker_stops(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    let drained = worker.shutdown(Duration::from_secs(20)).await.unwrap();
    assert_eq!((drained.finished, drained.cancelled), (0, 0));
}

async fn a_standby_stops(world: &World) {
    let bus = world.bus().await;
    let one = bus.start().await.unwrap();
    let two = world.bus().await.start().await.unwrap();
    stop(two).await;
    bus.publish(&note(1)).await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    stop(one).await;
}

async fn run_until_works_until_it_is_told_to_stop(world: &World) {
    let bus = world.bus().await;
    bus.publish(&note(1)).await.unwrap();
    bus.run_until(world.stage.until_done(FIRST, 1)).await.unwrap();
    rest(&bus).await;
    assert_eq!(world.stage.begun(FIRST), [1]);
}

async fn repeated_restarts_under_load_repeat_nothing(world: &World) {
    let bus = world.bus().await;
    let acts = [Act::Sleep(Duration::from_micros(500))];
    let notes: Vec<_> = (0..300).map(|n| note(n).key(format!("k{}", n % 7)).acts(acts.clone())).collect();
    bus.publish_all(&notes).await.unwrap();
    for round in 1..=5 {
        let worker = world.bus().await.start().await.unwrap();
        world.stage.until(|seen| seen.begun(FIRST).len() >= round * 30).await;
        stop(worker).await;
    }
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 300).await;
    rest(&bus).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST).len(), 300);
    for key in 0..7 {
        let begun = world.stage.begun(FIRST);
        assert!(begun.iter().filter(|number| **number % 7 == key).is_sorted());
    }
}

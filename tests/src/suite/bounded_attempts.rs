//! *bounded-attempts*: attempts are stored, told and counted exactly; delays are lower bounds.

use std::time::Duration;

use event_bus::prelude::*;

use super::actor::FIRST;
use super::note::{Act, note};
use super::stage::What;
use super::world::{World, dead, quick, rest, stop, until_dead};

cases! { "bounded_attempts";
    attempts_are_counted_and_told [Worker];
    an_exhausted_delivery_ran_exactly_as_often_as_allowed [Worker, DeadLetters];
    a_single_attempt_is_a_single_run [Worker, DeadLetters];
    a_panic_uses_up_an_attempt [Worker, DeadLetters];
    a_run_that_takes_too_long_uses_up_an_attempt [Worker, DeadLetters];
    a_snooze_uses_up_no_attempt [Worker];
    attempts_survive_the_worker [Worker, DeadLetters];
    attempts_of_a_released_key_survive_the_worker [Worker, DeadLetters];
    a_retry_waits_at_least_its_backoff [Worker];
    a_retry_can_bring_its_own_delay [Worker];
    a_snooze_waits_at_least_that_long [Worker];
    the_backoff_is_told_the_number_of_the_failure [Worker];
}

async fn attempts_are_counted_and_told(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1).acts([Act::Fail, Act::Fail])).await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    stop(worker).await;
    let told = world.stage.told(FIRST, 1);
    let told: Vec<_> = told.iter().map(|t| (t.attempt, t.max_attempts, t.is_last_attempt)).collect();
    assert_eq!(told, [(1, 3, false), (2, 3, false), (3, 3, true)]);
}

async fn an_exhausted_delivery_ran_exactly_as_often_as_allowed(world: &World) {
    let bus = world.bus_with(quick().max_attempts(4)).await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1).always(Act::Fail)).await.unwrap();
    bus.publish(&note(2).key("a").always(Act::Fail)).await.unwrap();
    until_dead(&bus, 2).await;
    rest(&bus).await;
    stop(worker).await;
    assert_eq!(world.stage.attempts(FIRST, 1), [1, 2, 3, 4]);
    assert_eq!(world.stage.attempts(FIRST, 2), [1, 2, 3, 4]);
}

async fn a_single_attempt_is_a_single_run(world: &World) {
    let bus = world.bus_with(quick().max_attempts(1)).await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1).always(Act::Fail)).await.unwrap();
    until_dead(&bus, 1).await;
    stop(worker).await;
    assert_eq!(world.stage.attempts(FIRST, 1), [1]);
}

async fn a_panic_uses_up_an_attempt(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1).always(Act::Panic)).await.unwrap();
    let dead = until_dead(&bus, 1).await;
    stop(worker).await;
    assert_eq!(world.stage.attempts(FIRST, 1), [1, 2, 3]);
    assert!(dead[0].errors.entries()[0].message.starts_with("panicked: "));
}

async fn a_run_that_takes_too_long_uses_up_an_attempt(world: &World) {
    let bus = world.bus_with(quick().timeout(Duration::from_millis(10))).await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1).always(Act::Hang)).await.unwrap();
    let dead = until_dead(&bus, 1).await;
    stop(worker).await;
    assert_eq!(world.stage.attempts(FIRST, 1), [1, 2, 3]);
    assert!(dead[0].errors.entries()[0].message.contains("timed out"));
}

async fn a_snooze_uses_up_no_attempt(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    let snooze = Act::Snooze(Duration::from_millis(1));
    let acts = [snooze.clone(), snooze.clone(), Act::Fail, snooze.clone(), Act::Fail, snooze];
    bus.publish_all(&[note(1).acts(acts.clone()), note(2).key("a").acts(acts)]).await.unwrap();
    world.stage.until_done(FIRST, 2).await;
    stop(worker).await;
    for number in [1, 2] {
        assert_eq!(world.stage.attempts(FIRST, number), [1, 1, 1, 2, 2, 3, 3]);
    }
}

async fn survives(world: &World, options: HandlerOptions) {
    let options = options.max_attempts(4).backoff(Backoff::fixed(Duration::from_millis(40)));
    let bus = world.bus_with(options.clone()).await;
    bus.publish_all(&[note(1).always(Act::Fail), note(2).key("a").always(Act::Fail)]).await.unwrap();
    for run in 1..=4 {
        let worker = world.bus_with(options.clone()).await.start().await.unwrap();
        world
            .stage
            .until(|seen| {
                let begun = seen.begun(FIRST);
                [1, 2].iter().all(|number| begun.iter().filter(|of| *of == number).count() >= run)
            })
            .await;
        stop(worker).await;
    }
    let worker = bus.start().await.unwrap();
    until_dead(&bus, 2).await;
    rest(&bus).await;
    stop(worker).await;
    assert_eq!(world.stage.attempts(FIRST, 1), [1, 2, 3, 4]);
    assert_eq!(world.stage.attempts(FIRST, 2), [1, 2, 3, 4]);
    assert!(dead(&bus).await.iter().all(|dead| dead.failures == 4 && dead.errors.entries().len() == 4));
}

/// Pain 15.
async fn attempts_survive_the_worker(world: &World) {
    survives(world, quick()).await;
}

async fn attempts_of_a_released_key_survive_the_worker(world: &World) {
    survives(world, quick().on_failure(Order::Release)).await;
}

/// From the end of each failed run to the begin of the next.
fn pauses(world: &World, number: u64) -> Vec<Duration> {
    world.stage.ask(|seen| {
        let mut failed = None;
        let mut pauses = Vec::new();
        for moment in seen.moments.iter().filter(|moment| moment.number == number) {
            match moment.what {
                What::Failed => failed = Some(moment.at),
                What::Begins(_) => pauses.extend(failed.take().map(|at| moment.at - at)),
                _ => {}
            }
        }
        pauses
    })
}

async fn waits(world: &World, options: HandlerOptions, act: Act, at_least: Duration) {
    let bus = world.bus_with(options).await;
    let worker = bus.start().await.unwrap();
    let acts = [act.clone(), act];
    bus.publish_all(&[note(1).acts(acts.clone()), note(2).key("a").acts(acts)]).await.unwrap();
    world.stage.until_done(FIRST, 2).await;
    stop(worker).await;
    for number in [1, 2] {
        let pauses = pauses(world, number);
        assert_eq!(pauses.len(), 2);
        assert!(pauses.iter().all(|pause| *pause >= at_least), "{pauses:?}");
    }
}

async fn a_retry_waits_at_least_its_backoff(world: &World) {
    let backoff = Duration::from_millis(40);
    waits(world, quick().backoff(Backoff::fixed(backoff)), Act::Fail, backoff).await;
}

async fn a_retry_can_bring_its_own_delay(world: &World) {
    let delay = Duration::from_millis(40);
    let options = quick().backoff(Backoff::fixed(Duration::from_secs(3_600)));
    waits(world, options, Act::FailFor(delay), delay).await;
}

async fn a_snooze_waits_at_least_that_long(world: &World) {
    let delay = Duration::from_millis(40);
    waits(world, quick(), Act::Snooze(delay), delay).await;
}

async fn the_backoff_is_told_the_number_of_the_failure(world: &World) {
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let backoff = Backoff::custom(move |failures| {
        let _ = told.send(failures);
        Duration::from_millis(1)
    });
    let bus = world.bus_with(quick().max_attempts(4).backoff(backoff)).await;
    let worker = bus.start().await.unwrap();
    bus.publish(&note(1).acts([Act::Fail, Act::Fail, Act::Fail])).await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    stop(worker).await;
    for failures in 1..=3 {
        assert_eq!(hears.recv().await, Some(failures));
    }
}

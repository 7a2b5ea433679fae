//! All promises, between real processes that are killed, stopped and continued; the checker reads what they wrote down.

use std::collections::HashMap;
use std::time::Duration;

use super::actor::{FIRST, First, Second};
use super::note::{Act, Note, note};
use super::world::{World, dead, quick, ready, rest};
use crate::fleet::Fleet;
use crate::history::{Fact, Record, RunEnd};

cases! { "processes";
    several_publishers_and_a_handover_keep_every_promise [Processes, Worker];
    a_killed_worker_is_followed_and_nothing_is_lost [Processes, Worker];
    a_publisher_killed_in_mid_call_leaves_whole_calls [Processes, Worker, AtomicPublish];
    what_kills_its_process_ends_in_the_dead_letters_and_its_neighbours_do_not [Processes, Worker, DeadLetters];
    repeated_kills_bury_nothing [Processes, Worker, DeadLetters];
    repeated_kills_of_everybody_lose_nothing [Processes, Worker];
    a_stopped_worker_and_its_standby_never_run_together [Processes, Worker];
    handlers_that_block_every_thread_lose_nothing [Processes, Worker];
    failures_panics_and_snoozes_keep_every_promise [Processes, Worker];
    what_handlers_publish_keeps_every_promise [Processes, Worker];
}

/// The processes of a case.
async fn fleet_of(world: &World) -> Fleet {
    let builder = world.builder().handler(world.actor::<First>(quick()));
    let bus = ready(builder.handler(world.actor::<Second>(quick()))).await;
    Fleet::new(world.harness.node().unwrap(), world.sandbox.url(), bus)
}

/// Events that take a moment.
fn slow(numbers: std::ops::Range<u64>, keys: u64, time: Duration) -> Vec<Note> {
    let acts = [Act::Sleep(time), Act::Sleep(time), Act::Sleep(time), Act::Sleep(time)];
    numbers.map(|n| note(n).read_by(FIRST).key(format!("s{}", n % keys)).acts(acts.clone())).collect()
}

async fn several_publishers_and_a_handover_keep_every_promise(world: &World) {
    let mut fleet = fleet_of(world).await;
    let one = fleet.worker().await;
    let two = fleet.worker().await;
    let publishers: Vec<_> = (0..3).map(|_| fleet.publisher(200, 6, 5)).collect();
    let working = match first_worker(&fleet).await == one.number {
        true => (one, two),
        false => (two, one),
    };
    // Whoever runs them: some stores share the keys out, others have one worker and a standby.
    let begun = |facts: &[Fact]| facts.iter().filter(|f| matches!(f, Fact::RunStart { .. })).count();
    fleet.until(|facts| begun(facts) >= 100).await;
    working.0.stop().await;
    for publisher in publishers {
        publisher.ended().await;
    }
    fleet.finish([working.1]).await;
}

/// Who runs something first.
async fn first_worker(fleet: &Fleet) -> u32 {
    let run = |facts: &[Fact]| {
        facts.iter().find_map(|fact| match fact {
            Fact::RunStart { worker, .. } => Some(*worker),
            _ => None,
        })
    };
    fleet.until(|facts| run(facts).is_some()).await;
    let facts: Vec<_> = fleet.history().records.into_iter().map(|record| record.fact).collect();
    run(&facts).unwrap()
}

async fn a_killed_worker_is_followed_and_nothing_is_lost(world: &World) {
    let mut fleet = fleet_of(world).await;
    let one = fleet.worker().await;
    fleet.publish(&slow(0..200, 8, Duration::from_millis(3))).await;
    fleet.until_begun(&one, 1).await;
    let two = fleet.worker().await;
    fleet.until_begun(&one, 30).await;
    let (killed, follower) = (one.number, two.number);
    one.kill().await;
    fleet.publish(&slow(200..220, 8, Duration::from_millis(1))).await;
    let records = fleet.finish([two]).await;
    let crash = at(&records, |fact| *fact == Fact::WorkerCrash { worker: killed });
    // The follower may have had keys of its own all the time: what counts is when it takes over those of the dead.
    let cut = cut_keys(&records, killed);
    let follows = |fact: &Fact| match fact {
        Fact::RunStart { worker, key: Some(key), .. } if *worker == follower => {
            cut.is_empty() || cut.contains(key)
        }
        _ => false,
    };
    let after: Vec<_> = records.iter().filter(|record| record.at > crash).cloned().collect();
    let next = at(&after, follows);
    let pause = Duration::from_nanos(next - crash);
    // The store's documentation says how long it takes; this is for a machine under load.
    assert!(pause < Duration::from_secs(10), "the standby took over after {pause:?}");
}

/// The keys of which a worker ran something when it was killed.
fn cut_keys(records: &[Record], killed: u32) -> Vec<String> {
    let mut running = HashMap::new();
    for record in records {
        match &record.fact {
            Fact::RunStart { worker, run, key: Some(key), .. } if *worker == killed => {
                running.insert(*run, key.clone());
            }
            Fact::RunEnd { worker, run, .. } if *worker == killed => {
                running.remove(run);
            }
            _ => {}
        }
    }
    running.into_values().collect()
}

fn at(records: &[Record], is_wanted: impl Fn(&Fact) -> bool) -> u64 {
    records.iter().find(|record| is_wanted(&record.fact)).expect("that fact").at
}

async fn a_publisher_killed_in_mid_call_leaves_whole_calls(world: &World) {
    let mut fleet = fleet_of(world).await;
    for round in 1..=5 {
        let publisher = fleet.publisher(100_000, 4, 20);
        let calls = |facts: &[Fact]| facts.iter().filter(|f| matches!(f, Fact::PublishIntent { .. })).count();
        let before = calls(&fleet.history().records.into_iter().map(|r| r.fact).collect::<Vec<_>>());
        fleet.until(|facts| calls(facts) > before + round * 2).await;
        publisher.kill_publisher();
    }
    let worker = fleet.worker().await;
    let records = fleet.finish([worker]).await;
    let mut runs: HashMap<u64, usize> = HashMap::new();
    for record in &records {
        if let Fact::RunStart { event, handler, .. } = &record.fact
            && handler == FIRST
        {
            *runs.entry(*event).or_default() += 1;
        }
    }
    for record in &records {
        if let Fact::PublishIntent { call, events, .. } = &record.fact {
            let ran = events.iter().filter(|event| runs.contains_key(&event.event)).count();
            assert!(ran == 0 || ran == events.len(), "{ran} of {} events of call {call} ran", events.len());
        }
    }
}

async fn what_kills_its_process_ends_in_the_dead_letters_and_its_neighbours_do_not(world: &World) {
    let mut fleet = fleet_of(world).await;
    let mut notes = slow(0..60, 6, Duration::from_millis(2));
    let mut poison = note(1_000).key("s3").read_by(FIRST).always(Act::Abort);
    notes.insert(30, poison.clone());
    poison.number = 1_001;
    poison.key = None;
    notes.insert(45, poison);
    fleet.publish(&notes).await;
    let mut worker = fleet.worker().await;
    let mut starts = 1;
    while !fleet.is_at_rest().await {
        if worker.has_ended() {
            worker = fleet.worker().await;
            starts += 1;
        }
    }
    worker.stop().await;
    let mut buried: Vec<_> = dead(&fleet.bus)
        .await
        .iter()
        .map(|dead| crate::node::note_in(&dead.envelope).unwrap().number)
        .collect();
    buried.sort_unstable();
    assert_eq!(buried, [1_000, 1_001], "after {starts} starts");
    assert!(starts <= 9, "{starts} processes died of two events with 3 attempts each");
    fleet.verdict().await;
}

async fn repeated_kills_bury_nothing(world: &World) {
    let mut fleet = fleet_of(world).await;
    fleet.publish(&slow(0..400, 10, Duration::from_millis(2))).await;
    for _ in 0..5 {
        let worker = fleet.worker().await;
        fleet.until_begun(&worker, 40).await;
        worker.kill().await;
    }
    let worker = fleet.worker().await;
    rest(&fleet.bus).await;
    assert!(dead(&fleet.bus).await.is_empty());
    fleet.finish([worker]).await;
}

/// Killed at any instant, in a commit as well.
async fn repeated_kills_of_everybody_lose_nothing(world: &World) {
    let mut fleet = fleet_of(world).await;
    for round in 0..10_u64 {
        let worker = fleet.worker().await;
        let publisher = fleet.publisher(100_000, 5, 3);
        fleet.until_begun(&worker, 10).await;
        tokio::time::sleep(Duration::from_micros(round * 1_700)).await;
        worker.kill().await;
        publisher.kill_publisher();
    }
    let worker = fleet.worker().await;
    fleet.finish([worker]).await;
}

async fn a_stopped_worker_and_its_standby_never_run_together(world: &World) {
    let mut fleet = fleet_of(world).await;
    let one = fleet.worker().await;
    fleet.publish(&slow(0..300, 6, Duration::from_millis(2))).await;
    fleet.until_begun(&one, 1).await;
    let two = fleet.worker().await;
    fleet.until_begun(&one, 40).await;
    let lasts = Duration::from_millis(500);
    one.stall(lasts).await;
    let follower = two.number;
    let late = slow(300..330, 6, Duration::from_millis(1));
    // A process may be stopped in the middle of a write, and then those who publish wait for it.
    let publish = fleet.publish(&late);
    let watch = async {
        tokio::time::sleep(lasts).await;
        if world.harness.keeps_stopped_workers() {
            let records = fleet.history().records;
            let ran =
                records.iter().any(|r| matches!(r.fact, Fact::RunStart { worker, .. } if worker == follower));
            assert!(!ran, "the standby took over from a worker that lives");
        }
        one.thaw();
    };
    tokio::join!(publish, watch);
    fleet.finish([one, two]).await;
}

async fn handlers_that_block_every_thread_lose_nothing(world: &World) {
    let mut fleet = fleet_of(world).await;
    let block = [Act::Block(Duration::from_millis(150))];
    let notes: Vec<_> =
        (0..6).map(|n| note(n).read_by(FIRST).key(format!("b{n}")).acts(block.clone())).collect();
    fleet.publish(&notes).await;
    let one = fleet.worker().await;
    let two = fleet.worker().await;
    fleet.publish(&slow(100..140, 6, Duration::from_millis(1))).await;
    fleet.finish([one, two]).await;
}

async fn failures_panics_and_snoozes_keep_every_promise(world: &World) {
    let mut fleet = fleet_of(world).await;
    let one = fleet.worker().await;
    let acts = |number: u64| match number % 7 {
        0 => vec![Act::Fail],
        1 => vec![Act::Panic, Act::Fail],
        2 => vec![Act::Fail, Act::Fail, Act::Fail],
        3 => vec![Act::Discard],
        4 => vec![Act::FailFor(Duration::from_millis(15))],
        _ => vec![],
    };
    let notes: Vec<_> =
        (0..140).map(|n| note(n).key(format!("f{}", n % 8)).acts(acts(n)).only_at(FIRST)).collect();
    for batch in notes.chunks(20) {
        fleet.publish(batch).await;
    }
    fleet.until_begun(&one, 100).await;
    let two = fleet.worker().await;
    one.stop().await;
    let records = fleet.finish([two]).await;
    let done = |record: &&Record| matches!(record.fact, Fact::RunEnd { end: RunEnd::Done, .. });
    assert_eq!(records.iter().filter(done).count(), 280 - 40);
}

/// Also if the process that publishes from within a run is killed.
async fn what_handlers_publish_keeps_every_promise(world: &World) {
    let mut fleet = fleet_of(world).await;
    let notes: Vec<_> = (0..60)
        .map(|n| note(n).read_by(FIRST).key(format!("p{}", n % 5)).acts([Act::Publish(3), Act::Publish(3)]))
        .collect();
    fleet.publish(&notes).await;
    let one = fleet.worker().await;
    let two = fleet.worker().await;
    let begun = |facts: &[Fact]| facts.iter().filter(|fact| matches!(fact, Fact::RunStart { .. })).count();
    fleet.until(|facts| begun(facts) >= 20).await;
    one.kill().await;
    let records = fleet.finish([two]).await;
    let published = |record: &&Record| matches!(&record.fact, Fact::PublishIntent { publisher: 1.., .. });
    assert!(records.iter().filter(published).count() >= 60);
}

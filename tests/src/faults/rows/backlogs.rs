//! What backlogs, keys and priorities do to one another.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use event_bus::ErrorKind;

use super::super::medium::Medium;
use super::super::scene::Scene;
use crate::fleet::Node;
use crate::history::{Fact, RunEnd};
use crate::suite::actor::{FIRST, SECOND};
use crate::suite::{Act, Note, note};

super::rows! {
    "K1" "the head of a key fails until its last attempt; kill -9 meanwhile; one handler holds the key, one lets others pass" failing_head, fast: [Sqlite, Postgres, Redis, RabbitMq];
    "K2" "the head of a key waits for an hour, a long line behind it, other keys busy; kill -9" blocked_head, fast: [Sqlite, Postgres, Redis, RabbitMq];
    "K3" "everything fails until what the handlers need is up again; kill -9 meanwhile" downstream_outage, fast: [Sqlite, Postgres, Redis, RabbitMq];
    "K4" "one key has all the traffic, then every key has one event; kill -9" one_key_and_many, fast: [Sqlite, Postgres, Redis, RabbitMq];
    "K5" "keys that are refused, keys that look dangerous, one key at two handlers; kill -9" keys, fast: [Sqlite, Postgres, Redis, RabbitMq];
    "X1" "a flood of low priority, and what is urgent; kill -9" priorities, fast: [Sqlite, Postgres, Redis, RabbitMq];
}

/// The most memory that a worker of this test may ever have, as it is built for tests. A backlog in memory needs more.
const MOST_MEMORY: u64 = 160 << 20;

/// Shows: a head that fails and comes back holds its key at a handler that holds, through the death of its worker, and
/// every attempt is counted; at a handler that lets others pass they do, and still run one at a time.
async fn failing_head(scene: &mut Scene) -> Vec<Node> {
    scene.rules(SECOND).is_ordered = false;
    let behind = scene.pace.size(60, 1_000, 1_000);
    let one = scene.worker_with(&["--second-releases"]).await;
    let wait = Duration::from_millis(400);
    let head = scene.note("failing").acts([Act::FailFor(wait), Act::FailFor(wait)]);
    let number = head.number;
    let mut notes = vec![head];
    for position in 0..behind {
        notes.push(scene.note(if position % 4 == 0 { "other" } else { "failing" }));
    }
    scene.publish_in_parts(&notes).await;
    scene.fleet.until(|facts| failures(facts, number) >= 2).await;
    one.kill().await;
    let workers = vec![
        scene.worker_with(&["--second-releases"]).await,
        scene.worker_with(&["--second-releases"]).await,
    ];
    scene.rest().await;
    let before = done_before(scene, SECOND, "failing", number);
    assert!(before > 0, "nothing of its key has passed the head at a handler that lets others pass");
    scene.remark(format!("{before} of {behind} had passed the head where they may"));
    workers
}

/// How often a note has failed.
fn failures(facts: &[Fact], number: u64) -> usize {
    let mut runs = HashSet::new();
    let mut failures = 0;
    for fact in facts {
        match fact {
            Fact::RunStart { run, worker, event, .. } if *event == number => {
                runs.insert((*worker, *run));
            }
            Fact::RunEnd { run, worker, end: RunEnd::Retry { .. } } if runs.contains(&(*worker, *run)) => {
                failures += 1;
            }
            _ => {}
        }
    }
    failures
}

/// How many runs of a key began at a handler before this event was done there.
fn done_before(scene: &Scene, handler: &str, key: &str, number: u64) -> usize {
    let mut runs = HashSet::new();
    let mut others = 0;
    for record in scene.fleet.history().records {
        match record.fact {
            Fact::RunStart { run, worker, handler: at, event, .. } if at == handler && event == number => {
                runs.insert((worker, run));
            }
            Fact::RunStart { handler: at, key: of, .. } if at == handler && of.as_deref() == Some(key) => {
                others += 1;
            }
            Fact::RunEnd { run, worker, end: RunEnd::Done } if runs.contains(&(worker, run)) => {
                return others;
            }
            _ => {}
        }
    }
    others
}

/// Shows: nothing of the line runs, the other keys go on as if it were not there, and a worker that takes over does not
/// take it into memory. What waits for the hour is left, counted, and given up with the store.
async fn blocked_head(scene: &mut Scene) -> Vec<Node> {
    let behind = match scene.medium {
        // A line as long as the prefetch of its queue stops the other keys of that queue, as its README says.
        Medium::RabbitMq => 700,
        _ => scene.pace.size(2_000, 10_000, 100_000),
    };
    let one = scene.worker().await;
    let head = scene.scripted("blocked", [Act::FailFor(Duration::from_secs(3_600))]);
    let head_number = head.number;
    scene.fleet.publish(std::slice::from_ref(&head)).await;
    scene.fleet.until(|facts| failures(facts, head_number) == 1).await;
    let line: Vec<_> = (0..behind).map(|_| scene.note("blocked").read_by(FIRST)).collect();
    scene.publish_in_parts(&line).await;
    let url = scene.store.url.clone();
    let publisher = scene.publisher(&url, scene.pace.size(90, 300, 900), &[]);
    scene.until_more(30).await;
    let two = scene.worker().await;
    one.kill().await;
    publisher.ended().await;
    scene.leaves = behind + 1;
    scene.rest().await;
    let events: HashSet<_> = line.iter().map(|note| note.number).chain([head_number]).collect();
    let begun =
        scene.fleet.count(|fact| matches!(fact, Fact::RunStart { event, .. } if events.contains(event)));
    assert_eq!(begun, 1, "something of a blocked key runs");
    assert_eq!(scene.left_of(FIRST).await, behind + 1, "a part of the line is gone");
    bounded(scene, &two);
    two.stop().await;
    scene.give_up(FIRST, events);
    Vec::new()
}

/// The worker's memory does not grow with the backlog.
fn bounded(scene: &mut Scene, worker: &Node) {
    let memory = worker.most_memory();
    assert!(memory < MOST_MEMORY, "a worker took {} MiB", memory >> 20);
    scene.remark(format!("a worker took at most {} MiB", memory >> 20));
}

/// Shows: while nothing succeeds, failures are stored and repeated at their pace, a worker that dies loses none of them,
/// memory stays bounded, and when all is well again everything drains in order.
async fn downstream_outage(scene: &mut Scene) -> Vec<Node> {
    const ATTEMPTS: u32 = 100_000;
    for handler in [FIRST, SECOND] {
        scene.rules(handler).max_attempts = ATTEMPTS;
    }
    let directory = tempfile::tempdir().unwrap();
    let outage = directory.path().join("outage");
    std::fs::write(&outage, "").unwrap();
    let outage = outage.to_str().unwrap();
    let attempts = ATTEMPTS.to_string();
    let options = ["--outage", outage, "--max-attempts", &*attempts, "--backoff-ms", "200"];
    let count = scene.pace.size(300, 5_000, 20_000);
    let one = scene.worker_with(&options).await;
    let notes = scene.notes(count, count / 5, Duration::ZERO);
    scene.publish_in_parts(&notes).await;
    until_failed(scene, 200).await;
    let two = scene.worker_with(&options).await;
    one.kill().await;
    until_failed(scene, 200).await;
    // Whatever else there was before the outage of a scene is done: nothing of this can be.
    let left = scene.left_of(FIRST).await;
    assert!(left >= count, "{left} of {count} are left, though none can have succeeded");
    std::fs::remove_file(outage).unwrap();
    scene.rest().await;
    bounded(scene, &two);
    vec![two]
}

/// Waits for so many more failures.
async fn until_failed(scene: &Scene, count: usize) {
    let is_failure = |fact: &Fact| matches!(fact, Fact::RunEnd { end: RunEnd::Retry { .. }, .. });
    let wanted = scene.fleet.count(is_failure) + count;
    scene.fleet.until(|facts| facts.iter().filter(|fact| is_failure(fact)).count() >= wanted).await;
}

/// Shows: neither a single line nor a line for every event wears a worker out: nothing waits for what has gone, memory stays
/// bounded. The rates are for the reader.
async fn one_key_and_many(scene: &mut Scene) -> Vec<Node> {
    let count = scene.pace.size(300, 10_000, 100_000);
    let mut workers = vec![scene.worker().await, scene.worker().await];
    for keys in [1, count] {
        let notes = scene.notes(count, keys, Duration::ZERO);
        let begun = scene.begun();
        scene.publish_in_parts(&notes).await;
        scene.fleet.until(|facts| started(facts) > begun + notes.len() / 4).await;
        workers.remove(0).kill().await;
        workers.push(scene.worker().await);
        scene.rest().await;
        let rate = rate_of(scene, &notes);
        scene.remark(format!("{rate:.0} a second with {keys} keys"));
    }
    bounded(scene, &workers[0]);
    workers
}

fn started(facts: &[Fact]) -> usize {
    facts.iter().filter(|fact| matches!(fact, Fact::RunStart { .. })).count()
}

/// How many of these ran in a second, from the first start to the last.
fn rate_of(scene: &Scene, notes: &[Note]) -> f64 {
    let events: HashSet<_> = notes.iter().map(|note| note.number).collect();
    let records = scene.fleet.history().records;
    let is_of = |fact: &Fact| matches!(fact, Fact::RunStart { event, .. } if events.contains(event));
    let times: Vec<_> = records.iter().filter(|record| is_of(&record.fact)).map(|record| record.at).collect();
    let (Some(first), Some(last)) = (times.first(), times.last()) else { return 0.0 };
    #[allow(clippy::cast_precision_loss, reason = "for a reader")]
    let rate = times.len() as f64 * 1e9 / (last - first).max(1) as f64;
    rate
}

/// Shows: a key that is refused leaves nothing behind, whatever else is in its call; keys of any other shape are keys like
/// all others; and one key is two lines at two handlers.
async fn keys(scene: &mut Scene) -> Vec<Node> {
    let one = scene.worker().await;
    for key in ["", "a\0b", &*"k".repeat(64 * 1024)] {
        // Not written down: if anything of it runs, it is a phantom.
        let batch = [note(990_000), note(990_001).key(key)];
        let refusal = scene.fleet.bus.publish_all(&batch).await.expect_err("a refusal");
        assert_eq!(refusal.kind(), ErrorKind::InvalidEvent, "{}", event_bus::chain(&refusal));
    }
    let longest = "ä".repeat(256);
    let strange = [
        &*longest,
        "'; drop table delivery; --",
        "{a}:b*c?[d]",
        "#.*.routing",
        "\u{202e}right to left\r\n\t\u{7f}",
        " ",
        "%s%n$1${2}",
        "🦀",
    ];
    let mut notes = Vec::new();
    for round in 0..scene.pace.size(5, 20, 20) {
        for key in strange {
            let acts = if round % 4 == 0 { vec![Act::Fail] } else { Vec::new() };
            notes.push(scene.note(key).acts(acts));
        }
    }
    // The first handler stands before this one, the second goes on.
    let head = scene.note("shared").only_at(FIRST).acts([Act::FailFor(Duration::from_secs(3))]);
    let head_number = head.number;
    notes.push(head);
    let shared: Vec<_> = (0..20).map(|_| scene.note("shared")).collect();
    notes.extend(shared.iter().cloned());
    scene.publish_in_parts(&notes).await;
    let two = scene.worker().await;
    scene.until_more(20).await;
    one.kill().await;
    scene.rest().await;
    let last = shared.last().map(|note| note.number).unwrap();
    assert!(
        precedes(scene, (SECOND, last), (FIRST, head_number)),
        "the second handler has waited for the first one's key"
    );
    vec![two]
}

/// Whether the first of these was done before the second was.
fn precedes(scene: &Scene, first: (&str, u64), second: (&str, u64)) -> bool {
    let mut runs = HashMap::new();
    let mut has_first = false;
    for record in scene.fleet.history().records {
        match record.fact {
            Fact::RunStart { run, worker, handler, event, .. } => {
                runs.insert((worker, run), (handler, event));
            }
            Fact::RunEnd { run, worker, end: RunEnd::Done } => {
                let Some((handler, event)) = runs.get(&(worker, run)) else { continue };
                let done = (&**handler, *event);
                has_first |= done == first;
                if done == second {
                    return has_first;
                }
            }
            _ => {}
        }
    }
    false
}

/// Shows: what is urgent does not stand in line behind what is not, in the store or in a worker, before and after a worker's
/// death.
async fn priorities(scene: &mut Scene) -> Vec<Node> {
    let options = ["--second-priority", "9", "--concurrency", "4"];
    let one = scene.worker_with(&options).await;
    let count = scene.pace.size(400, 1_000, 5_000);
    let (mut worst, mut workers) = (0, vec![one]);
    for round in 0..4 {
        let flood: Vec<_> = (0..count)
            .map(|position| {
                let sleep = Act::Sleep(Duration::from_millis(4));
                scene.note(&format!("f{}", position % 50)).read_by(SECOND).acts([sleep.clone(), sleep])
            })
            .collect();
        scene.publish_in_parts(&flood).await;
        scene.until_more(20).await;
        let urgent = scene.note(&format!("u{round}")).read_by(FIRST);
        let number = urgent.number;
        let before = scene.begun();
        scene.fleet.publish(&[urgent]).await;
        scene.fleet.until(|facts| facts.iter().any(|fact| is_start(fact, number))).await;
        let passed = scene.begun() - before;
        worst = worst.max(passed);
        assert!((passed as u64) < count / 2, "{passed} runs of the flood came before what was urgent");
        if round == 1 {
            workers.push(scene.worker_with(&options).await);
            workers.remove(0).kill().await;
        }
    }
    scene.remark(format!("at most {worst} runs of the flood began between an urgent publish and its run"));
    workers
}

fn is_start(fact: &Fact, number: u64) -> bool {
    matches!(fact, Fact::RunStart { event, .. } if *event == number)
}

//! What befalls the machine around processes and servers: clocks and disks.

use std::collections::HashMap;
use std::time::Duration;

use super::super::medium::Medium;
use super::super::scene::{IDEMPOTENT, Scene};
use super::super::surroundings::{Clock, SmallDisk};
use crate::fleet::Node;
use crate::history::Fact;
use crate::proxy::{Direction, Flow};
use crate::servers::RabbitMq;
use crate::suite::actor::FIRST;

super::rows! {
    // What waits is due by the clock of the store: it comes early when that is put forward.
    "C1" "the wall clock jumps by an hour, ahead and back: a worker's, then the server's" wall_clock, why_not: no_clock, expects: [Early], needs: [ServerClock], fast: [Sqlite, Redis];
    // By a clock that runs fast a delay is shorter.
    "C2" "the clocks of two workers run 5 % slow and 5 % fast; the slow one is parted" clock_rate, why_not: no_clock, expects: [Early];
    "W12" "suspend: a worker's boot-time clock jumps by an hour, its monotonic clock does not" suspended, why_not: no_clock, fast: [Sqlite, Redis];
    "D1" "the disk is full, then it is not (RabbitMQ: its alarm)" disk_full, why_not: no_disk, needs: [SmallDisk], fast: [Sqlite];
}

fn no_clock(_: Medium) -> Option<&'static str> {
    Clock::why_not()
}

fn no_disk(medium: Medium) -> Option<&'static str> {
    if medium == Medium::RabbitMq { None } else { SmallDisk::why_not() }
}

/// A worker whose clocks can be put wrong, with what does so.
async fn worker_by(scene: &mut Scene, clock: &Clock, url: &str) -> Node {
    let through = clock.through();
    let through: Vec<_> = through.iter().map(|word| &**word).collect();
    scene.fleet.worker_through(&through, url, &[]).await
}

/// Shows: nobody takes or loses a right by the wall clock, ids and attempts stay in order, and nothing that waits is lost.
async fn wall_clock(scene: &mut Scene) -> Vec<Node> {
    let clock = Clock::new();
    let url = scene.store.url.clone();
    let one = worker_by(scene, &clock, &url).await;
    let two = scene.worker().await;
    let publisher = scene.publisher(&url, scene.pace.size(300, 900, 900), &["--acts-of", "5", IDEMPOTENT]);
    // Nobody is in doubt over this.
    for seconds in [3_600, -3_600, 0] {
        clock.set_wall(seconds);
        scene.until_busy(&one, 20).await;
    }
    let numbers = [one.number, two.number];
    if scene.medium.has_server() {
        for seconds in [3_600, -3_600, 0] {
            let server = scene.surroundings.clock.as_ref().expect("a server with a clock");
            // A server that ends silent sessions by its wall clock ends them now.
            let jump = async {
                server.set_wall(seconds);
                scene.until_more(40).await;
            };
            scene.in_doubt(&numbers, jump).await;
        }
    }
    scene.in_doubt(&numbers, publisher.ended()).await;
    vec![one, two]
}

/// Shows: a right that a slow clock measures too long and a fast one too short is still nobody's twice.
async fn clock_rate(scene: &mut Scene) -> Vec<Node> {
    let clocks = [Clock::new(), Clock::new()];
    clocks[0].set_rate(-50_000);
    clocks[1].set_rate(50_000);
    let url = scene.store.url.clone();
    if !scene.medium.has_server() {
        let workers =
            vec![worker_by(scene, &clocks[0], &url).await, worker_by(scene, &clocks[1], &url).await];
        scene.publisher(&url, 300, &["--acts-of", "6"]).ended().await;
        scene.rest().await;
        for worker in workers {
            worker.stop().await;
        }
        return Vec::new();
    }
    let proxy = scene.proxy().await;
    let slow = worker_by(scene, &clocks[0], &proxy.url(&url)).await;
    let fast = worker_by(scene, &clocks[1], &url).await;
    let publisher = scene.publisher(&url, 600, &["--acts-of", "6", IDEMPOTENT]);
    scene.until_busy(&slow, 10).await;
    let lasts = scene.medium.lease() * 2;
    scene
        .in_doubt(&[slow.number], async {
            for direction in [Direction::ToServer, Direction::ToClient] {
                proxy.set(direction, Flow::BlackHole);
                tokio::time::sleep(lasts).await;
                proxy.pass();
                scene.until_more(10).await;
            }
        })
        .await;
    publisher.ended().await;
    scene.rest().await;
    for worker in [slow, fast] {
        worker.stop().await;
    }
    Vec::new()
}

/// Shows: a worker that has slept for an hour, as far as its boot-time clock can tell, trusts none of its rights from before,
/// although its other clocks say that no time has passed.
async fn suspended(scene: &mut Scene) -> Vec<Node> {
    let clock = Clock::new();
    let url = scene.store.url.clone();
    let one = worker_by(scene, &clock, &url).await;
    let two = scene.worker().await;
    let publisher = scene.publisher(&url, scene.pace.size(240, 600, 600), &["--acts-of", "7", IDEMPOTENT]);
    for hours in 1..=2 {
        scene.until_busy(&one, 20).await;
        let before = fences(scene, one.number, 0);
        one.stall(Duration::from_millis(100)).await;
        let at = scene.fleet.history().records.last().map_or(0, |record| record.at);
        clock.set_slept(Duration::from_secs(hours * 3_600));
        let wakes = async {
            one.thaw();
            scene.until_more(40).await;
        };
        scene.in_doubt(&[one.number], wakes).await;
        // Of the backends whose rights run out by time and whose fences tell one right from the next.
        if matches!(scene.medium, Medium::Postgres | Medium::Redis) {
            for (key, fence) in fences(scene, one.number, at) {
                let known = before.get(&key).copied().unwrap_or(0);
                assert!(fence > known, "key {key} ran under the right from before the sleep (fence {fence})");
            }
        }
    }
    publisher.ended().await;
    vec![one, two]
}

/// The least fence under which a worker has started runs of each key of the first handler since then; up to then the
/// greatest.
fn fences(scene: &Scene, number: u32, since: u64) -> HashMap<String, u64> {
    let mut fences = HashMap::new();
    for record in scene.fleet.history().records {
        if let Fact::RunStart { worker, handler, key: Some(key), fence, .. } = record.fact
            && worker == number
            && handler == FIRST
            && record.at > since
        {
            let known = fences.entry(key).or_insert(fence);
            *known = if since == 0 { fence.max(*known) } else { fence.min(*known) };
        }
    }
    fences
}

/// Shows: what cannot be stored is refused, nothing that was acknowledged is lost, and all goes on when there is room again.
async fn disk_full(scene: &mut Scene) -> Vec<Node> {
    let workers = vec![scene.worker().await, scene.worker().await];
    let numbers: Vec<_> = workers.iter().map(|worker| worker.number).collect();
    let url = scene.store.url.clone();
    let publisher = scene.publisher(&url, 300, &["--acts-of", "8", IDEMPOTENT]);
    scene.until_more(30).await;
    let refused = is_refused(scene);
    // Large ones of keys of their own, so that the room that is left in the store's files is soon used up.
    let large: Vec<_> = (0..400)
        .map(|position| {
            let mut note = scene.note(&format!("large{}", position % 8)).read_by(FIRST);
            note.text = "x".repeat(200_000);
            note
        })
        .collect();
    let full = async {
        fill(scene).await;
        for note in &large {
            scene.fleet.publish(std::slice::from_ref(note)).await;
            if is_refused(scene) > refused {
                break;
            }
        }
        assert!(
            is_refused(scene) > refused,
            "nothing is refused though the disk is full: the row shows nothing"
        );
        free(scene).await;
        publisher.ended().await;
        scene.rest().await;
    };
    scene.in_doubt(&numbers, full).await;
    workers
}

/// How many calls were not answered with Ok.
fn is_refused(scene: &Scene) -> usize {
    scene.fleet.count(|fact| matches!(fact, Fact::PublishErr { .. } | Fact::PublishUnknown { .. }))
}

async fn fill(scene: &Scene) {
    match &scene.surroundings.disk {
        Some(disk) => disk.fill(),
        // More than any disk has: the alarm goes off.
        None => drop(scene.store.engine::<RabbitMq>().control(&["set_disk_free_limit", "100000GB"]).await),
    }
}

async fn free(scene: &Scene) {
    match &scene.surroundings.disk {
        Some(disk) => disk.free(),
        None => drop(scene.store.engine::<RabbitMq>().control(&["set_disk_free_limit", "50MB"]).await),
    }
    // Postgres ends when it cannot write its log, and somebody has to start it again.
    if scene.medium == Medium::Postgres {
        scene.store.server().restart().await;
    }
}

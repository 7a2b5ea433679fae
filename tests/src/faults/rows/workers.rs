//! What befalls workers.

use std::time::Duration;

use super::super::scene::Scene;
use crate::fleet::Node;
use crate::proxy::{Direction, Flow};
use crate::suite::Act;

super::rows! {
    "W1" "kill -9 of a worker in mid-run" killed_in_mid_run, fast: [Sqlite, Postgres, Redis, RabbitMq];
    "W2" "kill -9 between success and its acknowledgement" killed_before_it_settled, fast: [Sqlite, Postgres, Redis, RabbitMq];
    "W3" "kill -9 with all that was claimed, ten times in a row" killed_ten_times, fast: [Sqlite];
    "W4" "a delivery that aborts its process" poison, fast: [Sqlite, Postgres, Redis, RabbitMq];
    "W5" "drain, with a run that takes longer than the grace" drained, fast: [Sqlite, Postgres, Redis, RabbitMq];
    "W6" "rolling restart of five workers under load" rolling_restart, fast: [Sqlite, Redis];
    "W7" "workers come and go: 2, 5, 2" coming_and_going, fast: [Sqlite, Postgres, Redis, RabbitMq];
    "W8" "SIGSTOP for half a lease, one, three" stopped, fast: [Sqlite, Redis];
    "W9" "SIGSTOP for three leases, in a handler that does not await" stopped_in_a_block, expects: [Overlap], fast: [Sqlite, Redis];
    "W10" "handlers that block all threads for more than a lease" starved, expects: [Overlap], fast: [Sqlite, Redis];
    "W11" "panics, and runs beyond their time limit" panics_and_timeouts, fast: [Sqlite, Postgres, Redis, RabbitMq];
    "P6" "kill -9 of workers whose handlers publish" publishing_handlers, fast: [Sqlite, Postgres, Redis, RabbitMq];
}

async fn killed_in_mid_run(scene: &mut Scene) -> Vec<Node> {
    let one = scene.worker().await;
    let notes = scene.notes(100, 8, Duration::from_millis(5));
    scene.fleet.publish(&notes).await;
    scene.fleet.until_begun(&one, 10).await;
    let two = scene.worker().await;
    let notes = scene.notes(100, 8, Duration::from_millis(5));
    scene.fleet.publish(&notes).await;
    scene.until_busy(&one, 3).await;
    one.kill().await;
    vec![two]
}

async fn killed_before_it_settled(scene: &mut Scene) -> Vec<Node> {
    // Enough that some are left whenever the store falls silent.
    let notes = scene.notes(400, 8, Duration::from_millis(20));
    if !scene.medium.has_server() {
        let one = scene.worker().await;
        scene.fleet.publish(&notes).await;
        scene.fleet.until_begun(&one, 10).await;
        let lock = super::sqlite::write_lock(scene).await;
        // Runs end, and what they came to cannot be stored.
        scene.until_more(4).await;
        one.kill().await;
        drop(lock);
        return vec![scene.worker().await];
    }
    let proxy = scene.proxy().await;
    let one = scene.worker_behind(&proxy).await;
    scene.fleet.publish(&notes).await;
    scene.fleet.until_begun(&one, 10).await;
    proxy.set(Direction::ToServer, Flow::BlackHole);
    scene.until_more(4).await;
    one.kill().await;
    proxy.cut();
    vec![scene.worker().await]
}

async fn killed_ten_times(scene: &mut Scene) -> Vec<Node> {
    let notes = scene.notes(400, 10, Duration::from_millis(2));
    scene.fleet.publish(&notes).await;
    for _ in 0..10 {
        let worker = scene.worker().await;
        scene.fleet.until_begun(&worker, 10).await;
        worker.kill().await;
    }
    vec![scene.worker().await]
}

async fn poison(scene: &mut Scene) -> Vec<Node> {
    let mut notes = scene.notes(60, 6, Duration::from_millis(2));
    let poison = scene.scripted("s3", [Act::Abort, Act::Abort, Act::Abort, Act::Abort]);
    notes.insert(30, poison);
    scene.fleet.publish(&notes).await;
    let mut workers = [scene.worker().await, scene.worker().await];
    while !scene.fleet.is_at_rest().await {
        for worker in &mut workers {
            if worker.has_ended() {
                *worker = scene.worker().await;
            }
        }
    }
    workers.into()
}

async fn drained(scene: &mut Scene) -> Vec<Node> {
    let url = scene.store.url.clone();
    let one = scene.fleet.worker_at(&url, &["--grace-ms", "200"]).await;
    let mut notes = scene.notes(100, 5, Duration::from_millis(5));
    let long = scene.scripted("long", [Act::Sleep(Duration::from_secs(2)), Act::Succeed]);
    notes.insert(0, long);
    scene.fleet.publish(&notes).await;
    scene.fleet.until_begun(&one, 10).await;
    one.stop().await;
    vec![scene.worker().await]
}

async fn rolling_restart(scene: &mut Scene) -> Vec<Node> {
    let mut workers = Vec::new();
    for _ in 0..5 {
        workers.push(scene.worker().await);
    }
    let url = scene.store.url.clone();
    let publisher = scene.publisher(&url, scene.pace.size(300, 600, 600), &["--acts-of", "1"]);
    for _ in 0..5 {
        scene.until_more(40).await;
        workers.remove(0).stop().await;
        workers.push(scene.worker().await);
    }
    publisher.ended().await;
    workers
}

async fn coming_and_going(scene: &mut Scene) -> Vec<Node> {
    let mut workers = vec![scene.worker().await, scene.worker().await];
    let url = scene.store.url.clone();
    let events = scene.pace.size(210, 450, 450);
    let publishers = [1, 2].map(|_| scene.publisher(&url, events, &[]));
    for _ in 0..3 {
        scene.until_more(40).await;
        workers.push(scene.worker().await);
    }
    for _ in 0..3 {
        scene.until_more(40).await;
        workers.remove(0).stop().await;
    }
    for publisher in publishers {
        publisher.ended().await;
    }
    workers
}

async fn stopped(scene: &mut Scene) -> Vec<Node> {
    let one = scene.worker().await;
    let two = scene.worker().await;
    for leases in [0.5, 1.0, 3.0] {
        let notes = scene.notes(80, 8, Duration::from_millis(5));
        scene.fleet.publish(&notes).await;
        scene.until_more(10).await;
        stall(scene, &one, scene.medium.lease().mul_f32(leases)).await;
        scene.rest().await;
    }
    vec![one, two]
}

/// A process stands for so long.
async fn stall(scene: &Scene, worker: &Node, lasts: Duration) {
    worker.stall(lasts).await;
    tokio::time::sleep(lasts).await;
    let number = [worker.number];
    scene.in_doubt(&number, async { worker.thaw() }).await;
}

async fn stopped_in_a_block(scene: &mut Scene) -> Vec<Node> {
    let one = scene.worker().await;
    let mut notes = scene.notes(40, 8, Duration::from_millis(5));
    for number in 0..4 {
        let block = Act::Block(Duration::from_millis(400));
        notes.insert(0, scene.scripted(&format!("b{number}"), [block, Act::Succeed]));
    }
    scene.fleet.publish(&notes).await;
    scene.fleet.until_begun(&one, 2).await;
    let two = scene.worker().await;
    stall(scene, &one, scene.medium.lease() * 3).await;
    vec![one, two]
}

async fn starved(scene: &mut Scene) -> Vec<Node> {
    let one = scene.worker().await;
    let mut notes = scene.notes(40, 8, Duration::from_millis(2));
    let lasts = scene.medium.lease().mul_f32(1.3);
    for number in 0..4 {
        notes.insert(0, scene.scripted(&format!("b{number}"), [Act::Block(lasts), Act::Succeed]));
    }
    scene.fleet.publish(&notes).await;
    scene.fleet.until_begun(&one, 2).await;
    let two = scene.worker().await;
    // Both of its threads stand; each of the workers may get such a delivery.
    scene.in_doubt(&[one.number, two.number], scene.rest()).await;
    // A run that lost its right may still block, although another one has done the same in its place.
    tokio::time::sleep(lasts).await;
    vec![one, two]
}

async fn panics_and_timeouts(scene: &mut Scene) -> Vec<Node> {
    let url = scene.store.url.clone();
    let one = scene.fleet.worker_at(&url, &["--timeout-ms", "150"]).await;
    let two = scene.fleet.worker_at(&url, &["--timeout-ms", "150"]).await;
    let mut notes = scene.notes(60, 6, Duration::from_millis(2));
    notes.push(scene.scripted("s1", [Act::Panic, Act::Hang, Act::Succeed]));
    notes.push(scene.scripted("s2", [Act::Hang, Act::Hang, Act::Hang, Act::Hang]));
    notes.push(scene.scripted("s3", [Act::Panic, Act::Panic, Act::Panic, Act::Panic]));
    notes.extend(scene.notes(60, 6, Duration::from_millis(2)));
    scene.fleet.publish(&notes).await;
    vec![one, two]
}

async fn publishing_handlers(scene: &mut Scene) -> Vec<Node> {
    let one = scene.worker().await;
    for _ in 0..10 {
        let notes: Vec<_> =
            (0..10).map(|n| scene.scripted(&format!("p{n}"), [Act::Publish(2), Act::Publish(2)])).collect();
        scene.fleet.publish(&notes).await;
    }
    let two = scene.worker().await;
    scene.until_more(20).await;
    one.kill().await;
    vec![two]
}

//! What befalls connections.

use std::time::Duration;

use super::super::scene::{IDEMPOTENT, Scene};
use super::super::surroundings::Namespace;
use super::{without_idempotency_keys, without_server};
use crate::fleet::Node;
use crate::proxy::{Direction, Flow, Proxy, Sign, Then};

super::rows! {
    "N1" "connections are cut at random instants, publisher and worker" cut_at_random, why_not: without_server, fast: [Redis];
    "N2" "cut when a publish has left, before its answer; published again under its idempotency key" cut_after_publish, why_not: without_idempotency_keys, fast: [Postgres, Redis];
    "N3" "a worker's requests are held and arrive after others have taken over" held_requests, why_not: without_server, fast: [Redis];
    "N4" "one worker in a black hole for three leases" black_hole, why_not: without_server, fast: [Redis];
    "N5" "a black hole in one direction, then in the other" half_a_black_hole, why_not: without_server;
    "N6" "200 ms of delay; 16 KB/s; 2 % of packets lost" slow, why_not: without_server;
    "N7" "one worker is parted from the server, the other is not" parted, why_not: without_server, fast: [Redis];
    "N8" "fifty processes connect again at once" storm, why_not: without_server;
}

async fn cut_at_random(scene: &mut Scene) -> Vec<Node> {
    let proxy = scene.proxy().await;
    let workers = vec![scene.worker_behind(&proxy).await, scene.worker_behind(&proxy).await];
    let url = proxy.url(&scene.store.url);
    let events = scene.pace.size(150, 600, 600);
    let mut publisher = scene.publisher(&url, events, &["--acts-of", "2", IDEMPOTENT]);
    let numbers: Vec<_> = workers.iter().map(|worker| worker.number).collect();
    let mut random = scene.random.fork();
    let cuts = async {
        while !publisher.has_ended() {
            tokio::time::sleep(Duration::from_millis(random.u64(100..600))).await;
            proxy.cut();
        }
    };
    scene.in_doubt(&numbers, cuts).await;
    scene.rest().await;
    settle(scene, &proxy, workers).await
}

/// Ends the workers while their connections stand: the proxy goes with the row.
async fn settle(scene: &Scene, proxy: &Proxy, workers: Vec<Node>) -> Vec<Node> {
    proxy.pass();
    scene.rest().await;
    for worker in workers {
        worker.stop().await;
    }
    Vec::new()
}

async fn cut_after_publish(scene: &mut Scene) -> Vec<Node> {
    let proxy = scene.proxy().await;
    let worker = scene.worker().await;
    let url = proxy.url(&scene.store.url);
    let mut publisher = scene.publisher(&url, 45, &[IDEMPOTENT]);
    while !publisher.has_ended() {
        // The name of the event is in every request that publishes one.
        let trap = proxy.trap(Direction::ToServer, Sign::Contains(b"suite.note".to_vec()), Then::Cut);
        tokio::select! {
            () = trap.sprung() => {}
            () = until_ended(&mut publisher) => break,
        }
        // The next attempt may be slow to come; it shall get through.
        let known = scene.published();
        while scene.published() == known && !publisher.has_ended() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    publisher.ended().await;
    vec![worker]
}

async fn until_ended(node: &mut Node) {
    while !node.has_ended() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn held_requests(scene: &mut Scene) -> Vec<Node> {
    let proxy = scene.proxy().await;
    let one = scene.worker_behind(&proxy).await;
    let notes = scene.notes(150, 8, Duration::from_millis(5));
    scene.fleet.publish(&notes).await;
    scene.fleet.until_begun(&one, 10).await;
    let two = scene.worker().await;
    let held = async {
        let traps: Vec<_> = (0..proxy.connections())
            .map(|_| proxy.trap(Direction::ToServer, Sign::Bytes(1), Then::Hold))
            .collect();
        drop(traps);
        // The other takes over, and goes on with newer things.
        scene.rest().await;
        proxy.release();
    };
    scene.in_doubt(&[one.number], held).await;
    let notes = scene.notes(50, 8, Duration::from_millis(2));
    scene.fleet.publish(&notes).await;
    settle(scene, &proxy, vec![one, two]).await
}

/// One worker behind a proxy that is spoiled for a while, one beside it, and events all the time.
async fn spoil(scene: &mut Scene, how: impl AsyncFnOnce(&Proxy)) -> Vec<Node> {
    let proxy = scene.proxy().await;
    let one = scene.worker_behind(&proxy).await;
    let notes = scene.notes(150, 8, Duration::from_millis(5));
    scene.fleet.publish(&notes).await;
    scene.fleet.until_begun(&one, 10).await;
    let two = scene.worker().await;
    let url = scene.store.url.clone();
    let publisher = scene.publisher(&url, 150, &[]);
    scene.until_more(10).await;
    scene
        .in_doubt(&[one.number], async {
            how(&proxy).await;
            proxy.pass();
        })
        .await;
    publisher.ended().await;
    settle(scene, &proxy, vec![one, two]).await
}

async fn black_hole(scene: &mut Scene) -> Vec<Node> {
    let lasts = scene.medium.lease() * 3;
    spoil(scene, async |proxy| {
        proxy.set_both(Flow::BlackHole);
        tokio::time::sleep(lasts).await;
    })
    .await
}

async fn half_a_black_hole(scene: &mut Scene) -> Vec<Node> {
    let lasts = scene.medium.lease() * 2;
    spoil(scene, async |proxy| {
        for direction in [Direction::ToServer, Direction::ToClient] {
            proxy.set(direction, Flow::BlackHole);
            tokio::time::sleep(lasts).await;
            proxy.pass();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })
    .await
}

/// Shows: a worker that the network has cut off from the server stops, the other takes over, and neither does what the other
/// does.
async fn parted(scene: &mut Scene) -> Vec<Node> {
    let lasts = scene.medium.lease() * 2;
    if let Some(why) = Namespace::why_not() {
        scene.remark(format!("by a proxy: {why}"));
        return spoil(scene, async |proxy| {
            proxy.refuse();
            proxy.set_both(Flow::BlackHole);
            tokio::time::sleep(lasts).await;
        })
        .await;
    }
    scene.remark("in a network namespace that loses every packet");
    let namespace = Namespace::new();
    let proxy = Proxy::start_at(namespace.address(), &scene.store.server().host()).await;
    let url = proxy.url(&scene.store.url);
    let one = scene.fleet.worker_through(&namespace.through(), &url, &[]).await;
    let notes = scene.notes(150, 8, Duration::from_millis(5));
    scene.fleet.publish(&notes).await;
    scene.fleet.until_begun(&one, 10).await;
    let two = scene.worker().await;
    let url = scene.store.url.clone();
    let publisher = scene.publisher(&url, 150, &[]);
    scene.until_more(10).await;
    scene
        .in_doubt(&[one.number], async {
            namespace.lose("1.0").unwrap();
            tokio::time::sleep(lasts).await;
            namespace.heal().unwrap();
        })
        .await;
    publisher.ended().await;
    settle(scene, &proxy, vec![one, two]).await
}

/// Shows: a slow network, and one that loses packets, only make everything slower. Nobody loses anything over this: it is not
/// written down that they may.
async fn slow(scene: &mut Scene) -> Vec<Node> {
    let namespace = match Namespace::why_not() {
        None => Some(Namespace::new()),
        Some(why) => {
            scene.remark(format!("without lost packets: {why}"));
            None
        }
    };
    let target = scene.store.server().host();
    let proxy = match &namespace {
        Some(namespace) => Proxy::start_at(namespace.address(), &target).await,
        None => Proxy::start(&target).await,
    };
    let through = namespace.as_ref().map(Namespace::through);
    let through = through.as_ref().map_or(&[][..], |words| words);
    let url = proxy.url(&scene.store.patient_url);
    let one = scene.fleet.worker_through(through, &url, &[]).await;
    let two = scene.fleet.worker_through(through, &url, &[]).await;
    scene.rest().await;
    let delay = Flow::Delay { delay: Duration::from_millis(200), jitter: Duration::from_millis(20) };
    for flow in [delay, Flow::Throttle { bytes_per_second: 16_000 }] {
        proxy.set(Direction::ToServer, flow);
        scene.publisher(&url, 30, &[]).ended().await;
        scene.rest().await;
    }
    proxy.pass();
    if let Some(namespace) = &namespace {
        scene.remark("2 % of all packets lost in a network namespace");
        namespace.lose("0.02").unwrap();
        scene.publisher(&url, 90, &[]).ended().await;
        scene.rest().await;
        namespace.heal().unwrap();
    }
    settle(scene, &proxy, vec![one, two]).await
}

async fn storm(scene: &mut Scene) -> Vec<Node> {
    let mut workers = Vec::new();
    // So many processes are slow on a small machine: with short leases they would lose them over nothing.
    let url = scene.store.patient_url.clone();
    for _ in 0..50 {
        workers.push(scene.fleet.worker_at(&url, &[]).await);
    }
    let numbers: Vec<_> = workers.iter().map(|worker| worker.number).collect();
    let server = async {
        let server = scene.store.server();
        server.kill().await;
        server.restart().await;
    };
    scene.in_doubt(&numbers, server).await;
    let notes = scene.notes(100, 20, Duration::from_millis(2));
    scene.fleet.publish(&notes).await;
    scene.in_doubt(&numbers, scene.rest()).await;
    workers
}

//! Everything, at random.

use std::time::{Duration, Instant};

use super::super::scene::{IDEMPOTENT, Scene};
use crate::fleet::Node;
use crate::proxy::{Flow, Proxy};

super::rows! {
    "X3" "everything at random, for --minutes" at_random, fast: [Sqlite, Redis];
}

async fn at_random(scene: &mut Scene) -> Vec<Node> {
    let proxy = if scene.medium.has_server() { Some(scene.proxy().await) } else { None };
    let url = proxy.as_ref().map_or_else(|| scene.store.url.clone(), |proxy| proxy.url(&scene.store.url));
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(scene.fleet.worker_at(&url, &[]).await);
    }
    let mut publishers: Vec<Node> = Vec::new();
    let mut random = scene.random.fork();
    let until = Instant::now() + scene.pace.lasts;
    while Instant::now() < until {
        publishers.retain_mut(|publisher| !publisher.has_ended());
        while publishers.len() < 2 {
            let seed = random.u64(..).to_string();
            publishers.push(scene.publisher(&url, 300, &["--acts-of", &seed, IDEMPOTENT]));
        }
        tokio::time::sleep(Duration::from_millis(random.u64(20..400))).await;
        if let Some(proxy) = proxy.as_ref().filter(|_| random.bool()) {
            let numbers: Vec<_> = workers.iter().map(|worker| worker.number).collect();
            scene.in_doubt(&numbers, spoil(scene, proxy, &mut random)).await;
        } else {
            let chosen = random.usize(..workers.len());
            befall(scene, &url, &mut workers, chosen, &mut random).await;
        }
    }
    for publisher in publishers {
        publisher.ended().await;
    }
    scene.rest().await;
    for worker in workers {
        worker.stop().await;
    }
    Vec::new()
}

/// Something happens to one worker, and there are three again.
async fn befall(
    scene: &mut Scene,
    url: &str,
    workers: &mut Vec<Node>,
    chosen: usize,
    random: &mut fastrand::Rng,
) {
    match random.u32(0..3) {
        0 => {
            workers.swap_remove(chosen).kill().await;
            workers.push(scene.fleet.worker_at(url, &[]).await);
        }
        1 => {
            workers.swap_remove(chosen).stop().await;
            workers.push(scene.fleet.worker_at(url, &[]).await);
        }
        _ => {
            let lasts = scene.medium.lease().mul_f32(random.f32() * 1.5);
            workers[chosen].stall(lasts).await;
            tokio::time::sleep(lasts).await;
            scene.in_doubt(&[workers[chosen].number], async { workers[chosen].thaw() }).await;
        }
    }
}

/// Something happens to the connections of all, or to the server.
async fn spoil(scene: &Scene, proxy: &Proxy, random: &mut fastrand::Rng) {
    let lasts = scene.medium.lease().mul_f32(random.f32() * 1.5);
    let server = scene.store.server();
    match random.u32(0..6) {
        0 | 1 => proxy.cut(),
        2 => {
            proxy.set_both(Flow::BlackHole);
            tokio::time::sleep(lasts).await;
            proxy.pass();
        }
        3 => {
            proxy.refuse();
            proxy.cut();
            tokio::time::sleep(lasts).await;
            proxy.pass();
        }
        4 => {
            server.kill().await;
            server.restart().await;
        }
        _ => {
            server.pause().await;
            tokio::time::sleep(lasts).await;
            server.resume().await;
        }
    }
}

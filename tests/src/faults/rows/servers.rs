//! What befalls servers.

use std::time::Duration;

use super::super::scene::{IDEMPOTENT, Scene};
use super::without_server;
use crate::fleet::Node;

super::rows! {
    "S1" "kill -9 of the server, ten times under load" killed, why_not: without_server, fast: [Redis];
    "S2" "clean restart of the server under load" restarted, why_not: without_server, fast: [Redis];
    "S3" "SIGSTOP of the server for two leases" stopped, why_not: without_server;
    "S4" "the server is down when workers start" down_at_start, why_not: without_server, fast: [Postgres, Redis];
}

/// Two workers and a publisher, and something that befalls their server meanwhile.
pub(super) async fn under_load(scene: &mut Scene, fault: impl AsyncFnOnce(&Scene)) -> Vec<Node> {
    let workers = vec![scene.worker().await, scene.worker().await];
    let url = scene.store.url.clone();
    let events = scene.pace.size(240, 900, 900);
    let publisher = scene.publisher(&url, events, &["--acts-of", "3", IDEMPOTENT]);
    scene.until_more(20).await;
    let numbers: Vec<_> = workers.iter().map(|worker| worker.number).collect();
    scene.in_doubt(&numbers, fault(scene)).await;
    // Whoever still waits to connect again must know by then; it runs nothing meanwhile.
    scene.in_doubt(&numbers, publisher.ended()).await;
    workers
}

async fn killed(scene: &mut Scene) -> Vec<Node> {
    let mut random = scene.random.fork();
    let kills = scene.pace.size(2, 10, 10);
    under_load(scene, async |scene| {
        for _ in 0..kills {
            tokio::time::sleep(Duration::from_millis(random.u64(50..500))).await;
            scene.store.server().kill().await;
            scene.store.server().restart().await;
        }
    })
    .await
}

async fn restarted(scene: &mut Scene) -> Vec<Node> {
    under_load(scene, async |scene| {
        scene.store.server().stop().await;
        scene.store.server().restart().await;
    })
    .await
}

async fn stopped(scene: &mut Scene) -> Vec<Node> {
    let lasts = scene.medium.lease() * 2;
    under_load(scene, async |scene| {
        scene.store.server().pause().await;
        tokio::time::sleep(lasts).await;
        scene.store.server().resume().await;
    })
    .await
}

async fn down_at_start(scene: &mut Scene) -> Vec<Node> {
    let notes = scene.notes(50, 5, Duration::from_millis(2));
    scene.fleet.publish(&notes).await;
    scene.store.server().stop().await;
    let url = scene.store.url.clone();
    // They do not say that they have started while they cannot.
    let workers = vec![scene.fleet.start_at(&url, &["--work"]), scene.fleet.start_at(&url, &["--work"])];
    let publisher = scene.publisher(&url, 60, &[IDEMPOTENT]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.store.server().restart().await;
    publisher.ended().await;
    scene.rest().await;
    workers
}

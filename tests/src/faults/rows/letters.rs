//! What befalls dead letters.

use std::time::Duration;

use super::super::scene::Scene;
use crate::fleet::Node;
use crate::history::Fact;
use crate::suite::actor::FIRST;

super::rows! {
    "X2" "dead letters are replayed while others run; kill -9 of who replays, and of a worker" replayed, fast: [Sqlite, Redis];
}

/// Shows: each dead letter is replayed once, whatever dies meanwhile, in the order of its key; nothing of it is lost; and who
/// publishes and works meanwhile is not held up.
async fn replayed(scene: &mut Scene) -> Vec<Node> {
    let count = scene.pace.size(200, 2_000, 10_000);
    let undertaker = scene.worker_with(&["--discards"]).await;
    let notes = scene.notes(count, 50, Duration::ZERO);
    scene.publish_in_parts(&notes).await;
    scene.rest().await;
    undertaker.stop().await;
    let letters = scene.fleet.dead_letters().await;
    assert!(letters.len() as u64 >= count, "{} dead letters", letters.len());
    for letter in &letters {
        // They are replayed in the order in which they were published.
        scene.fleet.ledger.write(Fact::Replay { handler: letter.handler.clone(), event: letter.event });
    }
    let url = scene.store.url.clone();
    let one = scene.worker().await;
    let publisher = scene.publisher(&url, scene.pace.size(90, 300, 300), &[]);
    let mut replayer = scene.fleet.start_at(&url, &["--replay"]);
    for _ in 0..3 {
        let before = scene.dead_of(FIRST).await;
        while scene.dead_of(FIRST).await == before && before > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        replayer.kill_publisher();
        replayer = scene.fleet.start_at(&url, &["--replay"]);
    }
    let two = scene.worker().await;
    one.kill().await;
    replayer.ended().await;
    publisher.ended().await;
    scene.rest().await;
    assert_eq!(scene.dead_of(FIRST).await, 0, "dead letters are left");
    vec![two]
}

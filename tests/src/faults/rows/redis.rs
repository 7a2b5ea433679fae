//! What befalls Redis alone.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::super::scene::Scene;
use super::not_redis;
use super::servers::under_load;
use crate::fleet::Node;
use crate::servers::Redis;

super::rows! {
    "R1" "scripts are flushed, clients are killed, the server is out of memory" harassed, why_not: not_redis;
    "R4" "a server that does not keep what it acknowledges is refused" forgetful, why_not: not_redis;
}

/// Says something to the server and waits until it has answered.
async fn say(scene: &Scene, command: &str) -> String {
    let mut stream = TcpStream::connect(scene.store.server().host()).await.unwrap();
    stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(!answer.starts_with('-'), "{command}: {answer}");
    answer
}

async fn harassed(scene: &mut Scene) -> Vec<Node> {
    let mut random = scene.random.fork();
    under_load(scene, async |scene| {
        for _ in 0..30 {
            match random.u32(0..4) {
                0 | 1 => drop(say(scene, "SCRIPT FLUSH").await),
                2 => drop(say(scene, "CLIENT KILL TYPE normal SKIPME yes").await),
                _ => {
                    say(scene, "CONFIG SET maxmemory 1mb").await;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    say(scene, "CONFIG SET maxmemory 0").await;
                }
            }
            tokio::time::sleep(Duration::from_millis(random.u64(20..200))).await;
        }
    })
    .await
}

async fn forgetful(scene: &mut Scene) -> Vec<Node> {
    for setting in [("appendonly", "no"), ("maxmemory-policy", "allkeys-lru")] {
        let server = Redis::start(&[setting]).await;
        let url = format!("{}?bus=faults", server.url());
        let worker = scene.fleet.start_at(&url, &["--work"]);
        assert!(worker.fails().await, "a worker starts on a server with {setting:?}");
    }
    vec![scene.worker().await]
}

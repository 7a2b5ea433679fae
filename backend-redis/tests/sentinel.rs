//! A failover by Sentinel. The backend does not ask it: it uses an address that follows the primary.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::{Store, assert_refused, claim, envelope, publication, settle, worker};
use event_bus_conformance::proxy::Proxy;
use event_bus_conformance::servers::free_port;
use event_bus_core::ErrorKind;
use event_bus_core::backend::{Backend, Notice, Outcome};
use event_bus_redis::{RedisBackend, RedisConfig};

/// A Sentinel that watches one primary by itself.
struct Sentinel {
    child: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Sentinel {
    fn of(primary: &str) -> Self {
        let (directory, port) = (tempfile::tempdir().unwrap(), free_port());
        let file = directory.path().join("sentinel.conf");
        let primary = primary.replace(':', " ");
        let settings = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor bus {primary} 1\n\
             sentinel down-after-milliseconds bus 500\nsentinel failover-timeout bus 3000\n",
            directory.path().display()
        );
        std::fs::write(&file, settings).unwrap();
        let mut server = Command::new("redis-server");
        let server = server.arg(&file).arg("--sentinel").stdin(Stdio::null()).stdout(Stdio::null());
        Self { child: server.spawn().unwrap(), port, _directory: directory }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    async fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let mut connection = redis::Client::open(self.url())?.get_multiplexed_async_connection().await?;
        redis::cmd("SENTINEL").arg(words).query_async(&mut connection).await
    }

    /// Waits until it knows a replica that it can promote.
    async fn until_ready(&self) {
        let is_ready = |replicas: Vec<std::collections::HashMap<String, String>>| {
            replicas
                .iter()
                .any(|replica| replica["flags"] == "slave" && replica["master-link-status"] == "ok")
        };
        while !self.ask(&["REPLICAS", "bus"]).await.is_ok_and(is_ready) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a load balancer or a name service does that knows of the Sentinel.
async fn follow(sentinel: Arc<Sentinel>, front: Arc<Proxy>) {
    let mut before = None;
    loop {
        if let Ok((host, port)) = sentinel.ask::<(String, u16)>(&["GET-MASTER-ADDR-BY-NAME", "bus"]).await {
            let primary = format!("{host}:{port}");
            if before.replace(primary.clone()).is_some_and(|before| before != primary) {
                front.lead_to(&primary);
                front.cut();
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Here nothing is to be lost: what a failover loses is a row of the fault matrix.
async fn until_replicated(primary: &Store) {
    let client = redis::Client::open(primary.server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    // What is waited for is what was written by this connection, and so all before it.
    let mut both = redis::pipe();
    both.cmd("SET").arg("last").arg(1).ignore().cmd("WAIT").arg(1).arg(0);
    assert_eq!(both.query_async::<(u32,)>(&mut connection).await.unwrap(), (1,));
}

#[tokio::test]
async fn a_failover_by_sentinel_is_followed_by_an_address_that_does() {
    let primary = Store::unprepared(&[("repl-diskless-sync-delay", "0")]).await;
    let of_primary = primary.server.host().replace(':', " ");
    let _replica = Store::unprepared(&[("replicaof", &of_primary)]).await;
    let sentinel = Arc::new(Sentinel::of(primary.server.host()));
    sentinel.until_ready().await;

    let front = Arc::new(Proxy::start(primary.server.host()).await);
    let mut following = tokio::task::JoinSet::new();
    following.spawn(follow(sentinel.clone(), front.clone()));
    let url = format!("{}?bus=test&lease_ms=1000&command_timeout_ms=2000", front.url(primary.server.url()));
    let config = RedisConfig::from_url(&url).unwrap().publish_timeout(Duration::from_secs(60));
    let backend = RedisBackend::new(config).unwrap();
    backend.prepare().await.unwrap();
    let session = backend.open(&worker()).await.unwrap();
    backend.publish(publication([envelope("one", Some("k")), envelope("two", None)])).await.unwrap();
    let held = claim(&session, 2).await;
    until_replicated(&primary).await;

    primary.server.kill().await;
    // It waits until somebody is the primary.
    backend.publish(publication([envelope("three", Some("k"))])).await.unwrap();
    loop {
        if let Notice::Ended(error) = session.wait().await {
            assert_eq!(error.kind(), ErrorKind::LeaseLost, "{}", event_bus_core::chain(&error));
            break;
        }
    }
    let refused = session.settle(&common::batch(&held, &Outcome::Complete)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::LeaseLost);
    drop(session);
    let session = loop {
        match backend.open(&worker()).await {
            Ok(session) => break session,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable),
        }
    };
    let deliveries = claim(&session, 3).await;
    assert!(
        held.iter().all(|before| deliveries.iter().any(|after| after.id == before.id && after.crashes == 1))
    );
    let fence = |deliveries: &[event_bus_core::backend::Delivery]| deliveries.iter().map(|d| d.fence).max();
    assert!(fence(&deliveries) > fence(&held), "fences grow over a failover");
    settle(&session, &deliveries, Outcome::Complete).await;
    assert_eq!(common::ready_and_waiting(&RedisBackend::from_url(&url).unwrap()).await, 0);
    session.close().await.unwrap();
}

#[tokio::test]
async fn the_address_of_a_sentinel_itself_is_refused() {
    let primary = Store::unprepared(&[]).await;
    let sentinel = Sentinel::of(primary.server.host());
    let backend = RedisBackend::from_url(&sentinel.url()).unwrap();
    while backend.prepare().await.is_err_and(|error| error.kind() == ErrorKind::Unavailable) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_refused(backend.prepare().await, ErrorKind::InvalidConfiguration, "is a Sentinel");
}

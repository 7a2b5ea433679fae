//! Which servers are refused, and in what words.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Store, assert_refused, claim, envelope, publication, settle, worker};
use event_bus_core::ErrorKind;
use event_bus_core::backend::{Backend, Outcome};
use event_bus_redis::{Durability, RedisBackend, RedisConfig};

#[tokio::test]
async fn a_server_that_forgets_is_refused_unless_that_is_wanted() {
    let store = Store::unprepared(&[]).await;
    store.command::<()>(&["CONFIG", "SET", "appendonly", "no"]).await;
    assert_refused(store.backend().prepare().await, ErrorKind::InvalidConfiguration, "append-only");
    let worker = store.backend().open(&worker()).await.map(drop);
    assert_refused(worker, ErrorKind::InvalidConfiguration, "append-only");
    RedisBackend::new(store.config().allow_volatile(true)).unwrap().prepare().await.unwrap();

    store.command::<()>(&["CONFIG", "SET", "appendonly", "yes"]).await;
    store.command::<()>(&["CONFIG", "SET", "appendfsync", "no"]).await;
    assert_refused(store.backend().prepare().await, ErrorKind::InvalidConfiguration, "appendfsync no");

    store.command::<()>(&["CONFIG", "SET", "appendfsync", "everysec"]).await;
    store.command::<()>(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    assert_refused(store.backend().prepare().await, ErrorKind::InvalidConfiguration, "noeviction");
}

#[tokio::test]
async fn a_durability_that_the_server_does_not_have_is_refused() {
    let store = Store::unprepared(&[]).await;
    let fsync = || RedisBackend::new(store.config().durability(Durability::Fsync)).unwrap();
    assert_refused(fsync().prepare().await, ErrorKind::InvalidConfiguration, "appendfsync always");
    store.command::<()>(&["CONFIG", "SET", "appendfsync", "always"]).await;
    fsync().prepare().await.unwrap();

    let replicated = RedisBackend::new(store.config().durability(Durability::Replicated(1))).unwrap();
    assert_refused(replicated.prepare().await, ErrorKind::Unavailable, "0 connected replicas");
}

#[tokio::test]
async fn a_replica_is_refused_and_counts_as_one() {
    let store = Store::unprepared(&[]).await;
    let primary = store.server.url().trim_start_matches("redis://").replace(':', " ");
    let replica = Store::unprepared(&[("replicaof", &primary)]).await;
    let backend = RedisBackend::new(store.config().durability(Durability::Replicated(1))).unwrap();
    while backend.prepare().await.is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    backend.publish(publication([envelope("one", None)])).await.unwrap();
    let there: u64 = replica.command(&["XLEN", "{test}:h:a:f"]).await;
    assert_eq!(there, 1, "an acknowledged event is on the replica");
    assert_refused(replica.backend().prepare().await, ErrorKind::InvalidConfiguration, "is a replica");
}

#[tokio::test]
async fn a_full_memory_refuses_events_and_lets_outcomes_pass() {
    let store = Store::new().await;
    let backend =
        RedisBackend::new(store.config().publish_timeout(std::time::Duration::from_millis(100))).unwrap();
    backend.publish(publication([envelope("one", Some("k"))])).await.unwrap();
    let session = backend.open(&worker()).await.unwrap();
    let deliveries = claim(&session, 1).await;
    store.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_refused(
        backend.publish(publication([envelope("two", None)])).await,
        ErrorKind::Unavailable,
        "OOM",
    );
    settle(&session, &deliveries, Outcome::Complete).await;
    assert_eq!(common::ready_and_waiting(&backend).await, 0);
    session.close().await.unwrap();
}

/// The commands in the README, no more.
#[tokio::test]
async fn a_user_with_the_least_rights_can_do_everything() {
    let store = Store::unprepared(&[]).await;
    let commands = include_str!("../README.md");
    let rule = commands.lines().find(|line| line.starts_with("ACL SETUSER")).unwrap();
    let words: Vec<_> =
        rule.split(' ').map(|word| word.replace("orders", "test").replace("secret", "hunter2")).collect();
    store.command::<()>(&words.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let address = store.server.url().replace("redis://", "redis://event-bus:hunter2@");
    let backend = |options: &str| {
        RedisBackend::new(RedisConfig::from_url(&format!("{address}?bus={options}")).unwrap()).unwrap()
    };
    assert_refused(backend("other").prepare().await, ErrorKind::InvalidConfiguration, "NoPerm");
    let wrong = address.replace("hunter2", "hunter2-wrong");
    let wrong = RedisBackend::from_url(&wrong).unwrap();
    assert_refused(wrong.prepare().await, ErrorKind::InvalidConfiguration, "denied");

    let backend = backend("test");
    backend.prepare().await.unwrap();
    let session = backend.open(&worker()).await.unwrap();
    backend.publish(publication([envelope("one", Some("k")), envelope("two", None)])).await.unwrap();
    let deliveries = claim(&session, 2).await;
    let dead = Outcome::Dead {
        reason: event_bus_core::backend::DeadReason::Discarded,
        failures: 1,
        errors: event_bus_core::backend::ErrorLog::default(),
        holds_key: false,
    };
    settle(&session, &deliveries, dead).await;
    let filter = event_bus_core::backend::DeadLetterFilter::default();
    assert_eq!(backend.dead_letters(&filter, None, 10).await.unwrap().len(), 2);
    assert_eq!(backend.replay(&filter).await.unwrap(), 2);
    let deliveries = claim(&session, 2).await;
    let delay = std::time::Duration::ZERO;
    settle(&session, &deliveries, Outcome::Snooze { delay, keeps_place: false }).await;
    let deliveries = claim(&session, 2).await;
    settle(&session, &deliveries, Outcome::Complete).await;
    session.close().await.unwrap();
}

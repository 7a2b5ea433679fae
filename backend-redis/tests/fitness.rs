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
async fn a_server_in_cluster_mode_is_refused() {
    let store = Store::unprepared(&[("cluster-enabled", "yes")]).await;
    assert_refused(store.backend().prepare().await, ErrorKind::InvalidConfiguration, "cluster mode");
    // It is about promises, not about what may be forgotten.
    let volatile = RedisBackend::new(store.config().allow_volatile(true)).unwrap();
    assert_refused(volatile.prepare().await, ErrorKind::InvalidConfiguration, "cluster mode");
    let published = store.backend().publish(publication([envelope("one", None)])).await;
    assert_refused(published, ErrorKind::InvalidConfiguration, "cluster mode");
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

/// Makes a user as the README says, and nothing more. Answers with the server's address for it.
async fn made_as_in_the_readme(store: &Store, user: &str) -> String {
    let readme = include_str!("../README.md");
    let start = format!("ACL SETUSER {user} ");
    let rule = readme.lines().find(|line| line.starts_with(&start)).unwrap();
    let words: Vec<_> =
        rule.split(' ').map(|word| word.replace("orders", "test").replace("secret", "hunter2")).collect();
    store.command::<()>(&words.iter().map(String::as_str).collect::<Vec<_>>()).await;
    store.server.url().replace("redis://", &format!("redis://{user}:hunter2@"))
}

#[tokio::test]
async fn a_user_who_only_publishes_cannot_read_or_delete() {
    let store = Store::new().await;
    let address = made_as_in_the_readme(&store, "event-bus-publisher").await;
    let backend = RedisBackend::from_url(&format!("{address}?bus=test")).unwrap();
    let mut later = publication([envelope("later", Some("k"))]);
    later.delay = std::time::Duration::from_millis(1);
    let mut once = publication([envelope("once", Some("k")), envelope("free", None)]);
    once.idempotency_key = Some("key".into());
    for publication in [once.clone(), once, later] {
        backend.publish(publication).await.unwrap();
    }
    let denied = ErrorKind::InvalidConfiguration;
    assert_refused(backend.open(&worker()).await.map(drop), denied, "denied");
    let filter = event_bus_core::backend::DeadLetterFilter::default();
    assert_refused(backend.dead_letters(&filter, None, 1).await, denied, "denied");
    assert_refused(backend.purge(&filter).await, denied, "denied");
    assert_refused(backend.counts().await, denied, "denied");
    // Nor by words of its own.
    let client = redis::Client::open(&*address).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    for words in [
        &["XRANGE", "{test}:h:a:f", "-", "+"][..],
        &["XDEL", "{test}:h:a:f", "0-1"],
        &["DEL", "{test}:h:a:f"],
        &["EVAL", "return redis.call('XRANGE', KEYS[1], '-', '+')", "1", "{test}:h:a:f"],
        &["XADD", "{other}:h:a:f", "*", "e", ""],
        &["FLUSHALL"],
    ] {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        let error = command.query_async::<redis::Value>(&mut connection).await.unwrap_err();
        assert!(error.to_string().contains("NoPerm"), "{words:?}: {error}");
    }

    let session = store.backend().open(&worker()).await.unwrap();
    let deliveries = claim(&session, 3).await;
    settle(&session, &deliveries, Outcome::Complete).await;
    session.close().await.unwrap();
}

/// The commands in the README, no more.
#[tokio::test]
async fn a_user_with_the_least_rights_can_do_everything() {
    let store = Store::unprepared(&[]).await;
    let address = made_as_in_the_readme(&store, "event-bus").await;
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

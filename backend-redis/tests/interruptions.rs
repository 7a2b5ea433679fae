//! What operators and networks do to a worker and to a publisher.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Store, claim, envelope, publication, ready_and_waiting, settle, worker};
use event_bus_conformance::proxy::{Direction, Proxy, Sign, Then};
use event_bus_core::ErrorKind;
use event_bus_core::backend::{Backend, DeadLetterFilter, DeadReason, ErrorLog, Notice, Outcome, Stored};
use event_bus_redis::RedisBackend;

#[tokio::test]
async fn flushed_scripts_are_loaded_again() {
    let store = Store::new().await;
    let backend = store.backend();
    let session = backend.open(&worker()).await.unwrap();
    for round in 0..5 {
        store.command::<()>(&["SCRIPT", "FLUSH"]).await;
        backend.publish(publication([envelope(&round.to_string(), Some("k"))])).await.unwrap();
        store.command::<()>(&["SCRIPT", "FLUSH"]).await;
        let deliveries = claim(&session, 1).await;
        store.command::<()>(&["SCRIPT", "FLUSH"]).await;
        settle(&session, &deliveries, Outcome::Complete).await;
    }
    assert_eq!(ready_and_waiting(&backend).await, 0);
    session.close().await.unwrap();
}

#[tokio::test]
async fn a_worker_whose_connection_is_cut_as_it_ends_ends_in_peace() {
    let store = Store::new().await;
    let proxy = Proxy::start(store.server.host()).await;
    let url = proxy.url(&format!("{}?bus=test&lease_ms=60000", store.server.url()));
    let backend = RedisBackend::from_url(&url).unwrap();
    // The request arrives or it does not: both must be well.
    for then in [Then::Swallow, Then::Cut] {
        let session = backend.open(&worker()).await.unwrap();
        let trap = proxy.trap(Direction::ToServer, Sign::Contains(b"clean".to_vec()), then);
        session.close().await.unwrap();
        trap.sprung().await;
        // Nobody has to wait for its lease.
        assert_eq!(store.command::<u64>(&["HLEN", "{test}:w"]).await, 0);
    }
}

#[tokio::test]
async fn killed_connections_are_made_again_and_nothing_is_lost_or_doubled() {
    let store = Store::new().await;
    let backend = store.backend();
    let session = backend.open(&worker()).await.unwrap();
    let killing = async {
        for _ in 0..20 {
            store.command::<i64>(&["CLIENT", "KILL", "TYPE", "normal"]).await;
            store.command::<i64>(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
            tokio::time::sleep(std::time::Duration::from_millis(7)).await;
        }
    };
    let publishing = async {
        for number in 0..200 {
            let key = format!("k{}", number % 5);
            let stored = backend.publish(publication([envelope(&number.to_string(), Some(&key))])).await;
            assert_eq!(stored.unwrap(), Stored::New);
        }
    };
    let working = async {
        let mut texts = Vec::new();
        while texts.len() < 200 {
            let deliveries = claim(&session, 1).await;
            settle(&session, &deliveries, Outcome::Complete).await;
            let text = |delivery: &event_bus_core::backend::Delivery| {
                String::from_utf8(delivery.envelope.payload.to_vec()).unwrap().parse::<u32>().unwrap()
            };
            texts.extend(deliveries.iter().map(text));
        }
        texts
    };
    let ((), (), texts) = tokio::join!(killing, publishing, working);
    for key in 0..5 {
        let line: Vec<_> = texts.iter().filter(|number| **number % 5 == key).copied().collect();
        assert_eq!(line, (0..40).map(|n| n * 5 + key).collect::<Vec<_>>());
    }
    assert_eq!(ready_and_waiting(&backend).await, 0);
    session.close().await.unwrap();
}

#[tokio::test]
async fn a_restart_of_the_server_ends_the_session_and_keeps_the_deliveries() {
    let store = Store::new().await;
    let backend = store.backend();
    let session = backend.open(&worker()).await.unwrap();
    backend.publish(publication([envelope("one", Some("k")), envelope("two", None)])).await.unwrap();
    let held = claim(&session, 2).await;
    // Everything is in the file, whatever the second in which it is written to the disk.
    store.server.stop().await;
    store.server.restart().await;
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
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", event_bus_core::chain(&error))
            }
        }
    };
    let again = claim(&session, 2).await;
    assert!(again.iter().all(|delivery| delivery.crashes == 1), "{again:?}");
    settle(&session, &again, Outcome::Complete).await;
    assert_eq!(ready_and_waiting(&backend).await, 0);
    session.close().await.unwrap();
}

#[tokio::test]
async fn a_drained_backlog_leaves_nothing_behind_however_many_workers_it_took() {
    let store = Store::new().await;
    let backend = store.backend();
    let names = ["w", "wi", "t", "c", "h:a:r", "h:a:mf"].map(|name| format!("{{test}}:{name}"));
    for round in 0..20_u32 {
        let keyed = (0..20).map(|n| envelope("keyed", Some(&format!("k{n}"))));
        backend.publish(publication(keyed.chain((0..20).map(|_| envelope("free", None))))).await.unwrap();
        let session = backend.open(&worker()).await.unwrap();
        let deliveries = claim(&session, 10).await;
        let (done, left) = deliveries.split_at(deliveries.len() / 2);
        settle(&session, done, Outcome::Complete).await;
        if round % 3 == 0 {
            let delay = std::time::Duration::ZERO;
            settle(&session, left, Outcome::Snooze { delay, keeps_place: round % 2 == 0 }).await;
        }
        // Every other one vanishes.
        if round % 2 == 0 {
            session.close().await.unwrap();
        }
    }
    let session = backend.open(&worker()).await.unwrap();
    while ready_and_waiting(&backend).await > 0 {
        let deliveries = claim(&session, 1).await;
        settle(&session, &deliveries, Outcome::Complete).await;
    }
    session.close().await.unwrap();
    for name in &names {
        assert_eq!(store.command::<u64>(&["EXISTS", name]).await, 0, "{name}");
    }
    let keys: Vec<String> = store.command(&["KEYS", "*"]).await;
    for key in keys.iter().filter(|key| key.contains(":h:a:")) {
        let kind: String = store.command(&["TYPE", key]).await;
        assert_eq!(kind, "stream", "{key}");
        assert_eq!(store.command::<u64>(&["XLEN", key]).await, 0, "{key}");
    }
    // The streams themselves, a mark of the publisher, the names of the bus.
    assert!(keys.len() <= 22 + 6, "{keys:?}");
}

/// Bytes of data in memory, and how many keys there are.
async fn measured(store: &Store) -> (u64, u64) {
    let info: String = store.command(&["INFO", "memory"]).await;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory_dataset:")).unwrap();
    (used.trim().parse().unwrap(), store.command(&["DBSIZE"]).await)
}

/// With a million deliveries and 50 workers: `cargo test --release -p event-bus-redis --test interruptions -- --ignored
/// --nocapture a_million`.
#[tokio::test]
#[ignore = "takes minutes"]
async fn a_million_deliveries_and_fifty_workers_leave_the_memory_as_it_was() {
    soak(1_000_000, 50).await;
}

#[tokio::test]
async fn a_backlog_and_ten_workers_leave_the_memory_as_it_was() {
    soak(20_000, 10).await;
}

async fn soak(count: usize, workers: usize) {
    let store = Store::new().await;
    // Every stream is there before the first look.
    drained(&store, 1_000, 2).await;
    let (before, keys_before) = measured(&store).await;
    let start = std::time::Instant::now();
    let full = drained(&store, count, workers).await;
    let (after, keys_after) = measured(&store).await;
    eprintln!(
        "{count} deliveries, {workers} workers, {:?}: {before} bytes before, {full} full, {after} after; \
         {keys_before} keys before, {keys_after} after",
        start.elapsed()
    );
    assert!(keys_after <= keys_before + 1, "{keys_before} keys before, {keys_after} after");
    let grown = after.saturating_sub(before);
    assert!(
        grown * 50 < full - before || grown < 256 * 1024,
        "{before} bytes before, {after} after, {full} full"
    );
    let keys: Vec<String> = store.command(&["KEYS", "*"]).await;
    for key in &keys {
        let kind: String = store.command(&["TYPE", key]).await;
        let left: u64 = match &*kind {
            "stream" => store.command(&["XLEN", key]).await,
            "zset" => store.command(&["ZCARD", key]).await,
            "list" => store.command(&["LLEN", key]).await,
            _ => 0,
        };
        assert_eq!(left, 0, "{key} is a {kind} with entries");
    }
}

/// Stores half of it as free and half as keyed deliveries, and drains it with one worker after the other, every other one
/// of which vanishes with what it holds. Some are retried, some end as dead letters, which are purged. Answers with the
/// memory when all of it was there.
async fn drained(store: &Store, count: usize, workers: usize) -> u64 {
    let backend = store.backend();
    let text = "x".repeat(200);
    for _ in 0..count / 1_000 {
        let events =
            (0..1_000).map(|n| envelope(&text, (n % 2 == 0).then(|| format!("k{}", n % 200)).as_deref()));
        backend.publish(publication(events)).await.unwrap();
    }
    let (full, _) = measured(store).await;
    for number in 1..=workers {
        let session = backend.open(&worker()).await.unwrap();
        let mut done = 0;
        while ready_and_waiting(&backend).await > 0 && (number == workers || done < count / workers) {
            let mut deliveries = claim(&session, 1).await;
            done += deliveries.len();
            let rest = deliveries.split_off(deliveries.len().min(20));
            let (retried, dead) = deliveries.split_at(deliveries.len() / 2);
            let retried: Vec<_> = retried.iter().filter(|delivery| delivery.failures == 0).cloned().collect();
            let again = Outcome::Retry {
                failures: 1,
                delay: std::time::Duration::ZERO,
                errors: ErrorLog::default(),
                keeps_place: false,
            };
            settle(&session, &retried, again).await;
            let lost = Outcome::Dead {
                reason: DeadReason::Discarded,
                failures: 1,
                errors: ErrorLog::default(),
                holds_key: false,
            };
            settle(&session, dead, lost).await;
            let twice = deliveries.iter().take(deliveries.len() / 2).filter(|delivery| delivery.failures > 0);
            let rest: Vec<_> = rest.into_iter().chain(twice.cloned()).collect();
            settle(&session, &rest, Outcome::Complete).await;
        }
        if number % 2 == 0 || number == workers {
            session.close().await.unwrap();
        } else {
            // It holds what it has claimed.
            session.claim(&common::everything()).await.unwrap();
        }
    }
    backend.purge(&DeadLetterFilter::default()).await.unwrap();
    full
}

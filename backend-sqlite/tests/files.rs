//! The file itself: what is created, refused, and survived.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod common;

use common::*;
use event_bus_core::backend::{Backend as _, DeadLetterFilter, DeadReason};
use event_bus_core::{ErrorKind, SLOTS};
use event_bus_sqlite::{SqliteBackend, SqliteConfig};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _};

async fn sql(store: &Store, sql: &str) {
    let mut connection: SqliteConnection =
        SqliteConnectOptions::new().filename(store.path()).foreign_keys(false).connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn preparing_twice_and_from_many_sides_at_once_changes_nothing() {
    let store = Store::unprepared();
    let all: Vec<_> = (0..8)
        .map(|_| {
            let backend = store.another();
            tokio::spawn(async move { backend.prepare().await })
        })
        .collect();
    for one in all {
        one.await.unwrap().unwrap();
    }
    store.publish(events(&["x"], None)).await;
    store.backend.prepare().await.unwrap();
    assert_eq!(store.backend.counts().await.unwrap()[0].ready, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_not_prepared_is_refused_with_the_way_out() {
    let store = Store::unprepared();
    let missing = store.backend.publish(events(&["x"], None)).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Unavailable);
    assert!(missing.to_string().contains("call `migrate`"), "{missing}");
    std::fs::write(store.path(), "").unwrap();
    for error in [
        store.backend.publish(events(&["x"], None)).await.unwrap_err(),
        store.backend.open(&worker(&[handler("a")])).await.err().unwrap(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidConfiguration);
        assert!(error.to_string().contains("call `migrate`"), "{error}");
    }
    store.backend.prepare().await.unwrap();
    store.publish(events(&["x"], None)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_schema_another_slot_count_and_another_hash_are_refused_untouched() {
    for (change, expected) in [
        ("update event_bus_meta set value = '999' where key = 'schema'", "version \"999\""),
        ("update event_bus_meta set value = '32' where key = 'slots'", "slots \"32\""),
        ("update event_bus_meta set value = 'md5' where key = 'hash'", "hash \"md5\""),
    ] {
        let store = Store::new().await;
        sql(&store, change).await;
        for error in [
            store.backend.prepare().await.unwrap_err(),
            store.backend.open(&worker(&[handler("a")])).await.err().unwrap(),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidConfiguration);
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
    assert_eq!(SLOTS, 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_database_is_refused() {
    let store = Store::unprepared();
    std::fs::write(store.path(), "this is a letter to my aunt ".repeat(100)).unwrap();
    let error = store.backend.prepare().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("events.db"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_does_not_exist_is_a_wrong_path() {
    let store = Store::unprepared();
    let backend = SqliteBackend::open(store.path().join("deeper").join("events.db")).unwrap();
    let error = backend.prepare().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfiguration);
    assert!(error.to_string().contains("deeper is no directory"), "{error}");
}

#[test]
fn an_address_that_keeps_nothing_or_means_nothing_is_refused() {
    for (url, expected) in [
        ("sqlite::memory:", "in-memory"),
        ("sqlite://:memory:", "in-memory"),
        ("sqlite://x.db?mode=memory", "in-memory"),
        ("sqlite://", "names no file"),
        ("postgres://localhost/x", "does not begin with sqlite:"),
        ("sqlite://x.db?synchronous=off", "synchronous=off"),
        ("sqlite://x.db?colour=red&write_timeout_ms=soon", "write_timeout_ms=soon is not"),
        ("sqlite://x.db?colour=red", "colour is not an option"),
        ("sqlite://x%2.db", "two digits"),
        ("sqlite://x%+f.db", "two digits"),
        ("sqlite://x.db?poll_interval_ms=0", "poll_interval is 0"),
    ] {
        let error = SqliteBackend::from_url(url).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfiguration, "{url}");
        assert!(error.to_string().contains(expected), "{url}: {error}");
    }
    assert!(SqliteBackend::open(":memory:").is_err());
    assert!(SqliteBackend::open("").is_err());
}

#[test]
fn an_address_names_a_file_and_its_options() {
    for (url, path) in [
        ("sqlite:///var/lib/a%20b/orders.db", "/var/lib/a b/orders.db"),
        ("sqlite://orders.db?mode=rwc", "orders.db"),
        ("sqlite:orders.db?synchronous=normal&write_timeout_ms=7", "orders.db"),
    ] {
        let config = SqliteConfig::from_url(url).unwrap();
        assert_eq!(config.path().to_str(), Some(path));
        let shown = format!("{config:?}");
        assert_eq!(shown.contains("Normal"), url.contains("normal"), "{shown}");
        assert_eq!(shown.contains("write_timeout: 7ms"), url.contains("=7"), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_cannot_be_read_go_to_the_dead_letters_and_stop_nothing() {
    let store = Store::new().await;
    store.publish(events(&["1", "2", "3", "4", "5", "6"], Some("k"))).await;
    for (number, damage) in [
        (1, "event_id = x'00'"),
        (2, "name = cast(x'ff' as text)"),
        (3, "headers = '[]'"),
        (4, "failures = -1"),
        (5, "version = 99999999999"),
    ] {
        sql(&store, &format!("update event_bus_delivery set {damage} where id % 8796093022208 = {number}"))
            .await;
    }
    let session = store.open(&[handler("a")]).await;
    let claimed = claim(&session, 1, 10).await.deliveries;
    assert_eq!(texts(&claimed), ["6"]);
    let letters = store.backend.dead_letters(&DeadLetterFilter::default(), None, 10).await.unwrap();
    assert_eq!(letters.len(), 5);
    for (number, letter) in (1..).zip(&letters) {
        assert_eq!((letter.reason, &*letter.handler), (DeadReason::Undecodable, "a"));
        assert_eq!(letter.envelope.payload, number.to_string());
        assert_eq!(letter.envelope.key.as_deref(), Some("k"));
        assert_eq!(letter.errors.entries().len(), 1);
    }
    assert!(letters[0].errors.entries()[0].message.contains("event_id has 1 bytes"));
    // Repaired or not, they can be tried again and purged.
    assert_eq!(store.backend.replay(&DeadLetterFilter::default()).await.unwrap(), 5);
    assert_eq!(texts(&claim(&session, 1, 10).await.deliveries), ["4"], "replay begins to count anew");
    assert_eq!(store.backend.purge(&DeadLetterFilter::default()).await.unwrap(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_fails_does_not_take_its_neighbours_with_it() {
    let store = Store::new().await;
    store.publish(events(&["before"], None)).await;
    let session = store.open(&[handler("a")]).await;
    let claimed = claim(&session, 1, 10).await.deliveries;
    let large = "x".repeat(100_000);
    let config = SqliteConfig::new(store.path());
    // Stands in for whatever only one operation of a group can run into.
    sql(
        &store,
        "create trigger refuse before insert on event_bus_delivery when length(new.payload) > 50000 \
         begin select raise(fail, 'too much'); end",
    )
    .await;
    let backend = SqliteBackend::new(config).unwrap();
    let (failed, kept) = tokio::join!(
        backend.publish(events(&[&large], None)),
        backend.publish(events(&["neighbour"], None)),
    );
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Unavailable);
    kept.unwrap();
    complete(&session, claimed).await;
    assert_eq!(texts(&claim(&session, 1, 10).await.deliveries), ["neighbour"]);
}

//! Idempotency keys, and publishing and completing in the caller's own transaction.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod common;

use std::time::Duration;

use common::*;
use event_bus_core::ErrorKind;
use event_bus_core::backend::{Backend as _, Publication, Stored};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqlitePool, SqlitePoolOptions};
use sqlx::{ConnectOptions as _, Connection as _};

#[track_caller]
fn with_key(text: &str, key: &str) -> Publication {
    Publication { idempotency_key: Some(key.into()), ..events(&[text], None) }
}

async fn pool(store: &Store) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(store.path());
    SqlitePoolOptions::new().max_connections(2).connect_with(options).await.unwrap()
}

async fn stored(store: &Store) -> Vec<String> {
    let session = store.open(&[handler("a")]).await;
    let texts = texts(&claim(&session, 1, 1_000).await.deliveries);
    session.close().await.unwrap();
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_stores_one_publication_however_often_and_from_wherever_it_comes() {
    let store = Store::new().await;
    let calls: Vec<_> = (0..20)
        .map(|n| {
            let backend = if n % 2 == 0 { store.backend.clone() } else { store.another() };
            tokio::spawn(async move { backend.publish(with_key("x", "charge-42")).await.unwrap() })
        })
        .collect();
    let mut new = 0;
    for call in calls {
        new += usize::from(call.await.unwrap() == Stored::New);
    }
    assert_eq!(new, 1);
    assert_eq!(store.publish(with_key("y", "charge-43")).await, Stored::New);
    assert_eq!(stored(&store).await, ["x", "y"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_is_forgotten_after_its_retention() {
    let store = Store::new().await;
    let day = store.backend.config().clone();
    assert!(format!("{day:?}").contains("dedupe_retention: 86400s"));
    assert_eq!(store.publish(with_key("x", "k")).await, Stored::New);
    store.clock.advance(Duration::from_secs(86_400));
    assert_eq!(store.publish(with_key("x", "k")).await, Stored::Duplicate);
    store.clock.advance(Duration::from_secs(1));
    assert_eq!(store.publish(with_key("x", "k")).await, Stored::New);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rival_that_rolls_back_leaves_no_trace_of_its_key() {
    let store = Store::new().await;
    let pool = pool(&store).await;
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let answer = store.backend.publish_in(&mut transaction, with_key("lost", "k")).await.unwrap();
    assert_eq!(answer, Stored::New);
    let again = store.backend.publish_in(&mut transaction, with_key("lost", "k")).await.unwrap();
    assert_eq!(again, Stored::Duplicate);
    // The rival waits for the transaction, then finds nothing.
    let backend = store.backend.clone();
    let rival = tokio::spawn(async move { backend.publish(with_key("kept", "k")).await.unwrap() });
    transaction.rollback().await.unwrap();
    assert_eq!(rival.await.unwrap(), Stored::New);
    assert_eq!(stored(&store).await, ["kept"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_within_a_transaction_commits_or_vanishes_with_it() {
    let store = Store::new().await;
    let pool = pool(&store).await;
    sqlx::query("create table orders (id integer primary key)").execute(&pool).await.unwrap();

    for (text, commits) in [("gone", false), ("kept", true)] {
        let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
        sqlx::query("insert into orders default values").execute(&mut *transaction).await.unwrap();
        let both = publication(vec![envelope(text, None)], &["a", "never seen before"]);
        assert_eq!(store.backend.publish_in(&mut transaction, both).await.unwrap(), Stored::New);
        if commits { transaction.commit().await.unwrap() } else { transaction.rollback().await.unwrap() }
    }
    let orders: i64 = sqlx::query_scalar("select count(*) from orders").fetch_one(&pool).await.unwrap();
    assert_eq!(orders, 1);
    assert_eq!(stored(&store).await, ["kept"]);
    assert_eq!(store.backend.counts().await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_connection_of_sqlx_will_do_and_nothing_else() {
    let store = Store::new().await;
    let pool = pool(&store).await;
    // Outside of a transaction the publication is one by itself.
    let mut pooled = pool.acquire().await.unwrap();
    store.backend.publish_in(&mut pooled, events(&["pooled"], None)).await.unwrap();
    let mut single: SqliteConnection =
        SqliteConnectOptions::new().filename(store.path()).connect().await.unwrap();
    store.backend.publish_in(&mut single, events(&["single"], None)).await.unwrap();
    single.close().await.unwrap();
    assert_eq!(stored(&store).await, ["pooled", "single"]);

    let refused = store.backend.publish_in(&mut 17_u32, events(&["x"], None)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidConfiguration);
    assert!(refused.to_string().contains("Transaction<'static, Sqlite>"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_began_with_a_read_and_is_too_late_is_told_how_to_begin() {
    let store = Store::new().await;
    let pool = pool(&store).await;
    let mut transaction = pool.begin().await.unwrap();
    let _: i64 = sqlx::query_scalar("select count(*) from event_bus_handler")
        .fetch_one(&mut *transaction)
        .await
        .unwrap();
    store.publish(events(&["meanwhile"], None)).await;
    let refused = store.backend.publish_in(&mut transaction, events(&["late"], None)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.to_string().contains("BEGIN IMMEDIATE"), "{refused}");
    transaction.rollback().await.unwrap();

    // One that only began waits for its turn.
    let mut transaction = pool.begin().await.unwrap();
    store.publish(events(&["meanwhile"], None)).await;
    store.backend.publish_in(&mut transaction, events(&["in time"], None)).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(stored(&store).await, ["meanwhile", "meanwhile", "in time"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn completing_in_a_transaction_commits_with_the_handlers_own_writes() {
    let store = Store::new().await;
    let pool = pool(&store).await;
    store.publish(events(&["x"], None)).await;
    let session = store.open(&[handler("a")]).await;
    let claimed = claim(&session, 1, 10).await.deliveries;

    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    session.complete_in(&mut transaction, &claimed[0]).await.unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!(store.backend.counts().await.unwrap()[0].ready, 1);

    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    session.complete_in(&mut transaction, &claimed[0]).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(store.backend.counts().await.unwrap()[0].ready, 0);

    // Whoever lost the delivery must roll back.
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let lost = session.complete_in(&mut transaction, &claimed[0]).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::LeaseLost);
    transaction.rollback().await.unwrap();
    complete(&session, claimed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn completing_in_a_transaction_is_refused_after_a_take_over() {
    let store = Store::new().await;
    let pool = pool(&store).await;
    store.publish(events(&["x"], None)).await;
    let old = store.open(&[handler("a")]).await;
    let claimed = claim(&old, 1, 10).await.deliveries;
    std::fs::remove_file(store.directory.path().join("events.db.worker.lock")).unwrap();
    let _new = store.another().open(&worker(&[handler("a")])).await.unwrap();
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let lost = old.complete_in(&mut transaction, &claimed[0]).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::LeaseLost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_waits_while_another_holds_the_write_lock_but_not_for_ever() {
    let store = Store::new().await;
    let pool = pool(&store).await;
    let config = event_bus_sqlite::SqliteConfig::new(store.path()).write_timeout(Duration::from_millis(100));
    let impatient = event_bus_sqlite::SqliteBackend::new(config).unwrap();

    let transaction = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let busy = impatient.publish(events(&["too late"], None)).await.unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Unavailable);
    assert!(busy.to_string().contains("events.db is locked"), "{busy}");
    let backend = store.backend.clone();
    let patient = tokio::spawn(async move { backend.publish(events(&["waited"], None)).await });
    transaction.rollback().await.unwrap();
    patient.await.unwrap().unwrap();
    impatient.publish(events(&["again"], None)).await.unwrap();
    assert_eq!(stored(&store).await, ["waited", "again"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_publish_is_stored_whole_or_not_at_all_and_leaves_nothing_open() {
    let store = Store::new().await;
    for n in 0..100 {
        let texts: Vec<_> = (0..10).map(|part| format!("{n}-{part}")).collect();
        let texts: Vec<_> = texts.iter().map(String::as_str).collect();
        let mut call = store.backend.publish(events(&texts, None));
        for _ in 0..n % 4 {
            if poll_once(&mut call).await.is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    store.publish(events(&["end"], None)).await;
    let stored = stored(&store).await;
    assert_eq!(stored.len() % 10, 1);
    assert_eq!(stored.last().unwrap(), "end");
    for whole in stored.chunks_exact(10) {
        let number = whole[0].split('-').next().unwrap();
        let expected: Vec<_> = (0..10).map(|part| format!("{number}-{part}")).collect();
        assert_eq!(whole, expected);
    }
}

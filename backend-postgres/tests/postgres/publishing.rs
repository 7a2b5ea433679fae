//! Publishing: groups, keys, delays, the caller's transactions.

use std::time::Duration;

use event_bus_core::ErrorKind;
use event_bus_core::backend::{Backend as _, Publication, Stored};
use event_bus_postgres::PostgresBackend;
use sqlx::Connection as _;

use crate::common::*;

fn once(key: &str, text: &str) -> Publication {
    Publication { idempotency_key: Some(key.into()), ..events(&[text], None) }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_calls_share_statements_and_keep_their_order() {
    let store = Store::new().await;
    store.publish(events(&["first"], Some("k"))).await;
    let begin = store.number("select pg_current_xact_id()::text::int8").await;
    let calls: Vec<_> = (0..400)
        .map(|number| {
            let backend = store.backend.clone();
            tokio::spawn(async move { backend.publish(events(&[&number.to_string()], None)).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), Stored::New);
    }
    let transactions = store.number("select pg_current_xact_id()::text::int8").await - begin;
    assert!(transactions < 200, "400 calls took {transactions} transactions");
    store.publish(events(&["last"], Some("k"))).await;
    let session = store.open(&[handler("a")]).await;
    let all = claim_all(&session, 1, 402).await;
    let keyed: Vec<_> = all.into_iter().filter(|delivery| delivery.envelope.key.is_some()).collect();
    assert_eq!(texts(&keyed), ["first", "last"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_the_database_refuses_does_not_spoil_its_group() {
    let store = Store::new().await;
    store.execute("alter table event_bus.delivery add constraint no_poison check (name <> 'poison')").await;
    let calls: Vec<_> = (0..50)
        .map(|number| {
            let backend = store.backend.clone();
            tokio::spawn(async move {
                let mut event = envelope(&number.to_string(), None);
                if number == 20 {
                    event.name = "poison".into();
                }
                backend.publish(publication(vec![event], &["a"])).await
            })
        })
        .collect();
    let mut refused = Vec::new();
    for (number, call) in calls.into_iter().enumerate() {
        if let Err(error) = call.await.unwrap() {
            refused.push((number, error.kind()));
        }
    }
    assert_eq!(refused, [(20, ErrorKind::InvalidEvent)]);
    assert_eq!(store.number("select count(*) from event_bus.delivery").await, 49);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rival_that_rolls_back_leaves_no_gap_and_holds_up_nobody_else() {
    let store = Store::new().await;
    let mut rival = store.connect().await;
    let mut transaction = rival.begin().await.unwrap();
    let stored = store.backend.publish_in(&mut *transaction, once("k", "rolled back")).await.unwrap();
    assert_eq!(stored, Stored::New);
    let backend = store.backend.clone();
    let waiting = tokio::spawn(async move { backend.publish(once("k", "kept")).await });
    while store.number("select count(*) from pg_locks where not granted").await == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // A call without that key shares nothing with the one that waits.
    store.publish(events(&["another"], None)).await;
    transaction.rollback().await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), Stored::New);
    assert_eq!(store.publish(once("k", "again")).await, Stored::Duplicate);
    let session = store.open(&[handler("a")]).await;
    let mut seen = texts(&claim_all(&session, 1, 2).await);
    seen.sort();
    assert_eq!(seen, ["another", "kept"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rival_that_commits_wins() {
    let store = Store::new().await;
    let mut rival = store.connect().await;
    let mut transaction = rival.begin().await.unwrap();
    store.backend.publish_in(&mut *transaction, once("k", "won")).await.unwrap();
    let backend = store.backend.clone();
    let waiting = tokio::spawn(async move { backend.publish(once("k", "lost")).await });
    while store.number("select count(*) from pg_locks where not granted").await == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    transaction.commit().await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), Stored::Duplicate);
    assert_eq!(store.number("select count(*) from event_bus.delivery").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn delayed_deliveries_enter_their_line_in_the_order_in_which_they_are_due() {
    let store = Store::new().await;
    let after = |millis, text: &str| Publication {
        delay: Duration::from_millis(millis),
        ..events(&[text], Some("k"))
    };
    store.publish(after(60, "second")).await;
    store.publish(after(20, "first")).await;
    store.publish(events(&["now"], Some("k"))).await;
    let session = store.open(&[handler("a")]).await;
    let all = claim_all(&session, 1, 3).await;
    assert_eq!(texts(&all), ["now", "first", "second"]);
    assert_eq!(store.number("select count(*) from event_bus.scheduled").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_of_connection_is_understood_and_others_are_named() {
    let store = Store::new().await;
    let pool = store.pool().await;
    let mut pooled = pool.acquire().await.unwrap();
    store.backend.publish_in(&mut pooled, events(&["pooled"], None)).await.unwrap();
    store.backend.publish_in(&mut *pooled, events(&["plain"], None)).await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    store.backend.publish_in(&mut transaction, events(&["transaction"], None)).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(store.number("select count(*) from event_bus.delivery").await, 3);
    let refused = store.backend.publish_in(&mut 7_u8, events(&["x"], None)).await.unwrap_err();
    assert!(refused.to_string().contains("PgConnection"), "{refused}");
}

/// What a worker finds of one key when a transaction that publishes under it stays open while somebody else publishes
/// under it and under another key.
async fn found_around_an_open_transaction(is_strict: bool) -> Vec<String> {
    let store = Store::new().await;
    let publisher =
        PostgresBackend::new(config(store.database.url()).strict_commit_order(is_strict)).unwrap();
    let session = store.open(&[handler("a")]).await;
    let mut own = store.connect().await;
    let mut transaction = own.begin().await.unwrap();
    publisher.publish_in(&mut *transaction, events(&["late"], Some("k"))).await.unwrap();
    let early = {
        let publisher = publisher.clone();
        tokio::spawn(async move { publisher.publish(events(&["early"], Some("k"))).await })
    };
    let waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
    while !early.is_finished() && store.number(waits).await == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Another key, and what has no key, is held up by nobody.
    publisher.publish(events(&["other"], Some("another"))).await.unwrap();
    publisher.publish(events(&["free"], None)).await.unwrap();
    let visible = if early.is_finished() { 3 } else { 2 };
    let mut found = claim_all(&session, 1, visible).await;
    transaction.commit().await.unwrap();
    early.await.unwrap().unwrap();
    found.extend(claim_all(&session, 1, 4 - visible).await);
    found.retain(|delivery| delivery.envelope.key.as_deref() == Some("k"));
    texts(&found)
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_commit_order_makes_a_key_wait_for_the_transaction_that_came_first() {
    assert_eq!(found_around_an_open_transaction(true).await, ["late", "early"]);
    // Without it, the one that committed first is found first.
    assert_eq!(found_around_an_open_transaction(false).await, ["early", "late"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_calls_with_the_same_keys_in_different_orders_do_not_lock_each_other_out() {
    let store = Store::new().await;
    let keys = ["a", "b", "c", "d", "e"];
    let calls: Vec<_> = (0..40)
        .map(|number| {
            let publisher =
                PostgresBackend::new(config(store.database.url()).strict_commit_order(true)).unwrap();
            let mut keys = keys.to_vec();
            keys.rotate_left(number % 5);
            if number.is_multiple_of(2) {
                keys.reverse();
            }
            let all = keys.into_iter().map(|key| envelope(&number.to_string(), Some(key))).collect();
            tokio::spawn(async move { publisher.publish(publication(all, &["a"])).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), Stored::New);
    }
    // Every key has seen the calls in one and the same order.
    let orders = "select count(distinct line) from (select string_agg(convert_from(payload, 'UTF8'), ' ' order by id) as line \
                  from event_bus.delivery group by key) lines";
    assert_eq!(store.number(orders).await, 1);
    assert_eq!(store.number("select count(*) from event_bus.delivery").await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_wait_for_a_connection_no_longer_than_the_write_timeout() {
    let store = Store::new().await;
    let config = config(store.database.url()).max_connections(1).write_timeout(Duration::from_secs(3));
    let publisher = PostgresBackend::new(config).unwrap();
    let (mut one, mut two) = (store.connect().await, store.connect().await);
    let (mut short, mut long) = (one.begin().await.unwrap(), two.begin().await.unwrap());
    store.backend.publish_in(&mut *short, once("short", "first")).await.unwrap();
    store.backend.publish_in(&mut *long, once("long", "first")).await.unwrap();
    let publish = |key: &'static str| {
        let publisher = publisher.clone();
        tokio::spawn(async move { publisher.publish(once(key, "second")).await })
    };
    let first = publish("short");
    while store.number("select count(*) from pg_locks where not granted").await == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // The only connection is taken, and will be taken for longer than the last call waits: until the one before it, which
    // gets it now, has waited for its lock.
    let blocked = publish("long");
    store.number("select 0::int8").await;
    let late = publish("another");
    store.number("select 0::int8").await;
    short.rollback().await.unwrap();
    assert_eq!(first.await.unwrap().unwrap(), Stored::New);
    let refused = late.await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    // Its own statement ends by the server's lock time-out, and nothing of it is stored.
    assert_eq!(blocked.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    long.rollback().await.unwrap();
    publisher.publish(once("long", "third")).await.unwrap();
    assert_eq!(store.number("select count(*) from event_bus.delivery").await, 2);
}

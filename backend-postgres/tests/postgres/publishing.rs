//! Publishing: groups, keys, delays, the caller's transactions.

use std::time::Duration;

use event_bus_core::ErrorKind;
use event_bus_core::backend::{Backend as _, Publication, Stored};
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

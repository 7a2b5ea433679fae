//! What arrives late, or never.

use std::time::Duration;

use event_bus_conformance::proxy::{Direction, Flow, Proxy, Sign, Then};
use event_bus_conformance::servers;
use event_bus_core::ErrorKind;
use event_bus_core::backend::{Backend as _, ErrorLog, Notice, Outcome};

use crate::common::*;

async fn proxy() -> Proxy {
    let server = servers::postgres().await.url().rsplit_once('@').unwrap().1;
    Proxy::start(server.split_once('/').map_or(server, |(address, _)| address)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_arrives_after_the_take_over_changes_nothing() {
    let (store, proxy) = (Store::new().await, proxy().await);
    let first = backend(&proxy.url(store.database.url())).open(&worker(&[handler("a")])).await.unwrap();
    store.publish(events(&["x"], Some("k"))).await;
    let claimed = claim_all(&first, 1, 1).await;
    let trap = proxy.trap(Direction::ToServer, Sign::Contains(b"set due_at".to_vec()), Then::Hold);
    let late = Outcome::Retry {
        failures: 3,
        delay: Duration::from_secs(3_600),
        errors: ErrorLog::default(),
        keeps_place: true,
    };
    let outcome = batch([(claimed[0].clone(), late)]);
    let settling = {
        let first = first.clone();
        tokio::spawn(async move { first.settle(&outcome).await })
    };
    trap.sprung().await;
    // Its owner hears nothing, and stops by itself before anybody can take over.
    assert_eq!(settling.await.unwrap().unwrap_err().kind(), ErrorKind::LeaseLost);
    assert!(matches!(first.wait().await, Notice::Ended(_)));
    assert_eq!(store.number("select count(*) from event_bus.lease where worker_id = 1").await, 64);
    let second = store.open(&[handler("a")]).await;
    let again = claim_all(&second, 1, 1).await;
    assert_eq!((again[0].failures, again[0].crashes), (0, 1));
    proxy.release();
    while proxy.connections() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let changed = "select count(*) from event_bus.delivery where failures > 0 or due_at is not null";
    assert_eq!(store.number(changed).await, 0);
    complete(&second, again).await;
    assert_eq!(store.number("select count(*) from event_bus.delivery").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_into_silence_ends_with_an_unknown_outcome_and_the_next_one_goes_on() {
    let (store, proxy) = (Store::new().await, proxy().await);
    // Without NOTIFY the publish alone meets the silence.
    let config =
        config(&proxy.url(store.database.url())).write_timeout(Duration::from_millis(600)).notify(false);
    let publisher = event_bus_postgres::PostgresBackend::new(config).unwrap();
    publisher.publish(events(&["heard"], None)).await.unwrap();
    proxy.set(Direction::ToServer, Flow::BlackHole);
    let silent = publisher.publish(events(&["lost"], None)).await.unwrap_err();
    assert_eq!(silent.kind(), ErrorKind::OutcomeUnknown, "{silent}");
    proxy.pass();
    publisher.publish(events(&["heard again"], None)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_are_made_again() {
    let (store, proxy) = (Store::new().await, proxy().await);
    let publisher = backend(&proxy.url(store.database.url()));
    for number in 0..5 {
        publisher.counts().await.unwrap();
        proxy.cut();
        // A cut in the middle of a call leaves its outcome open; one before it does not.
        while let Err(error) = publisher.publish(events(&[&number.to_string()], None)).await {
            assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
        }
        while let Err(error) = publisher.counts().await {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        }
    }
    assert!(store.number("select count(*) from event_bus.delivery").await >= 5);
}

//! One worker a file: standby, take-over, fences, clean and unclean ends.

mod common;

use std::sync::Arc;

use common::*;
use event_bus_core::ErrorKind;
use event_bus_core::backend::{Backend as _, ErrorLog, HandlerSpec, Notice, Outcome};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_second_worker_stands_by_and_takes_over_when_the_first_ends() {
    let store = Store::new().await;
    store.publish(events(&["x"], None)).await;
    let first = store.open(&[handler("a")]).await;
    let another = store.another();
    let standby = tokio::spawn(async move { another.open(&worker(&[handler("a")])).await.unwrap() });
    // It has had many chances to take over while the first one still works.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!standby.is_finished());
    let claimed = claim(&first, 1, 10).await.deliveries;
    first.close().await.unwrap();

    let second = standby.await.unwrap();
    let again = claim(&second, 1, 10).await.deliveries;
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].crashes, 0, "a clean end puts nothing in doubt");
    assert!(again[0].fence > claimed[0].fence);
    assert_eq!(first.claim(&demand(1, 10)).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(first.settle(&batch([])).await.unwrap_err().kind(), ErrorKind::Closed);
    assert!(matches!(first.wait().await, Notice::Ended(_)));
    first.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_cancelled_leaves_nothing_behind() {
    let store = Store::new().await;
    store.publish(events(&["x"], None)).await;
    for polls in 0..40 {
        let backend = store.another();
        let spec = worker(&[handler("a")]);
        let mut open = backend.open(&spec);
        // Dropped after a growing number of polls: before the lock, with it, while the writer works, after it.
        for _ in 0..polls {
            if let Some(session) = poll_once(&mut open).await {
                session.unwrap().close().await.unwrap();
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(open);
    }
    let session = store.open(&[handler("a")]).await;
    let claimed = claim(&session, 1, 10).await.deliveries;
    assert_eq!(claimed[0].crashes, 0, "nothing was handed out, so nothing is in doubt");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unclean_end_counts_a_crash_for_what_was_in_memory_and_the_attempt_that_was_recorded() {
    let store = Store::new().await;
    let names: Vec<_> = (0..6).map(|n| n.to_string()).collect();
    store.publish(publication(names.iter().map(|name| envelope(name, None)).collect(), &["a"])).await;
    let window = HandlerSpec { window: 3, ..handler("a") };

    let session = store.open(std::slice::from_ref(&window)).await;
    let claimed = claim(&session, 1, 3).await.deliveries;
    complete(&session, vec![claimed[0].clone()]).await;
    claim(&session, 1, 1).await;
    settle(&session, &claimed[1], Outcome::Start { attempt: 1 }).await;
    drop(session);

    let session = store.open(std::slice::from_ref(&window)).await;
    let again = claim(&session, 1, 10).await.deliveries;
    let seen: Vec<_> = again.iter().map(|d| (d.failures, d.crashes)).collect();
    assert_eq!(texts(&again), ["1", "2", "3", "4", "5"]);
    assert_eq!(seen, [(1, 1), (0, 1), (0, 1), (0, 0), (0, 0)]);
    drop(session);

    // The start was charged once.
    let session = store.open(&[window]).await;
    let again = claim(&session, 1, 10).await.deliveries;
    let seen: Vec<_> = again.iter().map(|d| (d.failures, d.crashes)).collect();
    assert_eq!(seen, [(1, 2), (0, 2), (0, 2), (0, 0), (0, 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_windows_and_handlers_of_the_vanished_worker_count_not_those_of_the_next() {
    let store = Store::new().await;
    store.publish(publication(vec![envelope("1", None), envelope("2", None)], &["a", "b"])).await;
    let session = store.open(&[HandlerSpec { window: 1, ..handler("a") }]).await;
    drop(session);
    // Knows b only, with a large window.
    let session = store.open(&[handler("b")]).await;
    assert!(claim(&session, 1, 10).await.deliveries.iter().all(|delivery| delivery.crashes == 0));
    session.close().await.unwrap();
    let session = store.open(&[handler("a")]).await;
    let crashes: Vec<_> =
        claim(&session, 1, 10).await.deliveries.iter().map(|delivery| delivery.crashes).collect();
    assert_eq!(crashes, [1, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_start_that_was_given_back_is_not_charged() {
    let store = Store::new().await;
    store.publish(events(&["x"], None)).await;
    let session = store.open(&[handler("a")]).await;
    let claimed = claim(&session, 1, 1).await.deliveries;
    settle(&session, &claimed[0], Outcome::Start { attempt: 1 }).await;
    settle(&session, &claimed[0], Outcome::Release).await;
    drop(session);
    let session = store.open(&[handler("a")]).await;
    assert_eq!(claim(&session, 1, 1).await.deliveries[0].failures, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_lost_the_file_can_write_and_claim_nothing() {
    let store = Store::new().await;
    store.publish(events(&["x"], None)).await;
    let old = store.open(&[handler("a")]).await;
    let claimed = claim(&old, 1, 10).await.deliveries;
    // Somebody removes the lock file, and with it what keeps two workers apart.
    std::fs::remove_file(store.directory.path().join("events.db.worker.lock")).unwrap();
    let new = store.another().open(&worker(&[handler("a")])).await.unwrap();

    for outcome in [
        Outcome::Complete,
        Outcome::Retry {
            failures: 1,
            delay: Duration::ZERO,
            errors: ErrorLog::default(),
            keeps_place: false,
        },
    ] {
        let refused = old.settle(&batch([(claimed[0].clone(), outcome)])).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::LeaseLost);
    }
    assert_eq!(old.claim(&demand(1, 10)).await.unwrap_err().kind(), ErrorKind::LeaseLost);
    old.close().await.unwrap();
    assert_eq!(claim(&new, 1, 10).await.deliveries.len(), 1);
    drop(new);
    let session: Arc<_> = store.open(&[handler("a")]).await;
    assert_eq!(
        claim(&session, 1, 10).await.deliveries[0].crashes,
        2,
        "the old one's close was not taken for the new one's"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_wakes_a_waiting_session_of_this_process_and_of_others() {
    let store = Store::new().await;
    let session = store.open(&[handler("a")]).await;
    for backend in [store.backend.clone(), store.another()] {
        claim(&session, 1, 10).await;
        let publisher = tokio::spawn(async move { backend.publish(events(&["x"], None)).await });
        loop {
            assert!(matches!(session.wait().await, Notice::Work));
            if claim(&session, 1, 10).await.deliveries.len() == 1 {
                break;
            }
        }
        publisher.await.unwrap().unwrap();
    }
}

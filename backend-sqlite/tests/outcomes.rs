//! What follows from a run: retries, snoozes, delays, dead letters.

mod common;

use std::time::Duration;

use common::*;
use event_bus_core::backend::{
    AttemptError, Backend as _, DeadLetterFilter, DeadReason, DeliveryId, ErrorLog, Outcome, Timestamp,
};

fn error_log(attempt: u32) -> ErrorLog {
    ErrorLog::default().with(AttemptError {
        attempt,
        failed_at: Timestamp::from_millis(7),
        message: "no route to host".to_owned(),
    })
}

fn dead(holds_key: bool) -> Outcome {
    Outcome::Dead { reason: DeadReason::Exhausted, failures: 5, errors: error_log(5), holds_key }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_keeps_its_place_is_stored_and_comes_back_first_with_its_wait() {
    let store = Store::new().await;
    store.publish(events(&["first", "second"], Some("k"))).await;
    let session = store.open(&[handler("a")]).await;
    let claimed = claim(&session, 1, 10).await.deliveries;
    let delay = Duration::from_secs(60);
    settle(&session, &claimed[0], Outcome::Start { attempt: 1 }).await;
    let retry = Outcome::Retry { failures: 1, delay, errors: error_log(1), keeps_place: true };
    settle(&session, &claimed[0], retry.clone()).await;
    settle(&session, &claimed[0], retry).await;
    assert!(claim(&session, 1, 10).await.deliveries.is_empty(), "this session still holds it");
    session.close().await.unwrap();

    let session = store.open(&[handler("a")]).await;
    let again = claim(&session, 1, 10).await.deliveries;
    assert_eq!(texts(&again), ["first", "second"]);
    assert_eq!((again[0].id, again[0].failures, again[0].crashes), (claimed[0].id, 1, 0));
    assert_eq!(again[0].errors, error_log(1));
    assert!(again[0].due_in.is_some_and(|wait| wait >= delay && wait <= delay + Duration::from_millis(1)));
    assert_eq!(again[1].due_in, None);
    session.close().await.unwrap();

    store.clock.advance(delay * 2);
    let session = store.open(&[handler("a")]).await;
    assert_eq!(claim(&session, 1, 10).await.deliveries[0].due_in, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snooze_counts_no_failure_and_keeps_what_failed_before() {
    let store = Store::new().await;
    store.publish(events(&["x"], Some("k"))).await;
    let session = store.open(&[handler("a")]).await;
    let claimed = claim(&session, 1, 10).await.deliveries;
    let minute = Duration::from_secs(60);
    let retry = Outcome::Retry { failures: 2, delay: minute, errors: error_log(2), keeps_place: true };
    settle(&session, &claimed[0], retry).await;
    settle(&session, &claimed[0], Outcome::Snooze { delay: minute * 2, keeps_place: true }).await;
    session.close().await.unwrap();
    let session = store.open(&[handler("a")]).await;
    let again = claim(&session, 1, 10).await.deliveries;
    assert_eq!((again[0].failures, again[0].errors.clone()), (2, error_log(2)));
    assert!(again[0].due_in.is_some_and(|wait| wait >= minute * 2));

    settle(&session, &again[0], Outcome::Snooze { delay: minute, keeps_place: false }).await;
    store.clock.advance(minute * 2);
    let again = claim(&session, 1, 10).await.deliveries;
    assert_eq!((again[0].failures, again[0].errors.clone(), again[0].due_in), (2, error_log(2), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_without_a_place_leaves_and_comes_back_when_it_is_due() {
    let store = Store::new().await;
    store.publish(events(&["x", "y"], None)).await;
    let session = store.open(&[handler("a")]).await;
    let claimed = claim(&session, 1, 1).await.deliveries;
    let delay = Duration::from_secs(10);
    let retry = Outcome::Retry { failures: 1, delay, errors: error_log(1), keeps_place: false };
    settle(&session, &claimed[0], retry.clone()).await;
    // A repeat after a lost answer makes no second copy.
    settle(&session, &claimed[0], retry).await;
    let rest = claim(&session, 1, 10).await;
    assert_eq!(texts(&rest.deliveries), ["y"]);
    assert!(rest.next_due_in.is_some_and(|wait| wait >= delay));

    store.clock.advance(delay);
    assert!(claim(&session, 1, 10).await.deliveries.is_empty(), "a delay is a lower bound");
    store.clock.advance(Duration::from_millis(1));
    let again = claim(&session, 1, 10).await;
    assert_eq!(texts(&again.deliveries), ["x"]);
    assert_eq!((again.deliveries[0].failures, again.deliveries[0].errors.clone()), (1, error_log(1)));
    assert!(again.deliveries[0].id > rest.deliveries[0].id, "it is the last of its line now");
    assert_eq!(again.next_due_in, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn delayed_events_enter_their_lines_in_the_order_in_which_they_become_due() {
    let store = Store::new().await;
    for (text, seconds) in [("third", 30), ("first", 10), ("second", 20)] {
        let mut publication = publication(vec![envelope(text, Some("k"))], &["a", "b"]);
        publication.delay = Duration::from_secs(seconds);
        store.publish(publication).await;
    }
    let session = store.open(&[handler("a"), handler("b")]).await;
    let nothing = claim(&session, 2, 10).await;
    assert!(nothing.deliveries.is_empty());
    assert!(nothing.next_due_in.is_some_and(|wait| wait <= Duration::from_millis(10_001)));
    store.clock.advance(Duration::from_secs(60));
    store.publish(events(&["fourth"], Some("k"))).await;
    let claimed = claim(&session, 2, 10).await.deliveries;
    let of = |handler: usize| {
        let mut mine: Vec<_> = claimed.iter().filter(|d| d.handler().get() == handler).cloned().collect();
        mine.sort_by_key(|delivery| delivery.id);
        texts(&mine)
    };
    assert_eq!(of(0), ["fourth", "first", "second", "third"]);
    assert_eq!(of(1), ["first", "second", "third"]);
    assert_eq!(claimed[0].envelope.headers, envelope("x", None).headers);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_scheduled_deliveries_than_one_claim_promotes_all_arrive() {
    let store = Store::new().await;
    let texts_in: Vec<_> = (0..2_500).map(|n| n.to_string()).collect();
    let mut publication = publication(texts_in.iter().map(|text| envelope(text, None)).collect(), &["a"]);
    publication.delay = Duration::from_secs(1);
    store.publish(publication).await;
    store.clock.advance(Duration::from_secs(2));
    let session = store.open(&[handler("a")]).await;
    let mut got = Vec::new();
    loop {
        let claimed = claim(&session, 1, 5_000).await;
        got.extend(texts(&claimed.deliveries));
        match claimed.next_due_in {
            Some(wait) => assert_eq!(wait, Duration::ZERO),
            None => break,
        }
    }
    assert_eq!(got, texts_in);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_back_is_handed_out_again_before_what_is_behind_it() {
    let store = Store::new().await;
    store.publish(events(&["a", "b", "c"], Some("k"))).await;
    let session = store.open(&[handler("a")]).await;
    let claimed = claim(&session, 1, 2).await.deliveries;
    session.settle(&batch(claimed.into_iter().map(|delivery| (delivery, Outcome::Release)))).await.unwrap();
    assert_eq!(texts(&claim(&session, 1, 1).await.deliveries), ["a"]);
    assert_eq!(texts(&claim(&session, 1, 10).await.deliveries), ["b", "c"]);
    assert!(claim(&session, 1, 10).await.deliveries.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_keeps_everything_and_can_be_found_replayed_and_purged() {
    let store = Store::new().await;
    let event = envelope("x", Some("k"));
    store.publish(publication(vec![event.clone(), envelope("y", None)], &["a", "b"])).await;
    let session = store.open(&[handler("a"), handler("b")]).await;
    let claimed = claim(&session, 2, 10).await.deliveries;
    for delivery in &claimed {
        settle(&session, delivery, dead(false)).await;
        settle(&session, delivery, dead(false)).await;
    }
    let all = store.backend.dead_letters(&DeadLetterFilter::default(), None, 10).await.unwrap();
    assert_eq!(all.len(), 4, "a repeated settle makes no second dead letter");
    let letter = &all[0];
    assert_eq!((&letter.envelope, &*letter.handler, letter.failures), (&event, "a", 5));
    assert_eq!(
        (letter.reason, letter.errors.clone(), letter.holds_key),
        (DeadReason::Exhausted, error_log(5), false)
    );
    assert!(letter.died_at > Timestamp::from_millis(1_600_000_000_000));

    let found =
        async |filter: DeadLetterFilter| store.backend.dead_letters(&filter, None, 10).await.unwrap().len();
    let any = DeadLetterFilter::default;
    assert_eq!(found(DeadLetterFilter { handler: Some("b".to_owned()), ..any() }).await, 2);
    assert_eq!(found(DeadLetterFilter { handler: Some("c".to_owned()), ..any() }).await, 0);
    assert_eq!(found(DeadLetterFilter { key: Some("k".to_owned()), ..any() }).await, 2);
    assert_eq!(found(DeadLetterFilter { event: Some("other".to_owned()), ..any() }).await, 0);
    assert_eq!(found(DeadLetterFilter { reason: Some(DeadReason::Discarded), ..any() }).await, 0);
    assert_eq!(found(DeadLetterFilter { died_before: Some(letter.died_at), ..any() }).await, 0);
    assert_eq!(
        found(DeadLetterFilter { ids: Some(vec![all[3].id, DeliveryId(u128::MAX)]), ..any() }).await,
        1
    );
    assert_eq!(store.backend.dead_letters(&any(), Some(all[1].id), 1).await.unwrap()[0].id, all[2].id);
    assert!(store.backend.dead_letters(&any(), Some(DeliveryId(u128::MAX)), 1).await.unwrap().is_empty());

    let counts = store.backend.counts().await.unwrap();
    assert_eq!(
        counts.iter().map(|count| (&*count.handler, count.ready, count.dead)).collect::<Vec<_>>(),
        [("a", 0, 2), ("b", 0, 2)]
    );

    assert_eq!(
        store.backend.replay(&DeadLetterFilter { handler: Some("a".to_owned()), ..any() }).await.unwrap(),
        2
    );
    let again = claim(&session, 2, 10).await.deliveries;
    assert_eq!(texts(&again), ["x", "y"]);
    assert_eq!((&again[0].envelope, again[0].failures), (&event, 0));
    assert!(again[0].errors.is_empty());
    assert_eq!(store.backend.purge(&any()).await.unwrap(), 2);
    assert_eq!(found(any()).await, 0);
    assert_eq!(store.backend.purge(&any()).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_replay_keeps_the_order_of_publication_and_leaves_no_letter_behind() {
    let store = Store::new().await;
    let names: Vec<_> = (0..1_200).map(|n| format!("{n:04}")).collect();
    store.publish(publication(names.iter().map(|name| envelope(name, Some("k"))).collect(), &["a"])).await;
    let session = store.open(&[handler("a")]).await;
    let mut claimed = claim(&session, 1, 2_000).await.deliveries;
    claimed.reverse();
    session.settle(&batch(claimed.into_iter().map(|delivery| (delivery, dead(false))))).await.unwrap();
    assert_eq!(store.backend.replay(&DeadLetterFilter::default()).await.unwrap(), 1_200);
    assert_eq!(texts(&claim(&session, 1, 2_000).await.deliveries), names);
    assert!(store.backend.dead_letters(&DeadLetterFilter::default(), None, 1).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_key_is_marked_until_replay_brings_the_delivery_back_in_its_old_place() {
    let store = Store::new().await;
    store.publish(events(&["head", "behind"], Some("k"))).await;
    let session = store.open(&[handler("a")]).await;
    let claimed = claim(&session, 1, 10).await.deliveries;
    settle(&session, &claimed[0], dead(true)).await;
    settle(&session, &claimed[0], dead(true)).await;
    session.close().await.unwrap();

    let letters = store.backend.dead_letters(&DeadLetterFilter::default(), None, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert!(letters[0].holds_key);
    let session = store.open(&[handler("a")]).await;
    let marked = claim(&session, 1, 10).await.deliveries;
    assert_eq!(marked.iter().map(|delivery| delivery.is_held).collect::<Vec<_>>(), [true, false]);
    let counts = store.backend.counts().await.unwrap();
    assert_eq!((counts[0].ready, counts[0].dead), (1, 1));
    session.close().await.unwrap();

    assert_eq!(store.backend.replay(&DeadLetterFilter::default()).await.unwrap(), 1);
    let session = store.open(&[handler("a")]).await;
    let free = claim(&session, 1, 10).await.deliveries;
    assert_eq!(texts(&free), ["head", "behind"]);
    assert_eq!((free[0].id, free[0].is_held, free[0].failures), (claimed[0].id, false, 0));
    assert!(store.backend.dead_letters(&DeadLetterFilter::default(), None, 10).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_lets_go_of_the_keys_that_dead_letters_hold() {
    let store = Store::new().await;
    store.publish(events(&["head", "behind"], Some("k"))).await;
    let session = store.open(&[handler("a")]).await;
    let claimed = claim(&session, 1, 10).await.deliveries;
    settle(&session, &claimed[0], dead(true)).await;
    session.close().await.unwrap();
    assert_eq!(store.backend.purge(&DeadLetterFilter::default()).await.unwrap(), 1);
    let session = store.open(&[handler("a")]).await;
    assert_eq!(texts(&claim(&session, 1, 10).await.deliveries), ["behind"]);
}

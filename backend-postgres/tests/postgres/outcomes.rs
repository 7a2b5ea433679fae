//! What is stored of a run: outcomes, dead letters, parked lines.

use std::sync::Arc;
use std::time::Duration;

use event_bus_core::backend::{
    AttemptError, Backend as _, ClaimRequest, DeadLetterFilter, DeadReason, ErrorLog, LaneDemand, Outcome,
    Park, Partition, Session, SettleBatch, Timestamp,
};
use sqlx::Connection as _;

use crate::common::*;

fn log(text: &str) -> ErrorLog {
    let failed_at = Timestamp::from_millis(1);
    ErrorLog::default().with(AttemptError { attempt: 1, failed_at, message: text.to_owned() })
}

fn dead(holds_key: bool) -> Outcome {
    Outcome::Dead { reason: DeadReason::Exhausted, failures: 3, errors: log("why"), holds_key }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_batch_stores_every_kind_of_outcome_and_says_it_twice_in_vain() {
    let store = Store::new().await;
    let session = store.open(&[handler("a")]).await;
    let keys = ["done", "start", "retry", "apart", "snooze", "dead", "held"];
    let all = keys.iter().map(|key| envelope(key, Some(key))).collect();
    store.publish(publication(all, &["a"])).await;
    let mut claimed = claim_all(&session, 1, keys.len()).await;
    claimed.sort_by_key(|delivery| delivery.id);
    let hour = Duration::from_secs(3_600);
    let retry = |keeps_place| Outcome::Retry { failures: 1, delay: hour, errors: log("again"), keeps_place };
    let outcomes = [
        Outcome::Complete,
        Outcome::Start { attempt: 1 },
        retry(true),
        retry(false),
        Outcome::Snooze { delay: hour, keeps_place: true },
        dead(false),
        dead(true),
    ];
    let batch = batch(claimed.into_iter().zip(outcomes));
    session.settle(&batch).await.unwrap();
    let state = "select string_agg(concat_ws(' ', key, failures, started, due_at > now(), is_held), '; ' order by id) from \
                 event_bus.delivery";
    let seen: String = sqlx::query_scalar(state).fetch_one(&mut store.connect().await).await.unwrap();
    assert_eq!(seen, "start 0 1 f; retry 1 0 t f; snooze 0 0 t f; held 0 0 t");
    session.settle(&batch).await.unwrap();
    let again: String = sqlx::query_scalar(state).fetch_one(&mut store.connect().await).await.unwrap();
    assert_eq!(again, seen);
    assert_eq!(store.number("select count(*) from event_bus.scheduled where failures = 1").await, 1);
    let letters = store.backend.dead_letters(&DeadLetterFilter::default(), None, 10).await.unwrap();
    assert_eq!(letters.iter().map(|letter| letter.holds_key).collect::<Vec<_>>(), [false, true]);
    assert_eq!(letters[0].errors.entries()[0].message, "why");
    assert_eq!(letters[0].failures, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deep_line_behind_a_stuck_head_is_parked_and_comes_back_in_order() {
    let store = Store::new().await;
    let session = store.open(&[handler("a")]).await;
    let line: Vec<_> = (0..20).map(|number| number.to_string()).collect();
    store.publish(publication(line.iter().map(|text| envelope(text, Some("k"))).collect(), &["a"])).await;
    let claimed = claim_all(&session, 1, 20).await;
    let partition = claimed[0].partition;
    let ids: Vec<_> = claimed[1..].iter().map(|delivery| delivery.id).collect();
    let parks = vec![Park { partition, key: "k".into(), from: ids[0], claimed: ids }];
    session.settle(&SettleBatch { settlements: Vec::new(), parks }).await.unwrap();
    assert_eq!(store.number("select count(*) from event_bus.parked").await, 19);
    assert!(claim(&session, 1, 10).await.deliveries.is_empty());
    let want = |limit| ClaimRequest {
        lanes: vec![LaneDemand { partition, key: "k".into(), limit }],
        ..demand(0, 0)
    };
    let some = session.claim(&want(5)).await.unwrap();
    assert_eq!(texts(&some.deliveries), ["1", "2", "3", "4", "5"]);
    assert_eq!(some.still_parked.len(), 1);
    drop(session);

    // The next owner is told of the lane, and finds all of it parked, what was held in memory as well.
    let second = store.open(&[handler("a")]).await;
    let parked = loop {
        let claimed = claim(&second, 1, 10).await;
        assert!(claimed.deliveries.is_empty());
        if !claimed.parked.is_empty() {
            break claimed.parked;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(parked.iter().map(|lane| &*lane.key).collect::<Vec<_>>(), ["k"]);
    let all = second.claim(&want(100)).await.unwrap();
    assert_eq!(texts(&all.deliveries), line);
    assert_eq!(all.deliveries.iter().filter(|delivery| delivery.crashes == 1).count(), 6);
}

/// A session whose handler `a` has a line of twenty for the key `k`, all but the first of it parked.
async fn with_a_parked_line(store: &Store) -> (Arc<dyn Session>, Partition) {
    let session = store.open(&[handler("a")]).await;
    let line = (0..20).map(|number| envelope(&number.to_string(), Some("k"))).collect();
    store.publish(publication(line, &["a"])).await;
    let claimed = claim_all(&session, 1, 20).await;
    let partition = claimed[0].partition;
    let ids: Vec<_> = claimed[1..].iter().map(|delivery| delivery.id).collect();
    let parks = vec![Park { partition, key: "k".into(), from: ids[0], claimed: ids }];
    session.settle(&SettleBatch { settlements: Vec::new(), parks }).await.unwrap();
    (session, partition)
}

fn of_lane(partition: Partition, limit: usize) -> ClaimRequest {
    ClaimRequest { lanes: vec![LaneDemand { partition, key: "k".into(), limit }], ..demand(0, 0) }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leaves_a_parked_line_is_accounted_for_at_once() {
    let store = Store::new().await;
    let (session, partition) = with_a_parked_line(&store).await;
    // The store knows of nothing that the session holds, and cannot be told: nothing may leave the line.
    store.execute("update event_bus.worker_handler set loaded_to = 0").await;
    let mut own = store.connect().await;
    let mut transaction = own.begin().await.unwrap();
    let locked = sqlx::query("select from event_bus.worker_handler for update").execute(&mut *transaction);
    assert_eq!(locked.await.unwrap().rows_affected(), 1);
    let claim = tokio::spawn({
        let session = session.clone();
        async move { session.claim(&of_lane(partition, 5)).await }
    });
    while store.number("select count(*) from pg_stat_activity where wait_event_type = 'Lock'").await == 0 {
        assert!(!claim.is_finished());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(store.number("select count(*) from event_bus.parked").await, 19);
    transaction.commit().await.unwrap();
    assert_eq!(texts(&claim.await.unwrap().unwrap().deliveries), ["1", "2", "3", "4", "5"]);
    let unaccounted = "select count(*) from event_bus.delivery d join event_bus.worker_handler h using (handler_id) \
                       where d.id > h.loaded_to";
    assert_eq!(store.number(unaccounted).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_claim_took_out_of_a_parked_line_comes_first_of_the_next_one() {
    let store = Store::new().await;
    let (session, partition) = with_a_parked_line(&store).await;
    store.publish(events(&["free"], None)).await;
    // Free deliveries are claimed last, and not this time.
    store
        .execute(
            "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;
             create trigger refuse before update on event_bus.delivery for each row execute function refuse()",
        )
        .await;
    let request = ClaimRequest { demands: demand(1, 10).demands, ..of_lane(partition, 5) };
    session.claim(&request).await.unwrap_err();
    assert_eq!(store.number("select count(*) from event_bus.parked").await, 14);
    store.execute("drop trigger refuse on event_bus.delivery").await;
    let all = session.claim(&request).await.unwrap();
    assert_eq!(texts(&all.deliveries), ["1", "2", "3", "4", "5", "free"]);
    assert_eq!(store.number("select count(*) from event_bus.parked").await, 14);
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_keeps_the_order_and_purge_lets_go() {
    let store = Store::new().await;
    let session = store.open(&[handler("a")]).await;
    let texts_in = ["0", "1", "2", "3", "4", "5"];
    store.publish(events(&texts_in, Some("k"))).await;
    let claimed = claim_all(&session, 1, 6).await;
    // They die in another order.
    for position in [3, 1, 2] {
        settle(&session, &claimed[position], dead(false)).await;
    }
    complete(&session, vec![claimed[0].clone(), claimed[4].clone()]).await;
    assert_eq!(store.backend.replay(&DeadLetterFilter::default()).await.unwrap(), 3);
    let back = claim_all(&session, 1, 3).await;
    assert_eq!(texts(&back), ["1", "2", "3"]);
    settle(&session, &back[0], dead(true)).await;
    assert_eq!(store.number("select count(*) from event_bus.delivery where is_held").await, 1);
    let other = DeadLetterFilter { key: Some("other".to_owned()), ..DeadLetterFilter::default() };
    assert_eq!(store.backend.purge(&other).await.unwrap(), 0);
    assert_eq!(store.backend.purge(&DeadLetterFilter::default()).await.unwrap(), 1);
    assert_eq!(store.number("select count(*) from event_bus.delivery where is_held").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_read_goes_to_the_dead_letters() {
    let store = Store::new().await;
    store.publish(events(&["x"], None)).await;
    store.execute("update event_bus.delivery set headers = 'no json'").await;
    store.publish(events(&["y"], None)).await;
    let session = store.open(&[handler("a")]).await;
    assert_eq!(texts(&claim_all(&session, 1, 1).await), ["y"]);
    let letters = store.backend.dead_letters(&DeadLetterFilter::default(), None, 10).await.unwrap();
    assert_eq!(letters[0].reason, DeadReason::Undecodable);
    assert!(letters[0].errors.entries()[0].message.contains("headers"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_being_parked_is_handed_out_in_small_pieces() {
    let store = Store::new().await;
    let session = store.open(&[handler("a")]).await;
    store.publish(events(&["x"; 900], Some("k"))).await;
    let claimed = claim_all(&session, 1, 100).await;
    let partition = claimed[0].partition;
    let ids: Vec<_> = claimed[1..].iter().map(|delivery| delivery.id).collect();
    let parks = vec![Park { partition, key: "k".into(), from: ids[0], claimed: ids }];
    session.settle(&SettleBatch { settlements: Vec::new(), parks }).await.unwrap();
    // All of it goes back with the next settle, and others wait for that.
    assert_eq!(claim(&session, 1, 600).await.deliveries.len(), 128);
}

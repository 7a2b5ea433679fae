//! Lanes behind a stuck head.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod common;

use std::sync::Arc;

use common::*;
use event_bus_core::backend::{
    Backend as _, ClaimRequest, DeadLetterFilter, DeadReason, Delivery, ErrorLog, HandlerIndex, LaneDemand,
    Outcome, Park, Partition, Session, SettleBatch,
};

const PARTITION: Partition = Partition { handler: HandlerIndex(0), number: Partition::WHOLE };

async fn park(session: &Arc<dyn Session>, deliveries: &[Delivery]) {
    let park = Park {
        partition: PARTITION,
        key: deliveries[0].envelope.key.clone().unwrap(),
        from: deliveries[0].id,
        claimed: deliveries.iter().map(|delivery| delivery.id).collect(),
    };
    session.settle(&SettleBatch { settlements: Vec::new(), parks: vec![park] }).await.unwrap();
}

fn refill(key: &str, limit: usize) -> ClaimRequest {
    let lane = LaneDemand { partition: PARTITION, key: key.into(), limit };
    ClaimRequest { demands: Vec::new(), lanes: vec![lane], max_bytes: usize::MAX }
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_deliveries_come_back_oldest_first_and_only_when_they_are_asked_for() {
    let store = Store::new().await;
    store.publish(events(&["1", "2", "3", "4"], Some("stuck"))).await;
    let session = store.open(&[handler("a")]).await;
    let claimed = claim(&session, 1, 10).await.deliveries;
    park(&session, &claimed[1..]).await;
    assert!(claim(&session, 1, 10).await.deliveries.is_empty());

    let first = session.claim(&refill("stuck", 2)).await.unwrap();
    assert_eq!(texts(&first.deliveries), ["2", "3"]);
    assert_eq!(first.still_parked.len(), 1);
    assert_eq!((first.still_parked[0].first, first.still_parked[0].partition), (claimed[3].id, PARTITION));
    let rest = session.claim(&refill("stuck", 2)).await.unwrap();
    assert_eq!(texts(&rest.deliveries), ["4"]);
    assert!(rest.still_parked.is_empty());
    let nothing = session.claim(&refill("stuck", 2)).await.unwrap();
    assert!(nothing.deliveries.is_empty() && nothing.still_parked.is_empty());
    assert!(claim(&session, 1, 10).await.deliveries.is_empty(), "a refill is handed out once");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_worker_gets_a_parked_lane_from_its_waiting_head_on() {
    for is_clean in [true, false] {
        let store = Store::new().await;
        store.publish(events(&["1", "2", "3", "4"], Some("stuck"))).await;
        let session = store.open(&[handler("a")]).await;
        let claimed = claim(&session, 1, 10).await.deliveries;
        park(&session, &claimed[2..]).await;
        if is_clean {
            session.close().await.unwrap();
        }
        drop(session);

        let session = store.open(&[handler("a")]).await;
        let answer = claim(&session, 1, 10).await;
        assert!(answer.deliveries.is_empty(), "all of the lane is parked");
        assert_eq!(answer.parked.iter().map(|lane| lane.first).collect::<Vec<_>>(), [claimed[0].id]);
        let all = session.claim(&refill("stuck", 10)).await.unwrap();
        assert_eq!(texts(&all.deliveries), ["1", "2", "3", "4"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refill_stops_at_the_bytes_it_was_given() {
    let store = Store::new().await;
    let large = "x".repeat(10_000);
    store.publish(events(&[&large, &large, &large], Some("stuck"))).await;
    let session = store.open(&[handler("a")]).await;
    let claimed = claim(&session, 1, 10).await.deliveries;
    park(&session, &claimed).await;
    let mut request = refill("stuck", 10);
    request.max_bytes = 10_001;
    let first = session.claim(&request).await.unwrap();
    assert_eq!(first.deliveries.len(), 2);
    assert_eq!(first.still_parked[0].first, claimed[2].id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_session_is_told_of_all_parked_lanes_before_it_gets_deliveries_of_their_handler() {
    let store = Store::new().await;
    let lanes: Vec<_> = (0..1_500).map(|n| format!("lane-{n:04}")).collect();
    let behind = lanes.iter().flat_map(|lane| [envelope("head", Some(lane)), envelope("tail", Some(lane))]);
    store.publish(publication(behind.collect(), &["a"])).await;
    store.publish(events(&["other"], Some("free"))).await;
    let session = store.open(&[handler("a")]).await;
    let claimed = claim(&session, 1, 3_000).await.deliveries;
    let parks = claimed
        .chunks(2)
        .map(|lane| Park {
            partition: PARTITION,
            key: lane[0].envelope.key.clone().unwrap(),
            from: lane[0].id,
            claimed: vec![lane[0].id, lane[1].id],
        })
        .collect();
    session.settle(&SettleBatch { settlements: Vec::new(), parks }).await.unwrap();
    session.close().await.unwrap();

    let session = store.open(&[handler("a")]).await;
    let first = claim(&session, 1, 10).await;
    assert_eq!((first.deliveries.len(), first.parked.len()), (0, 1_000));
    assert_eq!(first.more, [HandlerIndex(0)]);
    let second = claim(&session, 1, 10).await;
    assert_eq!((texts(&second.deliveries), second.parked.len()), (vec!["other".to_owned()], 500));
    assert!(claim(&session, 1, 10).await.parked.is_empty(), "told once");
    let told: Vec<_> =
        first.parked.iter().chain(&second.parked).map(|lane| (lane.key.to_string(), lane.first)).collect();
    let expected: Vec<_> = lanes.into_iter().zip(claimed.chunks(2).map(|lane| lane[0].id)).collect();
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_head_is_found_by_a_refill_until_it_is_replayed() {
    let store = Store::new().await;
    store.publish(events(&["head", "behind"], Some("k"))).await;
    let session = store.open(&[handler("a")]).await;
    let claimed = claim(&session, 1, 10).await.deliveries;
    let dead = Outcome::Dead {
        reason: DeadReason::Exhausted,
        failures: 5,
        errors: ErrorLog::default(),
        holds_key: true,
    };
    settle(&session, &claimed[0], dead).await;
    // The engine no longer holds the head as a delivery, so it names it only as the first of the lane.
    let hold =
        Park { partition: PARTITION, key: "k".into(), from: claimed[0].id, claimed: vec![claimed[1].id] };
    session.settle(&SettleBatch { settlements: Vec::new(), parks: vec![hold.clone()] }).await.unwrap();
    let found = session.claim(&refill("k", 1)).await.unwrap();
    assert!(found.deliveries[0].is_held);
    assert_eq!(found.still_parked[0].first, claimed[1].id);
    session.settle(&SettleBatch { settlements: Vec::new(), parks: vec![hold] }).await.unwrap();

    store.backend.replay(&DeadLetterFilter::default()).await.unwrap();
    let found = session.claim(&refill("k", 10)).await.unwrap();
    assert_eq!(texts(&found.deliveries), ["head", "behind"]);
    assert!(!found.deliveries[0].is_held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refill_whose_claim_was_dropped_is_not_forgotten() {
    let store = Store::new().await;
    store.publish(events(&["1", "2"], Some("stuck"))).await;
    let session = store.open(&[handler("a")]).await;
    let claimed = claim(&session, 1, 10).await.deliveries;
    park(&session, &claimed).await;
    let mut got = Vec::new();
    for polls in 0..200 {
        let request = refill("stuck", 10);
        // Dropped after a growing number of polls, unless it comes through.
        let mut call = session.claim(&request);
        for _ in 0..polls {
            if let Some(claimed) = poll_once(&mut call).await {
                got.extend(texts(&claimed.unwrap().deliveries));
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    while got.len() < 2 {
        got.extend(texts(&session.claim(&refill("stuck", 10)).await.unwrap().deliveries));
        got.extend(texts(&claim(&session, 1, 10).await.deliveries));
    }
    assert_eq!(got, ["1", "2"]);
}

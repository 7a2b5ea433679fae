//! Who owns what: taking over, sharing, clean and unclean ends.

use std::sync::Arc;
use std::time::Duration;

use event_bus_core::ErrorKind;
use event_bus_core::backend::{
    Backend as _, Delivery, HandlerIndex, HandlerSpec, Notice, Outcome, Partition, Session,
};
use event_bus_postgres::PostgresBackend;

use crate::common::*;

/// Does what core does when it is asked for a partition, until the session is over.
async fn obey(session: Arc<dyn Session>) {
    loop {
        match session.wait().await {
            Notice::Revoke(partition) => session.release(partition).await.unwrap(),
            Notice::Ended(_) => return,
            _ => {}
        }
    }
}

async fn leases(store: &Store) -> Vec<i64> {
    let rows = sqlx::query_scalar(
        "select count(*) from event_bus.lease where worker_id is not null group by worker_id order by 1",
    );
    rows.fetch_all(&mut store.connect().await).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_come_get_their_share_and_leave_it_to_the_others_at_once() {
    let store = Store::new().await;
    let mut sessions = Vec::new();
    for expected in [vec![64], vec![32, 32], vec![20, 22, 22]] {
        let session = store.open(&[handler("a")]).await;
        tokio::spawn(obey(session.clone()));
        sessions.push(session);
        while leases(&store).await != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    for expected in [vec![32, 32], vec![64], vec![]] {
        sessions.pop().unwrap().close().await.unwrap();
        while leases(&store).await != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(store.number("select count(*) from event_bus.worker").await, 0);
    assert_eq!(store.number("select count(*) from event_bus.lease where is_unclean").await, 0);
}

fn facts(deliveries: &[Delivery]) -> Vec<(u32, u32)> {
    deliveries.iter().map(|delivery| (delivery.failures, delivery.crashes)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unclean_end_charges_what_was_in_memory_and_the_attempt_that_was_recorded() {
    for key in [Some("k"), None] {
        let store = Store::new().await;
        let first = store.open(&[handler("a")]).await;
        store.publish(events(&["0", "1", "2", "3"], key)).await;
        let mut claimed = claim_all(&first, 1, 3).await;
        claimed.sort_by_key(|delivery| delivery.id);
        complete(&first, vec![claimed[0].clone()]).await;
        settle(&first, &claimed[1], Outcome::Start { attempt: 1 }).await;
        drop(first);
        store.execute("insert into event_bus.handler (name) values ('another')").await;

        let second = store.open(&[handler("a")]).await;
        let mut again = claim_all(&second, 1, 3).await;
        again.sort_by_key(|delivery| delivery.id);
        assert_eq!(texts(&again), ["1", "2", "3"]);
        assert_eq!(facts(&again[..2]), [(1, 1), (0, 1)], "key {key:?}");
        assert!(key.is_none() || again[0].fence > claimed[0].fence);
        second.close().await.unwrap();

        let third = store.open(&[handler("a")]).await;
        let mut last = claim_all(&third, 1, 3).await;
        last.sort_by_key(|delivery| delivery.id);
        assert_eq!(facts(&last), facts(&again), "a clean end charges nothing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_the_server_ends_writes_nothing_more_and_is_followed() {
    let store = Store::new().await;
    let first = store.open(&[handler("a")]).await;
    store.publish(events(&["keyed"], Some("k"))).await;
    store.publish(events(&["free"], None)).await;
    let claimed = claim_all(&first, 1, 2).await;
    store
        .execute(
            "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and database = \
             (select oid from pg_database where datname = current_database())",
        )
        .await;
    loop {
        if let Notice::Ended(error) = first.wait().await {
            assert_eq!(error.kind(), ErrorKind::LeaseLost);
            break;
        }
    }
    let outcomes = claimed.iter().map(|delivery| (delivery.clone(), Outcome::Complete));
    assert_eq!(first.settle(&batch(outcomes)).await.unwrap_err().kind(), ErrorKind::LeaseLost);
    assert_eq!(first.claim(&demand(1, 1)).await.unwrap_err().kind(), ErrorKind::LeaseLost);
    let mut own = store.connect().await;
    for delivery in &claimed {
        // Nobody has taken over yet, or somebody has: in both cases nothing is done twice.
        let _ = first.complete_in(&mut own, delivery).await.map_err(|error| {
            assert_eq!(error.kind(), ErrorKind::LeaseLost);
        });
    }
    let second = store.open(&[handler("a")]).await;
    let mut again = texts(&claim_all(&second, 1, 2).await);
    again.sort();
    assert_eq!(again, ["free", "keyed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_waited_for_is_waited_for_by_the_next_owner() {
    let store = Store::new().await;
    drop(store.open(&[handler("a")]).await);
    let patient =
        PostgresBackend::new(config(store.database.url()).handover_delay(Duration::from_secs(8))).unwrap();
    let second = patient.open(&worker(&[handler("a")])).await.unwrap();
    while leases(&store).await != [64] {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // What it gives back it may take again at once: it is written down what the lease was in between.
    store
        .execute(
            "create table given_back (slot int2, is_unclean bool);
             create function note() returns trigger language plpgsql as
                 $$ begin insert into given_back values (new.slot, new.is_unclean); return new; end $$;
             create trigger note after update on event_bus.lease for each row when (new.worker_id is null)
                 execute function note()",
        )
        .await;
    second.release(Partition { handler: HandlerIndex(0), number: 5 }).await.unwrap();
    assert_eq!(store.number("select count(*) from given_back where slot = 5 and is_unclean").await, 1);
    second.close().await.unwrap();
    assert_eq!(store.number("select count(*) from given_back where not is_unclean").await, 0);
    assert_eq!(store.number("select count(*) from event_bus.lease where is_unclean").await, 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_completes_in_its_own_transaction_is_fenced() {
    let store = Store::new().await;
    let first = store.open(&[handler("a")]).await;
    store.publish(events(&["keyed"], Some("k"))).await;
    store.publish(events(&["free"], None)).await;
    let claimed = claim_all(&first, 1, 2).await;
    store.execute("update event_bus.lease set epoch = epoch + 1; update event_bus.delivery set owner = 7 where slot = -1").await;
    let mut own = store.connect().await;
    for delivery in &claimed {
        let refused = first.complete_in(&mut own, delivery).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::LeaseLost);
    }
    assert_eq!(store.number("select count(*) from event_bus.delivery").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_a_vanished_worker_holds_up_its_delivery_alone() {
    let store = Store::new().await;
    let first = store.open(&[handler("a")]).await;
    store.publish(events(&["done"], None)).await;
    let done = claim_all(&first, 1, 1).await;
    store.publish(events(&["other"], None)).await;
    claim_all(&first, 1, 1).await;
    let pool = store.pool().await;
    let mut transaction = pool.begin().await.unwrap();
    first.complete_in(&mut transaction, &done[0]).await.unwrap();
    drop(first);
    let second = store.open(&[handler("a")]).await;
    assert_eq!(texts(&claim_all(&second, 1, 1).await), ["other"]);
    transaction.commit().await.unwrap();
    while store.number("select count(*) from event_bus.worker").await > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(store.number("select count(*) from event_bus.delivery").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_of_a_handler_that_nobody_knows_wait() {
    let store = Store::new().await;
    store.publish(publication(vec![envelope("x", Some("k")), envelope("y", None)], &["unknown"])).await;
    let session = store.open(&[handler("a")]).await;
    assert!(claim(&session, 1, 10).await.deliveries.is_empty());
    let knows = store.open(&[HandlerSpec { window: 4, ..handler("unknown") }]).await;
    assert_eq!(claim_all(&knows, 1, 2).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_back_comes_back_with_a_later_claim() {
    let store = Store::new().await;
    let session = store.open(&[handler("a")]).await;
    for key in [Some("k"), None] {
        store.publish(events(&["x"], key)).await;
        let claimed = claim_all(&session, 1, 1).await;
        assert!(claim(&session, 1, 10).await.deliveries.is_empty());
        settle(&session, &claimed[0], Outcome::Release).await;
        let again = claim_all(&session, 1, 1).await;
        assert_eq!(texts(&again), ["x"]);
        complete(&session, again).await;
    }
}

/// Claims nothing for so many beats: floors rise.
async fn idle(session: &Arc<dyn Session>, beats: u32) {
    for _ in 0..beats {
        assert!(claim(session, 1, 10).await.deliveries.is_empty());
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_commits_late_is_not_passed_over() {
    let store = Store::new().await;
    let session = store.open(&[handler("a")]).await;
    for key in [Some("k"), None] {
        let pool = store.pool().await;
        let mut transaction = pool.begin().await.unwrap();
        event_bus_core::backend::Backend::publish_in(
            &store.backend,
            &mut transaction,
            events(&["late"], key),
        )
        .await
        .unwrap();
        store.publish(events(&["early"], key)).await;
        let early = claim_all(&session, 1, 1).await;
        assert_eq!(texts(&early), ["early"]);
        idle(&session, 6).await;
        transaction.commit().await.unwrap();
        let late = claim_all(&session, 1, 1).await;
        assert_eq!(texts(&late), ["late"]);
        complete(&session, early).await;
        complete(&session, late).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_gives_back_is_found_below_the_floor() {
    let store = Store::new().await;
    let first = store.open(&[handler("a")]).await;
    store.publish(events(&["1", "2"], None)).await;
    let claimed = claim_all(&first, 1, 2).await;
    let second = store.open(&[handler("a")]).await;
    store.publish(events(&["3"], None)).await;
    let own = claim_all(&second, 1, 1).await;
    assert_eq!(texts(&own), ["3"]);
    idle(&second, 6).await;
    settle(&first, &claimed[0], Outcome::Release).await;
    assert_eq!(claim_all(&second, 1, 1).await[0].id, claimed[0].id);
    idle(&second, 6).await;
    drop(first);
    let left = claim_all(&second, 1, 1).await;
    assert_eq!((left[0].id, left[0].crashes), (claimed[1].id, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_does_not_make_claims_walk_over_what_is_done() {
    let store = Store::new().await;
    let mut open = store.connect().await;
    sqlx::raw_sql("begin isolation level repeatable read; select count(*) from event_bus.delivery")
        .execute(&mut open)
        .await
        .unwrap();
    let session = store.open(&[handler("a")]).await;
    for key in [Some("k"), None] {
        for _ in 0..20 {
            store.publish(events(&["x"; 500], key)).await;
            let all = claim_all(&session, 1, 500).await;
            complete(&session, all).await;
        }
    }
    idle(&session, 6).await;
    let read =
        "select coalesce(sum(idx_tup_read), 0)::int8 from pg_stat_user_indexes where relname = 'delivery'";
    let settled = async || {
        // Counters come a little late.
        let mut before = -1;
        loop {
            let now = store.number(read).await;
            if now == before {
                return now;
            }
            before = now;
            tokio::time::sleep(Duration::from_millis(1_100)).await;
        }
    };
    let before = settled().await;
    for _ in 0..10 {
        store.publish(events(&["y"], Some("k"))).await;
        let all = claim_all(&session, 1, 1).await;
        complete(&session, all).await;
    }
    let walked = settled().await - before;
    assert!(walked < 5_000, "ten claims read {walked} entries of an index");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_history_of_the_database_has_changed_nothing_is_taken_until_every_owner_must_have_stopped()
{
    let store = Store::new().await;
    let first = store.open(&[handler("a")]).await;
    store.publish(events(&["keyed"], Some("k"))).await;
    store.publish(events(&["free"], None)).await;
    let before = claim_all(&first, 1, 2).await;
    let noted = "select count(*) from event_bus.meta where key = 'history' and value <> 'another/00000001'";
    assert_eq!(store.number(noted).await, 1);
    // As a copy of these tables looks to whoever meets it under another system.
    store.execute("update event_bus.meta set value = 'another/00000001' where key = 'history'").await;
    drop(first);
    let (second, opened_at) = (store.open(&[handler("a")]).await, std::time::Instant::now());
    let after = claim_all(&second, 1, 2).await;
    // The old owner trusts its session for eight seconds.
    assert!(opened_at.elapsed() > Duration::from_secs(8), "taken after {:?}", opened_at.elapsed());
    assert_eq!(store.number(noted).await, 1);
    let fence = |all: &[Delivery]| all.iter().map(|delivery| delivery.fence).max();
    assert!(fence(&after) > fence(&before).map(|fence| fence + 1_000_000), "epochs may have gone back");
    // Who comes later knows the history.
    second.close().await.unwrap();
    let third = store.open(&[handler("a")]).await;
    assert_eq!(claim_all(&third, 1, 2).await.len(), 2);
    let raised = "select count(*) from event_bus.lease where epoch / 1000000000 <> 1";
    assert_eq!(store.number(raised).await, 0, "epochs are raised once");
}

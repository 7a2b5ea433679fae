//! Nothing waits for ever, and nothing runs at another level of isolation than it was made for.

use std::time::Duration;

use event_bus_core::ErrorKind;
use event_bus_core::backend::{Backend as _, DeadLetterFilter, Publication};
use event_bus_postgres::PostgresBackend;

use crate::common::*;

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_ends_by_itself_while_somebody_locks_the_tables() {
    let store = Store::new().await;
    let config = config(store.database.url()).write_timeout(Duration::from_millis(400));
    let publisher = PostgresBackend::new(config.clone()).unwrap();
    store.publish(events(&["claimed", "done"], Some("k"))).await;
    let session = store.open(&[handler("a")]).await;
    let claimed = claim_all(&session, 1, 2).await;
    let mut own = store.connect().await;
    let lock =
        "begin; lock table event_bus.delivery, event_bus.dead, event_bus.dedupe in access exclusive mode";
    sqlx::raw_sql(lock).execute(&mut own).await.unwrap();

    let once = Publication { idempotency_key: Some("key".into()), ..events(&["x"], None) };
    let all = DeadLetterFilter::default();
    let waited = [
        publisher.publish(events(&["x"], None)).await.map(drop),
        publisher.publish(once).await.map(drop),
        publisher.counts().await.map(drop),
        publisher.dead_letters(&all, None, 1).await.map(drop),
        publisher.replay(&all).await.map(drop),
        publisher.purge(&all).await.map(drop),
        session.claim(&demand(1, 1)).await.map(drop),
        session.settle(&batch([(claimed[1].clone(), event_bus_core::backend::Outcome::Complete)])).await,
    ];
    for (position, result) in waited.into_iter().enumerate() {
        let refused = result.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{position}: {refused}");
    }
    // A migration meets the lock on another table.
    sqlx::raw_sql("rollback; begin; lock table event_bus.meta in access exclusive mode")
        .execute(&mut own)
        .await
        .unwrap();
    let refused = PostgresBackend::new(config).unwrap().prepare().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    sqlx::raw_sql("rollback").execute(&mut own).await.unwrap();
    // The session has outlived it all.
    complete(&session, claimed).await;
    assert_eq!(store.number("select count(*) from event_bus.delivery").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_serializable_by_default_makes_no_difference() {
    let store = Store::new().await;
    let (name, check) = (store.database.name(), "public.check_isolation");
    store
        .execute(&format!(
            "alter database {name} set default_transaction_isolation = 'serializable';
             create function {check}() returns trigger language plpgsql as $$
             begin
                 if current_setting('transaction_isolation') <> 'read committed' then
                     raise exception 'at another level';
                 end if;
                 return null;
             end $$;
             create trigger checks before insert or update or delete on event_bus.delivery
                 for each statement execute function {check}();
             create trigger checks before insert or update or delete on event_bus.lease
                 for each statement execute function {check}()"
        ))
        .await;
    let publisher = store.another();
    publisher.publish(events(&["plain"], Some("k"))).await.unwrap();
    let once = Publication { idempotency_key: Some("key".into()), ..events(&["once"], None) };
    publisher.publish(once).await.unwrap();
    let session = store.open(&[handler("a")]).await;
    let all = claim_all(&session, 1, 2).await;
    complete(&session, all).await;
    session.close().await.unwrap();
}

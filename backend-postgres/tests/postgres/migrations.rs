//! Creating the tables: from many nodes, by hand, beside others, without rights.

use event_bus_core::ErrorKind;
use event_bus_core::backend::Backend as _;

use crate::common::*;

#[tokio::test(flavor = "multi_thread")]
async fn many_nodes_migrate_at_once() {
    let store = Store::unprepared().await;
    let nodes: Vec<_> = (0..12)
        .map(|_| {
            let node = store.another();
            tokio::spawn(async move { node.prepare().await })
        })
        .collect();
    for node in nodes {
        node.await.unwrap().unwrap();
    }
    assert_eq!(store.number("select count(*) from event_bus.meta").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_makes_what_migrate_makes() {
    let by_hand = Store::unprepared().await;
    by_hand.execute(&by_hand.backend.migrations_sql()).await;
    let by_us = Store::new().await;
    let shape = "select md5(string_agg(table_name || column_name || data_type || coalesce(column_default, '') || is_nullable, \
                 ',' order by table_name, ordinal_position)) || (select string_agg(key || value, ',' order by key) from \
                 event_bus.meta) from information_schema.columns where table_schema = 'event_bus'";
    let mut shapes = Vec::new();
    for store in [&by_hand, &by_us] {
        let text: String = sqlx::query_scalar(shape).fetch_one(&mut store.connect().await).await.unwrap();
        shapes.push(text);
    }
    assert_eq!(shapes[0], shapes[1]);
    by_hand.backend.prepare().await.unwrap();
    by_hand.publish(events(&["x"], None)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_schema_is_refused_untouched() {
    let store = Store::new().await;
    store.execute("update event_bus.meta set value = '7' where key = 'schema'").await;
    for refused in [
        store.another().prepare().await.unwrap_err(),
        store.another().open(&worker(&[handler("a")])).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(refused.kind(), ErrorKind::InvalidConfiguration);
        assert!(refused.to_string().contains("\"7\""), "{refused}");
    }
    assert_eq!(store.number("select count(*) from event_bus.worker").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_buses_share_a_database_and_never_meet() {
    let store = Store::new().await;
    let other = backend(&format!("{}?schema=orders_bus", store.database.url()));
    other.prepare().await.unwrap();
    store.publish(events(&["ours"], Some("k"))).await;
    other.publish(events(&["theirs"], Some("k"))).await.unwrap();
    let ours = store.open(&[handler("a")]).await;
    let theirs = other.open(&worker(&[handler("a")])).await.unwrap();
    assert_eq!(texts(&claim_all(&ours, 1, 1).await), ["ours"]);
    assert_eq!(texts(&claim_all(&theirs, 1, 1).await), ["theirs"]);
    drop(ours);
    // The other bus's worker has another lock, though their ids are equal.
    let again = store.open(&[handler("a")]).await;
    assert_eq!(claim_all(&again, 1, 1).await[0].crashes, 1);
    assert!(claim(&theirs, 1, 1).await.deliveries.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_tables_is_told_to_migrate() {
    let store = Store::unprepared().await;
    let refused = store.backend.open(&worker(&[handler("a")])).await.map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidConfiguration);
    assert!(refused.to_string().contains("call `migrate`"), "{refused}");
    let refused = store.backend.publish(events(&["x"], None)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidConfiguration);
}

//! Roles with few rights, and secrets.

use event_bus_core::ErrorKind;
use event_bus_core::backend::{Backend as _, Publication, Stored};

use crate::common::*;

/// As in the crate's documentation.
const PUBLISHER: &str = "
    grant usage on schema event_bus to ROLE;
    grant insert on event_bus.delivery, event_bus.scheduled to ROLE;
    grant select, insert on event_bus.handler, event_bus.dedupe to ROLE;
    grant select on event_bus.meta to ROLE;
";
const WORKER: &str = "
    grant usage on schema event_bus to ROLE;
    grant select, insert, update, delete on all tables in schema event_bus to ROLE;
";

/// A role of this name and what may be done with it; roles are the whole server's, so the name has the database's in it.
async fn role(store: &Store, name: &str, grants: &str) -> String {
    let role = format!("{}_{name}", store.database.name());
    store.execute(&format!("create role {role} login; {}", grants.replace("ROLE", &role))).await;
    store.database.url().replacen("postgres://postgres", &format!("postgres://{role}"), 1)
}

async fn drop_role(store: &Store, name: &str) {
    let role = format!("{}_{name}", store.database.name());
    store.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_only_insert_publishes_everything_and_sees_nothing() {
    let store = Store::new().await;
    let publisher = backend(&role(&store, "publisher", PUBLISHER).await);
    publisher.prepare().await.unwrap();
    assert_eq!(publisher.publish(events(&["plain"], Some("k"))).await.unwrap(), Stored::New);
    let keyed = Publication { idempotency_key: Some("key".into()), ..events(&["once"], None) };
    assert_eq!(publisher.publish(keyed.clone()).await.unwrap(), Stored::New);
    assert_eq!(publisher.publish(keyed).await.unwrap(), Stored::Duplicate);
    let delayed = Publication { delay: std::time::Duration::from_secs(60), ..events(&["later"], None) };
    publisher.publish(delayed).await.unwrap();
    for refused in [
        publisher.counts().await.map(drop).unwrap_err(),
        publisher.purge(&event_bus_core::backend::DeadLetterFilter::default()).await.map(drop).unwrap_err(),
        publisher.open(&worker(&[handler("a")])).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(refused.kind(), ErrorKind::InvalidConfiguration, "{refused}");
        assert!(refused.to_string().contains("grants"), "{refused}");
    }
    drop(publisher);
    let session = store.open(&[handler("a")]).await;
    assert_eq!(claim_all(&session, 1, 2).await.len(), 2);
    drop_role(&store, "publisher").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_needs_no_right_to_create_anything() {
    let store = Store::new().await;
    let url = role(&store, "worker", WORKER).await;
    store.publish(events(&["x"], Some("k"))).await;
    let session = backend(&url).open(&worker(&[handler("a")])).await.unwrap();
    let all = claim_all(&session, 1, 1).await;
    complete(&session, all).await;
    session.close().await.unwrap();
    assert_eq!(store.number("select count(*) from event_bus.delivery").await, 0);
    drop(session);
    drop_role(&store, "worker").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_text_shows_the_password() {
    let store = Store::new().await;
    let secret = store.database.url().replacen("postgres@", "nobody_here:hunter2@", 1);
    let backend = backend(&secret);
    let refused = backend.publish(events(&["x"], None)).await.unwrap_err();
    let text = format!("{refused} {refused:?} {} {backend:?}", event_bus_core::chain(&refused));
    assert!(!text.contains("hunter2"), "{text}");
    assert_eq!(refused.kind(), ErrorKind::InvalidConfiguration);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_requires_tls_is_not_used_without_it() {
    let store = Store::new().await;
    let refused = backend(&format!("{}?sslmode=require", store.database.url()));
    let refused = refused.counts().await.map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidConfiguration, "{refused}");
    assert!(refused.to_string().contains("TLS"), "{refused}");
}

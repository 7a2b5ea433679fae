//! `rediss` with certificates of an authority of our own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use common::{Store, assert_refused, claim, envelope, publication, settle, worker};
use event_bus_conformance::servers::{Authority, free_port};
use event_bus_core::ErrorKind;
use event_bus_core::backend::{Backend, Outcome};
use event_bus_redis::RedisBackend;

/// A server with a certificate, and its port for TLS.
async fn server(authority: &Authority) -> (Store, u16) {
    let port = free_port();
    let store = Store::unprepared(&[
        ("tls-port", &port.to_string()),
        ("tls-cert-file", &authority.path("host.pem")),
        ("tls-key-file", &authority.path("host.key")),
        ("tls-ca-cert-file", &authority.path("ca.pem")),
        ("tls-auth-clients", "no"),
    ])
    .await;
    (store, port)
}

fn backend(port: u16, authority: Option<&Path>) -> RedisBackend {
    let authority = authority.map(|file| format!("&ca_file={}", file.display())).unwrap_or_default();
    let url = format!(
        "rediss://localhost:{port}?bus=test&command_timeout_ms=2000&publish_timeout_ms=300{authority}"
    );
    RedisBackend::from_url(&url).unwrap()
}

#[tokio::test]
async fn events_go_by_tls_to_a_server_of_a_private_authority() {
    let authority = Authority::new("DNS:localhost");
    let (store, port) = server(&authority).await;
    let backend = backend(port, Some(&authority.file("ca.pem")));
    backend.prepare().await.unwrap();
    let session = backend.open(&worker()).await.unwrap();
    backend.publish(publication([envelope("one", Some("k")), envelope("two", None)])).await.unwrap();
    let clients: String = store.command(&["CLIENT", "LIST"]).await;
    // Those for publishing, claiming, beating and listening; one without is the operator's own.
    let by_tls = clients.lines().filter(|client| client.contains(&format!(":{port} "))).count();
    assert!(by_tls >= 4, "{clients}");
    assert_eq!(clients.lines().count(), by_tls + 1, "{clients}");
    let deliveries = claim(&session, 2).await;
    settle(&session, &deliveries, Outcome::Complete).await;
    session.close().await.unwrap();
}

#[tokio::test]
async fn a_certificate_of_another_authority_or_for_another_host_is_refused() {
    let (ours, stranger) = (Authority::new("DNS:localhost"), Authority::new("DNS:elsewhere.example"));
    let (_store, port) = server(&ours).await;
    let (_other, port_of_other) = server(&stranger).await;
    for (backend, part) in [
        (backend(port, Some(&stranger.file("ca.pem"))), "UnknownIssuer"),
        (backend(port, None), "UnknownIssuer"),
        (backend(port_of_other, Some(&stranger.file("ca.pem"))), "not valid for name"),
    ] {
        assert_refused(backend.prepare().await, ErrorKind::InvalidConfiguration, part);
        let published = backend.publish(publication([envelope("one", None)])).await;
        assert_refused(published, ErrorKind::InvalidConfiguration, part);
    }
}

#[tokio::test]
async fn a_file_of_authorities_that_cannot_be_read_is_named() {
    let missing = RedisBackend::from_url("rediss://localhost?ca_file=/nowhere/ca.pem");
    assert_refused(missing, ErrorKind::InvalidConfiguration, "/nowhere/ca.pem");
    let plain = RedisBackend::from_url("redis://localhost?ca_file=/nowhere/ca.pem");
    assert_refused(plain, ErrorKind::InvalidConfiguration, "rediss");
}

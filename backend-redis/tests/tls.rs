//! `rediss` with certificates of an authority of our own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Store, assert_refused, claim, envelope, publication, settle, worker};
use event_bus_conformance::servers::free_port;
use event_bus_core::ErrorKind;
use event_bus_core::backend::{Backend, Outcome};
use event_bus_redis::RedisBackend;

/// Certificates in a directory of their own.
struct Authority(tempfile::TempDir);

impl Authority {
    /// An authority, and a certificate of it for this host.
    fn new(host: &str) -> Self {
        let authority = Self(tempfile::tempdir().unwrap());
        std::fs::write(authority.file("host.ext"), format!("subjectAltName=DNS:{host}\n")).unwrap();
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        for command in [
            format!("req -x509 {key} -days 2 -subj /CN=authority-of-{host} -keyout ca.key -out ca.pem"),
            format!("req -new {key} -subj /CN=server -keyout host.key -out host.csr"),
            "x509 -req -in host.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile host.ext -out host.pem"
                .to_owned(),
        ] {
            authority.openssl(&command);
        }
        authority
    }

    /// Runs the program (Debian: `apt-get install openssl`).
    fn openssl(&self, arguments: &str) {
        let mut openssl = Command::new("openssl");
        openssl.args(arguments.split(' ')).current_dir(self.0.path());
        let output = openssl.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A server with its certificate, and its port for TLS.
    async fn server(&self) -> (Store, u16) {
        let port = free_port();
        let files = ["host.pem", "host.key", "ca.pem"].map(|name| self.file(name).display().to_string());
        let store = Store::unprepared(&[
            ("tls-port", &port.to_string()),
            ("tls-cert-file", &files[0]),
            ("tls-key-file", &files[1]),
            ("tls-ca-cert-file", &files[2]),
            ("tls-auth-clients", "no"),
        ])
        .await;
        (store, port)
    }
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
    let authority = Authority::new("localhost");
    let (store, port) = authority.server().await;
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
    let (ours, stranger) = (Authority::new("localhost"), Authority::new("elsewhere.example"));
    let (_store, port) = ours.server().await;
    let (_other, port_of_other) = stranger.server().await;
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

//! Encrypted connections, with a certificate authority of the application's own.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use event_bus_conformance::servers::{Authority, Postgres};
use event_bus_core::ErrorKind;
use event_bus_core::backend::Backend as _;
use sqlx::{Connection as _, PgConnection};

use crate::common::*;

/// Servers do not run as root: theirs is the key then, and the way to it.
fn let_the_server_read(authority: &Authority) {
    let key = authority.file("host.key");
    let directory = key.parent().unwrap();
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o711)).unwrap();
    if std::fs::metadata(directory).unwrap().uid() == 0 {
        let status = Command::new("chown").arg("postgres").arg(&key).status().unwrap();
        assert!(status.success(), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_against_an_authority_of_ones_own_and_the_name_of_the_server() {
    let (our, their) = (Authority::new("IP:127.0.0.1"), Authority::new("DNS:elsewhere.example"));
    let_the_server_read(&our);
    let (certificate, key) = (our.path("host.pem"), our.path("host.key"));
    let server =
        Postgres::start(&[("ssl", "on"), ("ssl_cert_file", &certificate), ("ssl_key_file", &key)]).await;

    let url = |authority: &Authority, mode: &str| {
        format!("{}?sslmode={mode}&sslrootcert={}", server.url(), authority.path("ca.pem"))
    };
    let ours = backend(&url(&our, "verify-full"));
    ours.prepare().await.unwrap();
    ours.publish(events(&["x"], Some("k"))).await.unwrap();
    let session = ours.open(&worker(&[handler("a")])).await.unwrap();
    assert_eq!(texts(&claim_all(&session, 1, 1).await), ["x"]);
    let mut own = PgConnection::connect(server.url()).await.unwrap();
    // The publisher, the session, the listener: all that there is.
    let plain = "select count(*) filter (where not s.ssl), count(*) from pg_stat_activity a join pg_stat_ssl s using (pid) \
                 where a.application_name = 'event-bus'";
    let (plain, all): (i64, i64) = sqlx::query_as(plain).fetch_one(&mut own).await.unwrap();
    assert!(plain == 0 && all > 1, "{plain} of {all} connections are not encrypted");

    let wrong_authority = url(&their, "verify-full");
    let wrong_name = url(&our, "verify-full").replacen("127.0.0.1", "localhost", 1);
    for (what, url) in [("authority", &wrong_authority), ("name", &wrong_name)] {
        for refused in [
            backend(url).publish(events(&["y"], None)).await.unwrap_err(),
            backend(url).open(&worker(&[handler("a")])).await.map(drop).unwrap_err(),
        ] {
            assert_eq!(refused.kind(), ErrorKind::InvalidConfiguration, "{what}: {refused:?}");
            assert!(refused.to_string().contains("TLS"), "{what}: {refused}");
        }
    }
    // The name alone was wrong: without it, it is the same server.
    backend(&wrong_name.replacen("verify-full", "verify-ca", 1)).counts().await.unwrap();
}

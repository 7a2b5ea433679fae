//! Encrypted connections, with a certificate authority of the application's own.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use event_bus_conformance::servers::Postgres;
use event_bus_core::ErrorKind;
use event_bus_core::backend::Backend as _;
use sqlx::{Connection as _, PgConnection};

use crate::common::*;

fn run(directory: &Path, program: &str, arguments: &[&str]) {
    let output = Command::new(program).current_dir(directory).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

const KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// An authority.
fn authority(directory: &Path, name: &str) {
    let (key, certificate, subject) = (format!("{name}.key"), format!("{name}.crt"), format!("/CN={name}"));
    let rest = ["-x509", "-days", "2", "-keyout", &key, "-out", &certificate, "-subj", &subject];
    run(directory, "openssl", &[&["req"], &KEY[..], &rest].concat());
}

/// A certificate of that authority for 127.0.0.1, which the server may read.
fn certificate(directory: &Path, authority: &str) {
    std::fs::write(directory.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let rest = ["-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server"];
    run(directory, "openssl", &[&["req", "-new"], &KEY[..], &rest].concat());
    let (key, by) = (format!("{authority}.key"), format!("{authority}.crt"));
    let sign = ["-req", "-in", "server.csr", "-CA", &by, "-CAkey", &key, "-CAcreateserial", "-days", "2"];
    let rest = ["-extfile", "names", "-out", "server.crt"];
    run(directory, "openssl", &[&["x509"], &sign[..], &rest].concat());
    let is_root = std::fs::metadata(directory).unwrap().uid() == 0;
    if is_root {
        // Servers do not run as root.
        run(directory, "chown", &["postgres", "server.key"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_against_an_authority_of_ones_own_and_the_name_of_the_server() {
    let directory = tempfile::tempdir().unwrap();
    // The server's user passes through.
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    authority(directory.path(), "ours");
    authority(directory.path(), "theirs");
    certificate(directory.path(), "ours");
    let file = |name: &str| directory.path().join(name).display().to_string();
    let (certificate, key) = (file("server.crt"), file("server.key"));
    let server =
        Postgres::start(&[("ssl", "on"), ("ssl_cert_file", &certificate), ("ssl_key_file", &key)]).await;

    let url = |authority: &str, mode: &str| {
        format!("{}?sslmode={mode}&sslrootcert={}", server.url(), file(&format!("{authority}.crt")))
    };
    let ours = backend(&url("ours", "verify-full"));
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

    let wrong_authority = url("theirs", "verify-full");
    let wrong_name = url("ours", "verify-full").replacen("127.0.0.1", "localhost", 1);
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

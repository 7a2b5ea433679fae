//! Who may reach a RabbitMQ broker, and how: certificates of an authority of our own, and users that may do little.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::process::{Command, Stdio};
use std::time::Duration;

use event_bus::prelude::*;
use event_bus::{AmqpBackend, ErrorKind, chain};
use event_bus_conformance::servers::{Authority, RabbitMq, free_port};
use lapin::options::{BasicConsumeOptions, BasicGetOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use tokio::sync::mpsc;

const HANDLER: &str = "access.test";

#[derive(Clone, Debug, Serialize, Deserialize, Event)]
#[event(name = "access.numbered", partitioned)]
struct Numbered(u64);

impl Partitioned for Numbered {
    fn partition_key(&self) -> Option<std::borrow::Cow<'_, str>> {
        Some("k".into())
    }
}

/// A bus whose handler tells the numbers it is given.
fn bus(url: &str) -> (EventBus, mpsc::UnboundedReceiver<u64>) {
    let (tell, told) = mpsc::unbounded_channel();
    let backend = AmqpBackend::from_url(url).unwrap();
    let builder = EventBus::builder().backend(backend).handle_fn(HANDLER, move |event: Numbered| {
        // The test may have ended.
        let _ = tell.send(event.0);
        async { Ok(()) }
    });
    (builder.build().unwrap(), told)
}

/// A broker with its certificate, and the port for TLS.
async fn broker(authority: &Authority) -> (RabbitMq, u16) {
    let port = free_port();
    let broker = RabbitMq::start(&[
        ("listeners.ssl.1", &format!("127.0.0.1:{port}")),
        ("ssl_options.cacertfile", &authority.path("ca.pem")),
        ("ssl_options.certfile", &authority.path("host.pem")),
        ("ssl_options.keyfile", &authority.path("host.key")),
        ("ssl_options.verify", "verify_none"),
        ("ssl_options.fail_if_no_peer_cert", "false"),
    ])
    .await;
    // It is up when it answers without TLS; that it does with TLS may take a moment longer.
    let address = format!("127.0.0.1:{port}");
    let speaks = || {
        let mut openssl = Command::new("openssl");
        openssl.args([
            "s_client",
            "-verify_return_error",
            "-CAfile",
            &authority.path("ca.pem"),
            "-connect",
            &address,
        ]);
        openssl.stdin(Stdio::null()).output().unwrap().status.success()
    };
    while !speaks() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (broker, port)
}

/// The address for TLS of a broker on this machine, which trusts the authorities of a file.
fn secure(host: &str, port: u16, authority: Option<&Authority>) -> String {
    let ca_file = authority.map(|authority| format!("&ca_file={}", authority.file("ca.pem").display()));
    let options = "partitions=2&request_timeout_ms=5000&publish_timeout_ms=5000";
    format!("amqps://guest:guest@{host}:{port}/%2f?{options}{}", ca_file.unwrap_or_default())
}

async fn refused(url: &str, part: &str) {
    let (bus, _told) = bus(url);
    for error in [bus.migrate().await.unwrap_err(), bus.publish(&Numbered(1)).await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::InvalidConfiguration, "{}", chain(&error));
        assert!(chain(&error).contains(part), "{}", chain(&error));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_reach_a_broker() {
    if let Some(why) = RabbitMq::why_fixed() {
        eprintln!("not run: {why}");
        return;
    }
    let (ours, stranger) = (Authority::new("DNS:localhost"), Authority::new("DNS:elsewhere.example"));
    let (broker, port) = broker(&ours).await;
    events_go_by_tls_to_a_broker_of_a_private_authority(&broker, port, &ours).await;
    a_certificate_of_another_authority_or_for_another_host_is_refused(port, &ours, &stranger).await;
    one_user_only_publishes_and_another_one_works(&broker).await;
    a_user_who_may_not_migrate_is_told_so(&broker).await;
}

async fn events_go_by_tls_to_a_broker_of_a_private_authority(broker: &RabbitMq, port: u16, ours: &Authority) {
    let (bus, mut told) = bus(&secure("localhost", port, Some(ours)));
    bus.migrate().await.unwrap();
    let worker = bus.start().await.unwrap();
    bus.publish(&Numbered(7)).await.unwrap();
    assert_eq!(told.recv().await, Some(7));
    let arguments = ["list_connections", "--quiet", "--no-table-headers", "ssl", "port"];
    let connections = broker.control(&arguments).await;
    let secure = format!("true\t{port}");
    // For publishing, administration and working.
    assert_eq!(connections.lines().filter(|line| **line == *secure).count(), 3, "{connections}");
    worker.shutdown(Duration::from_secs(10)).await.unwrap();
}

async fn a_certificate_of_another_authority_or_for_another_host_is_refused(
    port: u16,
    ours: &Authority,
    stranger: &Authority,
) {
    refused(&secure("localhost", port, Some(stranger)), "UnknownIssuer").await;
    refused(&secure("localhost", port, None), "UnknownIssuer").await;
    // The certificate is for the name and not for the number.
    refused(&secure("127.0.0.1", port, Some(ours)), "not valid for name").await;
}

/// The address of a new user of these permissions: to configure, to write, to read.
async fn user(broker: &RabbitMq, name: &str, permissions: [&str; 3]) -> String {
    let [configure, write, read] = permissions;
    broker.control(&["add_user", name, "secret"]).await;
    broker.control(&["set_permissions", name, configure, write, read]).await;
    let (scheme, rest) = broker.url().split_once("://").unwrap();
    format!("{scheme}://{name}:secret@{}", rest.split_once('@').unwrap().1)
}

/// As the README says; the same for a worker.
const WORKS: [&str; 3] =
    [r"^(access\.|amq\.gen)", r"^(access\.|amq\.gen|amq\.default$)", r"^(access\.|amq\.gen)"];
const PUBLISHES: [&str; 3] = [r"^access\.lock$", r"^access\.v1\.(in|delay\..*)$", r"^access\.catalogue$"];

async fn one_user_only_publishes_and_another_one_works(broker: &RabbitMq) {
    let options = "partitions=2&namespace=access&request_timeout_ms=5000&publish_timeout_ms=5000";
    let (operator, _told) = bus(&format!("{}?{options}", broker.url()));
    operator.migrate().await.unwrap();
    let bare = user(broker, "publisher", PUBLISHES).await;
    let (publisher, _told) = bus(&format!("{bare}?{options}"));
    publisher.publish(&Numbered(1)).await.unwrap();
    publisher.publish(&Numbered(2)).delay(Duration::from_millis(300)).await.unwrap();
    let error = publisher.start().await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfiguration, "{}", chain(&error));
    assert!(error.to_string().contains("permissions"), "{error}");
    let connection = Connection::connect(&bare, ConnectionProperties::default()).await.unwrap();
    for number in 0..2 {
        let queue = format!("access.v1.p{number}.{HANDLER}");
        let channel = connection.create_channel().await.unwrap();
        let options = BasicConsumeOptions::default();
        let read = channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
        assert!(read.await.unwrap_err().to_string().contains("ACCESS_REFUSED"));
        let channel = connection.create_channel().await.unwrap();
        let queue = format!("access.v1.dead.{HANDLER}");
        let read = channel.basic_get(queue.as_str().into(), BasicGetOptions::default());
        assert!(read.await.unwrap_err().to_string().contains("ACCESS_REFUSED"));
    }
    let bare = user(broker, "worker", WORKS).await;
    let (working, mut told) = bus(&format!("{bare}?{options}"));
    let worker = working.start().await.unwrap();
    assert_eq!((told.recv().await, told.recv().await), (Some(1), Some(2)));
    worker.shutdown(Duration::from_secs(10)).await.unwrap();
}

async fn a_user_who_may_not_migrate_is_told_so(broker: &RabbitMq) {
    let options = "partitions=2&namespace=other&request_timeout_ms=5000&publish_timeout_ms=5000";
    let bare = user(broker, "stranger", ["^$", "^$", "^$"]).await;
    let (stranger, _told) = bus(&format!("{bare}?{options}"));
    let error = stranger.migrate().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfiguration, "{}", chain(&error));
    assert!(error.to_string().contains("permissions"), "{error}");
}

//! The conformance suite, mounted on every backend of this workspace.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::sync::Arc;

use event_bus::amqp::Routing;
use event_bus_conformance::suite::{Harness, mount, quiet_scripted_panics};
use harness::amqp::Amqp;
use harness::inline::Inline;
use harness::postgres::Postgres;
use harness::redis::Redis;
use harness::sqlite::Sqlite;

fn main() {
    quiet_scripted_panics();
    // `RUST_LOG=event_bus_amqp=debug` shows what the library says; by default it says nothing.
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let arguments = libtest_mimic::Arguments::from_args();
    let harnesses: Vec<Arc<dyn Harness>> = vec![
        Arc::new(Inline),
        Arc::new(Sqlite),
        Arc::new(Postgres::Listening),
        Arc::new(Postgres::Polling),
        Arc::new(Postgres::PgBouncer),
        Arc::new(Redis::Everysec),
        Arc::new(Redis::Fsync),
        Arc::new(Redis::Disturbed),
        Arc::new(Amqp(Routing::Direct)),
        Arc::new(Amqp(Routing::ConsistentHash)),
    ];
    let tests = harnesses.into_iter().flat_map(mount).collect();
    libtest_mimic::run(&arguments, tests).exit();
}

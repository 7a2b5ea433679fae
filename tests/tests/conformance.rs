//! The conformance suite, mounted on every backend of this workspace.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::sync::Arc;

use event_bus_conformance::suite::{Harness, mount, quiet_scripted_panics};
use harness::inline::Inline;
use harness::postgres::Postgres;
use harness::redis::Redis;
use harness::sqlite::Sqlite;

fn main() {
    quiet_scripted_panics();
    let arguments = libtest_mimic::Arguments::from_args();
    let harnesses: Vec<Arc<dyn Harness>> = vec![
        Arc::new(Inline),
        Arc::new(Sqlite),
        Arc::new(Postgres::Listening),
        Arc::new(Postgres::Polling),
        Arc::new(Redis::Everysec),
        Arc::new(Redis::Fsync),
    ];
    let tests = harnesses.into_iter().flat_map(mount).collect();
    libtest_mimic::run(&arguments, tests).exit();
}

//! Real servers for tests: Postgres, Redis, RabbitMQ.
//!
//! ```no_run
//! # async fn case() {
//! use event_bus_conformance::servers::{self, Redis};
//!
//! // One for the whole test run, over all of its processes; each case has a place of its own in it.
//! let database = servers::postgres().await.database().await;
//! let vhost = servers::rabbitmq().await.vhost().await;
//!
//! // One for a case that kills it, with settings in its own language.
//! let redis = Redis::start(&[("appendfsync", "always")]).await;
//! redis.kill().await;
//! redis.restart().await;
//! # }
//! ```
//!
//! A server is found in this order:
//!
//! 1. **A URL** in `EVENT_BUS_TEST_POSTGRES_URL`, `EVENT_BUS_TEST_REDIS_URL` or `EVENT_BUS_TEST_AMQP_URL`: somebody
//!    else's server, which cannot be killed; [`Server::why_fixed`] says so to those who would.
//! 2. **Programs of this machine** (Linux): a server with a private directory on free ports of the loopback interface, as
//!    durable as in production. As root, Postgres runs as the user `postgres`, all else as whoever runs the tests.
//! 3. **Docker**, with this crate's feature `containers`: official images, or those that
//!    `EVENT_BUS_TEST_POSTGRES_IMAGE`, `…_REDIS_IMAGE`, `…_RABBITMQ_IMAGE` name. `EVENT_BUS_TEST_SERVERS=containers`
//!    tries nothing else.
//!
//! Where there is none, every call here panics with a text that names these ways.
//!
//! # Who cleans up
//!
//! Each server has a *keeper*: a small shell script beside it, which waits until no process holds the server's lock any
//! more (a file lock, so that a killed process lets go of it too), kills the server and removes its directory. A shared
//! server outlives its last user by a few seconds, so that a test runner with a process for each test starts it once.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod authority;
#[cfg(feature = "containers")]
mod container;
mod engine;
mod keeper;
mod local;
mod own;
mod pgbouncer;
mod ports;
mod postgres;
mod processes;
mod program;
mod rabbitmq;
mod redis;
mod server;
mod shared;

pub use authority::Authority;
pub use engine::{Address, Engine, Image, Place, Ports, Recipe};
pub use pgbouncer::PgBouncerEngine;
pub use ports::free_port;
pub use postgres::{Database, PostgresEngine};
pub use program::main;
pub use rabbitmq::{RabbitMqEngine, Vhost};
pub use redis::RedisEngine;
pub use server::Server;

/// A PgBouncer, see [`PgBouncer::before`].
pub type PgBouncer = Server<PgBouncerEngine>;
/// A Postgres server.
pub type Postgres = Server<PostgresEngine>;
/// A Redis server.
pub type Redis = Server<RedisEngine>;
/// A RabbitMQ server.
pub type RabbitMq = Server<RabbitMqEngine>;

/// The Postgres server of this test run.
///
/// # Panics
/// If there is none, with a text that says how to get one.
///
/// # Cancel safety
/// A dropped future leaves a server that its keeper stops.
pub async fn postgres() -> &'static Postgres {
    shared::shared().await
}

/// The Redis server of this test run.
///
/// # Panics
/// If there is none, with a text that says how to get one.
///
/// # Cancel safety
/// A dropped future leaves a server that its keeper stops.
pub async fn redis() -> &'static Redis {
    shared::shared().await
}

/// The RabbitMQ server of this test run.
///
/// # Panics
/// If there is none, with a text that says how to get one.
///
/// # Cancel safety
/// A dropped future leaves a server that its keeper stops.
pub async fn rabbitmq() -> &'static RabbitMq {
    shared::shared().await
}

/// A name that nothing else of this or another test run has: small letters, digits and underscores.
pub fn unique_name() -> String {
    format!("test_{:x}_{:08x}", std::process::id(), fastrand::u32(..))
}

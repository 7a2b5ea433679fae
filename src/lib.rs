#![doc = include_str!("../README.md")]

mod connect;
pub mod prelude;

pub use connect::Connect;
#[doc(hidden)]
pub use event_bus_core::debug;
pub use event_bus_core::{
    AttemptError, Backoff, Builder, Context, DeadLetter, DeadReason, DeliveryId, Drained, Error, ErrorKind,
    Event, EventBus, EventId, Events, Exhausted, Failure, FailureKind, Handler, HandlerOptions, Headers,
    MAX_KEY_BYTES, MAX_NAME_BYTES, Order, Partitioned, Publish, Receipt, Result, SLOTS, Shutdown, Timestamp,
    Value, Worker, WorkerStats, async_trait, chain, check_name, slot,
};
pub use event_bus_core::{backend, clock, codec, registry, retry, run};
#[cfg(feature = "derive")]
pub use event_bus_macros::{Event, Events};

/// Handlers run inside `publish`; nothing is stored (feature `inline`, on by default).
#[cfg(feature = "inline")]
pub mod inline {
    pub use event_bus_inline::{FailedRun, FailedRuns, InlineBackend, MAX_DEPTH};
}

/// A PostgreSQL database: many processes, transactions of the application (feature `postgres`).
#[cfg(feature = "postgres")]
pub mod postgres {
    pub use event_bus_postgres::{PostgresBackend, PostgresConfig};
}

/// Quorum queues of RabbitMQ (feature `amqp`).
#[cfg(feature = "amqp")]
pub mod amqp {
    pub use event_bus_amqp::{AmqpBackend, AmqpConfig, Routing};
}

/// One file, no server: the embedded durable store (feature `sqlite`).
#[cfg(feature = "sqlite")]
pub mod sqlite {
    pub use event_bus_sqlite::{SqliteBackend, SqliteConfig, Synchronous};
}

/// Redis 7.0 or newer: streams, moved by scripts (feature `redis`).
#[cfg(feature = "redis")]
pub mod redis {
    pub use event_bus_redis::{Durability, RedisBackend, RedisConfig};
}

/// What did this test publish, and nothing else? (Feature `testing`, for `[dev-dependencies]`.)
///
/// ```
/// use event_bus::prelude::*;
/// use event_bus::testing::*;
///
/// #[derive(Clone, Debug, Serialize, Deserialize, Event)]
/// #[event(name = "calls.completed")]
/// struct CallCompleted {
///     call: u32,
///     minutes: u32,
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> event_bus::Result<()> {
/// let testing = TestingBackend::new();
/// let bus = EventBus::builder().backend(testing.clone()).build()?;
///
/// // One test's view of the bus; others may run beside it. Dropping it checks that every strict event was asserted.
/// let mut test = testing.session();
/// test.set_mode(Mode::Strict);
/// bus.publish(&CallCompleted { call: 7, minutes: 3 }).await?;
/// let minutes = assert_event_published!(test, CallCompleted { call: 7, minutes } => *minutes);
/// assert_eq!(minutes, 3);
/// refute_event_published!(test, CallCompleted { .. });
/// # Ok(())
/// # }
/// ```
#[cfg(feature = "testing")]
pub mod testing {
    pub use event_bus_testing::{
        DeliveryRun, DrainReport, FailedRun, FailedRuns, Fault, InTest, MAX_RUNS, Mode, Ran, RunEvent,
        RunFailure, RunFailureKind, RunResult, Scoped, TestHandle, TestSession, TestingBackend,
        assert_event_published, assert_no_events, refute_event_published, run_event,
    };
}

#[cfg(feature = "amqp")]
pub use amqp::AmqpBackend;
#[cfg(feature = "inline")]
pub use inline::InlineBackend;
#[cfg(feature = "postgres")]
pub use postgres::PostgresBackend;
#[cfg(feature = "redis")]
pub use redis::RedisBackend;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteBackend;
#[cfg(feature = "testing")]
pub use testing::TestingBackend;

/// The examples of the chapter on testing, compiled and run.
#[cfg(all(doctest, feature = "testing", feature = "derive"))]
#[doc = include_str!("../docs/testing.md")]
mod testing_chapter {}

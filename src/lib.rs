#![doc = include_str!("../README.md")]

mod connect;
pub mod prelude;

pub use connect::Connect;
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

/// One file, no server: the embedded durable store (feature `sqlite`).
#[cfg(feature = "sqlite")]
pub mod sqlite {
    pub use event_bus_sqlite::{SqliteBackend, SqliteConfig, Synchronous};
}

#[cfg(feature = "inline")]
pub use inline::InlineBackend;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteBackend;

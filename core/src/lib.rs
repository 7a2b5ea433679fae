#![doc = include_str!("../README.md")]

pub mod backend;
mod bus;
mod capabilities;
pub mod clock;
pub mod codec;
mod context;
#[doc(hidden)]
pub mod debug;
mod delivery;
mod envelope;
mod error;
mod event;
mod handler;
pub mod inline;
mod partitioned;
mod publish;
pub mod registry;
pub mod retry;
pub mod run;
mod worker;

pub use async_trait::async_trait;
pub use bus::{Builder, EventBus};
pub use context::{Context, Shutdown};
pub use delivery::{AttemptError, DeadLetter, DeadReason, DeliveryId};
pub use envelope::{EventId, Headers, Timestamp};
pub use error::{Error, ErrorKind, Result, chain};
pub use event::{Event, Events, MAX_NAME_BYTES, Value, check_name};
pub use handler::{Exhausted, Failure, FailureKind, Handler, HandlerOptions, Order};
pub use partitioned::{MAX_KEY_BYTES, Partitioned, SLOTS, slot};
pub use publish::{Publish, Receipt};
pub use retry::Backoff;
pub use worker::{Drained, Worker, WorkerStats};

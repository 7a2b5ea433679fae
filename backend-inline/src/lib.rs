//! The inline backend of [event-bus](https://docs.rs/event-bus): handlers run inside `publish`, nothing is stored.
//!
//! For command line tools, first steps and tests that need no durability. What it does, in one sentence each:
//!
//! - `publish` returns when every interested handler has run: event by event, and for each event handler by handler in
//!   the order of their registration.
//! - A handler gets what was published *decoded from the bytes* that another backend would have stored, so an event
//!   that does not survive the codec fails here as well.
//! - Each delivery runs once. A failure, a discard, a snooze, a panic and a timeout are all failures: there is nobody
//!   who could try again later.
//! - All handlers run, whoever failed before them; then `publish` answers
//!   [`HandlerFailed`](event_bus_core::ErrorKind::HandlerFailed) with every failed run in its text, and as
//!   [`FailedRuns`] in its source.
//! - A delay, an idempotency key or a transaction is refused as
//!   [`Unsupported`](event_bus_core::ErrorKind::Unsupported), and so is everything about dead letters; a worker may be
//!   started and has nothing to do.
//!
//! *one-at-a-time* and *key-order* hold within one `publish` call. Two calls that overlap in time run side by side.

mod backend;

pub use backend::InlineBackend;
pub use event_bus_core::inline::{FailedRun, FailedRuns, MAX_DEPTH};

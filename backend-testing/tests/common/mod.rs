//! Events, a bus, and what catches a failure text.

#![allow(
    dead_code,
    unreachable_pub,
    unused_macros,
    unused_imports,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test file uses its part"
)]

use std::any::Any;
use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use event_bus_core::{Builder, Event, EventBus, Partitioned};
use event_bus_testing::{TestSession, TestingBackend};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallCompleted {
    pub call_id: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallBilled {
    pub call_id: String,
    pub minutes: u32,
}

/// An event whose type has no `Debug`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Quiet {
    pub word: String,
}

/// A unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tick;

impl Partitioned for CallCompleted {
    fn partition_key(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.call_id))
    }
}

impl Partitioned for CallBilled {
    fn partition_key(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.call_id))
    }
}

impl Partitioned for Quiet {}
impl Partitioned for Tick {}

impl Event for CallCompleted {
    const NAME: &'static str = "calls.completed";

    fn debug(event: &Self) -> Option<String> {
        Some(format!("{event:?}"))
    }
}

impl Event for CallBilled {
    const NAME: &'static str = "calls.billed";

    fn debug(event: &Self) -> Option<String> {
        Some(format!("{event:?}"))
    }
}

impl Event for Quiet {
    const NAME: &'static str = "quiet";
}

impl Event for Tick {
    const NAME: &'static str = "tick";

    fn debug(event: &Self) -> Option<String> {
        Some(format!("{event:?}"))
    }
}

pub fn completed(call_id: &str) -> CallCompleted {
    CallCompleted { call_id: call_id.to_owned() }
}

pub fn billed(call_id: &str, minutes: u32) -> CallBilled {
    CallBilled { call_id: call_id.to_owned(), minutes }
}

/// A bus for one test, with these handlers.
pub fn bus_with(handlers: impl FnOnce(Builder) -> Builder) -> (TestingBackend, EventBus) {
    let testing = TestingBackend::new();
    let bus = handlers(EventBus::builder()).backend(testing.clone()).build().unwrap();
    (testing, bus)
}

/// A bus for one test, without handlers.
pub fn bus() -> (TestingBackend, EventBus) {
    bus_with(|builder| builder)
}

/// The text of the panic in `work`.
pub fn panic_of<T>(work: impl FnOnce() -> T) -> String {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(_) => panic!("it did not panic"),
        Err(panic) => text_of(&*panic),
    }
}

pub fn text_of(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap()
}

/// The text with which the session's end fails.
pub fn end_of(test: TestSession) -> String {
    panic_of(|| drop(test))
}

/// `file:line` of the line on which it stands, or so many below or above.
#[macro_export]
macro_rules! here {
    (above $offset:expr) => {
        format!("{}:{}", file!(), line!() - $offset)
    };
    ($offset:expr) => {
        format!("{}:{}", file!(), line!() + $offset)
    };
}

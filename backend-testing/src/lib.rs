//! The testing backend of [event-bus](https://docs.rs/event-bus): what did this test publish, and nothing else?
//!
//! Nothing is stored and no server is needed. A [`TestSession`] sees the events of one test, however many run in
//! parallel over the same bus, in one of three [`Mode`]s; [`drain`](TestSession::drain) runs what was recorded as a worker
//! would, without waiting; [`run_event`](run_event()) runs one handler without any bus.

mod assertions;
mod backend;
mod drain;
mod faults;
mod handle;
mod line;
mod mode;
mod ownership;
mod record;
mod run_event;
mod session;
mod state;
mod strays;

pub use backend::TestingBackend;
pub use drain::{DeliveryRun, DrainReport, MAX_RUNS, RunResult};
pub use event_bus_core::inline::{FailedRun, FailedRuns};
pub use faults::Fault;
pub use handle::{InTest, TestHandle};
pub use mode::Mode;
pub use ownership::Scoped;
#[doc(hidden)]
pub use run_event::__expect_ran;
pub use run_event::{Ran, RunEvent, RunFailure, RunFailureKind, run_event};
pub use session::TestSession;

//! Facade.
pub use event_bus_core::*;

//! A store in memory that keeps the whole contract of [`Backend`](event_bus_core::backend::Backend), and can be told to
//! fail.
//!
//! Without [`Faults`] it is a plain, fast backend ([`MemoryBackend`]): what a benchmark needs to know the engine's own
//! cost. With them it errs, forgets, delays and repeats in every way the contract permits, drawn from a seed: what the
//! engine must bear. It is a correct store all the same; whatever breaks a promise above it is the engine's fault.
//!
//! Time is tokio's clock, so under a paused clock a day takes no time.

mod backend;
mod claim;
mod dead;
mod faults;
mod link;
mod members;
mod session;
mod settle;
mod state;
#[cfg(test)]
mod tests;
mod trace;

pub use backend::{Config, Incident, Layout, MemoryBackend, Observer, SimulatedBackend, SimulatedStore};
pub use faults::{FaultPlan, Faults};

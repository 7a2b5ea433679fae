//! How event-bus is proved: histories of what happened, and a checker that finds in them what must not happen.
//!
//! - [`history`]: what publishers, handlers and workers saw, in memory or as JSON lines.
//! - [`checker`]: finds lost, phantom, overlapping, disordered and over-tried deliveries in a history.
//! - [`faults`]: what can go wrong in production, one row a fault, with real processes, servers and connections.
//! - [`node`]: the library in a process of its own, for the cases that kill it.
//! - [`proxy`]: spoils the connections between them and the servers.
//! - [`servers`]: Postgres, Redis and RabbitMQ for tests, shared by a test run or to be killed by one case.
//! - [`suite`]: every promise as a case, mounted on a backend.

pub mod checker;
pub mod faults;
mod fleet;
pub mod history;
pub mod node;
pub mod proxy;
pub mod servers;
pub mod simulation;
pub mod suite;

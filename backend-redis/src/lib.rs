//! The Redis backend of event-bus: streams and fenced scripts.
//!
//! See [`RedisBackend`] for what it promises.

mod backend;
mod claim;
mod config;
mod dead;
mod entry;
mod error;
mod held;
mod ids;
mod keeper;
mod leases;
mod link;
mod publisher;
mod reply;
mod script;
mod server;
mod session;
mod settle;
#[cfg(test)]
mod tests;
mod wake;
mod worker;

pub use backend::RedisBackend;
pub use config::{Durability, RedisConfig};

//! The SQLite backend of event-bus: one file, no server.
//!
//! See [`SqliteBackend`] for what it promises.

mod apply;
mod backend;
mod claim;
mod config;
mod dead;
mod error;
mod filesystem;
mod lock;
mod migrate;
mod operation;
mod publish;
mod row;
mod session;
mod store;
mod template;
mod transaction;
mod writer;

pub use backend::SqliteBackend;
pub use config::{SqliteConfig, Synchronous};

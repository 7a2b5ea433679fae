#![doc = include_str!("../README.md")]

mod backend;
mod buffer;
mod catalogue;
mod config;
mod core;
mod counts;
mod dead;
mod error;
mod journal;
mod line;
mod link;
mod post;
mod publisher;
mod session;
mod steward;
mod topology;
mod trust;
mod wire;

pub use backend::AmqpBackend;
pub use config::{AmqpConfig, Routing};

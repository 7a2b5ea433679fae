#![doc = include_str!("../README.md")]

mod backend;
mod claim;
mod config;
mod connection;
mod dead;
mod error;
mod keeper;
mod leases;
mod listen;
mod migrate;
mod publish;
mod publisher;
mod row;
mod session;
mod settle;
mod statements;
mod store;
mod transaction;

pub use backend::PostgresBackend;
pub use config::PostgresConfig;

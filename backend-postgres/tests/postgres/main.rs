//! The PostgreSQL backend on a real server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
mod lateness;
mod migrations;
mod outcomes;
mod ownership;
mod publishing;
mod roles;
mod soak;
mod timeouts;
mod tls;

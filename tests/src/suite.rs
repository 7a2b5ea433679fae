//! The conformance suite: every promise as a case over the public API, for every backend.
//!
//! A backend mounts the whole list by a [`Harness`]: what it is called, what it claims, and how to get a fresh store.
//! Cases are grouped by the guarantee they hold a backend to; module and guarantee share one word. What a backend does
//! not offer shows as ignored, with the reason, and its mirror case runs: the call must answer `Unsupported`.
//!
//! Cases wait for conditions under one deadline ([`DEADLINE`]) and never sleep for luck.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a case fails by panicking")]

#[macro_use]
mod case;
pub(crate) mod actor;
mod harness;
mod mount;
pub(crate) mod note;
mod process;
mod stage;
mod world;

mod at_least_once;
mod bounded_attempts;
mod dead_letters;
mod drain;
mod durable_before_ok;
mod fan_out;
mod held_keys;
mod key_order;
mod limits;
mod one_at_a_time;
mod processes;
mod recover_by_itself;
mod same_api;
mod starvation;
mod transactional_publish;
mod unknown_names_wait;

pub use case::{Case, DEADLINE, Need};
pub use harness::{Harness, Outage, Sandbox, Tamper, Transaction};
pub use mount::{mount, quiet_scripted_panics};
pub use note::{Act, Memo, Note, Paper, memo, note};
pub use world::World;

/// All cases, by guarantee.
pub fn cases() -> Vec<Case> {
    [
        durable_before_ok::cases(),
        fan_out::cases(),
        at_least_once::cases(),
        one_at_a_time::cases(),
        key_order::cases(),
        starvation::cases(),
        bounded_attempts::cases(),
        dead_letters::cases(),
        held_keys::cases(),
        unknown_names_wait::cases(),
        recover_by_itself::cases(),
        drain::cases(),
        transactional_publish::cases(),
        same_api::cases(),
        limits::cases(),
        processes::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

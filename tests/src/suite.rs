//! The conformance suite: every promise as a case over the public API, for every backend.
//!
//! A backend mounts the whole list by a [`Harness`]: what it is called, what it claims, and how to get a fresh store.
//! Cases are grouped by the guarantee they hold a backend to; module and guarantee share one word. What a backend does
//! not offer shows as ignored, with the reason, and its mirror case runs: the call must answer `Unsupported`.
//!
//! What users of other systems suffered from is a case each; the comment above it says which ("Pain 1"):
//!
//! | | pain | case |
//! |---|---|---|
//! | 1 | order lost when the head is retried | `key_order::a_failing_head_holds_its_key` |
//! | 2 | a bulk replay runs a key's dead letters at once | `dead_letters::a_bulk_replay_keeps_the_order_of_each_key` |
//! | 3 | one stuck key starves all others; priority overtakes a head | `key_order::one_stuck_key_does_not_starve_the_others`, `key_order::order_holds_through_priorities` |
//! | 4 | prefetch breaks one-at-a-time | `one_at_a_time::a_key_runs_one_at_a_time_however_much_it_has` |
//! | 5 | a key stays locked when the worker dies on the last attempt | `processes::what_kills_its_process_ends_in_the_dead_letters_and_its_neighbours_do_not` |
//! | 6 | dedupe loses the event of a rollback, or is ignored in bulk | `transactional_publish::an_idempotency_key_is_forgotten_with_the_rollback`, `same_api::an_idempotency_key_covers_its_whole_batch` |
//! | 7 | rescue by age repeats healthy long work | `processes::a_stopped_worker_and_its_standby_never_run_together` |
//! | 8, 9 | orphans missed, or locked for hours | `processes::a_killed_worker_is_followed_and_nothing_is_lost` |
//! | 10 | stuck when notifications die | `recover_by_itself::an_idle_worker_sees_what_another_process_publishes` |
//! | 12 | workers stop for ever after a lost connection | `recover_by_itself::a_worker_started_during_an_outage_works_after_it` |
//! | 13 | a deleted consumer loses what it held | `drain::what_waited_in_memory_is_given_back_at_once` |
//! | 14 | an outage drops events | `recover_by_itself::a_publish_during_an_outage_is_stored_after_it` |
//! | 15 | attempts not stored | `bounded_attempts::attempts_survive_the_worker` |
//! | 17 | a rename or a deploy kills what is queued | `unknown_names_wait` |
//! | 19 | no dead letters | `dead_letters` |
//! | 20 | options silently ignored | the mirror cases (`…_is_refused_where_it_is_not_offered`) |
//! | 21 | a busy store loses state | `recover_by_itself::outcomes_of_an_outage_are_stored_after_it_and_nothing_is_repeated` |
//!
//! Not here: 11 is a measurement, 16 telemetry, 18 the testing backend's own tests.
//!
//! Cases wait for conditions under one deadline ([`DEADLINE`]) and never sleep for luck.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a case fails by panicking")]

#[macro_use]
mod case;
pub(crate) mod actor;
mod harness;
mod mount;
pub(crate) mod note;
mod stage;
pub(crate) mod world;

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

pub(crate) use case::text as text_of;
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

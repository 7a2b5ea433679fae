//! The protocols by which workers own deliveries and store outcomes, explored whole: two workers, three deliveries of two
//! keys, and at every step a crash, a stop, a spoiled connection or a lost answer, twice in a history.
//!
//! The models are abstract: they follow the backends' protocols step by step, not their code (which the simulation and the
//! fault matrix try). Each model is tried with mistakes as well, which must be found: a search that finds nothing has to show
//! that it can.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod postgres;
mod rabbitmq;
mod redis;
mod search;
mod sqlite;
mod work;

use search::{Counterexample, Explored, Model, STUCK, explore};
use work::{LOSS, ORDER, OVERLAP, REPEAT};

#[track_caller]
fn holds(model: &impl Model) {
    match explore(model) {
        Ok(Explored { states, steps }) => {
            eprintln!("{states} states, {steps} steps");
            assert!(states > 1_000, "only {states} states: the search did not get far");
        }
        Err(counterexample) => panic!("{counterexample}"),
    }
}

#[track_caller]
fn breaks(model: &impl Model, expected: &[&str]) {
    match explore(model) {
        Ok(explored) => panic!("nothing found in {explored:?}"),
        Err(counterexample @ Counterexample { what, .. }) => {
            eprintln!("{counterexample}");
            assert!(expected.contains(&what), "{what}");
        }
    }
}

/// `model!(name: Model, { a_mistake: Bug => [what it leads to] })`
macro_rules! model {
    ($name:ident: $model:ident { $($mistake:ident: $bug:ident => [$($what:ident),*];)* }) => {
        mod $name {
            use super::*;

            #[test]
            fn keeps_the_promises() {
                holds(&crate::$name::$model { bug: None });
            }

            mod is_broken_by {
                use super::*;
                use crate::$name::Bug;

                $(#[test]
                fn $mistake() {
                    breaks(&crate::$name::$model { bug: Some(Bug::$bug) }, &[$($what),*]);
                })*
            }
        }
    };
}

mod explored {
    use super::*;

    model! { postgres: Postgres {
        a_taker_that_does_not_wait: NoHandover => [OVERLAP];
        an_owner_that_trusts_its_session_for_too_long: LongTrust => [OVERLAP];
        a_lease_that_is_clean_before_it_was_waited_for: CleanTooSoon => [OVERLAP];
        a_release_that_is_not_fenced: UnfencedRelease => [OVERLAP, REPEAT];
        a_worker_that_forgets_what_is_not_yet_settled: ForgottenWhenSent => [REPEAT, ORDER];
        workers_that_do_not_look_at_the_locks_of_others: NoTakeOver => [STUCK];
        a_failed_head_that_leaves_its_lane: FailedHeadLeaves => [ORDER];
    } }

    model! { redis: Redis {
        a_watcher_that_does_not_look_once_more: NoLastLook => [OVERLAP];
        an_owner_that_trusts_a_beat_for_too_long: LongTrust => [OVERLAP];
        scripts_that_are_not_fenced: NoFence => [OVERLAP, REPEAT];
        settles_that_are_not_numbered: NoNumber => [REPEAT];
        slots_that_stay_with_the_dead: SlotsStay => [STUCK];
    } }

    model! { rabbitmq: RabbitMq {
        workers_of_unequal_prefetch: UnequalPrefetch => [ORDER];
        a_worker_that_cancels_its_subscription_to_leave: CancelsToLeave => [ORDER, OVERLAP];
        a_failed_delivery_that_is_requeued: Requeues => [ORDER];
        a_delivery_that_is_acknowledged_before_it_runs: AcknowledgesFirst => [LOSS];
        a_consumer_that_trusts_the_broker_for_too_long: LongTrust => [OVERLAP];
        a_channel_that_is_closed_before_its_acknowledgements_are_in: ClosesAtOnce => [REPEAT];
    } }

    model! { sqlite: Sqlite {
        a_standby_that_takes_what_is_held_for_long: TakesWhatIsHeld => [OVERLAP, REPEAT, ORDER];
        an_outcome_that_is_believed_before_it_is_stored: BelievedTooSoon => [REPEAT, ORDER];
        claims_that_stay_with_the_dead: ClaimsStay => [STUCK];
    } }
}

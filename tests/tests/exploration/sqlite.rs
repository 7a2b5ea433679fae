//! SQLite: one process works at a time, by a lock that the system takes from it when it ends.
//!
//! A stopped process keeps the lock, so nobody has to trust a clock. Outcomes are written in a transaction that is there or
//! not there when the process is killed.

use super::search::{Label, Model, Step};
use super::work::{Add, Hands, Process, Set, Truth, WORKERS, runs};

/// How many things go wrong.
const FAULTS: u8 = 3;

/// What somebody might have got wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Somebody who finds the lock held for long takes the file over.
    TakesWhatIsHeld,
    /// Outcomes are believed before the transaction has committed.
    BelievedTooSoon,
    /// What a killed process had claimed stays claimed.
    ClaimsStay,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Worker {
    process: Process,
    hands: Hands,
    /// A transaction under way.
    commits: Option<(Set, Set)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    workers: [Worker; 2],
    lock: Option<usize>,
    /// Marked in the file as some worker's.
    claimed: Set,
    done: Set,
    faults: u8,
    truth: Truth,
}

pub(crate) struct Sqlite {
    pub(crate) bug: Option<Bug>,
}

impl Model for Sqlite {
    type State = State;

    fn initial(&self) -> State {
        State::default()
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        state.truth.broken
    }

    fn is_done(&self, state: &State) -> bool {
        state.done == Set::ALL
    }

    fn steps(&self, state: &State, steps: &mut Vec<Step<State>>) {
        for worker in WORKERS {
            let mut step = |what, delivery, is_fault, after| {
                let label = Label { what, worker: Some(worker), delivery };
                steps.push(Step { label, is_fault, after });
            };
            match state.workers[worker].process {
                Process::Up => self.works(state, worker, &mut step),
                Process::Stopped | Process::Killed => {
                    let mut after = *state;
                    after.workers[worker].process = Process::Up;
                    step("goes on, or is started again", None, false, after);
                }
            }
            if state.faults < FAULTS && state.workers[worker].process != Process::Killed {
                befalls(State { faults: state.faults + 1, ..*state }, worker, &mut step);
            }
        }
    }
}

impl Sqlite {
    fn works(&self, state: &State, worker: usize, step: Add<'_, State>) {
        let it = state.workers[worker];
        let is_held_long = self.bug == Some(Bug::TakesWhatIsHeld)
            && state.lock.is_some_and(|owner| state.workers[owner].process == Process::Stopped);
        if state.lock.is_none() || is_held_long {
            let mut after = *state;
            after.lock = Some(worker);
            if self.bug != Some(Bug::ClaimsStay) {
                after.claimed = Set::NONE;
            }
            step("takes the lock", None, false, after);
        }
        if state.lock == Some(worker) && it.commits.is_none() {
            let there = Set::ALL.without(state.done).without(state.claimed);
            if !there.is_empty() {
                let mut after = *state;
                after.claimed = after.claimed.and(there);
                after.workers[worker].hands.held = it.hands.held.and(there);
                step("claims", None, false, after);
            }
            if it.hands.has_outcomes() {
                let mut after = *state;
                let Hands { succeeded, failed, .. } = it.hands;
                after.workers[worker].commits = Some((succeeded, failed));
                if self.bug == Some(Bug::BelievedTooSoon) {
                    after.workers[worker].hands.forget(succeeded, failed);
                    after.claimed = after.claimed.without(succeeded);
                }
                step("begins to store outcomes", None, false, after);
            }
            if it.hands == (Hands { held: it.hands.held, ..Hands::default() }) {
                let mut after = *state;
                after.claimed = after.claimed.without(it.hands.held);
                after.lock = None;
                after.workers[worker].hands = Hands::default();
                step("leaves", None, false, after);
            }
        }
        runs(worker, (it.hands, state.truth), it.hands.startable(), |what, delivery, hands, truth| {
            let mut after = State { truth, ..*state };
            after.workers[worker].hands = hands;
            step(what, Some(delivery), false, after);
        });
        if let Some((succeeded, failed)) = it.commits {
            let mut after = *state;
            after.done = after.done.and(succeeded);
            after.truth.are_gone(after.done);
            after.workers[worker].commits = None;
            after.workers[worker].hands.forget(succeeded, failed);
            step("commits", None, false, after);
        }
    }
}

fn befalls(state: State, worker: usize, step: Add<'_, State>) {
    let it = state.workers[worker];
    for is_stored in [false, true] {
        let mut killed = state;
        if is_stored {
            let Some((succeeded, _)) = it.commits else { continue };
            killed.done = killed.done.and(succeeded);
            killed.truth.are_gone(killed.done);
        }
        killed.truth.loses(worker, it.hands);
        killed.workers[worker] = Worker { process: Process::Killed, ..Worker::default() };
        if killed.lock == Some(worker) {
            killed.lock = None;
        }
        step(if is_stored { "is killed after the commit" } else { "is killed" }, None, true, killed);
    }
    if it.process == Process::Up {
        let mut stopped = state;
        stopped.workers[worker].process = Process::Stopped;
        stopped.truth.stops(worker);
        step("is stopped", None, true, stopped);
    }
}

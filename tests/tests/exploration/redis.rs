//! Redis: a lease is its owner's until somebody has watched the owner's counter stand still for a whole lease.
//!
//! Time goes in steps. A worker that works raises its counter in each of them, and trusts that for [`TRUST`]; who has seen
//! the same value for [`LEASE`] may declare it dead, by a script that looks at the counter once more. Scripts are atomic, and
//! a request of a connection that was cut may be executed late.

use super::search::{Label, Model, Step};
use super::work::{Add, Cluster, Hands, Link, Process, Set, Truth, WORKERS, in_fields, runs};

const TRUST: u8 = 1;
const LEASE: u8 = 2;

/// How many things go wrong.
const FAULTS: u8 = 2;

/// What somebody might have got wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The watcher does not look at the counter again when it declares an owner dead.
    NoLastLook,
    /// The owner trusts a beat for longer than a lease.
    LongTrust,
    /// Scripts do not look whether their worker is still registered.
    NoFence,
    /// Settles are not numbered: a late copy is executed again.
    NoNumber,
    /// The slots of a dead worker stay with it.
    SlotsStay,
}

/// A settle script's arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Settle {
    succeeded: Set,
    failed: Set,
    is_stored: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Worker {
    process: Process,
    link: Link,
    /// It believes that it is registered.
    is_registered: bool,
    owns: bool,
    trust: u8,
    hands: Hands,
    sent: Option<Settle>,
    /// For how long the other's counter has not moved, as far as it has seen.
    watched: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    workers: [Worker; 2],
    /// In the store.
    registered: [bool; 2],
    /// The counter has moved since the other looked.
    has_moved: [bool; 2],
    owner: Option<usize>,
    /// A copy of a settle of a connection that is gone, still on its way; whose, and whether it was executed.
    late: Option<(usize, Settle)>,
    done: Set,
    faults: u8,
    truth: Truth,
}

pub(crate) struct Redis {
    pub(crate) bug: Option<Bug>,
}

impl State {
    /// A worker is declared dead, or was there under another name.
    fn unregister(&mut self, worker: usize) {
        self.registered[worker] = false;
        self.truth.doubts(self.workers[worker].hands);
        if self.owner == Some(worker) {
            self.owner = None;
        }
    }

    const fn reaches(&self, worker: usize) -> bool {
        matches!(self.workers[worker].link, Link::Whole)
            && matches!(self.workers[worker].process, Process::Up)
    }
}

impl Cluster for State {
    in_fields!();

    fn loses(&mut self, worker: usize) {
        let it = self.workers[worker];
        self.truth.loses(worker, it.hands);
        self.workers[worker] = Worker { process: it.process, link: it.link, ..Worker::default() };
    }

    /// The server knows nothing of connections.
    fn hangs_up(&mut self, _: usize) {}
}

impl Redis {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn trust(&self) -> u8 {
        if self.has(Bug::LongTrust) { LEASE + 2 } else { TRUST }
    }

    fn beats(&self, state: &mut State, worker: usize) {
        let it = state.workers[worker];
        if it.process == Process::Killed || !it.is_registered {
            return;
        }
        let arrives = it.process == Process::Up && it.link != Link::BlackHole && state.registered[worker];
        state.has_moved[worker] |= arrives;
        if state.reaches(worker) {
            match arrives {
                true => state.workers[worker].trust = self.trust(),
                false => state.loses(worker),
            }
        } else {
            state.workers[worker].trust = it.trust.saturating_sub(1);
            if state.workers[worker].trust == 0 && it.process == Process::Up {
                state.loses(worker);
            }
        }
    }

    /// A settle script is executed.
    fn settles(&self, state: &mut State, worker: usize, settle: Settle) {
        if !state.registered[worker] && !self.has(Bug::NoFence) {
            return;
        }
        if settle.is_stored && !self.has(Bug::NoNumber) {
            return;
        }
        // Its number is in the store now: other copies of it do nothing more.
        if let Some((of, late)) = &mut state.late
            && *of == worker
        {
            late.is_stored = true;
        }
        state.done = state.done.and(settle.succeeded).without(settle.failed);
        state.truth.are_gone(state.done);
    }
}

impl Model for Redis {
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
        let mut tick = *state;
        for worker in WORKERS {
            self.beats(&mut tick, worker);
        }
        for worker in WORKERS {
            let watched = &mut tick.workers[worker].watched;
            *watched = (*watched + 1).min(LEASE);
        }
        let label = Label { what: "time passes", worker: None, delivery: None };
        steps.push(Step { label, is_fault: false, after: tick });
        for worker in WORKERS {
            let mut step = |what, delivery, is_fault, after| {
                let label = Label { what, worker: Some(worker), delivery };
                steps.push(Step { label, is_fault, after });
            };
            self.works(state, worker, &mut step);
            self.recovers(state, worker, &mut step);
            if state.faults < FAULTS {
                befalls(State { faults: state.faults + 1, ..*state }, worker, &mut step);
            }
        }
        if let Some((worker, settle)) = state.late {
            let mut after = State { late: None, ..*state };
            self.settles(&mut after, worker, settle);
            let same = |sent: Settle| (sent.succeeded, sent.failed) == (settle.succeeded, settle.failed);
            if let Some(sent) = after.workers[worker].sent.as_mut().filter(|sent| same(**sent)) {
                sent.is_stored |= state.registered[worker];
            }
            let label = Label { what: "a settle arrives late", worker: Some(worker), delivery: None };
            steps.push(Step { label, is_fault: false, after });
        }
    }
}

impl Redis {
    fn works(&self, state: &State, worker: usize, step: Add<'_, State>) {
        let it = state.workers[worker];
        if it.process != Process::Up {
            return;
        }
        if !it.is_registered {
            if state.reaches(worker)
                && !state.registered[worker]
                && state.late.is_none_or(|(of, _)| of != worker)
            {
                let mut after = *state;
                after.registered[worker] = true;
                after.has_moved[worker] = true;
                let mine = &mut after.workers[worker];
                (mine.is_registered, mine.trust) = (true, self.trust());
                step("registers", None, false, after);
            }
            // Under its new name it watches the old one like any other.
            if state.reaches(worker)
                && state.registered[worker]
                && it.watched == LEASE
                && !self.has(Bug::SlotsStay)
            {
                let mut after = *state;
                after.unregister(worker);
                step("declares its former self dead", None, false, after);
            }
            return;
        }
        if state.reaches(worker) && state.registered[worker] {
            self.asks(state, worker, step);
        }
        let startable = it.hands.startable().filter(|_| it.owns);
        runs(worker, (it.hands, state.truth), startable, |what, delivery, hands, truth| {
            let mut after = State { truth, ..*state };
            after.workers[worker].hands = hands;
            step(what, Some(delivery), false, after);
        });
        if it.hands.has_outcomes() && it.sent.is_none() {
            let mut after = *state;
            let Hands { succeeded, failed, .. } = it.hands;
            after.workers[worker].sent = Some(Settle { succeeded, failed, is_stored: false });
            step("sends outcomes", None, false, after);
        }
    }

    /// What it asks of the server and is answered.
    fn asks(&self, state: &State, worker: usize, step: Add<'_, State>) {
        let it = state.workers[worker];
        let other = 1 - worker;
        if state.owner.is_none() && !it.owns {
            let mut after = *state;
            after.owner = Some(worker);
            after.workers[worker].owns = true;
            step("takes the slot", None, false, after);
        }
        let there = Set::ALL.without(state.done);
        if state.owner == Some(worker) && it.owns && there != it.hands.held.common(there) {
            let mut after = *state;
            after.workers[worker].hands.held = it.hands.held.and(there);
            step("claims", None, false, after);
        }
        if state.registered[other] {
            if state.has_moved[other] && (it.watched < LEASE || !self.has(Bug::NoLastLook)) {
                let mut after = *state;
                after.has_moved[other] = false;
                after.workers[worker].watched = 0;
                step("sees that the other's counter has moved", None, false, after);
            }
            let may_declare = !state.has_moved[other] || self.has(Bug::NoLastLook);
            if it.watched == LEASE && may_declare && !self.has(Bug::SlotsStay) {
                let mut after = *state;
                after.unregister(other);
                step("declares the other dead", None, false, after);
            }
        }
        // In peace: nothing runs, everything is stored.
        if it.owns && it.sent.is_none() && it.hands == (Hands { held: it.hands.held, ..Hands::default() }) {
            let mut after = *state;
            after.owner = None;
            after.workers[worker].owns = false;
            after.workers[worker].hands = Hands::default();
            step("gives the slot back", None, false, after);
        }
    }

    /// What goes on without anybody's doing wrong.
    fn recovers(&self, state: &State, worker: usize, step: Add<'_, State>) {
        let it = state.workers[worker];
        if let Some(settle) = it.sent
            && it.process != Process::Killed
        {
            if !settle.is_stored && it.link != Link::BlackHole {
                let mut after = *state;
                self.settles(&mut after, worker, settle);
                let is_fenced = !state.registered[worker] && !self.has(Bug::NoFence);
                after.workers[worker].sent = (!is_fenced).then_some(Settle { is_stored: true, ..settle });
                step("has its outcomes stored, or is refused", None, false, after);
            }
            if settle.is_stored && state.reaches(worker) {
                let mut after = *state;
                after.workers[worker].hands.forget(settle.succeeded, settle.failed);
                after.workers[worker].sent = None;
                step("is answered", None, false, after);
            }
        }
        state.heals(worker, step);
    }
}

fn befalls(state: State, worker: usize, step: Add<'_, State>) {
    let it = state.workers[worker];
    if it.process == Process::Killed {
        return;
    }
    state.is_killed(worker, step);
    state.falls_silent(worker, step);
    // The connection is cut: the request is made again on another one, and its first copy is still on its way.
    if let Some(settle) = it.sent
        && state.late.is_none()
    {
        let mut cut = state;
        cut.late = Some((worker, settle));
        step("has its connection cut", None, true, cut);
    }
}

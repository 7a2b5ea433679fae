//! Postgres: a lease counts while the session of its owner stands, and what is taken from a lost session waits.
//!
//! Time goes in steps. A session that works is pinged in each of them; one that nothing is heard of is ended by the server
//! after [`SILENCE`], its owner trusts it for [`TRUST`] after the last answered ping, and who takes an unclean lease waits
//! for [`HANDOVER`].

use super::search::{Label, Model, Step};
use super::work::{Add, Cluster, FAILS, Hands, Link, Process, Set, Truth, WORKERS, in_fields, runs};

const TRUST: u8 = 1;
const SILENCE: u8 = 2;
const HANDOVER: u8 = 1;

/// How many things go wrong.
const FAULTS: u8 = 2;

/// What somebody might have got wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Who takes an unclean lease runs at once.
    NoHandover,
    /// The owner trusts its session for longer than the server waits for it.
    LongTrust,
    /// Outcomes and releases are written on any connection.
    UnfencedRelease,
    /// What is settled leaves the memory when the statement is sent.
    ForgottenWhenSent,
    /// A lease that was given back before the taker had waited is a clean one.
    CleanTooSoon,
    /// Nobody looks at the lock of an owner.
    NoTakeOver,
    /// A failed head leaves its lane while it waits.
    FailedHeadLeaves,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Request {
    Settle { succeeded: Set, failed: Set, is_stored: bool },
    Release { is_clean: bool, is_stored: bool },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Worker {
    process: Process,
    link: Link,
    /// It believes that it has a session.
    is_connected: bool,
    /// It believes that it holds the lease.
    owns: bool,
    trust: u8,
    /// Until it may run what it took.
    wait: u8,
    hands: Hands,
    sent: Option<Request>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Lease {
    #[default]
    Free,
    Unclean,
    Of(usize),
    /// Its owner's session is gone.
    Orphaned,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    workers: [Worker; 2],
    /// The sessions at the server: for how long nothing has been heard of them.
    sessions: [Option<u8>; 2],
    lease: Lease,
    /// A release that was sent on a session that is gone.
    stray: bool,
    done: Set,
    faults: u8,
    truth: Truth,
}

pub(crate) struct Postgres {
    pub(crate) bug: Option<Bug>,
}

impl Postgres {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn trust(&self) -> u8 {
        if self.has(Bug::LongTrust) { SILENCE + HANDOVER + 1 } else { TRUST }
    }
}

impl State {
    /// The server ends a session.
    fn ends(&mut self, worker: usize) {
        self.sessions[worker] = None;
        self.truth.doubts(self.workers[worker].hands);
        if self.lease == Lease::Of(worker) {
            self.lease = Lease::Orphaned;
        }
        self.stray |= matches!(self.workers[worker].sent, Some(Request::Release { is_stored: false, .. }));
    }

    /// The worker says something to the server, and is answered at once.
    const fn reaches(&self, worker: usize) -> bool {
        matches!(self.workers[worker].link, Link::Whole) && self.sessions[worker].is_some()
    }

    fn pings(&mut self, worker: usize, trust: u8) {
        let it = self.workers[worker];
        match it.link {
            _ if self.sessions[worker].is_none() && !it.is_connected => {}
            // It has hung up, as soon as that gets through.
            Link::Whole if !it.is_connected => self.ends(worker),
            // The answer that the session is gone.
            Link::Whole if it.process == Process::Up && self.sessions[worker].is_none() => self.loses(worker),
            Link::Whole if it.process == Process::Up => {
                self.sessions[worker] = Some(0);
                self.workers[worker].trust = trust;
            }
            link => {
                let is_heard = it.process == Process::Up && it.is_connected && link == Link::Deaf;
                let silence = self.sessions[worker].map(|silence| if is_heard { 0 } else { silence + 1 });
                self.sessions[worker] = silence;
                self.workers[worker].trust = it.trust.saturating_sub(1);
                if self.workers[worker].trust == 0 && it.process == Process::Up && it.is_connected {
                    self.loses(worker);
                }
                if silence.is_some_and(|silence| silence >= SILENCE) {
                    self.ends(worker);
                }
            }
        }
    }
}

impl Cluster for State {
    in_fields!();

    fn loses(&mut self, worker: usize) {
        let it = self.workers[worker];
        self.truth.loses(worker, it.hands);
        self.workers[worker] = Worker { process: it.process, link: it.link, ..Worker::default() };
    }

    /// What was sent before has arrived, or never does.
    fn hangs_up(&mut self, worker: usize) {
        self.ends(worker);
    }
}

impl Model for Postgres {
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
            tick.pings(worker, self.trust());
            let wait = &mut tick.workers[worker].wait;
            *wait = wait.saturating_sub(1);
        }
        steps.push(Step {
            label: Label { what: "time passes", worker: None, delivery: None },
            is_fault: false,
            after: tick,
        });
        for worker in WORKERS {
            let mut step = |what, delivery, is_fault, after| {
                let label = Label { what, worker: Some(worker), delivery };
                steps.push(Step { label, is_fault, after });
            };
            self.works(state, worker, &mut step);
            recovers(state, worker, &mut step);
            if state.faults < FAULTS {
                let fault = State { faults: state.faults + 1, ..*state };
                befalls(fault, worker, &mut step);
            }
        }
        if state.stray && self.has(Bug::UnfencedRelease) {
            let mut after = State { stray: false, ..*state };
            if matches!(after.lease, Lease::Of(_) | Lease::Orphaned) {
                after.lease = Lease::Free;
            }
            let label = Label { what: "a release arrives late", worker: None, delivery: None };
            steps.push(Step { label, is_fault: false, after });
        }
    }
}

impl Postgres {
    /// What a worker that is up does.
    fn works(&self, state: &State, worker: usize, step: Add<'_, State>) {
        let it = state.workers[worker];
        if it.process != Process::Up {
            return;
        }
        if !it.is_connected {
            if it.link == Link::Whole && state.sessions[worker].is_none() {
                let mut after = *state;
                after.sessions[worker] = Some(0);
                after.workers[worker].is_connected = true;
                after.workers[worker].trust = self.trust();
                step("connects", None, false, after);
            }
            return;
        }
        if state.reaches(worker) && it.sent.is_none() {
            self.asks(state, worker, step);
        }
        let startable = it.hands.startable().filter(|_| it.owns && it.wait == 0);
        runs(worker, (it.hands, state.truth), startable, |what, delivery, mut hands, truth| {
            if what == FAILS && self.has(Bug::FailedHeadLeaves) {
                hands.held = hands.held.without(Set::of(delivery));
            }
            let mut after = State { truth, ..*state };
            after.workers[worker].hands = hands;
            step(what, Some(delivery), false, after);
        });
        if it.hands.has_outcomes() && it.sent.is_none() {
            let mut after = *state;
            let Hands { succeeded, failed, .. } = it.hands;
            after.workers[worker].sent = Some(Request::Settle { succeeded, failed, is_stored: false });
            if self.has(Bug::ForgottenWhenSent) {
                after.workers[worker].hands.forget(succeeded, failed);
            }
            step("sends outcomes", None, false, after);
        }
        if it.owns && it.hands == (Hands { held: it.hands.held, ..Hands::default() }) && it.sent.is_none() {
            let mut after = *state;
            after.workers[worker].hands = Hands::default();
            let is_clean = it.wait == 0 || self.has(Bug::CleanTooSoon);
            after.workers[worker].sent = Some(Request::Release { is_clean, is_stored: false });
            step("sends a release", None, false, after);
        }
    }

    /// What it asks of the server and is answered.
    fn asks(&self, state: &State, worker: usize, step: Add<'_, State>) {
        let it = state.workers[worker];
        let mut after = *state;
        match state.lease {
            Lease::Free | Lease::Unclean => {
                let mine = &mut after.workers[worker];
                mine.owns = true;
                let is_unclean = state.lease == Lease::Unclean && !self.has(Bug::NoHandover);
                mine.wait = if is_unclean { HANDOVER } else { 0 };
                after.lease = Lease::Of(worker);
                step("takes the lease", None, false, after);
            }
            Lease::Orphaned if !self.has(Bug::NoTakeOver) => {
                after.lease = Lease::Unclean;
                step("finds the owner's lock free", None, false, after);
            }
            Lease::Of(owner) if owner == worker && it.owns => {
                let there = Set::ALL.without(state.done);
                if there != it.hands.held.common(there) {
                    after.workers[worker].hands.held = it.hands.held.and(there);
                    step("claims", None, false, after);
                }
            }
            Lease::Orphaned | Lease::Of(_) => {}
        }
    }
}

/// What goes on without anybody's doing wrong: requests arrive and are answered, what was spoiled is whole again.
fn recovers(state: &State, worker: usize, step: Add<'_, State>) {
    let it = state.workers[worker];
    let is_there =
        it.link != Link::BlackHole && it.process != Process::Killed && state.sessions[worker].is_some();
    match it.sent {
        Some(Request::Settle { succeeded, failed, is_stored: false }) if is_there => {
            let mut after = *state;
            after.done = after.done.and(succeeded);
            after.truth.are_gone(after.done);
            after.workers[worker].sent = Some(Request::Settle { succeeded, failed, is_stored: true });
            step("has its outcomes stored", None, false, after);
        }
        Some(Request::Release { is_clean, is_stored: false }) if is_there => {
            let mut after = *state;
            after.lease = if is_clean { Lease::Free } else { Lease::Unclean };
            after.workers[worker].sent = Some(Request::Release { is_clean, is_stored: true });
            step("has its release stored", None, false, after);
        }
        Some(request) if it.process == Process::Up && it.link == Link::Whole => {
            let mut after = *state;
            match request {
                _ if state.sessions[worker].is_none() => after.loses(worker),
                Request::Settle { succeeded, failed, is_stored: true } => {
                    after.workers[worker].hands.forget(succeeded, failed);
                    after.workers[worker].sent = None;
                }
                Request::Release { is_stored: true, .. } => {
                    after.workers[worker].owns = false;
                    after.workers[worker].sent = None;
                }
                Request::Settle { .. } | Request::Release { .. } => return,
            }
            step("is answered", None, false, after);
        }
        _ => {}
    }
    state.heals(worker, step);
}

fn befalls(state: State, worker: usize, step: Add<'_, State>) {
    let it = state.workers[worker];
    if it.process == Process::Killed {
        return;
    }
    state.is_killed(worker, step);
    // A worker whose session the server has ended notices with its next ping, well before a taker has waited. That it
    // falls silent at that very moment is the limit of the hand-over delay: its trust ends later then.
    if it.is_connected && state.sessions[worker].is_none() {
        return;
    }
    state.falls_silent(worker, step);
    if it.process == Process::Up && it.link == Link::Whole && state.sessions[worker].is_some() {
        let mut ended = state;
        ended.ends(worker);
        step("has its session ended", None, true, ended);
    }
}

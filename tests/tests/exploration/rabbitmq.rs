//! RabbitMQ: a queue with a single active consumer, and what comes back to it.
//!
//! The queue hands out what came back first, in the order in which it came back, and then what was never handed out. What the
//! consumer of a closed channel had not acknowledged comes back in order, behind what is there already: with an equal prefetch
//! nothing is, for the one before had taken all of it. The broker closes the channel of a consumer that it has not heard of
//! for [`SILENCE`], who trusts it for [`TRUST`].

use super::search::{Label, Model, Step};
use super::work::{
    Add, Cluster, DELIVERIES, FAILS, Hands, Link, Process, SUCCEEDS, Set, Truth, WORKERS, in_fields, runs,
};

const TRUST: u8 = 1;
const SILENCE: u8 = 2;

const PREFETCH: usize = 2;

/// How many things go wrong.
const FAULTS: u8 = 2;

/// What somebody might have got wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The second worker has a prefetch of its own.
    UnequalPrefetch,
    /// A worker leaves by cancelling its subscription, with deliveries in its hands.
    CancelsToLeave,
    /// What failed is requeued.
    Requeues,
    /// A delivery is acknowledged before it runs.
    AcknowledgesFirst,
    /// The consumer trusts the broker for longer than the broker waits.
    LongTrust,
    /// The channel is closed before acknowledgements are known to be processed.
    ClosesAtOnce,
}

/// Deliveries in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Line {
    at: [u8; DELIVERIES],
    len: u8,
}

impl Line {
    fn all() -> Self {
        (0..DELIVERIES).collect()
    }

    fn each(self) -> impl Iterator<Item = usize> + Clone {
        self.at.into_iter().take(usize::from(self.len)).map(usize::from)
    }

    fn len(self) -> usize {
        usize::from(self.len)
    }

    fn push(&mut self, delivery: usize) {
        self.at[self.len()] = delivery as u8;
        self.len += 1;
    }

    fn pop(&mut self) -> Option<usize> {
        let first = self.each().next()?;
        *self = self.each().skip(1).collect();
        Some(first)
    }

    fn without(self, gone: Set) -> Self {
        self.each().filter(|delivery| !gone.has(*delivery)).collect()
    }
}

impl FromIterator<usize> for Line {
    fn from_iter<I: IntoIterator<Item = usize>>(deliveries: I) -> Self {
        let mut line = Self::default();
        deliveries.into_iter().for_each(|delivery| line.push(delivery));
        line
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Worker {
    process: Process,
    link: Link,
    /// It believes that it is subscribed.
    is_subscribed: bool,
    trust: u8,
    /// What it was handed, in the order in which it came.
    line: Line,
    hands: Hands,
    /// Acknowledged, and on its way.
    acknowledged: Set,
    /// It wants to leave: it starts nothing more.
    leaves: bool,
}

/// A channel at the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Channel {
    is_open: bool,
    /// It takes what is in the queue, if it is the active one.
    is_subscribed: bool,
    unacknowledged: Line,
    silence: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    workers: [Worker; 2],
    channels: [Channel; 2],
    active: Option<usize>,
    returned: Line,
    queue: Line,
    done: Set,
    faults: u8,
    truth: Truth,
}

pub(crate) struct RabbitMq {
    pub(crate) bug: Option<Bug>,
}

impl State {
    /// The broker closes a channel: what was not acknowledged comes back.
    fn closes(&mut self, worker: usize) {
        for delivery in self.channels[worker].unacknowledged.each() {
            self.returned.push(delivery);
        }
        self.channels[worker] = Channel::default();
        self.unsubscribes(worker);
    }

    fn unsubscribes(&mut self, worker: usize) {
        self.channels[worker].is_subscribed = false;
        if self.active == Some(worker) {
            let other = 1 - worker;
            self.active = self.channels[other].is_subscribed.then_some(other);
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
        // Whether what it acknowledged has arrived it cannot know.
        let held = it.hands.held.and(it.acknowledged);
        self.truth.loses(worker, Hands { held, ..it.hands });
        self.workers[worker] = Worker { process: it.process, link: it.link, ..Worker::default() };
    }

    fn hangs_up(&mut self, worker: usize) {
        self.closes(worker);
    }

    fn catches_up(&mut self, worker: usize) {
        let it = self.workers[worker];
        if it.is_subscribed && self.channels[worker].is_open {
            let missed = self.channels[worker].unacknowledged.each();
            for delivery in missed.filter(|one| !it.hands.held.has(*one) && !it.acknowledged.has(*one)) {
                let mine = &mut self.workers[worker];
                mine.line.push(delivery);
                mine.hands.held = mine.hands.held.and(Set::of(delivery));
            }
        }
    }
}

impl RabbitMq {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn trust(&self) -> u8 {
        if self.has(Bug::LongTrust) { SILENCE + 2 } else { TRUST }
    }

    fn prefetch(&self, worker: usize) -> usize {
        if self.has(Bug::UnequalPrefetch) && worker == 1 { 1 } else { PREFETCH }
    }

    fn beats(&self, state: &mut State, worker: usize) {
        let it = state.workers[worker];
        let is_open = state.channels[worker].is_open;
        if state.reaches(worker) && it.is_subscribed {
            match is_open {
                true => {
                    state.workers[worker].trust = self.trust();
                    state.channels[worker].silence = 0;
                }
                false => state.loses(worker),
            }
            return;
        }
        if it.is_subscribed {
            state.workers[worker].trust = it.trust.saturating_sub(1);
            if state.workers[worker].trust == 0 && it.process == Process::Up {
                state.loses(worker);
            }
        }
        if is_open {
            let is_heard = it.is_subscribed && it.process == Process::Up && it.link == Link::Deaf;
            let silence = if is_heard { 0 } else { state.channels[worker].silence + 1 };
            state.channels[worker].silence = silence;
            if silence >= SILENCE
                || state.workers[worker].link == Link::Whole && !state.workers[worker].is_subscribed
            {
                let held = it.hands.held.and(it.acknowledged);
                state.truth.doubts(Hands { held, ..Hands::default() });
                state.closes(worker);
            }
        }
    }
}

impl Model for RabbitMq {
    type State = State;

    fn initial(&self) -> State {
        State {
            workers: Default::default(),
            channels: Default::default(),
            active: None,
            returned: Line::default(),
            queue: Line::all(),
            done: Set::NONE,
            faults: 0,
            truth: Truth::default(),
        }
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
        let label = Label { what: "time passes", worker: None, delivery: None };
        steps.push(Step { label, is_fault: false, after: tick });
        for worker in WORKERS {
            let mut step = |what, delivery, is_fault, after| {
                let label = Label { what, worker: Some(worker), delivery };
                steps.push(Step { label, is_fault, after });
            };
            self.delivers(state, worker, &mut step);
            self.works(state, worker, &mut step);
            state.heals(worker, &mut step);
            if state.faults < FAULTS && state.workers[worker].process != Process::Killed {
                let fault = State { faults: state.faults + 1, ..*state };
                fault.is_killed(worker, &mut step);
                fault.falls_silent(worker, &mut step);
            }
        }
    }
}

impl RabbitMq {
    /// What the broker does for the active consumer.
    fn delivers(&self, state: &State, worker: usize, step: Add<'_, State>) {
        let channel = state.channels[worker];
        let room = self.prefetch(worker).saturating_sub(channel.unacknowledged.len());
        if state.active == Some(worker) && channel.is_subscribed && room > 0 {
            // All that there is room for, in one go: the queue does it in one step.
            let mut after = *state;
            for _ in 0..room {
                let Some(delivery) = after.returned.pop().or_else(|| after.queue.pop()) else { break };
                after.channels[worker].unacknowledged.push(delivery);
                let mine = &mut after.workers[worker];
                // What comes over a spoiled connection is lost with it, or comes when it is whole again.
                if mine.is_subscribed && mine.link == Link::Whole && mine.process != Process::Killed {
                    mine.line.push(delivery);
                    mine.hands.held = mine.hands.held.and(Set::of(delivery));
                }
            }
            if after != *state {
                step("is handed what there is room for", None, false, after);
            }
        }
        let arrives =
            state.workers[worker].link != Link::BlackHole && state.workers[worker].process != Process::Killed;
        let acknowledged = state.workers[worker].acknowledged;
        if arrives && channel.is_open && !acknowledged.is_empty() {
            let mut after = *state;
            let line = &mut after.channels[worker].unacknowledged;
            *line = line.without(acknowledged);
            after.done = after.done.and(acknowledged);
            after.truth.are_gone(after.done);
            after.workers[worker].acknowledged = Set::NONE;
            step("has its acknowledgements processed", None, false, after);
        }
    }

    fn works(&self, state: &State, worker: usize, step: Add<'_, State>) {
        let it = state.workers[worker];
        if it.process != Process::Up {
            return;
        }
        if !it.is_subscribed {
            if state.reaches(worker) && !state.channels[worker].is_open {
                let mut after = *state;
                after.channels[worker] = Channel { is_open: true, is_subscribed: true, ..Channel::default() };
                after.active = after.active.or(Some(worker));
                (after.workers[worker].is_subscribed, after.workers[worker].trust) = (true, self.trust());
                step("subscribes", None, false, after);
            }
            return;
        }
        self.leaves(state, worker, step);
        let line: Vec<_> = it.line.each().collect();
        let startable = it.hands.startable_in(&line).filter(|_| !it.leaves);
        runs(worker, (it.hands, state.truth), startable, |what, delivery, hands, truth| {
            let mut after = State { truth, ..*state };
            let mine = &mut after.workers[worker];
            mine.hands = hands;
            let one = Set::of(delivery);
            if what == FAILS {
                // It is held here and runs again.
                mine.hands.forget(Set::NONE, one);
                if self.has(Bug::Requeues) && state.reaches(worker) && state.channels[worker].is_open {
                    mine.line = mine.line.without(one);
                    mine.hands.held = mine.hands.held.without(one);
                    let line = &mut after.channels[worker].unacknowledged;
                    *line = line.without(one);
                    after.returned.push(delivery);
                }
            } else if what != SUCCEEDS && self.has(Bug::AcknowledgesFirst) {
                mine.acknowledged = mine.acknowledged.and(one);
            }
            step(what, Some(delivery), false, after);
        });
        if !it.hands.succeeded.is_empty() {
            let mut after = *state;
            let mine = &mut after.workers[worker];
            mine.acknowledged = mine.acknowledged.and(it.hands.succeeded);
            mine.line = mine.line.without(it.hands.succeeded);
            mine.hands.forget(it.hands.succeeded, Set::NONE);
            step("acknowledges what has succeeded", None, false, after);
        }
    }

    fn leaves(&self, state: &State, worker: usize, step: Add<'_, State>) {
        let it = state.workers[worker];
        if !it.leaves {
            let mut after = *state;
            after.workers[worker].leaves = true;
            if self.has(Bug::CancelsToLeave) && state.reaches(worker) {
                after.unsubscribes(worker);
            }
            step("wants to leave", None, false, after);
            return;
        }
        let is_idle = it.hands.running.is_empty() && !it.hands.has_outcomes();
        let has_waited = it.acknowledged.is_empty() || self.has(Bug::ClosesAtOnce);
        if is_idle && has_waited && state.reaches(worker) && state.channels[worker].is_open {
            let mut after = *state;
            after.closes(worker);
            after.workers[worker] = Worker { process: it.process, link: it.link, ..Worker::default() };
            step("closes its channel", None, false, after);
        }
    }
}

//! Three deliveries, two keys, two workers: what all protocols have in common.

/// How many deliveries there are. The first two have one key, the third has another.
pub(crate) const DELIVERIES: usize = 3;
pub(crate) const WORKERS: [usize; 2] = [0, 1];

/// How often the first delivery fails before it succeeds.
const FAILURES: u8 = 1;

/// Those of one key.
const KEYS: [Set; DELIVERIES] = [Set(0b011), Set(0b011), Set(0b100)];

/// Some of the deliveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Set(u8);

impl Set {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const ALL: Self = Self((1 << DELIVERIES) - 1);

    pub(crate) const fn of(delivery: usize) -> Self {
        Self(1 << delivery)
    }

    pub(crate) const fn has(self, delivery: usize) -> bool {
        self.0 & (1 << delivery) != 0
    }

    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(crate) const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn each(self) -> impl Iterator<Item = usize> {
        (0..DELIVERIES).filter(move |delivery| self.has(*delivery))
    }

    /// Those of the same key that were published before.
    fn before(delivery: usize) -> Self {
        Self(KEYS[delivery].0 & ((1 << delivery) - 1))
    }
}

/// What the engine of one worker has in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Hands {
    /// Claimed, and not yet known to be settled.
    pub(crate) held: Set,
    pub(crate) running: Set,
    /// Has run; not yet known to be stored.
    pub(crate) succeeded: Set,
    pub(crate) failed: Set,
}

impl Hands {
    /// The head of each lane, unless it runs or waits for its outcome to be stored.
    pub(crate) fn startable(self) -> impl Iterator<Item = usize> {
        let busy = self.running.and(self.succeeded).and(self.failed);
        let heads =
            self.held.each().filter(move |delivery| self.held.common(Set::before(*delivery)).is_empty());
        heads.filter(move |head| !busy.has(*head))
    }

    /// Those that stand in a line in this order instead.
    pub(crate) fn startable_in(self, line: &[usize]) -> impl Iterator<Item = usize> {
        let busy = self.running.and(self.succeeded).and(self.failed);
        (0..line.len()).filter_map(move |place| {
            let (ahead, rest) = line.split_at(place);
            let is_head = !ahead.iter().any(|one| KEYS[*one].has(rest[0]));
            (is_head && !busy.has(rest[0])).then_some(rest[0])
        })
    }

    /// A run ends.
    pub(crate) const fn ends(&mut self, delivery: usize, has_succeeded: bool) {
        self.running = self.running.without(Set::of(delivery));
        let outcomes = if has_succeeded { &mut self.succeeded } else { &mut self.failed };
        *outcomes = outcomes.and(Set::of(delivery));
    }

    pub(crate) const fn has_outcomes(self) -> bool {
        !self.succeeded.and(self.failed).is_empty()
    }

    /// Outcomes are stored: done deliveries leave, a failed one may run again.
    pub(crate) const fn forget(&mut self, succeeded: Set, failed: Set) {
        self.held = self.held.without(succeeded);
        self.succeeded = self.succeeded.without(succeeded);
        self.failed = self.failed.without(failed);
    }
}

/// A worker's process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Process {
    #[default]
    Up,
    Stopped,
    Killed,
}

/// Its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Link {
    #[default]
    Whole,
    /// Requests arrive, answers do not.
    Deaf,
    BlackHole,
}

/// What really happened, whatever anybody believes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Truth {
    /// Has ever succeeded.
    pub(crate) succeeded: Set,
    failures: u8,
    /// A worker was lost while it held them: they may run again.
    in_doubt: Set,
    /// Runs of a worker that was stopped meanwhile: nobody can end those.
    beyond_reach: [Set; 2],
    running: [Set; 2],
    pub(crate) broken: Option<&'static str>,
}

pub(crate) const OVERLAP: &str = "two runs of one key at once";
pub(crate) const ORDER: &str = "a later delivery of a key runs before an earlier one has succeeded";
pub(crate) const REPEAT: &str = "a delivery that has succeeded runs again, and nothing went wrong";
pub(crate) const LOSS: &str = "a delivery is gone that has never succeeded";

impl Truth {
    pub(crate) fn starts(&mut self, worker: usize, delivery: usize) {
        let other = 1 - worker;
        let rivals = self.running[other].without(self.beyond_reach[other]).and(self.running[worker]);
        if !rivals.common(KEYS[delivery]).is_empty() {
            self.broken = Some(OVERLAP);
        }
        if !Set::before(delivery).without(self.succeeded).is_empty() {
            self.broken = Some(ORDER);
        }
        if self.succeeded.has(delivery) && !self.in_doubt.has(delivery) {
            self.broken = Some(REPEAT);
        }
        self.running[worker] = self.running[worker].and(Set::of(delivery));
    }

    pub(crate) fn ends(&mut self, worker: usize, delivery: usize, has_succeeded: bool) {
        let it = Set::of(delivery);
        self.running[worker] = self.running[worker].without(it);
        self.beyond_reach[worker] = self.beyond_reach[worker].without(it);
        if has_succeeded {
            self.succeeded = self.succeeded.and(it);
        } else {
            self.failures += 1;
        }
    }

    /// Whether a run of it may fail: the first fails a given number of times at most.
    pub(crate) const fn may_fail(&self, delivery: usize) -> bool {
        delivery == 0 && self.failures < FAILURES
    }

    pub(crate) const fn stops(&mut self, worker: usize) {
        self.beyond_reach[worker] = self.running[worker];
    }

    /// What a worker holds is taken from it, whether it knows or not: it may run again.
    pub(crate) const fn doubts(&mut self, hands: Hands) {
        self.in_doubt = self.in_doubt.and(hands.held);
    }

    /// A worker knows that it has lost what it held, or is lost itself.
    pub(crate) const fn loses(&mut self, worker: usize, hands: Hands) {
        self.doubts(hands);
        self.running[worker] = Set::NONE;
        self.beyond_reach[worker] = Set::NONE;
    }

    /// The store has forgotten these.
    pub(crate) const fn are_gone(&mut self, done: Set) {
        if !done.without(self.succeeded).is_empty() {
            self.broken = Some(LOSS);
        }
    }
}

/// Adds a step: what, with which delivery, whether it is a fault, the state after it.
pub(crate) type Add<'a, S> = &'a mut dyn FnMut(&'static str, Option<usize>, bool, S);

/// What the engine of a worker can do with the deliveries in its hands: start one of these, or end a run.
pub(crate) fn runs(
    worker: usize,
    (hands, truth): (Hands, Truth),
    startable: impl Iterator<Item = usize>,
    mut step: impl FnMut(&'static str, usize, Hands, Truth),
) {
    for delivery in startable {
        let (mut hands, mut truth) = (hands, truth);
        hands.running = hands.running.and(Set::of(delivery));
        truth.starts(worker, delivery);
        step("starts", delivery, hands, truth);
    }
    for delivery in hands.running.each() {
        for has_succeeded in [true, false] {
            if has_succeeded || truth.may_fail(delivery) {
                let (mut hands, mut truth) = (hands, truth);
                hands.ends(delivery, has_succeeded);
                truth.ends(worker, delivery, has_succeeded);
                step(if has_succeeded { SUCCEEDS } else { FAILS }, delivery, hands, truth);
            }
        }
    }
}

pub(crate) const SUCCEEDS: &str = "succeeds with";
pub(crate) const FAILS: &str = "fails with";

/// That a state keeps what every [`Cluster`] has in fields of these names.
macro_rules! in_fields {
    () => {
        fn process(&mut self, worker: usize) -> &mut Process {
            &mut self.workers[worker].process
        }

        fn link(&mut self, worker: usize) -> &mut Link {
            &mut self.workers[worker].link
        }

        fn truth(&mut self) -> &mut Truth {
            &mut self.truth
        }

        fn trusts(&self, worker: usize) -> bool {
            self.workers[worker].trust > 0
        }
    };
}
pub(crate) use in_fields;

/// A store with processes connected to it.
pub(crate) trait Cluster: Copy {
    fn process(&mut self, worker: usize) -> &mut Process;
    fn link(&mut self, worker: usize) -> &mut Link;
    fn truth(&mut self) -> &mut Truth;

    /// Whether a worker still believes in its right.
    fn trusts(&self, worker: usize) -> bool;

    /// A worker gives up what it had.
    fn loses(&mut self, worker: usize);

    /// The kernel closes the connections of a killed worker.
    fn hangs_up(&mut self, worker: usize);

    /// What was sent over a spoiled connection meanwhile is there now.
    fn catches_up(&mut self, _worker: usize) {}

    /// Processes and connections become whole again.
    fn heals(mut self, worker: usize, step: Add<'_, Self>) {
        let mut after = self;
        match *self.process(worker) {
            Process::Up => {}
            Process::Stopped => {
                *after.process(worker) = Process::Up;
                // The first thing that it looks at is the time.
                if !self.trusts(worker) {
                    after.loses(worker);
                }
                step("goes on", None, false, after);
            }
            Process::Killed => {
                *after.process(worker) = Process::Up;
                step("is started again", None, false, after);
            }
        }
        if *self.link(worker) != Link::Whole {
            let mut after = self;
            *after.link(worker) = Link::Whole;
            after.catches_up(worker);
            step("has a whole connection again", None, false, after);
        }
    }

    /// It is killed.
    fn is_killed(self, worker: usize, step: Add<'_, Self>) {
        let mut killed = self;
        *killed.process(worker) = Process::Killed;
        killed.hangs_up(worker);
        killed.loses(worker);
        step("is killed", None, true, killed);
    }

    /// It is stopped, or its connection is spoiled.
    fn falls_silent(mut self, worker: usize, step: Add<'_, Self>) {
        if *self.process(worker) == Process::Up {
            let mut stopped = self;
            *stopped.process(worker) = Process::Stopped;
            stopped.truth().stops(worker);
            step("is stopped", None, true, stopped);
        }
        if *self.link(worker) == Link::Whole {
            for (link, what) in [(Link::Deaf, "hears nothing more"), (Link::BlackHole, "is in a black hole")]
            {
                let mut spoiled = self;
                *spoiled.link(worker) = link;
                step(what, None, true, spoiled);
            }
        }
    }
}

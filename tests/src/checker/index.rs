//! A history, sorted by what it is about. Positions are indices of records: they order everything.

use std::collections::HashMap;
use std::fmt;

use super::{Found, HandlerRules, Kind, Rules};
use crate::history::{Dead, Fact, History, Pending, Published, Record, RunEnd};

/// The position of what has not happened by the end of the history.
pub(super) const NEVER: usize = usize::MAX;

/// A history by subject.
pub(super) struct Index<'h> {
    pub(super) history: &'h History,
    pub(super) handlers: Vec<Handler<'h>>,
    pub(super) deliveries: Vec<Delivery<'h>>,
    /// All runs, in the order of their starts.
    pub(super) runs: Vec<Run<'h>>,
    /// Unclean events of whole workers, in order.
    workers: HashMap<u32, Vec<usize>>,
    /// Lost partitions, in order.
    partitions: HashMap<(u32, u32), Vec<usize>>,
    /// All unclean events of a handler, of whatever worker, in order.
    by_handler: Vec<Vec<usize>>,
}

/// A handler.
pub(super) struct Handler<'h> {
    pub(super) name: &'h str,
    pub(super) rules: HandlerRules,
}

/// An event for a handler: all that the history says about it.
pub(super) struct Delivery<'h> {
    pub(super) handler: u32,
    pub(super) event: &'h Published,
    pub(super) call: Call,
    /// Where in its batch.
    pub(super) batch: usize,
    /// Indices of its runs, in the order of their starts.
    pub(super) runs: Vec<usize>,
    /// Positions of its replays.
    pub(super) replays: Vec<usize>,
    pub(super) purged: Option<usize>,
    pub(super) pending: Option<(usize, &'h Pending)>,
    pub(super) dead: Vec<(usize, &'h Dead)>,
}

/// A publish call.
#[derive(Clone, Copy)]
pub(super) struct Call {
    pub(super) number: u64,
    pub(super) intent: usize,
    /// Where it returned Ok.
    pub(super) ok: Option<usize>,
    /// Where it failed, and nothing was stored.
    pub(super) err: Option<usize>,
    pub(super) delay: u64,
    /// Its deliveries may lie in the store twice.
    pub(super) is_doubled: bool,
}

/// A run.
pub(super) struct Run<'h> {
    pub(super) worker: u32,
    pub(super) handler: u32,
    pub(super) event: u64,
    pub(super) key: Option<&'h str>,
    pub(super) hash: u64,
    pub(super) attempt: u32,
    pub(super) fence: u64,
    pub(super) start: usize,
    /// Where it ended by itself or with its worker.
    pub(super) end: usize,
    /// How; `None` if its worker died under it.
    pub(super) how: Option<RunEnd>,
    /// The delivery it is of, if there is one.
    pub(super) delivery: Option<usize>,
}

impl<'h> Index<'h> {
    /// Sorts the history of `found`; what cannot be sorted is a violation.
    pub(super) fn new(rules: &Rules, found: &mut Found<'h>) -> Self {
        let mut building = Building {
            rules,
            index: Self {
                history: found.history,
                handlers: Vec::new(),
                deliveries: Vec::new(),
                runs: Vec::new(),
                workers: HashMap::new(),
                partitions: HashMap::new(),
                by_handler: Vec::new(),
            },
            handlers: HashMap::new(),
            deliveries: HashMap::new(),
            events: HashMap::new(),
            calls: HashMap::new(),
            open: HashMap::new(),
            lives: HashMap::new(),
            global: Vec::new(),
            rest: None,
        };
        let mut last = 0;
        for (at, record) in found.history.records.iter().enumerate() {
            if record.at < last {
                found.add(Kind::Malformed, "the records are not in the order of time", [at]);
            }
            last = record.at;
            building.take(at, record, found);
        }
        building.finish(found)
    }

    /// The time of a position, in nanoseconds.
    pub(super) fn time(&self, at: usize) -> u64 {
        self.history.records.get(at).map_or(u64::MAX, |record| record.at)
    }

    pub(super) fn rules(&self, handler: u32) -> HandlerRules {
        self.handlers[handler as usize].rules
    }

    /// The delivery in words.
    pub(super) fn name<'a>(&'a self, delivery: &'a Delivery<'h>) -> impl fmt::Display + use<'a, 'h> {
        fmt::from_fn(move |f| {
            write!(
                f,
                "event {} for {}",
                delivery.event.event, self.handlers[delivery.handler as usize].name
            )?;
            match &delivery.event.key {
                Some(key) => write!(f, " (key {key:?})"),
                None => Ok(()),
            }
        })
    }

    /// The first unclean event from the moment of `from` on and before `to` that struck its worker's hold on this run's
    /// delivery. What has no key lies in no partition.
    pub(super) fn unclean(&self, run: &Run<'_>, from: usize, to: usize) -> Option<usize> {
        let whole = self.first_between(self.workers.get(&run.worker), from, to);
        let partition = self.partitions.get(&(run.worker, run.handler)).filter(|_| run.key.is_some());
        whole.into_iter().chain(self.first_between(partition, from, to)).min()
    }

    /// Whether a run that was cancelled lost its right, rather than being cut short by a shutdown. The loss of a partition
    /// cancels in the same moment; one that did not was another partition of the handler.
    pub(super) fn lost_its_right(&self, run: &Run<'_>) -> bool {
        let ended_at = self.time(run.end);
        let partitions = self.partitions.get(&(run.worker, run.handler)).filter(|_| run.key.is_some());
        self.first_between(self.workers.get(&run.worker), run.start, run.end).is_some()
            || partitions.into_iter().flatten().any(|at| self.time(*at) == ended_at)
    }

    fn first_between(&self, events: Option<&Vec<usize>>, from: usize, to: usize) -> Option<usize> {
        let (events, since) = (events?, self.time(from));
        // What happened in the same moment may have come first.
        events.get(events.partition_point(|at| self.time(*at) < since)).copied().filter(|at| *at < to)
    }

    /// How many unclean events there were between two positions that may have struck this handler's deliveries.
    pub(super) fn count_unclean(&self, handler: u32, from: usize, to: usize) -> u32 {
        let events = &self.by_handler[handler as usize];
        let count =
            events.partition_point(|at| *at < to).saturating_sub(events.partition_point(|at| *at <= from));
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// The runs of a delivery, divided by its replays, each with the position at which that life began.
    pub(super) fn lives(&self, delivery: &'h Delivery<'h>) -> Vec<(usize, Vec<&Run<'h>>)> {
        let mut lives = vec![(delivery.call.intent, Vec::new())];
        let mut replays = delivery.replays.iter().copied().peekable();
        for run in delivery.runs.iter().map(|run| &self.runs[*run]) {
            while let Some(replay) = replays.next_if(|replay| *replay < run.start) {
                lives.push((replay, Vec::new()));
            }
            if let Some((_, runs)) = lives.last_mut() {
                runs.push(run);
            }
        }
        lives.extend(replays.map(|replay| (replay, Vec::new())));
        lives
    }
}

struct Building<'h, 'r> {
    rules: &'r Rules,
    index: Index<'h>,
    handlers: HashMap<&'h str, u32>,
    deliveries: HashMap<(u32, u64), usize>,
    events: HashMap<u64, usize>,
    /// Calls, with their deliveries.
    calls: HashMap<u64, (Call, std::ops::Range<usize>)>,
    /// Runs that have not ended, by worker and number.
    open: HashMap<u32, HashMap<u64, usize>>,
    /// Where a worker started, and where it ended.
    lives: HashMap<u32, (usize, Option<usize>)>,
    /// Unclean events of whole workers.
    global: Vec<usize>,
    rest: Option<usize>,
}

impl<'h> Building<'h, '_> {
    fn take(&mut self, at: usize, record: &'h Record, found: &mut Found<'h>) {
        match &record.fact {
            Fact::PublishIntent { call, delay, events, .. } => self.intent(at, *call, *delay, events, found),
            Fact::PublishOk { call } => self.answered(at, *call, |call| call.ok = Some(at), found),
            Fact::PublishErr { call } => self.answered(at, *call, |call| call.err = Some(at), found),
            Fact::PublishUnknown { call } => self.answered(at, *call, |_| {}, found),
            // As if nobody knew whether it was stored: it may have run, and nothing waits for it.
            Fact::StoreLost { call } => self.answered(at, *call, |call| call.ok = None, found),
            Fact::RunStart { .. } => self.run_start(at, &record.fact, found),
            Fact::RunEnd { run, worker, end } => {
                // A run that ended with its worker may still say so: that is no end any more.
                if let Some(run) = self.open.get_mut(worker).and_then(|runs| runs.remove(run)) {
                    self.index.runs[run].end = at;
                    self.index.runs[run].how = Some(*end);
                }
            }
            Fact::WorkerStart { worker } => {
                if self.lives.insert(*worker, (at, None)).is_some() {
                    found.add(Kind::Malformed, format!("worker {worker} starts a second time"), [at]);
                }
            }
            Fact::WorkerStop { worker } => {
                let open = self.open.remove(worker).unwrap_or_default();
                for run in open.into_values() {
                    let start = self.index.runs[run].start;
                    found.add(
                        Kind::Zombie,
                        format!("worker {worker} stopped, but a run has not ended"),
                        [start, at],
                    );
                }
                self.ended(at, *worker, found);
            }
            Fact::WorkerCrash { worker } => {
                for run in self.open.remove(worker).unwrap_or_default().into_values() {
                    self.index.runs[run].end = at;
                }
                self.unclean(at, *worker);
                self.ended(at, *worker, found);
            }
            Fact::WorkerStall { worker, .. } | Fact::SessionLost { worker } => self.unclean(at, *worker),
            Fact::PartitionLost { worker, handler } => {
                let handler = self.handler(handler, at, found);
                self.index.partitions.entry((*worker, handler)).or_default().push(at);
                self.index.by_handler[handler as usize].push(at);
            }
            Fact::Replay { handler, event } => {
                if let Some(delivery) = self.known(handler, *event, at, found) {
                    self.index.deliveries[delivery].replays.push(at);
                }
            }
            Fact::Purge { handler, event } => {
                if let Some(delivery) = self.known(handler, *event, at, found) {
                    self.index.deliveries[delivery].purged = Some(at);
                }
            }
            Fact::Rest { pending, dead_letters } => self.rest(at, pending, dead_letters, found),
        }
    }

    fn intent(&mut self, at: usize, number: u64, delay: u64, events: &'h [Published], found: &mut Found<'h>) {
        let call = Call { number, intent: at, ok: None, err: None, delay, is_doubled: false };
        let first = self.index.deliveries.len();
        for (batch, event) in events.iter().enumerate() {
            if self.events.insert(event.event, at).is_some() {
                found.add(Kind::Malformed, format!("event {} is published a second time", event.event), [at]);
                continue;
            }
            for handler in &event.handlers {
                let handler = self.handler(handler, at, found);
                self.deliveries.insert((handler, event.event), self.index.deliveries.len());
                self.index.deliveries.push(Delivery {
                    handler,
                    event,
                    call,
                    batch,
                    runs: Vec::new(),
                    replays: Vec::new(),
                    purged: None,
                    pending: None,
                    dead: Vec::new(),
                });
            }
        }
        if self.calls.insert(number, (call, first..self.index.deliveries.len())).is_some() {
            found.add(Kind::Malformed, format!("call {number} is made a second time"), [at]);
        }
    }

    fn answered(&mut self, at: usize, number: u64, say: impl Fn(&mut Call), found: &mut Found<'h>) {
        let Some((call, deliveries)) = self.calls.get_mut(&number) else {
            found.add(Kind::Malformed, format!("call {number} was answered but never made"), [at]);
            return;
        };
        say(call);
        // Of a call that was never answered nothing more is known.
        let has_unclean = self.global.last().is_some_and(|last| *last > call.intent);
        call.is_doubled = self.rules.stores_twice && has_unclean;
        for delivery in &mut self.index.deliveries[deliveries.clone()] {
            delivery.call = *call;
        }
    }

    fn run_start(&mut self, at: usize, fact: &'h Fact, found: &mut Found<'h>) {
        let Fact::RunStart { run, worker, handler, event, key, hash, attempt, fence } = fact else { return };
        let handler = self.handler(handler, at, found);
        match self.lives.get(worker) {
            Some((_, None)) => {}
            Some((_, Some(end))) => {
                found.add(Kind::Zombie, format!("worker {worker} has ended and starts a run"), [*end, at]);
            }
            None => found.add(Kind::Malformed, format!("worker {worker} never started"), [at]),
        }
        let delivery = self.deliveries.get(&(handler, *event)).copied();
        let position = self.index.runs.len();
        self.index.runs.push(Run {
            worker: *worker,
            handler,
            event: *event,
            key: key.as_deref(),
            hash: *hash,
            attempt: *attempt,
            fence: *fence,
            start: at,
            end: NEVER,
            how: None,
            delivery,
        });
        if let Some(delivery) = delivery {
            self.index.deliveries[delivery].runs.push(position);
        }
        if self.open.entry(*worker).or_default().insert(*run, position).is_some() {
            found.add(Kind::Malformed, format!("worker {worker} starts run {run} a second time"), [at]);
        }
    }

    fn ended(&mut self, at: usize, worker: u32, found: &mut Found<'h>) {
        match self.lives.get_mut(&worker) {
            Some((_, end)) => *end = Some(at),
            None => found.add(Kind::Malformed, format!("worker {worker} never started"), [at]),
        }
    }

    fn unclean(&mut self, at: usize, worker: u32) {
        self.index.workers.entry(worker).or_default().push(at);
        self.global.push(at);
    }

    fn rest(&mut self, at: usize, pending: &'h [Pending], dead: &'h [Dead], found: &mut Found<'h>) {
        self.rest = Some(at);
        for left in pending {
            if let Some(delivery) = self.known(&left.handler, left.event, at, found) {
                self.index.deliveries[delivery].pending = Some((at, left));
            }
        }
        for dead in dead {
            if let Some(delivery) = self.known(&dead.handler, dead.event, at, found) {
                self.index.deliveries[delivery].dead.push((at, dead));
            }
        }
    }

    /// The delivery of this event for this handler; it is a phantom if there is none.
    fn known(&mut self, handler: &'h str, event: u64, at: usize, found: &mut Found<'h>) -> Option<usize> {
        let number = self.handler(handler, at, found);
        let known = self.deliveries.get(&(number, event)).copied();
        if known.is_none() {
            found.add(
                Kind::Phantom,
                format!("the store knows event {event} for {handler}, which nobody published"),
                [at],
            );
        }
        known
    }

    fn handler(&mut self, name: &'h str, at: usize, found: &mut Found<'h>) -> u32 {
        if let Some(known) = self.handlers.get(name) {
            return *known;
        }
        let rules = self.rules.handlers.get(name).copied().unwrap_or_else(|| {
            found.add(Kind::Malformed, format!("there are no rules for handler {name}"), [at]);
            HandlerRules { max_attempts: u32::MAX, is_ordered: false, holds_key: false }
        });
        let number = u32::try_from(self.index.handlers.len()).unwrap_or(u32::MAX);
        self.index.handlers.push(Handler { name, rules });
        self.index.by_handler.push(Vec::new());
        self.handlers.insert(name, number);
        number
    }

    fn finish(mut self, found: &mut Found<'h>) -> Index<'h> {
        if self.rest.is_none() {
            found.add(Kind::Malformed, "the history does not say what was left at the end", []);
        }
        for events in &mut self.index.by_handler {
            events.extend(&self.global);
            events.sort_unstable();
        }
        self.index
    }
}

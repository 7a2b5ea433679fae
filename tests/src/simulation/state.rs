//! What the store holds. Pure state: time is an argument, nothing waits.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use event_bus_core::backend::{
    DeliveryId, Envelope, ErrorLog, HandlerCounts, Partition, Publication, Stored,
};
use tokio::time::Instant;

use super::backend::{Config, Layout};
use super::dead::Corpse;
use super::members::{Member, SessionId};

/// All of it.
pub(super) struct State {
    pub(super) config: Config,
    pub(super) queues: Vec<Queue>,
    pub(super) members: BTreeMap<SessionId, Member>,
    pub(super) dead: BTreeMap<u64, Corpse>,
    /// Moves the assignment of partitions on: a rebalancing.
    pub(super) rotation: usize,
    /// Counts claims.
    pub(super) turn: u64,
    /// Counts hand-outs.
    pub(super) handed_out: u64,
    /// Whether partitions may have to be assigned anew.
    pub(super) is_unassigned: bool,
    by_name: HashMap<Arc<str>, usize>,
    idempotency_keys: HashSet<Arc<str>>,
    last_id: u64,
    last_session: SessionId,
}

/// One handler's deliveries.
pub(super) struct Queue {
    pub(super) name: Arc<str>,
    pub(super) free: Line,
    pub(super) parts: Vec<Part>,
    /// What enters its line when it is due.
    pub(super) later: BTreeMap<(Instant, u64), (u64, Row)>,
}

/// Deliveries by their numbers.
#[derive(Default)]
pub(super) struct Line {
    /// In nobody's hands.
    pub(super) waiting: BTreeMap<u64, Row>,
    /// In a session's hands.
    pub(super) held: HashMap<u64, (SessionId, Row)>,
}

/// A part of a handler's keyed deliveries, which one session owns at a time.
#[derive(Default)]
pub(super) struct Part {
    pub(super) line: Line,
    /// Lanes that are handed out on demand only.
    pub(super) parked: BTreeMap<Arc<str>, BTreeMap<u64, Row>>,
    pub(super) owner: Option<SessionId>,
    pub(super) fence: u64,
    /// The turn in which its owner got it.
    pub(super) since: u64,
    /// Nobody may have it before.
    pub(super) free_at: Option<Instant>,
    /// Its owner was asked to release it.
    pub(super) is_revoked: bool,
    /// Parked lanes of which its owner has not been told.
    pub(super) untold: VecDeque<Arc<str>>,
    /// Sessions that gave it back or lost it, but do not know yet: they must not be given it again meanwhile.
    pub(super) barred: Vec<SessionId>,
}

/// A delivery as stored.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) envelope: Envelope,
    pub(super) failures: u32,
    pub(super) crashes: u32,
    /// The attempt whose start was recorded, until something was said about it.
    pub(super) started: u32,
    pub(super) errors: ErrorLog,
    /// It keeps its place and waits.
    pub(super) due: Option<Instant>,
    /// The dead letter whose marker this is.
    pub(super) holds: Option<u64>,
    /// The number of its last hand-out.
    pub(super) token: u64,
    /// The number it had when it was published.
    pub(super) born: u64,
}

impl State {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            queues: Vec::new(),
            members: BTreeMap::new(),
            dead: BTreeMap::new(),
            rotation: 0,
            turn: 0,
            handed_out: 0,
            is_unassigned: false,
            by_name: HashMap::new(),
            idempotency_keys: HashSet::new(),
            last_id: 0,
            last_session: 0,
        }
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn next_session(&mut self) -> SessionId {
        self.last_session += 1;
        self.last_session
    }

    /// The position of a handler's queue, which is made if there is none.
    pub(super) fn queue(&mut self, name: &Arc<str>) -> usize {
        if let Some(known) = self.by_name.get(name) {
            return *known;
        }
        let parts = match self.config.layout {
            Layout::Whole => 1,
            Layout::Divided(parts) => usize::from(parts.max(1)),
        };
        let position = self.queues.len();
        self.queues.push(Queue {
            name: name.clone(),
            free: Line::default(),
            parts: (0..parts).map(|_| Part::default()).collect(),
            later: BTreeMap::new(),
        });
        self.by_name.insert(name.clone(), position);
        self.is_unassigned = true;
        position
    }

    pub(super) fn publish(&mut self, publication: &Publication, now: Instant) -> Stored {
        if let Some(key) = &publication.idempotency_key
            && !self.idempotency_keys.insert(key.clone())
        {
            return Stored::Duplicate;
        }
        for event in &publication.events {
            for handler in event.handlers.iter() {
                let queue = self.queue(handler);
                let id = self.next_id();
                let row = Row::new(event.envelope.clone(), id);
                if publication.delay.is_zero() {
                    self.queues[queue].enter(id, row);
                } else {
                    self.queues[queue].later.insert((now + publication.delay, id), (id, row));
                }
            }
        }
        Stored::New
    }

    /// Lets what has become due enter its line.
    pub(super) fn promote(&mut self, queue: usize, now: Instant) {
        while let Some(entry) = self.queues[queue].later.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let (old, mut row) = entry.remove();
            row.due = None;
            // A keyed one enters behind what was published meanwhile. A free one has no place to lose.
            let keeps_id = row.envelope.key.is_none() && !self.config.renumbers;
            let id = if keeps_id { old } else { self.next_id() };
            self.queues[queue].enter(id, row);
        }
    }

    /// How many deliveries there are, by handler.
    pub(super) fn counts(&self, now: Instant) -> Vec<HandlerCounts> {
        let mut counts: Vec<_> = self.queues.iter().map(|queue| queue.counts(now)).collect();
        for counts in &mut counts {
            let dead = self.dead.values().filter(|corpse| *corpse.handler == *counts.handler);
            counts.dead = dead.count() as u64;
        }
        counts.sort_by(|a, b| a.handler.cmp(&b.handler));
        counts
    }
}

impl Queue {
    /// Puts a delivery that nobody holds into its line.
    pub(super) fn enter(&mut self, id: u64, row: Row) {
        self.line_mut(row.envelope.key.as_deref()).waiting.insert(id, row);
    }

    pub(super) fn line_mut(&mut self, key: Option<&str>) -> &mut Line {
        match key {
            Some(key) => {
                let part = self.part_of(key);
                &mut self.parts[part].line
            }
            None => &mut self.free,
        }
    }

    pub(super) fn part_of(&self, key: &str) -> usize {
        usize::from(event_bus_core::slot(key)) % self.parts.len()
    }

    /// All deliveries, with a word about each and what they wait for; markers of dead letters are none.
    pub(super) fn rows(&self) -> impl Iterator<Item = (&'static str, Option<Instant>, &Row)> {
        let lines = std::iter::once(&self.free).chain(self.parts.iter().map(|part| &part.line));
        let lines = lines.flat_map(|line| {
            let waiting = line.waiting.values().map(|row| ("in line", row.due, row));
            waiting.chain(line.held.values().map(|(_, row)| ("in a worker's hands", row.due, row)))
        });
        let parked = self.parts.iter().flat_map(|part| part.parked.values());
        let parked = parked.flat_map(BTreeMap::values).map(|row| ("parked", row.due, row));
        let later = self.later.iter().map(|((due, _), (_, row))| ("not yet in line", Some(*due), row));
        lines.chain(parked).chain(later).filter(|(_, _, row)| row.holds.is_none())
    }

    fn counts(&self, now: Instant) -> HandlerCounts {
        let mut counts = HandlerCounts { handler: self.name.to_string(), ..HandlerCounts::default() };
        for (_, due, _) in self.rows() {
            if due.is_some_and(|due| due > now) {
                counts.waiting += 1;
            } else {
                counts.ready += 1;
            }
        }
        counts
    }
}

impl Row {
    pub(super) fn new(envelope: Envelope, id: u64) -> Self {
        Self {
            envelope,
            failures: 0,
            crashes: 0,
            started: 0,
            errors: ErrorLog::default(),
            due: None,
            holds: None,
            token: 0,
            born: id,
        }
    }

    /// Its owner vanished while it may have been running.
    pub(super) fn crash(&mut self) {
        if self.holds.is_none() {
            self.crashes += 1;
            self.failures = self.failures.max(self.started);
        }
    }
}

/// The partition number of keyed deliveries.
pub(super) fn number(layout: Layout, part: usize) -> u16 {
    match layout {
        Layout::Whole => Partition::WHOLE,
        Layout::Divided(_) => u16::try_from(part).unwrap_or(Partition::WHOLE),
    }
}

/// The store's number as the contract has it.
pub(super) fn delivery_id(id: u64) -> DeliveryId {
    DeliveryId(u128::from(id))
}

/// The contract's number as the store has it.
pub(super) fn row_id(id: DeliveryId) -> u64 {
    u64::try_from(id.0).unwrap_or(u64::MAX)
}

//! What a test's deliveries wait in: the order of production, on a clock that is moved by hand.

use std::time::Duration;

use event_bus_core::backend::{Delivery, DeliveryId, Publication};
use event_bus_core::inline::{first_delivery, handlers_of};
use event_bus_core::registry::{Registered, Registry};

/// Deliveries that have yet to run, and the virtual time.
#[derive(Default)]
pub(crate) struct Line {
    now: Duration,
    next: u64,
    entries: Vec<Entry>,
}

/// One delivery.
pub(crate) struct Entry {
    pub(crate) delivery: Delivery,
    pub(crate) handler: Registered,
    /// When it may run.
    due: Duration,
    /// Its place, once it has entered its line: published without a delay, or due.
    place: Option<u64>,
    /// It is dead and holds its key.
    is_held: bool,
}

impl Entry {
    fn is_of_lane(&self, other: &Self) -> bool {
        self.delivery.envelope.key.is_some()
            && self.delivery.envelope.key == other.delivery.envelope.key
            && self.handler.name() == other.handler.name()
    }
}

impl Line {
    /// The virtual time since the test began.
    pub(crate) fn now(&self) -> Duration {
        self.now
    }

    /// Deliveries that wait for ever: behind a dead one that holds their key.
    pub(crate) fn held(&self) -> usize {
        self.entries.iter().filter(|entry| !entry.is_held).count()
    }

    pub(crate) fn new_id(&mut self) -> DeliveryId {
        DeliveryId(u128::from(self.new_place()))
    }

    fn new_place(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The deliveries of one publish call.
    pub(crate) fn add(&mut self, call: &Publication, registry: &Registry) {
        for event in &call.events {
            for (index, handler) in handlers_of(event, registry) {
                let id = self.new_id();
                let place = call.delay.is_zero().then(|| self.new_place());
                self.entries.push(Entry {
                    delivery: first_delivery(id, index, event),
                    handler: handler.clone(),
                    due: self.now.saturating_add(call.delay),
                    place,
                    is_held: false,
                });
            }
        }
    }

    /// Takes the delivery that a worker would run next, and moves the clock to it.
    pub(crate) fn take(&mut self) -> Option<Entry> {
        loop {
            self.enter();
            if let Some(position) = self.runnable() {
                return Some(self.entries.remove(position));
            }
            let later = self.entries.iter().map(|entry| entry.due).filter(|due| *due > self.now);
            self.now = later.min()?;
        }
    }

    /// Puts back what did not run to its end, as it was.
    pub(crate) fn put_back(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Puts back what shall run again after `delay`; without its place it enters the line anew when it is due.
    pub(crate) fn again(&mut self, mut entry: Entry, delay: Duration, keeps_place: bool) {
        entry.due = self.now.saturating_add(delay);
        if !keeps_place {
            entry.place = None;
        }
        self.entries.push(entry);
    }

    /// Keeps a dead delivery in its place, where it holds its key.
    pub(crate) fn hold(&mut self, mut entry: Entry) {
        entry.is_held = true;
        self.entries.push(entry);
    }

    /// Gives those that have become due their places, the earliest first.
    fn enter(&mut self) {
        let now = self.now;
        let mut due: Vec<_> = (0..self.entries.len())
            .filter(|position| self.entries[*position].place.is_none() && self.entries[*position].due <= now)
            .collect();
        due.sort_by_key(|position| (self.entries[*position].due, self.entries[*position].delivery.id));
        for position in due {
            self.entries[position].place = Some(self.new_place());
        }
    }

    /// The first that may run now: the most urgent handler's, and of those the one that came first.
    fn runnable(&self) -> Option<usize> {
        let entries = self.entries.iter().enumerate();
        let may_run = entries.filter_map(|(position, entry)| {
            let place = entry.place.filter(|_| entry.due <= self.now && !entry.is_held)?;
            let is_before = |other: &Entry| other.place.is_some_and(|other| other < place);
            let is_behind = self.entries.iter().any(|other| is_before(other) && other.is_of_lane(entry));
            (!is_behind).then_some((entry.handler.priority(), place, position))
        });
        may_run.min().map(|(_, _, position)| position)
    }
}

//! What the broker pushed and this session holds: in memory, unacknowledged, in the order of each queue. Pure state: no
//! input or output, and time is an argument.
//!
//! A push becomes a pull here: deliveries wait in their *line* (one for each queue) until the engine claims them. What the
//! engine parks goes no further than this memory: it still counts against the queue's prefetch, but it takes no room in the
//! engine's window, and so a stuck key keeps no other key from being claimed.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use event_bus_core::backend::{
    ClaimRequest, Claimed, Delivery, DeliveryId, Demand, ErrorLog, EventId, HandlerIndex, LaneDemand, Park,
    ParkedLane, Partition, Timestamp,
};
use lapin::types::DeliveryTag;
use tokio::time::Instant;

use crate::journal::{Entry, Journal};
use crate::topology::Place;
use crate::wire::Parcel;

/// How many deliveries a line gives in one turn, before the next line of the same handler has its own.
const TURN: usize = 16;

/// How many deliveries that are gone from a line are remembered, to know copies of them: publishers send at most 1,000 again
/// at once, and others may have published in between.
const REMEMBERED: usize = 2_048;

/// A delivery in this session's hands.
struct Held {
    line: usize,
    tag: DeliveryTag,
    delivery: Delivery,
    position: u32,
    /// For one that keeps its place: until when its lane waits.
    due: Option<Instant>,
    since: Instant,
    /// The engine has it.
    is_out: bool,
    /// The message that takes its place is stored: only the acknowledgement is missing.
    is_copied: bool,
}

/// One that enters its line when its wait is over.
struct Waiting {
    tag: DeliveryTag,
    parcel: Parcel,
    since: Instant,
}

/// What is held of one queue.
pub(crate) struct Line {
    pub(crate) partition: Partition,
    pub(crate) place: Place,
    /// Which subscription of this session to the queue this is; 0 while there is none.
    pub(crate) subscription: u64,
    /// Whether the broker serves this session: the first delivery has come and the journal is read.
    pub(crate) is_active: bool,
    /// It is being given back: nothing of it is handed out any more.
    pub(crate) is_leaving: bool,
    pub(crate) journal: Journal,
    ready: VecDeque<u128>,
    /// Given back by the engine: for the claim after the next one. The next one may have been made before.
    given_back: Vec<u128>,
    parked: HashMap<Arc<str>, VecDeque<u128>>,
    waiting: BTreeMap<(Instant, u64), Waiting>,
    /// Messages that are being moved to another queue.
    moving: usize,
    /// Events that were here, the newest last.
    gone: VecDeque<EventId>,
    pub(crate) tags: Tags,
}

/// Which messages of a channel have been acknowledged: their tags count up from 1.
#[derive(Debug, Default)]
pub(crate) struct Tags {
    /// All up to this one.
    low: DeliveryTag,
    /// And these above it.
    done: BTreeSet<DeliveryTag>,
}

impl Tags {
    /// The acknowledgements to send for these: one for all of which nothing before is open, and one for each of the others.
    /// A queue is sent one command for each, and few commands are what it can take.
    pub(crate) fn acknowledge(&mut self, mut tags: Vec<DeliveryTag>) -> Vec<(DeliveryTag, bool)> {
        tags.sort_unstable();
        let mut together = None;
        let mut alone = Vec::new();
        for tag in tags {
            self.catch_up();
            if tag == self.low + 1 {
                self.low = tag;
                together = Some((tag, true));
            } else {
                self.done.insert(tag);
                alone.push((tag, false));
            }
        }
        self.catch_up();
        together.into_iter().chain(alone).collect()
    }

    /// Acknowledged by somebody else.
    pub(crate) fn skip(&mut self, tag: DeliveryTag) {
        self.done.insert(tag);
        self.catch_up();
    }

    fn catch_up(&mut self) {
        while self.done.remove(&(self.low + 1)) {
            self.low += 1;
        }
    }
}

/// All lines of a session.
pub(crate) struct Buffer {
    lines: Vec<Line>,
    by_partition: HashMap<Partition, usize>,
    of_handler: Vec<Vec<usize>>,
    next_turn: Vec<usize>,
    held: HashMap<u128, Held>,
    next_id: u128,
    /// Grows with everything that comes or goes: two equal stamps say that nothing did. What is claimed stays in hand.
    pub(crate) stamp: u64,
}

/// A message to be acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) line: usize,
    pub(crate) subscription: u64,
    pub(crate) tag: DeliveryTag,
}

/// How many deliveries a line holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LineCount {
    pub(crate) ready: u64,
    pub(crate) waiting: u64,
}

impl Buffer {
    /// Lines of `handlers` handlers, each with these places.
    pub(crate) fn new(handlers: usize, places: &[Place]) -> Self {
        let mut lines = Vec::new();
        let mut by_partition = HashMap::new();
        let mut of_handler = vec![Vec::new(); handlers];
        for (handler, own) in of_handler.iter_mut().enumerate() {
            let handler = HandlerIndex(u32::try_from(handler).unwrap_or(u32::MAX));
            for place in places {
                let number = match place {
                    Place::Partition(number) => *number,
                    // The number behind those of the partitions, which are at most as many as there are slots.
                    Place::Suspect => Partition::WHOLE - 1,
                    Place::Free => Partition::WHOLE,
                };
                let partition = Partition { handler, number };
                by_partition.insert(partition, lines.len());
                own.push(lines.len());
                lines.push(Line {
                    partition,
                    place: *place,
                    subscription: 0,
                    is_active: false,
                    is_leaving: false,
                    journal: Journal::default(),
                    ready: VecDeque::new(),
                    given_back: Vec::new(),
                    parked: HashMap::new(),
                    waiting: BTreeMap::new(),
                    moving: 0,
                    gone: VecDeque::new(),
                    tags: Tags::default(),
                });
            }
        }
        Self {
            lines,
            by_partition,
            next_turn: vec![0; handlers],
            of_handler,
            held: HashMap::new(),
            next_id: 1,
            stamp: 0,
        }
    }

    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &Line)> {
        self.lines.iter().enumerate()
    }

    pub(crate) fn line(&self, line: usize) -> Option<&Line> {
        self.lines.get(line)
    }

    pub(crate) fn line_mut(&mut self, line: usize) -> Option<&mut Line> {
        self.lines.get_mut(line)
    }

    pub(crate) fn line_of(&self, partition: Partition) -> Option<usize> {
        self.by_partition.get(&partition).copied()
    }

    /// Whether this is still the subscription under which the line is held.
    pub(crate) fn is_current(&self, line: usize, subscription: u64) -> bool {
        self.lines.get(line).is_some_and(|line| line.subscription == subscription && subscription != 0)
    }

    /// Takes in what the broker handed out, in its order. Answers with what is superfluous: it is to be acknowledged.
    pub(crate) fn push(
        &mut self,
        line: usize,
        subscription: u64,
        messages: Vec<(DeliveryTag, Parcel)>,
        now: Instant,
        wall: Timestamp,
    ) -> Vec<Ack> {
        let mut superfluous = Vec::new();
        if !self.is_current(line, subscription) {
            return superfluous;
        }
        self.stamp += 1;
        for (tag, parcel) in messages {
            if parcel.is_again && self.has_seen(line, parcel.envelope.id) {
                superfluous.push(Ack { line, subscription, tag });
            } else if parcel.wait.is_zero() {
                self.enter(line, tag, parcel, now, now, wall);
            } else {
                self.stamp += 1;
                let order = (now + parcel.wait, self.stamp);
                self.lines[line].waiting.insert(order, Waiting { tag, parcel, since: now });
            }
        }
        superfluous
    }

    /// Whether another copy of this publication is here, or was. Only copies are asked about, and they are rare.
    fn has_seen(&self, line: usize, event: EventId) -> bool {
        let is_held = self.held.values().any(|held| held.line == line && held.delivery.envelope.id == event);
        let line = &self.lines[line];
        let waits = || line.waiting.values().any(|waiting| waiting.parcel.envelope.id == event);
        is_held || line.gone.contains(&event) || waits()
    }

    /// A message enters its line, under the next number: numbers grow in the order of each line.
    fn enter(
        &mut self,
        number: usize,
        tag: DeliveryTag,
        parcel: Parcel,
        since: Instant,
        now: Instant,
        wall: Timestamp,
    ) {
        let line = &mut self.lines[number];
        let has_journal = line.place != Place::Free;
        let crashes = if has_journal { line.journal.crashes(&parcel) } else { parcel.crashes };
        let Entry { failures, due_at, errors, .. } = if has_journal {
            line.journal.seen(&parcel).cloned().unwrap_or_default()
        } else {
            Entry::default()
        };
        let (failures, errors) = if failures > parcel.failures {
            (failures, errors)
        } else {
            (parcel.failures, either(errors, parcel.errors))
        };
        let id = self.next_id;
        self.next_id += 1;
        let delivery = Delivery {
            id: DeliveryId(id),
            partition: line.partition,
            envelope: parcel.envelope,
            failures,
            crashes,
            errors,
            due_in: None,
            is_held: false,
            fence: line.journal.epoch,
        };
        match delivery.envelope.key.as_ref().and_then(|key| line.parked.get_mut(key)) {
            Some(parked) => parked.push_back(id),
            None => line.ready.push_back(id),
        }
        let due = due_at.map(|due_at| now + due_at.since(wall));
        let position = parcel.position;
        let held =
            Held { line: number, tag, delivery, position, due, since, is_out: false, is_copied: false };
        self.held.insert(id, held);
    }

    /// Lets those in whose wait is over.
    fn promote(&mut self, line: usize, now: Instant, wall: Timestamp) {
        while let Some(first) = self.lines[line].waiting.first_entry() {
            if first.key().0 > now {
                return;
            }
            let Waiting { tag, parcel, since } = first.remove();
            self.enter(line, tag, parcel, since, now, wall);
        }
    }

    /// Hands out what the engine has room for. Answers also whether it should claim once more, for what came back.
    pub(crate) fn claim(&mut self, request: &ClaimRequest, now: Instant, wall: Timestamp) -> (Claimed, bool) {
        let mut claimed = Claimed::default();
        let mut bytes = 0;
        for demand in &request.lanes {
            self.claim_lane(demand, request.max_bytes, &mut bytes, now, &mut claimed);
        }
        for line in 0..self.lines.len() {
            self.promote(line, now, wall);
        }
        for demand in &request.demands {
            self.claim_handler(*demand, request.max_bytes, &mut bytes, now, &mut claimed);
        }
        let due = self.lines.iter().filter_map(|line| line.waiting.keys().next()).map(|(due, _)| *due).min();
        claimed.next_due_in = due.map(|due| due.saturating_duration_since(now));
        (claimed, self.come_back())
    }

    /// What was given back before this claim began is for the next one.
    fn come_back(&mut self) -> bool {
        let mut has_any = false;
        for line in &mut self.lines {
            if line.given_back.is_empty() {
                continue;
            }
            has_any = true;
            for id in std::mem::take(&mut line.given_back) {
                let key = self.held.get(&id).and_then(|held| held.delivery.envelope.key.clone());
                match key.as_ref().and_then(|key| line.parked.get_mut(key)) {
                    Some(parked) => insert_in_order(parked, id),
                    None => insert_in_order(&mut line.ready, id),
                }
            }
        }
        has_any
    }

    fn claim_lane(
        &mut self,
        demand: &LaneDemand,
        max_bytes: usize,
        bytes: &mut usize,
        now: Instant,
        claimed: &mut Claimed,
    ) {
        let Some(number) = self.line_of(demand.partition) else { return };
        let line = &mut self.lines[number];
        if line.is_leaving {
            return;
        }
        let Some(parked) = line.parked.get_mut(&demand.key) else { return };
        for _ in 0..demand.limit {
            if *bytes >= max_bytes {
                break;
            }
            let Some(id) = parked.pop_front() else { break };
            if let Some(held) = self.held.get_mut(&id) {
                *bytes += held.delivery.envelope.size();
                claimed.deliveries.push(held.hand_out(now));
            }
        }
        match parked.front() {
            Some(first) => claimed.still_parked.push(ParkedLane {
                partition: demand.partition,
                key: demand.key.clone(),
                first: DeliveryId(*first),
            }),
            None => {
                line.parked.remove(&demand.key);
            }
        }
    }

    fn claim_handler(
        &mut self,
        demand: Demand,
        max_bytes: usize,
        bytes: &mut usize,
        now: Instant,
        claimed: &mut Claimed,
    ) {
        let Some(lines) = self.of_handler.get(demand.handler.get()) else { return };
        let start = self.next_turn[demand.handler.get()];
        let mut left = demand.limit;
        let mut turn = 0;
        let mut idle = 0;
        while left > 0 && *bytes < max_bytes && idle < lines.len() {
            let number = lines[(start + turn) % lines.len()];
            turn += 1;
            let line = &mut self.lines[number];
            let count = if line.is_leaving { 0 } else { line.ready.len().min(TURN).min(left) };
            idle = if count == 0 { idle + 1 } else { 0 };
            for _ in 0..count {
                let Some(id) = line.ready.pop_front() else { break };
                if let Some(held) = self.held.get_mut(&id) {
                    *bytes += held.delivery.envelope.size();
                    claimed.deliveries.push(held.hand_out(now));
                    left -= 1;
                }
                if *bytes >= max_bytes {
                    break;
                }
            }
        }
        self.next_turn[demand.handler.get()] = (start + turn) % lines.len().max(1);
        let has_more = |line: &usize| {
            let line = &self.lines[*line];
            !line.is_leaving && !line.ready.is_empty()
        };
        if lines.iter().any(has_more) {
            claimed.more.push(demand.handler);
        }
    }

    /// Keeps these of a lane back until they are asked for, and with them all that stand behind.
    pub(crate) fn park(&mut self, park: &Park) {
        let Some(number) = self.line_of(park.partition) else { return };
        let mut parked: Vec<u128> = Vec::new();
        for id in &park.claimed {
            if let Some(held) = self.held.get_mut(&id.0).filter(|held| held.line == number && held.is_out) {
                held.is_out = false;
                parked.push(id.0);
            }
        }
        let line = &mut self.lines[number];
        let held = &self.held;
        let is_of_lane = |id: &u128| {
            *id >= park.from.0
                && held.get(id).is_some_and(|held| held.delivery.envelope.key.as_ref() == Some(&park.key))
        };
        line.ready.retain(|id| {
            let stays = !is_of_lane(id);
            if !stays {
                parked.push(*id);
            }
            stays
        });
        if parked.is_empty() {
            return;
        }
        let lane = line.parked.entry(park.key.clone()).or_default();
        lane.extend(parked);
        lane.make_contiguous().sort_unstable();
    }

    /// The line of a delivery that the engine has, if it is still held.
    pub(crate) fn out(&self, id: DeliveryId) -> Option<usize> {
        self.held.get(&id.0).filter(|held| held.is_out).map(|held| held.line)
    }

    /// It is done with: its acknowledgement.
    pub(crate) fn remove(&mut self, id: DeliveryId) -> Option<Ack> {
        let held = self.held.remove(&id.0)?;
        self.stamp += 1;
        let line = &mut self.lines[held.line];
        let event = held.delivery.envelope.id;
        if line.place != Place::Free {
            line.journal.forget(event);
        }
        if line.gone.len() == REMEMBERED {
            line.gone.pop_front();
        }
        line.gone.push_back(event);
        Some(Ack { line: held.line, subscription: line.subscription, tag: held.tag })
    }

    /// It failed, or was put off, and keeps its place.
    pub(crate) fn keep(
        &mut self,
        id: DeliveryId,
        failures: u32,
        errors: ErrorLog,
        delay: Duration,
        now: Instant,
        wall: Timestamp,
    ) {
        let Some(held) = self.held.get_mut(&id.0) else { return };
        self.stamp += 1;
        held.delivery.failures = failures;
        held.delivery.errors = errors.clone();
        held.due = Some(now + delay);
        let entry = self.lines[held.line].journal.entry(held.delivery.envelope.id);
        *entry = Entry { failures, started: 0, due_at: Some(wall.plus(delay)), errors };
    }

    /// It will run as this attempt.
    pub(crate) fn record_start(&mut self, id: DeliveryId, attempt: u32) {
        let Some(held) = self.held.get(&id.0) else { return };
        let (failures, errors) = (held.delivery.failures, held.delivery.errors.clone());
        let entry = self.lines[held.line].journal.entry(held.delivery.envelope.id);
        *entry = Entry { failures, started: attempt, due_at: None, errors };
    }

    /// It did not run: whether a start that was recorded must be taken back.
    pub(crate) fn unstart(&mut self, id: DeliveryId) -> bool {
        let Some(held) = self.held.get(&id.0) else { return false };
        self.lines[held.line].journal.unstart(held.delivery.envelope.id)
    }

    /// The engine gave it back.
    pub(crate) fn give_back(&mut self, id: DeliveryId) {
        if let Some(held) = self.held.get_mut(&id.0).filter(|held| held.is_out) {
            held.is_out = false;
            self.lines[held.line].given_back.push(id.0);
        }
    }

    pub(crate) fn is_copied(&self, id: DeliveryId) -> bool {
        self.held.get(&id.0).is_some_and(|held| held.is_copied)
    }

    pub(crate) fn copied(&mut self, id: DeliveryId) {
        if let Some(held) = self.held.get_mut(&id.0) {
            held.is_copied = true;
        }
    }

    pub(crate) fn position(&self, id: DeliveryId) -> u32 {
        self.held.get(&id.0).map_or(0, |held| held.position)
    }

    pub(crate) fn set_moving(&mut self, line: usize, subscription: u64, count: usize) {
        if self.is_current(line, subscription) {
            self.stamp += 1;
            self.lines[line].moving = count;
        }
    }

    /// Forgets all that is held of a line: it was given back or lost. Whether there was anything.
    pub(crate) fn reset(&mut self, number: usize) -> bool {
        self.stamp += 1;
        let before = self.held.len();
        self.held.retain(|_, held| held.line != number);
        let Some(line) = self.lines.get_mut(number) else { return false };
        let had_any = before != self.held.len() || line.is_active;
        line.subscription = 0;
        line.is_active = false;
        line.is_leaving = false;
        line.journal = Journal::default();
        line.ready.clear();
        line.given_back.clear();
        line.parked.clear();
        line.waiting.clear();
        line.moving = 0;
        line.gone = VecDeque::new();
        line.tags = Tags::default();
        had_any
    }

    /// What is held of a line and not in the engine's hands, to be published anew: number, and parcel with its tag.
    pub(crate) fn leftovers(&self, number: usize, now: Instant) -> Vec<(DeliveryTag, Parcel)> {
        let held = self.held.values().filter(|held| held.line == number);
        let held = held.map(|held| {
            let parcel = Parcel {
                envelope: held.delivery.envelope.clone(),
                position: held.position,
                failures: held.delivery.failures,
                crashes: held.delivery.crashes,
                errors: held.delivery.errors.clone(),
                wait: Duration::ZERO,
                returns: 0,
                is_again: false,
            };
            (held.tag, parcel)
        });
        let waiting = self.lines.get(number).into_iter().flat_map(|line| &line.waiting);
        let waiting = waiting.map(|((due, _), waiting)| {
            let mut parcel = waiting.parcel.clone();
            parcel.wait = due.saturating_duration_since(now);
            (waiting.tag, parcel)
        });
        let mut all: Vec<_> = held.chain(waiting).collect();
        all.sort_by_key(|(tag, _)| *tag);
        all
    }

    pub(crate) fn count(&self, now: Instant) -> Vec<LineCount> {
        let mut counts = vec![LineCount::default(); self.lines.len()];
        for held in self.held.values() {
            let count = &mut counts[held.line];
            if held.due.is_some_and(|due| due > now) {
                count.waiting += 1;
            } else {
                count.ready += 1;
            }
        }
        for (line, count) in self.lines.iter().zip(&mut counts) {
            count.waiting += u64::try_from(line.waiting.len() + line.moving).unwrap_or(u64::MAX);
        }
        counts
    }

    /// Since when the oldest delivery of each line has been held.
    pub(crate) fn oldest(&self) -> HashMap<usize, Instant> {
        let mut oldest = HashMap::new();
        for held in self.held.values() {
            let since = oldest.entry(held.line).or_insert(held.since);
            *since = held.since.min(*since);
        }
        oldest
    }
}

impl Held {
    fn hand_out(&mut self, now: Instant) -> Delivery {
        self.is_out = true;
        let mut delivery = self.delivery.clone();
        delivery.due_in =
            self.due.map(|due| due.saturating_duration_since(now)).filter(|wait| !wait.is_zero());
        delivery
    }
}

fn either(one: ErrorLog, other: ErrorLog) -> ErrorLog {
    if one.is_empty() { other } else { one }
}

fn insert_in_order(line: &mut VecDeque<u128>, id: u128) {
    let position = line.partition_point(|other| *other < id);
    line.insert(position, id);
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use event_bus_core::backend::Envelope;

    use super::*;

    fn parcel(number: u128, is_again: bool) -> Parcel {
        Parcel {
            envelope: Envelope {
                id: EventId::from_uuid(uuid::Uuid::from_u128(number)),
                name: "a".into(),
                version: 1,
                key: Some("k".into()),
                payload: Bytes::new(),
                headers: None,
                published_at: Timestamp::from_millis(0),
            },
            position: 0,
            failures: 0,
            crashes: 0,
            errors: ErrorLog::default(),
            wait: Duration::ZERO,
            returns: 0,
            is_again,
        }
    }

    #[tokio::test]
    async fn a_copy_is_superfluous_while_the_first_is_here_and_after_it() {
        let mut buffer = Buffer::new(1, &[Place::Partition(0)]);
        buffer.line_mut(0).unwrap().subscription = 1;
        let (now, wall) = (Instant::now(), Timestamp::from_millis(0));
        let is_superfluous = |buffer: &mut Buffer, tag, number, is_again| {
            let acks = buffer.push(0, 1, vec![(tag, parcel(number, is_again))], now, wall);
            acks.iter().any(|ack| ack.tag == tag)
        };
        assert!(!is_superfluous(&mut buffer, 1, 7, false));
        assert!(is_superfluous(&mut buffer, 2, 7, true));
        // The first may have been lost: then this is no copy.
        assert!(!is_superfluous(&mut buffer, 3, 8, true));
        let demands = vec![Demand { handler: HandlerIndex(0), limit: 10 }];
        let request = ClaimRequest { demands, lanes: Vec::new(), max_bytes: 1_000_000 };
        let (claimed, _) = buffer.claim(&request, now, wall);
        assert_eq!(claimed.deliveries.len(), 2);
        for delivery in claimed.deliveries {
            buffer.remove(delivery.id).unwrap();
        }
        assert!(is_superfluous(&mut buffer, 4, 7, true));
        // Who publishes an event under an old id on purpose has it delivered.
        assert!(!is_superfluous(&mut buffer, 5, 7, false));
        buffer.reset(0);
        buffer.line_mut(0).unwrap().subscription = 1;
        assert!(!is_superfluous(&mut buffer, 1, 8, true), "another owner may have let it go unfinished");
    }

    #[test]
    fn what_leaves_nothing_open_before_it_is_acknowledged_together() {
        let mut tags = Tags::default();
        assert_eq!(tags.acknowledge(vec![3, 1, 2]), [(3, true)]);
        assert_eq!(tags.acknowledge(vec![6, 8]), [(6, false), (8, false)]);
        // 6 was acknowledged alone and must not be named again; it stands in nobody's way.
        assert_eq!(tags.acknowledge(vec![4, 5, 7]), [(7, true)]);
        tags.skip(9);
        assert_eq!(tags.acknowledge(vec![10, 12]), [(10, true), (12, false)]);
        assert_eq!(tags.acknowledge(vec![11]), [(11, true)]);
        assert_eq!(tags.acknowledge(vec![13]), [(13, true)]);
    }
}

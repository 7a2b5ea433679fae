//! What a worker holds in memory and what of it may start: one FIFO per (handler, key), strict priority between handlers.
//!
//! Pure state: no input or output, and time is an argument. Invariants:
//!
//! - At most one delivery of a lane is out (taken and not yet given back) at a time.
//! - The deliveries of a lane are taken in the order of their ids, as they were offered.
//! - What is out, queued or not yet settled counts as *loaded* and is never accepted a second time.
//! - A lane with parked deliveries takes none that stand behind them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::{Demand, HandlerSpec, LaneDemand, Park, ParkedLane};
use crate::delivery::{Delivery, DeliveryId, HandlerIndex, Partition};

/// How many parked deliveries of one lane are asked for at once.
const LANE_BATCH: usize = 64;

/// How many lanes are asked for in one claim.
const LANES_PER_CLAIM: usize = 32;

/// A lane whose head has not moved for this long may be parked when its handler has no room left. Shorter, and the line
/// of a busy key would travel to the store and back for nothing; longer, and other keys wait for it.
const STALLED_AFTER: Duration = Duration::from_millis(50);

/// How many lanes of one handler may be parked: about 100 bytes and the key each. Beyond it a worker waits for heads to
/// move, instead of remembering more.
const MAX_PARKED_LANES: usize = 100_000;

/// Names a delivery within a session.
pub(super) type Identity = (Partition, DeliveryId);

/// Hashes numbers that the store gave out: nobody can choose them, so a multiplication does, at a tenth of the cost of a
/// hash that resists choice. (Fibonacci hashing, Knuth, The Art of Computer Programming 6.4.)
pub(super) type NumberHasher = BuildHasherDefault<Fibonacci>;

#[derive(Default)]
pub(super) struct Fibonacci(u64);

impl Hasher for Fibonacci {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u16(&mut self, number: u16) {
        self.write_u64(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(26) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_u128(&mut self, number: u128) {
        // Both halves, without a cast that cuts.
        let [high, low] = [number >> 64, number & u128::from(u64::MAX)];
        self.write_u64(u64::try_from(high).unwrap_or(0));
        self.write_u64(u64::try_from(low).unwrap_or(0));
    }

    fn finish(&self) -> u64 {
        // The table takes its group from the upper bits and its slot from the lower ones: both must be mixed.
        self.0 ^ (self.0 >> 32)
    }
}

pub(super) fn identity(delivery: &Delivery) -> Identity {
    (delivery.partition, delivery.id)
}

/// What became of an offered delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// It waits for its turn.
    Accepted,
    /// It is loaded already: a second copy of the same answer.
    Known,
    /// It stands behind parked ones of its lane and goes back to the store with [`Lanes::take_parks`].
    Parked,
}

struct Queued {
    delivery: Arc<Delivery>,
    due: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// The front, if there is one, has not been looked at.
    Idle,
    /// In the handler's list of what can start.
    Ready,
    /// A delivery of it is out.
    Out,
    /// Nothing of it may start before this.
    Waiting(Instant),
}

struct Lane {
    partition: Partition,
    queue: VecDeque<Queued>,
    state: State,
    /// Since when its head has been its head.
    since: Instant,
    /// The first delivery of it that lies parked in the store.
    parked: Option<DeliveryId>,
    /// Park requests that the store has not answered.
    parks_open: u32,
    /// The first one that was parked since the lane was asked for in a claim that is not answered yet. That answer
    /// knows nothing of it.
    parked_meanwhile: Option<DeliveryId>,
    /// How often in a row it was found held by a dead letter.
    held_checks: u32,
    /// Its partition was dropped while a delivery of it was out. What the store has of it is for the next owner, unless
    /// the partition comes back.
    is_leaving: bool,
    is_wanted: bool,
}

enum Ready {
    Free(Arc<Delivery>),
    Lane(Arc<str>),
}

struct Queue {
    priority: u8,
    concurrency: usize,
    window: usize,
    running: usize,
    loaded: usize,
    last_taken: u64,
    parked_lanes: usize,
    ready: VecDeque<Ready>,
    lanes: HashMap<Arc<str>, Lane>,
}

/// All that a worker holds.
pub(super) struct Lanes {
    queues: Vec<Queue>,
    /// Positions of `queues`, the most urgent first.
    by_priority: Vec<usize>,
    loaded: HashSet<Identity, NumberHasher>,
    bytes: usize,
    waiting: BinaryHeap<Reverse<(Instant, HandlerIndex, Arc<str>)>>,
    /// Lanes that may want their parked deliveries back.
    refill: VecDeque<(HandlerIndex, Arc<str>)>,
    taken: u64,
    hold_recheck: Duration,
    /// What the store shall park, at most one entry a lane.
    parks: Vec<Park>,
    park_of: HashMap<(HandlerIndex, Arc<str>), usize>,
}

impl Lanes {
    /// `concurrency` per handler; `hold_recheck`: how long to wait before looking again whether a held key is free.
    pub(super) fn new(handlers: &[HandlerSpec], concurrency: &[usize], hold_recheck: Duration) -> Self {
        let queues: Vec<_> = handlers
            .iter()
            .zip(concurrency)
            .map(|(handler, concurrency)| Queue {
                priority: handler.priority,
                concurrency: *concurrency,
                window: handler.window,
                running: 0,
                loaded: 0,
                last_taken: 0,
                parked_lanes: 0,
                ready: VecDeque::new(),
                lanes: HashMap::new(),
            })
            .collect();
        let mut by_priority: Vec<_> = (0..queues.len()).collect();
        by_priority.sort_by_key(|position| queues[*position].priority);
        Self {
            queues,
            by_priority,
            loaded: HashSet::default(),
            bytes: 0,
            waiting: BinaryHeap::new(),
            refill: VecDeque::new(),
            taken: 0,
            hold_recheck,
            parks: Vec::new(),
            park_of: HashMap::new(),
        }
    }

    /// Bytes of all loaded events.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a claimed delivery in.
    pub(super) fn offer(&mut self, delivery: Delivery, now: Instant) -> Offer {
        let handler = delivery.handler();
        if handler.get() >= self.queues.len() || self.loaded.contains(&identity(&delivery)) {
            return Offer::Known;
        }
        let Some(key) = delivery.envelope.key.clone() else {
            self.load(&delivery);
            self.queues[handler.get()].ready.push_back(Ready::Free(Arc::new(delivery)));
            return Offer::Accepted;
        };
        let lanes = &mut self.queues[handler.get()].lanes;
        let lane = lanes.entry(key.clone()).or_insert_with(|| Lane::new(delivery.partition, now));
        lane.partition = delivery.partition;
        lane.is_leaving = false;
        if lane.parked.is_some_and(|parked| delivery.id >= parked) {
            let (partition, from) = (delivery.partition, delivery.id);
            self.ask_to_park(Park { partition, key, from, claimed: vec![from] });
            return Offer::Parked;
        }
        self.load(&delivery);
        let due = delivery.due_in.map(|due_in| now + due_in);
        if let Some(lane) = self.lane(handler, &key) {
            lane.queue.push_back(Queued { delivery: Arc::new(delivery), due });
            if lane.state == State::Idle {
                self.look_at_front(handler, &key, now);
            }
        }
        Offer::Accepted
    }

    /// The next delivery that may start, most urgent handler first; among equals the one with the fewest running.
    pub(super) fn take(&mut self, now: Instant) -> Option<Arc<Delivery>> {
        loop {
            let position = self.most_urgent()?;
            self.taken += 1;
            let queue = &mut self.queues[position];
            queue.last_taken = self.taken;
            let delivery = match queue.ready.pop_front()? {
                Ready::Free(delivery) => delivery,
                Ready::Lane(key) => {
                    // A lane that was dropped or parked while it stood in the list is passed over.
                    let lane = queue.lanes.get_mut(&key).filter(|lane| lane.state == State::Ready);
                    let Some(lane) = lane else { continue };
                    let Some(front) = lane.queue.pop_front() else { continue };
                    lane.state = State::Out;
                    lane.since = now;
                    if lane.queue.is_empty() {
                        lane.want_refill(front.delivery.handler(), &key, &mut self.refill);
                    }
                    front.delivery
                }
            };
            queue.running += 1;
            return Some(delivery);
        }
    }

    fn most_urgent(&self) -> Option<usize> {
        let mut best: Option<(u8, usize, u64, usize)> = None;
        for position in &self.by_priority {
            let queue = &self.queues[*position];
            if best.is_some_and(|(priority, ..)| queue.priority > priority) {
                break;
            }
            if queue.ready.is_empty() || queue.running >= queue.concurrency {
                continue;
            }
            let candidate = (queue.priority, queue.running, queue.last_taken, *position);
            if best.is_none_or(|best| candidate < best) {
                best = Some(candidate);
            }
        }
        best.map(|(_, _, _, position)| position)
    }

    /// A taken delivery no longer runs (or did not start): its handler may start another.
    pub(super) fn not_running(&mut self, handler: HandlerIndex) {
        if let Some(queue) = self.queues.get_mut(handler.get()) {
            queue.running = queue.running.saturating_sub(1);
        }
    }

    /// Counts a delivery that was taken earlier as running again, if its handler may run another.
    pub(super) fn try_running(&mut self, handler: HandlerIndex) -> bool {
        match self.queues.get_mut(handler.get()) {
            Some(queue) if queue.running < queue.concurrency => {
                queue.running += 1;
                true
            }
            _ => false,
        }
    }

    /// The delivery that was out is done with: its lane goes on. (It stays loaded until it is forgotten.)
    pub(super) fn go_on(&mut self, delivery: &Delivery, now: Instant) {
        let Some(key) = &delivery.envelope.key else { return };
        let handler = delivery.handler();
        if let Some(lane) = self.lane(handler, key)
            && lane.state == State::Out
        {
            lane.state = State::Idle;
            lane.since = now;
            self.look_at_front(handler, key, now);
        }
    }

    /// The delivery that was out goes back to the head of its lane, which waits until `due`. (It stays loaded.)
    pub(super) fn put_back(&mut self, delivery: Arc<Delivery>, due: Instant, now: Instant) {
        let handler = delivery.handler();
        let Some(key) = delivery.envelope.key.clone() else { return };
        if let Some(lane) = self.lane(handler, &key)
            && lane.state == State::Out
        {
            lane.queue.push_front(Queued { delivery, due: Some(due) });
            lane.state = State::Idle;
            lane.since = now;
            self.look_at_front(handler, &key, now);
        }
    }

    /// The delivery is settled for good, has left or was given up: it may be offered again.
    pub(super) fn forget(&mut self, delivery: &Delivery) {
        if self.loaded.remove(&identity(delivery)) {
            self.bytes = self.bytes.saturating_sub(delivery.envelope.size());
            if let Some(queue) = self.queues.get_mut(delivery.handler().get()) {
                queue.loaded = queue.loaded.saturating_sub(1);
            }
        }
    }

    /// The dead letter of this delivery, which was out, holds its key: parks all that stands behind it.
    pub(super) fn hold(&mut self, delivery: &Delivery, now: Instant) {
        let Some(key) = delivery.envelope.key.clone() else { return };
        let handler = delivery.handler();
        match self.lane(handler, &key) {
            Some(lane) if lane.is_leaving => self.go_on(delivery, now),
            Some(lane) if lane.state == State::Out => self.park_held(handler, &key, delivery.id, now),
            _ => {}
        }
    }

    /// Lanes whose wait is over become ready.
    pub(super) fn wake(&mut self, now: Instant) {
        while let Some(Reverse((due, _, _))) = self.waiting.peek() {
            if *due > now {
                break;
            }
            let Some(Reverse((due, handler, key))) = self.waiting.pop() else { break };
            if let Some(lane) = self.lane(handler, &key)
                && lane.state == State::Waiting(due)
            {
                lane.state = State::Idle;
                self.look_at_front(handler, &key, now);
            }
        }
    }

    /// When [`wake`](Self::wake) has something to do next.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.waiting.peek().map(|Reverse((due, _, _))| *due)
    }

    /// Whether the handler has room worth a claim: a quarter of its window, so that claims come in batches.
    pub(super) fn demand(&self, handler: HandlerIndex) -> Option<Demand> {
        let queue = self.queues.get(handler.get())?;
        let room = queue.window.saturating_sub(queue.loaded);
        (room > 0 && room * 4 >= queue.window).then_some(Demand { handler, limit: room })
    }

    /// Lanes that want their parked deliveries back, within the room that `demands` leave; their limits shrink by it.
    pub(super) fn lane_demands(&mut self, demands: &mut Vec<Demand>) -> Vec<LaneDemand> {
        let mut lanes = Vec::new();
        for _ in 0..self.refill.len() {
            if lanes.len() >= LANES_PER_CLAIM {
                break;
            }
            let Some((handler, key)) = self.refill.pop_front() else { break };
            let Some(queue) = self.queues.get_mut(handler.get()) else { continue };
            let room = queue.window.saturating_sub(queue.loaded);
            let Some(lane) = queue.lanes.get_mut(&key) else { continue };
            lane.is_wanted = false;
            let is_fit = lane.parked.is_some()
                && lane.parks_open == 0
                && lane.queue.is_empty()
                && !matches!(lane.state, State::Waiting(_));
            if !is_fit {
                continue;
            }
            let demand = demands.iter_mut().find(|demand| demand.handler == handler);
            let batch = if lane.held_checks > 0 { 1 } else { LANE_BATCH };
            let limit = batch.min(demand.as_ref().map_or(room, |demand| demand.limit));
            if limit == 0 {
                lane.want_refill(handler, &key, &mut self.refill);
                continue;
            }
            if let Some(demand) = demand {
                demand.limit -= limit;
            }
            lane.parked_meanwhile = None;
            lanes.push(LaneDemand { partition: lane.partition, key, limit });
        }
        demands.retain(|demand| demand.limit > 0);
        lanes
    }

    /// Whether a lane waits to be asked for.
    pub(super) fn wants_lanes(&self) -> bool {
        !self.refill.is_empty()
    }

    /// The store has handed out what was parked of these lanes; of those in `still` more is parked. Call it before the
    /// deliveries of the same answer are offered. What was parked while the claim was under way stays parked: the answer
    /// may be from before or after it, so what it brings of that goes back to the store once more.
    pub(super) fn refilled(&mut self, asked: &[LaneDemand], still: &[ParkedLane]) {
        for demand in asked {
            let handler = demand.partition.handler;
            let first = still
                .iter()
                .find(|lane| lane.partition.handler == handler && lane.key == demand.key)
                .map(|lane| lane.first);
            let meanwhile = self.lane(handler, &demand.key).and_then(|lane| lane.parked_meanwhile.take());
            self.set_parked(handler, &demand.key, first.into_iter().chain(meanwhile).min());
        }
    }

    /// A claim for these lanes failed: they are asked for again.
    pub(super) fn ask_again(&mut self, asked: &[LaneDemand]) {
        for demand in asked {
            let handler = demand.partition.handler;
            if let Some(queue) = self.queues.get_mut(handler.get())
                && let Some(lane) = queue.lanes.get_mut(&demand.key)
            {
                lane.want_refill(handler, &demand.key, &mut self.refill);
            }
        }
    }

    /// The deliveries of an answer have been offered: lanes that got nothing are asked again or forgotten.
    pub(super) fn refill_ended(&mut self, asked: &[LaneDemand], now: Instant) {
        for demand in asked {
            self.look_if_idle(demand.partition.handler, &demand.key, now);
        }
    }

    /// The store holds parked deliveries of this lane from an earlier owner.
    pub(super) fn learn_parked(&mut self, parked: &ParkedLane, now: Instant) {
        let handler = parked.partition.handler;
        let Some(queue) = self.queues.get_mut(handler.get()) else { return };
        let lane = queue.lanes.entry(parked.key.clone()).or_insert_with(|| Lane::new(parked.partition, now));
        lane.is_leaving = false;
        self.set_parked(handler, &parked.key, Some(parked.first));
        self.look_if_idle(handler, &parked.key, now);
    }

    /// What the store shall park since the last call.
    pub(super) fn take_parks(&mut self) -> Vec<Park> {
        self.park_of.clear();
        std::mem::take(&mut self.parks)
    }

    /// The store has parked what it was asked to.
    pub(super) fn parked(&mut self, park: &Park, now: Instant) {
        let handler = park.partition.handler;
        let Some(queue) = self.queues.get_mut(handler.get()) else { return };
        let Some(lane) = queue.lanes.get_mut(&park.key) else { return };
        lane.parks_open = lane.parks_open.saturating_sub(1);
        if lane.parks_open == 0 && lane.queue.is_empty() {
            lane.want_refill(handler, &park.key, &mut self.refill);
            self.look_if_idle(handler, &park.key, now);
        }
    }

    /// Whether the window of a handler is full of deliveries none of which can start.
    pub(super) fn is_stuck(&self, handler: HandlerIndex) -> bool {
        self.queues.get(handler.get()).is_some_and(|queue| {
            queue.ready.is_empty() && queue.running < queue.concurrency && queue.loaded * 4 > queue.window * 3
        })
    }

    /// Parks stalled lanes of a handler, the deepest first, until half its window is free: first what stands behind the
    /// heads, then whole lanes that wait for a retry.
    pub(super) fn relieve(&mut self, handler: HandlerIndex, now: Instant) {
        let Some(queue) = self.queues.get(handler.get()) else { return };
        let mut stalled: Vec<_> = queue
            .lanes
            .iter()
            .filter(|(_, lane)| now.saturating_duration_since(lane.since) >= STALLED_AFTER)
            .filter(|(_, lane)| {
                matches!(lane.state, State::Out | State::Waiting(_)) && !lane.queue.is_empty()
            })
            .map(|(key, lane)| (lane.queue.len(), matches!(lane.state, State::Waiting(_)), key.clone()))
            .collect();
        stalled.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.2.cmp(&b.2)));
        let target = queue.window / 2;
        let behind_heads = stalled.iter().map(|(_, is_waiting, key)| (usize::from(*is_waiting), key));
        let whole_lanes = stalled.iter().filter(|(_, is_waiting, _)| *is_waiting).map(|(_, _, key)| (0, key));
        for (kept, key) in behind_heads.chain(whole_lanes) {
            let queue = &self.queues[handler.get()];
            if queue.loaded <= target || queue.parked_lanes >= MAX_PARKED_LANES {
                return;
            }
            let first =
                queue.lanes.get(key).and_then(|lane| lane.queue.get(kept)).map(|queued| queued.delivery.id);
            if let Some(first) = first {
                self.park_from(handler, key, first);
            }
        }
    }

    /// Forgets all that is queued of a partition. What is out stays out until it is given back.
    pub(super) fn drop_partition(&mut self, partition: Partition) {
        let Some(queue) = self.queues.get_mut(partition.handler.get()) else { return };
        let mut dropped = Vec::new();
        queue.ready.retain(|ready| match ready {
            Ready::Free(delivery) if delivery.partition == partition => {
                dropped.push(delivery.clone());
                false
            }
            _ => true,
        });
        let mut parked_lanes = 0;
        queue.lanes.retain(|_, lane| {
            if lane.partition != partition {
                return true;
            }
            dropped.extend(lane.queue.drain(..).map(|queued| queued.delivery));
            parked_lanes += usize::from(lane.parked.take().is_some());
            lane.parks_open = 0;
            lane.is_leaving = true;
            lane.state == State::Out
        });
        queue.parked_lanes = queue.parked_lanes.saturating_sub(parked_lanes);
        for delivery in dropped {
            self.forget(&delivery);
        }
        self.parks.retain(|park| park.partition != partition);
        self.park_of.clear();
        for (position, park) in self.parks.iter().enumerate() {
            self.park_of.insert((park.partition.handler, park.key.clone()), position);
        }
    }

    fn load(&mut self, delivery: &Delivery) {
        if self.loaded.insert(identity(delivery)) {
            self.bytes += delivery.envelope.size();
            self.queues[delivery.handler().get()].loaded += 1;
        }
    }

    fn lane(&mut self, handler: HandlerIndex, key: &Arc<str>) -> Option<&mut Lane> {
        self.queues.get_mut(handler.get())?.lanes.get_mut(key)
    }

    fn set_parked(&mut self, handler: HandlerIndex, key: &Arc<str>, first: Option<DeliveryId>) {
        let Some(queue) = self.queues.get_mut(handler.get()) else { return };
        let Some(lane) = queue.lanes.get_mut(key).filter(|lane| !lane.is_leaving) else { return };
        match (lane.parked.is_some(), first.is_some()) {
            (false, true) => queue.parked_lanes += 1,
            (true, false) => queue.parked_lanes = queue.parked_lanes.saturating_sub(1),
            _ => {}
        }
        lane.parked = first;
    }

    fn ask_to_park(&mut self, park: Park) {
        let handler = park.partition.handler;
        if let Some(position) = self.park_of.get(&(handler, park.key.clone()))
            && let Some(open) = self.parks.get_mut(*position)
        {
            open.from = open.from.min(park.from);
            open.claimed.extend(park.claimed);
            return;
        }
        if let Some(lane) = self.lane(handler, &park.key) {
            lane.parks_open += 1;
        }
        self.park_of.insert((handler, park.key.clone()), self.parks.len());
        self.parks.push(park);
    }

    /// Gives what is queued of a lane from `first` on back to the store.
    fn park_from(&mut self, handler: HandlerIndex, key: &Arc<str>, first: DeliveryId) {
        let Some(lane) = self.lane(handler, key) else { return };
        let partition = lane.partition;
        let position =
            lane.queue.iter().position(|queued| queued.delivery.id >= first).unwrap_or(lane.queue.len());
        let given_back: Vec<_> = lane.queue.drain(position..).map(|queued| queued.delivery).collect();
        // Overlapping publishes can bring a smaller id late, behind a greater one.
        let first = given_back.iter().map(|delivery| delivery.id).fold(first, DeliveryId::min);
        let parked = lane.parked.map_or(first, |parked| parked.min(first));
        lane.parked_meanwhile = lane.parked_meanwhile.into_iter().chain([first]).min();
        self.set_parked(handler, key, Some(parked));
        for delivery in &given_back {
            self.forget(delivery);
        }
        let claimed = given_back.iter().map(|delivery| delivery.id).collect();
        self.ask_to_park(Park { partition, key: key.clone(), from: first, claimed });
    }

    /// A dead letter at `first` holds the lane: all of it is parked, and looked at again later.
    fn park_held(&mut self, handler: HandlerIndex, key: &Arc<str>, first: DeliveryId, now: Instant) {
        self.park_from(handler, key, first);
        let recheck = self.hold_recheck;
        if let Some(lane) = self.lane(handler, key) {
            let due = now + recheck.saturating_mul(1 << lane.held_checks.min(5));
            lane.held_checks += 1;
            lane.state = State::Waiting(due);
            self.waiting.push(Reverse((due, handler, key.clone())));
        }
    }

    fn look_if_idle(&mut self, handler: HandlerIndex, key: &Arc<str>, now: Instant) {
        if self.lane(handler, key).is_some_and(|lane| lane.state == State::Idle) {
            self.look_at_front(handler, key, now);
        }
    }

    /// Decides what an idle lane does next, by its front.
    fn look_at_front(&mut self, handler: HandlerIndex, key: &Arc<str>, now: Instant) {
        let Some(queue) = self.queues.get_mut(handler.get()) else { return };
        let Some(lane) = queue.lanes.get_mut(key) else { return };
        let Some(front) = lane.queue.front() else {
            if lane.parked.is_some() {
                lane.want_refill(handler, key, &mut self.refill);
            } else if lane.parks_open == 0 {
                queue.lanes.remove(key);
            }
            return;
        };
        if front.delivery.is_held {
            let first = front.delivery.id;
            self.park_held(handler, key, first, now);
            return;
        }
        lane.held_checks = 0;
        match front.due.filter(|due| *due > now) {
            Some(due) => {
                lane.state = State::Waiting(due);
                self.waiting.push(Reverse((due, handler, key.clone())));
            }
            None => {
                lane.state = State::Ready;
                queue.ready.push_back(Ready::Lane(key.clone()));
            }
        }
    }
}

impl Lane {
    fn new(partition: Partition, now: Instant) -> Self {
        Self {
            partition,
            queue: VecDeque::new(),
            state: State::Idle,
            since: now,
            parked: None,
            parks_open: 0,
            parked_meanwhile: None,
            held_checks: 0,
            is_leaving: false,
            is_wanted: false,
        }
    }

    fn want_refill(
        &mut self,
        handler: HandlerIndex,
        key: &Arc<str>,
        refill: &mut VecDeque<(HandlerIndex, Arc<str>)>,
    ) {
        if self.parked.is_some() && self.parks_open == 0 && !self.is_wanted {
            self.is_wanted = true;
            refill.push_back((handler, key.clone()));
        }
    }
}

#[cfg(test)]
mod tests;

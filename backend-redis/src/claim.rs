//! How a session reads: what is asked of the store, and what its answer becomes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use event_bus_core::backend::{
    ClaimRequest, Claimed, Delivery, DeliveryId, Demand, HandlerIndex, LaneDemand, ParkedLane, Partition,
    Timestamp,
};
use event_bus_core::{Result, SLOTS};
use tokio::time::Instant;

use crate::entry::{self, Names, State};
use crate::error::Failure;
use crate::held::Place;
use crate::ids;
use crate::link::Link;
use crate::reply::Reply;
use crate::script;
use crate::settle::{self, Unreadable};
use crate::worker::{SlotId, Worker};

/// How many deliveries that are due one claim gives their place, for each handler.
const PROMOTE: usize = 500;

/// How many parked lanes one claim reports.
const LANES: usize = 1_000;

/// How often all slots are read, whether or not somebody said that there is something in them: hints can be lost.
const SWEEP: Duration = Duration::from_millis(100);

/// How many deliveries that were given back one claim reads again, one by one.
const RETURNED: usize = 64;

/// A session's own connection for claims, and what it remembers from one to the next.
pub(crate) struct Reader {
    link: Link,
    number: u64,
    names: Names,
    /// The answer to a claim was lost: free deliveries may be this worker's without its knowing.
    has_lost: bool,
    /// When all slots are to be read again.
    next_sweep: Instant,
    /// Of which handlers the last claim left keyed and free deliveries behind.
    left: Vec<Left>,
    /// Entries that cannot be deliveries, on their way to the dead letters.
    unreadable: Vec<Unreadable>,
}

#[derive(Clone, Copy, Default)]
struct Left {
    keyed: bool,
    free: bool,
}

/// What was asked, in the order in which it is answered.
enum Question {
    Missing(HandlerIndex),
    Lane(LaneDemand, DeliveryId),
    Again(Partition, DeliveryId, Arc<str>),
    Slots(HandlerIndex, BTreeMap<u16, u64>),
    Free(HandlerIndex),
}

/// Up to where a lane is handed out, and whether something behind it is parked.
struct Refilled {
    partition: Partition,
    key: Arc<str>,
    last: DeliveryId,
    has_more: bool,
}

/// An answer in the making.
struct Answer {
    claimed: Claimed,
    /// By the server's clock.
    now: Timestamp,
    unreadable: Vec<Unreadable>,
    left: Vec<Left>,
    /// What is out with this answer.
    handed: Vec<(Partition, DeliveryId, Place)>,
    ranges: Vec<(HandlerIndex, DeliveryId, DeliveryId, usize)>,
    cursors: Vec<(HandlerIndex, u16, u64, DeliveryId)>,
    refilled: Vec<Refilled>,
    /// Deliveries that were given back and are out again, or gone.
    again: Vec<(Partition, DeliveryId)>,
    /// Slots that have more.
    full: Vec<SlotId>,
    /// How many lanes of each slot are reported.
    reported: Vec<(HandlerIndex, u16, usize)>,
}

impl Reader {
    pub(crate) fn new(link: Link, handlers: usize) -> Self {
        Self {
            link,
            number: 0,
            names: Names::default(),
            has_lost: false,
            next_sweep: Instant::now(),
            left: vec![Left::default(); handlers],
            unreadable: Vec::new(),
        }
    }

    /// Hands out what there is room for.
    pub(crate) async fn claim(&mut self, worker: &Worker, request: &ClaimRequest) -> Result<Claimed> {
        let mut answer = Answer {
            claimed: Claimed::default(),
            now: Timestamp::default(),
            unreadable: Vec::new(),
            left: self.left.clone(),
            handed: Vec::new(),
            ranges: Vec::new(),
            cursors: Vec::new(),
            refilled: Vec::new(),
            again: Vec::new(),
            full: Vec::new(),
            reported: Vec::new(),
        };
        report_lanes(worker, &mut answer);
        let questions = self.questions(worker, request);
        let failed = |failure: Failure| worker.failed("claim", failure);
        let Some(mut reply) = self.ask(worker, &questions, request).await? else {
            // Nothing may be taken yet: the keeper says when.
            return Ok(answer.finish(worker));
        };
        answer.now = Timestamp::from_millis(reply.number().map_err(failed)?);
        let due_in = reply.number().map_err(failed)?;
        let has_more_due = reply.number().map_err(failed)? != 0;
        for question in questions {
            let part = reply.array().map_err(failed)?;
            answer.take(worker, &mut self.names, question, part).map_err(failed)?;
        }
        answer.claimed.next_due_in = u64::try_from(due_in).ok().map(Duration::from_millis);
        if has_more_due {
            answer.claimed.more.extend(request.demands.iter().map(|demand| demand.handler));
        }
        // From here on nothing can be cancelled: what was handed out is known to be.
        self.has_lost = false;
        self.left.clone_from(&answer.left);
        self.unreadable.append(&mut answer.unreadable);
        let claimed = answer.finish(worker);
        if !self.unreadable.is_empty() {
            self.bury(worker).await;
        }
        Ok(claimed)
    }

    /// Entries that cannot be deliveries go to the dead letters as they are: they must not stop the worker, and nobody
    /// shall lose them. What fails is tried again with the next claim.
    async fn bury(&mut self, worker: &Worker) {
        match settle::bury(worker, &self.link, &self.unreadable).await {
            Ok(()) => self.unreadable.clear(),
            Err(failure) => tracing::warn!(%failure, "entries that cannot be read could not be put aside"),
        }
    }

    /// What to ask for, those of lane demands first.
    fn questions(&mut self, worker: &Worker, request: &ClaimRequest) -> Vec<Question> {
        let mut questions = Vec::new();
        let now = Instant::now();
        let reads_all = self.has_lost || now >= self.next_sweep;
        if reads_all {
            self.next_sweep = now + SWEEP;
        }
        if self.has_lost {
            questions.extend(worker.indices().map(|(index, _)| Question::Missing(index)));
        }
        let mut slots = worker.slots();
        {
            let mut held = worker.held();
            for lane in &request.lanes {
                let is_owned = slots
                    .get(&(lane.partition.handler, lane.partition.number))
                    .is_some_and(|owned| !owned.is_revoked && owned.unreported.is_empty());
                // A lane without a mark has nothing parked.
                if is_owned && let Some(mark) = held.ask(lane.partition, &lane.key) {
                    questions.push(Question::Lane(lane.clone(), mark));
                }
            }
        }
        for demand in &request.demands {
            let mut cursors = BTreeMap::new();
            for number in 0..SLOTS {
                let Some(owned) = slots.get_mut(&(demand.handler, number)) else { continue };
                if owned.is_revoked || !owned.unreported.is_empty() {
                    continue;
                }
                let partition = Partition { handler: demand.handler, number };
                let returned = owned.returned.iter().take(RETURNED.min(demand.limit));
                questions.extend(returned.map(|(id, key)| Question::Again(partition, *id, key.clone())));
                // What is said from now on is for the next claim.
                if std::mem::take(&mut owned.has_news) || reads_all {
                    cursors.insert(number, owned.epoch);
                }
            }
            if !cursors.is_empty() {
                questions.push(Question::Slots(demand.handler, cursors));
            }
            questions.push(Question::Free(demand.handler));
        }
        questions
    }

    /// The answers; `None` while nothing may be taken.
    async fn ask(
        &mut self,
        worker: &Worker,
        questions: &[Question],
        request: &ClaimRequest,
    ) -> Result<Option<Reply>> {
        self.number += 1;
        let mut call = script::CLAIM.call(&worker.shared.base);
        call.arg(&worker.incarnation).arg(&*worker.run).arg(self.number);
        call.arg(request.max_bytes.min(isize::MAX as usize)).arg(PROMOTE).arg(worker.handlers.len());
        for handler in worker.handlers.iter() {
            call.arg(&*handler.name);
        }
        {
            let slots = worker.slots();
            let held = worker.held();
            for question in questions {
                match question {
                    Question::Missing(handler) => {
                        let known = held.range_starts(*handler);
                        call.arg("V").arg(position(*handler)).arg(known.len());
                        for first in known {
                            call.arg(ids::text(first));
                        }
                    }
                    Question::Lane(lane, after) => {
                        call.arg("R").arg(position(lane.partition.handler)).arg(lane.partition.number);
                        call.arg(&*lane.key).arg(ids::fixed(*after)).arg(lane.limit);
                    }
                    Question::Again(partition, id, key) => {
                        call.arg("X").arg(position(partition.handler)).arg(partition.number);
                        call.arg(&**key).arg(ids::text(*id));
                    }
                    Question::Slots(handler, numbers) => {
                        let limit = room(request, *handler);
                        let left = self.left.get(handler.get()).copied().unwrap_or_default();
                        // What slots do not use the free deliveries may have, but not the other way round.
                        let keyed = if left.free { limit.div_ceil(2) } else { limit - limit / 8 };
                        call.arg("S").arg(position(*handler)).arg(keyed).arg(numbers.len());
                        for number in numbers.keys() {
                            let cursor = slots.get(&(*handler, *number)).map_or(DeliveryId(0), |o| o.cursor);
                            call.arg(*number).arg(ids::text(cursor));
                        }
                    }
                    Question::Free(handler) => {
                        let limit = room(request, *handler);
                        let left = self.left.get(handler.get()).copied().unwrap_or_default();
                        let has_slots =
                            questions.iter().any(|q| matches!(q, Question::Slots(of, _) if of == handler));
                        let keyed = match (has_slots, left.free) {
                            (false, _) => 0,
                            (true, true) => limit.div_ceil(2),
                            (true, false) => limit - limit / 8,
                        };
                        call.arg("F").arg(position(*handler)).arg(limit - keyed);
                    }
                }
            }
        }
        // Until the answer is taken in, it may be lost with this future.
        self.has_lost = true;
        let failed = |failure: Failure| worker.failed("claim", failure);
        let mut reply = self.link.eval(&call).await.map_err(failed)?;
        match &*reply.text().map_err(failed)? {
            "OK" => Ok(Some(reply)),
            "WAIT" => Ok(None),
            "FENCED" => Err(worker.fenced("claim")),
            word => Err(failed(Failure::Garbled(format!("the script said {word}")))),
        }
    }
}

/// Scripts count from 1.
fn position(handler: HandlerIndex) -> usize {
    handler.get() + 1
}

fn room(request: &ClaimRequest, handler: HandlerIndex) -> usize {
    let mut demands = request.demands.iter();
    demands.find(|demand: &&Demand| demand.handler == handler).map_or(0, |demand| demand.limit)
}

/// Reports lanes that were parked when their slot was acquired. Slots of which not all are reported give nothing yet.
fn report_lanes(worker: &Worker, answer: &mut Answer) {
    for ((handler, number), owned) in worker.slots().iter() {
        let room = LANES.saturating_sub(answer.claimed.parked.len());
        let count = owned.unreported.len().min(room);
        if count == 0 || owned.is_revoked {
            continue;
        }
        let partition = Partition { handler: *handler, number: *number };
        answer.claimed.parked.extend(owned.unreported[..count].iter().map(|(key, first)| ParkedLane {
            partition,
            key: key.clone(),
            first: *first,
        }));
        answer.reported.push((*handler, *number, count));
        answer.claimed.more.push(*handler);
    }
}

impl Answer {
    fn take(
        &mut self,
        worker: &Worker,
        names: &mut Names,
        question: Question,
        mut part: Reply,
    ) -> Result<(), Failure> {
        match question {
            Question::Lane(lane, after) => {
                let still = ids::parse(&part.bytes()?);
                let mut last = after;
                while !part.is_empty() {
                    let id = id(&mut part)?;
                    let entry = (part.bytes()?, part.bytes()?);
                    last = id;
                    self.add(worker, names, lane.partition, id, Some(lane.key.clone()), entry, Place::Lane);
                }
                let (partition, key) = (lane.partition, lane.key.clone());
                self.refilled.push(Refilled { partition, key, last, has_more: still.is_some() });
                if let Some(first) = still {
                    self.claimed.still_parked.push(ParkedLane {
                        partition: lane.partition,
                        key: lane.key,
                        first,
                    });
                }
            }
            Question::Again(partition, asked, key) => {
                self.again.push((partition, asked));
                if !part.is_empty() {
                    let id = id(&mut part)?;
                    let entry = (part.bytes()?, part.bytes()?);
                    self.add(worker, names, partition, id, Some(key), entry, Place::Stream);
                }
            }
            Question::Slots(handler, epochs) => {
                let mut has_more = false;
                while !part.is_empty() {
                    let mut slot = part.array()?;
                    let number = u16::try_from(slot.number()?).unwrap_or(Partition::WHOLE);
                    if slot.number()? != 0 {
                        has_more = true;
                        self.full.push((handler, number));
                    }
                    let partition = Partition { handler, number };
                    while !slot.is_empty() {
                        let id = id(&mut slot)?;
                        let key = slot.bytes()?;
                        let entry = (slot.bytes()?, slot.bytes()?);
                        let key = String::from_utf8_lossy(&key);
                        self.add(
                            worker,
                            names,
                            partition,
                            id,
                            Some(key.as_ref().into()),
                            entry,
                            Place::Stream,
                        );
                        if let Some(epoch) = epochs.get(&number) {
                            self.cursors.push((handler, number, *epoch, id));
                        }
                    }
                }
                if has_more {
                    self.claimed.more.push(handler);
                }
                if let Some(left) = self.left.get_mut(handler.get()) {
                    left.keyed = has_more;
                }
            }
            Question::Missing(handler) => {
                part.number()?;
                self.take_ranges(worker, names, handler, part)?;
            }
            Question::Free(handler) => {
                let has_more = part.number()? != 0;
                if has_more {
                    self.claimed.more.push(handler);
                }
                if let Some(left) = self.left.get_mut(handler.get()) {
                    left.free = has_more;
                }
                self.take_ranges(worker, names, handler, part)?;
            }
        }
        Ok(())
    }

    fn take_ranges(
        &mut self,
        worker: &Worker,
        names: &mut Names,
        handler: HandlerIndex,
        mut part: Reply,
    ) -> Result<(), Failure> {
        let partition = Partition { handler, number: Partition::WHOLE };
        while !part.is_empty() {
            let mut range = part.array()?;
            let first = id(&mut range)?;
            let last = id(&mut range)?;
            let mut count = 0;
            while !range.is_empty() {
                let id = id(&mut range)?;
                let entry = (range.bytes()?, range.bytes()?);
                self.add(worker, names, partition, id, None, entry, Place::Stream);
                count += 1;
            }
            self.ranges.push((handler, first, last, count));
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "all that makes a delivery")]
    fn add(
        &mut self,
        worker: &Worker,
        names: &mut Names,
        partition: Partition,
        id: DeliveryId,
        key: Option<Arc<str>>,
        (blob, state): (Bytes, Bytes),
        place: Place,
    ) {
        let read =
            State::read(&state).and_then(|state| Ok((entry::decode(blob, key.clone(), names)?, state)));
        self.handed.push((partition, id, place));
        match read {
            Ok((envelope, state)) => {
                let due_in = Timestamp::from_millis(state.due_at).since(self.now);
                self.claimed.deliveries.push(Delivery {
                    id,
                    partition,
                    envelope,
                    failures: state.failures,
                    crashes: state.crashes,
                    errors: state.errors,
                    due_in: (!due_in.is_zero()).then_some(due_in),
                    is_held: state.is_held,
                    fence: fence(worker, partition),
                });
            }
            Err(why) => self.unreadable.push(Unreadable { partition, id, key, why }),
        }
    }

    /// Remembers what is out, and leaves out what is not this worker's any more.
    fn finish(mut self, worker: &Worker) -> Claimed {
        let mut slots = worker.slots();
        let mut held = worker.held();
        for (handler, number, count) in self.reported {
            if let Some(owned) = slots.get_mut(&(handler, number)) {
                owned.unreported.drain(..count.min(owned.unreported.len()));
            }
        }
        for (handler, number, epoch, id) in self.cursors {
            if let Some(owned) = slots.get_mut(&(handler, number)).filter(|owned| owned.epoch == epoch) {
                owned.cursor = owned.cursor.max(id);
            }
        }
        for slot in self.full {
            if let Some(owned) = slots.get_mut(&slot) {
                owned.has_news = true;
            }
        }
        for (partition, id) in self.again {
            if let Some(owned) = slots.get_mut(&(partition.handler, partition.number)) {
                owned.returned.remove(&id);
            }
        }
        let is_ours = |partition: Partition| {
            partition.number == Partition::WHOLE || slots.contains_key(&(partition.handler, partition.number))
        };
        self.claimed.deliveries.retain(|delivery| is_ours(delivery.partition));
        for (partition, id, place) in self.handed {
            if is_ours(partition) {
                held.add(partition, id, place);
            }
        }
        for (handler, first, last, count) in self.ranges {
            held.add_range(handler, first, last, count);
        }
        for lane in self.refilled {
            if is_ours(lane.partition) {
                held.answered(lane.partition, lane.key, lane.last, lane.has_more);
            }
        }
        self.claimed
    }
}

fn id(part: &mut Reply) -> Result<DeliveryId, Failure> {
    let text = part.bytes()?;
    ids::parse(&text).ok_or_else(|| Failure::Garbled("a stream id was expected".to_owned()))
}

fn fence(worker: &Worker, partition: Partition) -> u64 {
    match partition.number {
        Partition::WHOLE => 0,
        number => worker.slots().get(&(partition.handler, number)).map_or(0, |owned| owned.epoch),
    }
}

//! Handing out.

use event_bus_core::backend::{
    ClaimRequest, Claimed, Delivery, Demand, HandlerIndex, LaneDemand, ParkedLane, Partition,
};
use event_bus_core::{Error, ErrorKind};
use tokio::time::Instant;

use super::members::{GivenUp, SessionId};
use super::state::{Part, Row, State, delivery_id, number};

impl State {
    /// Answers a claim that was made in this turn; all of it is in the session's hands from here on.
    ///
    /// # Errors
    /// `LeaseLost` if the session is over.
    pub(super) fn claim(
        &mut self,
        session: SessionId,
        turn: u64,
        request: &ClaimRequest,
        now: Instant,
    ) -> Result<Claimed, Error> {
        let Some(member) = self.members.get(&session).filter(|member| member.is_alive) else {
            return Err(lease_lost("claim"));
        };
        let queues = member.queues.clone();
        let taker = Taker { session, turn, limbo: member.limbo.clone() };
        let mut claimed = Claimed::default();
        let mut room = Room { bytes: request.max_bytes, deliveries: 0 };
        self.tell_parked(&taker, &queues, &mut claimed);
        for demand in &request.lanes {
            if let Some(queue) = queues.get(demand.partition.handler.get()) {
                self.claim_lane(&taker, *queue, demand, now, &mut room, &mut claimed);
            }
        }
        for demand in &request.demands {
            if let Some(queue) = queues.get(demand.handler.get()) {
                self.claim_queue(&taker, *queue, demand, now, &mut room, &mut claimed);
            }
        }
        Ok(claimed)
    }

    /// Tells of parked lanes of partitions that the session has newly got.
    fn tell_parked(&mut self, taker: &Taker, queues: &[usize], claimed: &mut Claimed) {
        let (layout, mut left) = (self.config.layout, self.config.told_per_claim);
        for (handler, queue) in handlers(queues) {
            for (position, part) in self.queues[queue].parts.iter_mut().enumerate() {
                while left > 0
                    && taker.owns(part)
                    && let Some(key) = part.untold.pop_front()
                {
                    let partition = Partition { handler, number: number(layout, position) };
                    claimed.parked.extend(part.parked_lane(partition, &key));
                    left -= 1;
                }
            }
        }
    }

    fn claim_lane(
        &mut self,
        taker: &Taker,
        queue: usize,
        demand: &LaneDemand,
        now: Instant,
        room: &mut Room,
        claimed: &mut Claimed,
    ) {
        let queue = &mut self.queues[queue];
        let position = queue.part_of(&demand.key);
        let part = &mut queue.parts[position];
        if !taker.owns(part) {
            return;
        }
        // Before it is told of all parked lanes of a part it gets nothing of it, but what is parked stays so.
        let limit = if taker.may_take_of(part) { demand.limit } else { 0 };
        for _ in 0..limit {
            let Some(rows) = part.parked.get_mut(&demand.key).filter(|_| room.bytes > 0) else { break };
            let Some((id, row)) = rows.pop_first() else { break };
            if rows.is_empty() {
                part.parked.remove(&demand.key);
            }
            room.take(&row);
            claimed.deliveries.push(row.hand_out(id, demand.partition, part.fence, now));
            part.line.held.insert(id, (taker.session, row));
        }
        claimed.still_parked.extend(part.parked_lane(demand.partition, &demand.key));
    }

    fn claim_queue(
        &mut self,
        taker: &Taker,
        queue: usize,
        demand: &Demand,
        now: Instant,
        room: &mut Room,
        claimed: &mut Claimed,
    ) {
        self.promote(queue, now);
        room.deliveries = claimed.deliveries.len() + demand.limit;
        let (layout, fences_free) = (self.config.layout, self.config.fences_free);
        let limbo =
            |part: Option<usize>| taker.limbo.iter().filter(move |l| l.queue == queue && l.part == part);
        let queue = &mut self.queues[queue];
        loop {
            // The oldest of what is free and of the parts it owns; there are few parts.
            let parts = queue.parts.iter().enumerate().filter(|(_, part)| taker.may_take_of(part));
            // In a lane nothing may pass what is in limbo, so all of the part waits.
            let parts = parts.filter(|(position, _)| limbo(Some(*position)).next().is_none());
            let first =
                parts.filter_map(|(n, part)| Some((*part.line.waiting.first_key_value()?.0, Some(n))));
            let mut free = queue.free.waiting.keys().filter(|id| !limbo(None).any(|l| l.id == **id));
            let Some((id, position)) = first.chain(free.next().map(|id| (*id, None))).min() else { break };
            if claimed.deliveries.len() >= room.deliveries || room.bytes == 0 {
                claimed.more.push(demand.handler);
                break;
            }
            let number = position.map_or(Partition::WHOLE, |position| number(layout, position));
            let partition = Partition { handler: demand.handler, number };
            let (line, fence) = match position {
                Some(position) => {
                    let part = &mut queue.parts[position];
                    (&mut part.line, Some(part.fence))
                }
                None => (&mut queue.free, None),
            };
            let Some(mut row) = line.waiting.remove(&id) else { break };
            room.take(&row);
            self.handed_out += 1;
            row.token = self.handed_out;
            let fence = fence.unwrap_or(if fences_free { row.token } else { 0 });
            claimed.deliveries.push(row.hand_out(id, partition, fence, now));
            line.held.insert(id, (taker.session, row));
        }
        let due_in = queue.later.first_key_value().map(|((due, _), _)| due.saturating_duration_since(now));
        claimed.next_due_in = claimed.next_due_in.into_iter().chain(due_in).min();
    }

    /// Whether this very hand-out is still in the session's hands.
    pub(super) fn is_held(&self, session: SessionId, delivery: &Delivery) -> bool {
        let queue = self.members.get(&session).and_then(|member| member.queues.get(delivery.handler().get()));
        let Some(queue) = queue.map(|queue| &self.queues[*queue]) else { return false };
        let (line, fence) = match &delivery.envelope.key {
            Some(key) => {
                let part = &queue.parts[queue.part_of(key)];
                (&part.line, Some(part.fence))
            }
            None => (&queue.free, None),
        };
        let held = line.held.get(&super::state::row_id(delivery.id));
        held.is_some_and(|(holder, row)| {
            let fence = fence.unwrap_or(if delivery.fence == 0 { 0 } else { row.token });
            *holder == session && fence == delivery.fence
        })
    }
}

impl Part {
    fn parked_lane(&self, partition: Partition, key: &std::sync::Arc<str>) -> Option<ParkedLane> {
        let (first, _) = self.parked.get(key)?.first_key_value()?;
        Some(ParkedLane { partition, key: key.clone(), first: delivery_id(*first) })
    }
}

impl Row {
    fn hand_out(&self, id: u64, partition: Partition, fence: u64, now: Instant) -> Delivery {
        Delivery {
            id: delivery_id(id),
            partition,
            envelope: self.envelope.clone(),
            failures: self.failures,
            crashes: self.crashes,
            errors: self.errors.clone(),
            due_in: self.due.filter(|due| *due > now).map(|due| due - now),
            is_held: self.holds.is_some(),
            fence,
        }
    }
}

/// Who claims.
struct Taker {
    session: SessionId,
    turn: u64,
    limbo: Vec<GivenUp>,
}

impl Taker {
    /// Whether it owned the part when the call was made, and does now.
    fn owns(&self, part: &Part) -> bool {
        part.owner == Some(self.session) && part.since < self.turn
    }

    fn may_take_of(&self, part: &Part) -> bool {
        self.owns(part) && !part.is_revoked && part.untold.is_empty()
    }
}

/// What still fits into an answer.
struct Room {
    bytes: usize,
    /// How many deliveries there may be in all.
    deliveries: usize,
}

impl Room {
    fn take(&mut self, row: &Row) {
        self.bytes = self.bytes.saturating_sub(row.envelope.payload.len().max(1));
    }
}

/// A session's handlers with their queues.
pub(super) fn handlers(queues: &[usize]) -> impl Iterator<Item = (HandlerIndex, usize)> {
    (0..).map(HandlerIndex).zip(queues.iter().copied())
}

/// The session is over.
pub(super) fn lease_lost(operation: &'static str) -> Error {
    let text = "the store gave what this session held to others; open another session";
    Error::new(ErrorKind::LeaseLost, operation, text).with_backend("simulated")
}

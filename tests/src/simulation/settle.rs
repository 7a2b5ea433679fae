//! Storing outcomes.
//!
//! Every write is guarded: it counts only for the hand-out it is about (session and fence), and a batch only once and in
//! turn (its number), so that a repeat or a late copy changes nothing.

use std::collections::HashSet;

use event_bus_core::Error;
use event_bus_core::backend::{Delivery, Outcome, Park, SettleBatch, Settlement, Timestamp};
use tokio::time::Instant;

use super::claim::lease_lost;
use super::dead::{Corpse, Marker};
use super::members::{GivenUp, SessionId};
use super::state::{Row, State, row_id};

impl State {
    /// Stores a batch; `number` counts the calls of the session. A copy that comes after a later call changes nothing.
    ///
    /// # Errors
    /// `LeaseLost` if the session is over.
    pub(super) fn settle(
        &mut self,
        session: SessionId,
        number: u64,
        batch: &SettleBatch,
        now: Instant,
        died_at: Timestamp,
    ) -> Result<(), Error> {
        let Some(member) = self.members.get_mut(&session).filter(|member| member.is_alive) else {
            return Err(lease_lost("settle"));
        };
        if number <= member.settled {
            return Ok(());
        }
        member.settled = number;
        for settlement in &batch.settlements {
            self.settle_one(session, settlement, now, died_at);
        }
        for park in &batch.parks {
            self.park(session, park);
        }
        Ok(())
    }

    fn settle_one(&mut self, session: SessionId, settlement: &Settlement, now: Instant, died_at: Timestamp) {
        let delivery = &settlement.delivery;
        if !self.is_held(session, delivery) {
            return;
        }
        let Some(queue) = self.queue_of(session, delivery) else { return };
        let key = delivery.envelope.key.as_deref();
        let id = row_id(delivery.id);
        let stays = |keeps_place: bool| keeps_place && key.is_some();
        let held = &mut self.queues[queue].line_mut(key).held;
        let Some((_, row)) = held.get_mut(&id) else { return };
        match &settlement.outcome {
            Outcome::Complete => {
                held.remove(&id);
            }
            Outcome::Start { attempt } => row.started = *attempt,
            Outcome::Retry { failures, delay, errors, keeps_place } => {
                row.failures = *failures;
                row.errors = errors.clone();
                row.started = 0;
                self.postpone(queue, key, id, now + *delay, stays(*keeps_place));
                self.in_limbo(session, queue, key, id);
            }
            Outcome::Snooze { delay, keeps_place } => {
                row.started = 0;
                self.postpone(queue, key, id, now + *delay, stays(*keeps_place));
                self.in_limbo(session, queue, key, id);
            }
            Outcome::Release => {
                row.started = 0;
                if let Some((_, row)) = held.remove(&id) {
                    self.queues[queue].enter(id, row);
                }
                self.in_limbo(session, queue, key, id);
            }
            Outcome::Dead { reason, failures, errors, holds_key } => {
                let Some((_, mut row)) = held.remove(&id) else { return };
                let dead = self.next_id();
                let corpse = Corpse {
                    handler: self.queues[queue].name.clone(),
                    queue,
                    envelope: row.envelope.clone(),
                    failures: *failures,
                    errors: errors.clone(),
                    reason: *reason,
                    died_at,
                    born: row.born,
                    marker: key.filter(|_| *holds_key).map(|key| Marker { key: key.into(), id }),
                };
                if corpse.marker.is_some() {
                    row.holds = Some(dead);
                    row.due = None;
                    row.started = 0;
                    self.queues[queue].enter(id, row);
                }
                self.dead.insert(dead, corpse);
            }
        }
    }

    /// The session knows of everything that it has settled.
    pub(super) fn answered(&mut self, session: SessionId) {
        let turn = self.turn;
        if let Some(member) = self.members.get_mut(&session) {
            for given_up in &mut member.limbo {
                given_up.known.get_or_insert(turn);
            }
        }
    }

    /// Remembers what has left the session's hands.
    fn in_limbo(&mut self, session: SessionId, queue: usize, key: Option<&str>, id: u64) {
        let part = key.map(|key| self.queues[queue].part_of(key));
        if !self.queues[queue].line_mut(key).held.contains_key(&id)
            && let Some(member) = self.members.get_mut(&session)
        {
            member.limbo.push(GivenUp { queue, part, id, known: None });
        }
    }

    /// Lets a delivery wait: in its place, still in the session's hands, or out of its line.
    fn postpone(&mut self, queue: usize, key: Option<&str>, id: u64, due: Instant, keeps_place: bool) {
        let held = &mut self.queues[queue].line_mut(key).held;
        if keeps_place {
            if let Some((_, row)) = held.get_mut(&id) {
                row.due = Some(due);
            }
        } else if let Some((_, row)) = held.remove(&id) {
            let turn = self.next_id();
            self.queues[queue].later.insert((due, turn), (id, row));
        }
    }

    fn park(&mut self, session: SessionId, park: &Park) {
        let parks_lines = self.config.parks_lines;
        let queue = self.members.get(&session).and_then(|m| m.queues.get(park.partition.handler.get()));
        let Some(queue) = queue.map(|queue| &mut self.queues[*queue]) else { return };
        let position = queue.part_of(&park.key);
        let part = &mut queue.parts[position];
        if part.owner != Some(session) {
            return;
        }
        let from = row_id(park.from);
        let of_lane = |row: &Row| row.envelope.key.as_deref() == Some(&*park.key);
        let ids: Vec<u64> = if parks_lines {
            let waiting = part.line.waiting.range(from..).filter(|(_, row)| of_lane(row)).map(|(id, _)| *id);
            let held = part.line.held.iter().filter(|(id, (_, row))| **id >= from && of_lane(row));
            waiting.chain(held.map(|(id, _)| *id)).collect()
        } else {
            std::iter::once(from).chain(park.claimed.iter().map(|id| row_id(*id))).collect()
        };
        let lane = part.parked.entry(park.key.clone()).or_default();
        for id in ids {
            let held = part.line.held.remove(&id).map(|(_, row)| row);
            lane.extend(part.line.waiting.remove(&id).or(held).map(|row| (id, row)));
        }
        if lane.is_empty() {
            part.parked.remove(&park.key);
        }
    }

    fn queue_of(&self, session: SessionId, delivery: &Delivery) -> Option<usize> {
        self.members.get(&session)?.queues.get(delivery.handler().get()).copied()
    }
}

/// What a batch must not be.
pub(super) fn breaches(batch: &SettleBatch, may_park: bool) -> Vec<String> {
    let mut breaches = Vec::new();
    let mut seen = HashSet::new();
    for settlement in &batch.settlements {
        if !seen.insert((settlement.delivery.partition, settlement.delivery.id)) {
            breaches.push(format!("a batch settles delivery {} twice", settlement.delivery.id));
        }
    }
    if !batch.parks.is_empty() && !may_park {
        breaches.push("a lane is parked in a store that cannot".to_owned());
    }
    breaches
}

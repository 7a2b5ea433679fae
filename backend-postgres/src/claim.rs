//! How a session hands out: what it holds so far, and what comes next.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use event_bus_core::Result;
use event_bus_core::backend::{
    AttemptError, ClaimRequest, Claimed, DeadReason, Delivery, Demand, ErrorLog, ParkedLane, Partition,
    Timestamp,
};
use event_bus_core::clock::{BootTime, Clock as _, SystemClock};
use sqlx::postgres::PgRow;
use tokio::time::Instant;

use crate::keeper::{Keeper, Lease};
use crate::leases::partition;
use crate::row::{self, FREE, Place, Unreadable};
use crate::store::{self, LaneArrays, Places, SlotDemand, Verdicts};

/// How many scheduled deliveries one claim gives their place.
const PROMOTE: i64 = 1_000;

/// How many parked lanes one claim reports.
const LANES: usize = 1_000;

/// How far ahead of what is handed out the store is told that this worker holds ids. More spares writes when little is
/// going on, and charges more for nothing if the worker vanishes: a recorded start for each delivery that lies between.
const AHEAD: i64 = 64;

/// What is asked for at least of a slot that may have nothing.
const COLD: usize = 4;

/// What is asked for at most of a slot in which a line is being parked. All of it goes back with the next settle, and while
/// that is stored nothing else is: the more, the longer do the deliveries of all other keys wait, until the whole line is
/// parked.
const CLOGGED: usize = 128;

/// An answer in the making.
struct Answer {
    claimed: Claimed,
    bytes: usize,
    max_bytes: usize,
    unreadable: Vec<Unreadable>,
    /// What was parked and is not any more.
    refilled: Vec<Place>,
    /// How far the parked lanes of slots are reported with this answer.
    reported: Vec<(usize, i16, Option<String>)>,
}

impl Answer {
    fn bytes_left(&self) -> i64 {
        i64::try_from(self.max_bytes.saturating_sub(self.bytes)).unwrap_or(i64::MAX)
    }

    fn is_full(&self) -> bool {
        self.bytes >= self.max_bytes
    }

    fn add(&mut self, delivery: Delivery) {
        self.bytes = self.bytes.saturating_add(delivery.envelope.payload.len());
        self.claimed.deliveries.push(delivery);
    }

    /// How many deliveries of each handler there are.
    fn taken(&self, position: usize) -> usize {
        self.claimed.deliveries.iter().filter(|delivery| delivery.handler().get() == position).count()
    }
}

impl Keeper {
    /// Hands out what there is room for.
    pub(crate) async fn claim(&mut self, request: &ClaimRequest, given_back: Vec<i64>) -> Result<Claimed> {
        for id in given_back {
            self.given_back.remove(&id);
            self.let_go_of(id);
        }
        let mut answer = Answer {
            claimed: Claimed::default(),
            bytes: 0,
            max_bytes: request.max_bytes,
            unreadable: Vec::new(),
            refilled: Vec::new(),
            reported: Vec::new(),
        };
        match self.try_claim(request, &mut answer).await {
            Ok(()) => {
                for (position, slot, reported) in answer.reported {
                    if let Some(lease) = self.leases[position].get_mut(&slot) {
                        lease.unreported = reported;
                    }
                }
                Ok(answer.claimed)
            }
            Err(failure) => {
                // Core does not get it now; it comes with a later claim. What was parked must be so again before that: core
                // asks for the rest of such a lane as if this were still the first of it.
                self.strays.extend(answer.refilled);
                for delivery in answer.claimed.deliveries {
                    let Some(id) = row::private_id(delivery.id) else { continue };
                    self.let_go_of(id);
                    if delivery.partition.number == Partition::WHOLE {
                        self.stash.push(delivery);
                    }
                }
                // How far it had come is not certain.
                self.free_floors.iter_mut().for_each(|(floor, _)| *floor = 0);
                self.leases.iter_mut().flat_map(BTreeMap::values_mut).for_each(|lease| lease.floor = 0);
                self.must_give_back = true;
                Err(failure)
            }
        }
    }

    /// It is not in core's hands any more, and can be handed out again.
    fn let_go_of(&mut self, id: i64) {
        let Some((position, slot)) = self.held.remove(&id) else { return };
        let lease = self.leases.get_mut(position).and_then(|leases| leases.get_mut(&slot));
        if let Some(lease) = lease {
            lease.floor = lease.floor.min(id - 1);
        }
        if slot == FREE
            && let Some((floor, _)) = self.free_floors.get_mut(position)
        {
            *floor = (*floor).min(id - 1);
        }
    }

    async fn try_claim(&mut self, request: &ClaimRequest, answer: &mut Answer) -> Result<()> {
        if self.quarantine.is_some() {
            return Ok(());
        }
        self.park_strays().await?;
        answer.claimed.next_due_in = self.promote().await?;
        self.refill(request, answer).await?;
        let demands: Vec<_> = request
            .demands
            .iter()
            .filter(|demand| demand.handler.get() < self.handlers.len())
            .copied()
            .collect();
        self.report_parked(&demands, answer).await?;
        self.take_stash(&demands, answer);
        self.claim_free(&demands, answer).await?;
        self.claim_keyed(&demands, answer).await?;
        if answer.unreadable.is_empty() {
            return Ok(());
        }
        self.bury_unreadable(std::mem::take(&mut answer.unreadable)).await
    }

    /// Parks again what a claim that failed had taken out of the parked lines.
    async fn park_strays(&mut self) -> Result<()> {
        if self.strays.is_empty() {
            return Ok(());
        }
        let mut places = Places::default();
        self.strays.iter().for_each(|place| places.push(*place));
        let sent_at = BootTime::now();
        let parked = store::park(self.shared.at(), &mut self.connection, &places).await;
        self.heard("claim", sent_at, parked)?;
        self.strays.clear();
        Ok(())
    }

    /// Gives what is due its place, and says when the next one is due.
    async fn promote(&mut self) -> Result<Option<Duration>> {
        let mut due_in = self.next_due().await?;
        if due_in.is_some_and(|due_in| due_in <= 0) {
            let sent_at = BootTime::now();
            let promoted = store::promote(self.shared.at(), &mut self.connection, PROMOTE).await;
            self.heard("claim", sent_at, promoted)?;
            due_in = self.next_due().await?;
        }
        // At least a moment: somebody else is promoting it right now.
        Ok(due_in.map(|due_in| Duration::from_millis(u64::try_from(due_in).unwrap_or(0).max(1))))
    }

    async fn next_due(&mut self) -> Result<Option<i64>> {
        let sent_at = BootTime::now();
        let due_in = store::next_due(self.shared.at(), &mut self.connection).await;
        self.heard("claim", sent_at, due_in)
    }

    /// Hands out what was parked of the demanded lanes.
    async fn refill(&mut self, request: &ClaimRequest, answer: &mut Answer) -> Result<()> {
        let mut lanes = LaneArrays::default();
        let mut wanted = Vec::new();
        for lane in &request.lanes {
            let (position, slot) = (lane.partition.handler.get(), row::slot(lane.partition));
            let is_ours = self.leases.get(position).and_then(|leases| leases.get(&slot));
            if !is_ours.is_some_and(|lease| !lease.is_revoked && lease.ready_at <= Instant::now()) {
                continue;
            }
            lanes.handlers.push(self.handlers[position].id);
            lanes.slots.push(slot);
            lanes.keys.push(&lane.key);
            lanes.limits.push(i64::try_from(lane.limit).unwrap_or(i64::MAX));
            wanted.push(lane);
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let sent_at = BootTime::now();
        let (at, bytes) = (self.shared.at(), answer.bytes_left());
        let rows = store::refill(at, &mut self.connection, self.worker, &lanes, bytes).await;
        let mut rows = self.heard("claim", sent_at, rows)?;
        let place = |row: &PgRow| row::place(row).map_or(i64::MAX, |place| place.id);
        rows.sort_by_key(place);
        answer.refilled.extend(rows.iter().flat_map(row::place));
        for row in &rows {
            self.hand_out(row, answer)?;
        }
        let sent_at = BootTime::now();
        let first = store::first_parked(self.shared.at(), &mut self.connection, &lanes).await;
        for (position, first) in self.heard("claim", sent_at, first)? {
            let Some(lane) = wanted.get(position) else { continue };
            answer.claimed.still_parked.push(ParkedLane {
                partition: lane.partition,
                key: lane.key.clone(),
                first: row::public_id(first),
            });
        }
        Ok(())
    }

    /// Reports lanes that an earlier owner left parked. Slots of which not all are reported get nothing else yet.
    async fn report_parked(&mut self, demands: &[Demand], answer: &mut Answer) -> Result<()> {
        let now = Instant::now();
        for demand in demands {
            let position = demand.handler.get();
            let unreported: Vec<(i16, String)> = self.leases[position]
                .iter()
                .filter(|(_, lease)| lease.ready_at <= now && !lease.is_revoked)
                .filter_map(|(slot, lease)| Some((*slot, lease.unreported.clone()?)))
                .collect();
            for (slot, after) in unreported {
                let limit = LANES.saturating_sub(answer.claimed.parked.len());
                if limit == 0 {
                    answer.claimed.more.push(demand.handler);
                    break;
                }
                let handler = self.handlers[position].id;
                let most = i64::try_from(limit).unwrap_or(i64::MAX);
                let sent_at = BootTime::now();
                let lanes =
                    store::parked_lanes(self.shared.at(), &mut self.connection, handler, slot, &after, most)
                        .await;
                let lanes = self.heard("claim", sent_at, lanes)?;
                let reported = lanes.last().filter(|_| lanes.len() >= limit).map(|(key, _)| key.clone());
                answer.reported.push((position, slot, reported));
                // Its deliveries come with the next claim.
                answer.claimed.more.push(demand.handler);
                answer.claimed.parked.extend(lanes.into_iter().map(|(key, first)| ParkedLane {
                    partition: partition(position, slot),
                    key: key.into(),
                    first: row::public_id(first),
                }));
            }
        }
        Ok(())
    }

    /// Hands out what was claimed again while core still held it.
    fn take_stash(&mut self, demands: &[Demand], answer: &mut Answer) {
        if self.stash.is_empty() {
            return;
        }
        for delivery in std::mem::take(&mut self.stash) {
            let position = delivery.handler().get();
            let limit = demands.iter().find(|demand| demand.handler.get() == position).map_or(0, |d| d.limit);
            let id = row::private_id(delivery.id).unwrap_or(0);
            if self.given_back.contains(&id) || answer.taken(position) >= limit || answer.is_full() {
                self.stash.push(delivery);
            } else {
                self.held.insert(id, (position, FREE));
                answer.add(delivery);
            }
        }
    }

    /// Claims free deliveries.
    async fn claim_free(&mut self, demands: &[Demand], answer: &mut Answer) -> Result<()> {
        let mut wanted = Vec::with_capacity(demands.len());
        for demand in demands {
            let position = demand.handler.get();
            let room = demand.limit.saturating_sub(answer.taken(position));
            if room > 0 {
                wanted.push(SlotDemand {
                    handler: self.handlers[position].id,
                    slot: FREE,
                    limit: i64::try_from(room).unwrap_or(i64::MAX),
                    floor: self.free_floors[position].0,
                });
            }
        }
        if wanted.is_empty() || answer.is_full() {
            return Ok(());
        }
        let (bytes, final_to) = (answer.bytes_left(), self.final_to);
        let sent_at = BootTime::now();
        let rows =
            store::claim_free(self.shared.at(), &mut self.connection, self.worker, &wanted, bytes, AHEAD)
                .await;
        let mut rows = self.heard("claim", sent_at, rows)?;
        rows.sort_by_key(|row| row::place(row).map_or(i64::MAX, |place| place.id));
        // How many there were of each handler, and the last.
        let mut found = vec![(0_i64, 0_i64); self.handlers.len()];
        for row in &rows {
            let place = self.heard("claim", sent_at, row::place(row))?;
            if let Some(position) = self.position(place.handler) {
                found[position] = (found[position].0 + 1, place.id);
            }
            self.hand_out(row, answer)?;
        }
        let is_cut = answer.is_full() || !answer.unreadable.is_empty();
        for demand in &wanted {
            let Some(position) = self.position(demand.handler) else { continue };
            let (count, last) = found[position];
            let is_full = is_cut || count >= demand.limit;
            let seen_to = if is_full { last } else { i64::MAX };
            let floor = &mut self.free_floors[position].0;
            *floor = (*floor).max(final_to.min(seen_to));
            if is_full && (count > 0 || answer.is_full()) {
                answer.claimed.more.extend(demands.iter().map(|d| d.handler).filter(|h| h.get() == position));
            }
        }
        Ok(())
    }

    /// Hands out what lies in the slots that this worker owns.
    async fn claim_keyed(&mut self, demands: &[Demand], answer: &mut Answer) -> Result<()> {
        let mut wanted = Vec::new();
        let mut rooms: Vec<usize> = vec![0; self.handlers.len()];
        for demand in demands {
            let position = demand.handler.get();
            rooms[position] = demand.limit.saturating_sub(answer.taken(position));
            self.want_slots(position, rooms[position], &mut wanted);
        }
        if wanted.is_empty() || answer.is_full() {
            return Ok(());
        }
        self.turn = self.turn.wrapping_add(1);
        let held: Vec<i64> = self
            .held
            .iter()
            .filter(|(id, (position, slot))| {
                self.leases[*position].get(slot).is_some_and(|lease| **id > lease.floor)
            })
            .map(|(id, _)| *id)
            .collect();
        let (bytes, final_to) = (answer.bytes_left(), self.final_to);
        let sent_at = BootTime::now();
        let rows = store::claim_keyed(self.shared.at(), &mut self.connection, &wanted, &held, bytes).await;
        let rows = self.heard("claim", sent_at, rows)?;
        self.account(&rows).await?;
        let mut has_more = vec![false; self.handlers.len()];
        // How many there were of each slot, the last that was handed out, and whether some were left.
        let mut found = HashMap::<(i32, i16), (i64, i64, bool)>::new();
        for row in &rows {
            let place = self.heard("claim", sent_at, row::place(row))?;
            let Some(position) = self.position(place.handler) else { continue };
            let (count, last, is_left) = found.entry((place.handler, place.slot)).or_default();
            *count += 1;
            // What follows of a slot is left with it: the next claim begins where this one ends.
            if *is_left || rooms[position] == 0 || answer.is_full() {
                *is_left = true;
                has_more[position] = true;
                continue;
            }
            *last = place.id;
            self.hand_out(row, answer)?;
            rooms[position] -= 1;
        }
        let is_cut = answer.is_full() || !answer.unreadable.is_empty();
        for slot in &wanted {
            let Some(position) = self.position(slot.handler) else { continue };
            let (count, last, is_left) = found.get(&(slot.handler, slot.slot)).copied().unwrap_or_default();
            let is_full = count >= slot.limit || is_left;
            has_more[position] |= is_full || answer.is_full();
            if let Some(lease) = self.leases[position].get_mut(&slot.slot) {
                lease.is_full = is_full;
                lease.is_clogged &= is_full;
                let seen_to = if is_full || is_cut { last } else { i64::MAX };
                lease.floor = lease.floor.max(final_to.min(seen_to));
            }
        }
        for demand in demands {
            if has_more[demand.handler.get()] {
                answer.claimed.more.push(demand.handler);
            }
        }
        Ok(())
    }

    /// How much to ask of each slot: a little of each, and the rest of the room of those that had more the last time.
    fn want_slots(&self, position: usize, room: usize, wanted: &mut Vec<SlotDemand>) {
        if room == 0 {
            return;
        }
        let now = Instant::now();
        // Something of these comes back with a later claim, and nothing may pass it.
        let waiting: HashSet<i16> = self
            .given_back
            .iter()
            .filter_map(|id| self.held.get(id))
            .filter(|held| held.0 == position)
            .map(|held| held.1)
            .collect();
        let usable: Vec<(i16, &Lease)> = self.leases[position]
            .iter()
            .filter(|(slot, lease)| {
                lease.ready_at <= now
                    && !lease.is_revoked
                    && lease.unreported.is_none()
                    && !waiting.contains(slot)
            })
            .map(|(slot, lease)| (*slot, lease))
            .collect();
        if usable.is_empty() {
            return;
        }
        let full = usable.iter().filter(|(_, lease)| lease.is_full).count();
        // What does not fit is left where it is: to read a little too much costs less than another round trip.
        let even = room.div_ceil(usable.len());
        let cold = if full == 0 { even } else { even.min(COLD) };
        let hot = room.div_ceil(full.max(1));
        let handler = self.handlers[position].id;
        let begin = self.turn % usable.len();
        for (slot, lease) in usable[begin..].iter().chain(&usable[..begin]) {
            let limit = if lease.is_full { hot } else { cold };
            let limit = if lease.is_clogged { limit.min(CLOGGED) } else { limit };
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            wanted.push(SlotDemand { handler, slot: *slot, limit, floor: lease.floor });
        }
    }

    /// Tells the store that this worker is about to hold these, if it does not know yet.
    async fn account(&mut self, rows: &[PgRow]) -> Result<()> {
        let mut tops: Vec<i64> = vec![0; self.handlers.len()];
        for row in rows {
            let Ok(place) = row::place(row) else { continue };
            if let Some(position) = self.position(place.handler) {
                tops[position] = tops[position].max(place.id);
            }
        }
        let loads: Vec<_> = tops
            .iter()
            .enumerate()
            .filter(|(position, top)| **top > self.loaded_to[*position])
            .map(|(position, top)| (position, top.saturating_add(AHEAD)))
            .collect();
        if loads.is_empty() {
            return Ok(());
        }
        let wanted: Vec<_> =
            loads.iter().map(|(position, top)| (self.handlers[*position].id, *top)).collect();
        let sent_at = BootTime::now();
        let loaded = store::load(self.shared.at(), &mut self.connection, self.worker, &wanted).await;
        self.heard("claim", sent_at, loaded)?;
        for (position, top) in loads {
            self.loaded_to[position] = top;
        }
        Ok(())
    }

    /// Adds a row to the answer. Returns the position of its handler if it was added.
    fn hand_out(&mut self, row: &PgRow, answer: &mut Answer) -> Result<Option<usize>> {
        let place = self.heard("claim", BootTime::now(), row::place(row))?;
        let Some(position) = self.position(place.handler) else { return Ok(None) };
        let epoch = self.leases[position].get(&place.slot).map_or(0, |lease| lease.epoch);
        let fence = u64::try_from(epoch).unwrap_or(0);
        match row::delivery(row, place, partition(position, place.slot), fence, &mut self.names) {
            Ok(delivery) if self.held.contains_key(&place.id) => {
                // It was given back and claimed again before core knew that it was stored.
                self.stash.push(delivery);
                Ok(None)
            }
            Ok(delivery) => {
                self.top = self.top.max(place.id);
                self.held.insert(place.id, (position, place.slot));
                answer.add(delivery);
                Ok(Some(position))
            }
            Err(unreadable) => {
                answer.unreadable.push(unreadable);
                Ok(None)
            }
        }
    }

    /// Rows that cannot be deliveries go to the dead letters as they are: they must not stop the worker, and nobody shall
    /// lose them.
    async fn bury_unreadable(&mut self, unreadable: Vec<Unreadable>) -> Result<()> {
        let mut verdicts = Verdicts::default();
        let now: Timestamp = SystemClock.now();
        for Unreadable { place: Place { handler, slot, id }, why } in unreadable {
            tracing::error!(handler, slot, id, why, "a delivery in the database cannot be read");
            let error = AttemptError { attempt: 0, failed_at: now, message: why };
            verdicts.places.push(Place { handler, slot, id });
            verdicts.reasons.push(DeadReason::Undecodable.as_str());
            verdicts.failures.push(0);
            verdicts.errors.push(Some(ErrorLog::default().with(error).as_bytes().to_vec()));
            verdicts.holds_key.push(false);
        }
        let sent_at = BootTime::now();
        let buried = store::bury(self.shared.at(), &mut self.connection, &verdicts).await;
        self.heard("claim", sent_at, buried)
    }
}

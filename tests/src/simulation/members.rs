//! Who works, and who owns which partition.

use std::collections::VecDeque;
use std::sync::Arc;

use event_bus_core::Error;
use event_bus_core::backend::{HandlerIndex, Notice, Partition, SettleBatch, WorkerSpec};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::backend::Layout;
use super::claim::{handlers, lease_lost};
use super::state::{State, number};

/// Names a session.
pub(super) type SessionId = u64;

/// A session.
pub(super) struct Member {
    /// Which worker's, for the history.
    pub(super) worker: u32,
    /// Its right has not been lost or given back.
    pub(super) is_alive: bool,
    /// The queues of its handlers, by its own handler indices.
    pub(super) queues: Arc<[usize]>,
    /// The number of the last settle call that took effect.
    pub(super) settled: u64,
    /// What it has given up. It is not handed out again under the same number to a claim that was made before the session
    /// knew that.
    pub(super) limbo: Vec<GivenUp>,
    /// What it will be told, and when.
    notices: VecDeque<(Instant, Told)>,
    has_work: bool,
    pub(super) wake: Arc<Notify>,
}

/// A delivery that a session has given up.
#[derive(Clone, Copy)]
pub(super) struct GivenUp {
    pub(super) queue: usize,
    pub(super) part: Option<usize>,
    pub(super) id: u64,
    /// The turn in which the session got to know that it is stored.
    pub(super) known: Option<u64>,
}

/// A notice to be.
#[derive(Clone, Copy, PartialEq)]
enum Told {
    Revoke(Partition),
    Lost(Partition),
    Ended,
}

/// The next thing a session is told.
pub(super) enum Next {
    Now(Notice, Option<Knows>),
    At(Option<Instant>),
}

/// What a session learns with a notice, for the history.
pub(super) enum Knows {
    Lost(Arc<str>),
    Ended,
}

impl State {
    /// Whether a worker may open a session now; else from when on, if that is known.
    pub(super) fn may_open(&self, now: Instant) -> Result<(), Option<Instant>> {
        if self.config.layout != Layout::Whole {
            return Ok(());
        }
        if self.members.values().any(|member| member.is_alive) {
            return Err(None);
        }
        let parts = self.queues.iter().flat_map(|queue| &queue.parts);
        match parts.filter_map(|part| part.free_at).max().filter(|free_at| *free_at > now) {
            Some(free_at) => Err(Some(free_at)),
            None => Ok(()),
        }
    }

    pub(super) fn open(&mut self, worker: u32, spec: &WorkerSpec) -> (SessionId, Arc<Notify>) {
        let queues = spec.handlers.iter().map(|handler| self.queue(&handler.name)).collect();
        let session = self.next_session();
        let wake = Arc::new(Notify::new());
        let member = Member {
            worker,
            is_alive: true,
            queues,
            settled: 0,
            limbo: Vec::new(),
            notices: VecDeque::new(),
            has_work: true,
            wake: wake.clone(),
        };
        self.members.insert(session, member);
        self.is_unassigned = true;
        (session, wake)
    }

    /// A claim is made: it will hand out of the partitions that the session owns now, and of none that it gets later.
    pub(super) fn begin_claim(&mut self, session: SessionId, now: Instant) -> u64 {
        self.assign(now);
        self.turn += 1;
        if let Some(member) = self.members.get_mut(&session) {
            member.limbo.retain(|given_up| given_up.known.is_none());
        }
        self.turn
    }

    /// Gives free partitions to sessions, and asks for those that others shall have.
    pub(super) fn assign(&mut self, now: Instant) {
        if !self.is_unassigned {
            return;
        }
        self.is_unassigned = false;
        let (layout, rotation) = (self.config.layout, self.rotation);
        for (position, queue) in self.queues.iter_mut().enumerate() {
            let alive = self.members.iter().filter(|(_, member)| member.is_alive);
            let knowing: Vec<_> =
                alive.filter(|(_, member)| member.queues.contains(&position)).map(|(id, _)| *id).collect();
            if knowing.is_empty() {
                continue;
            }
            for (number_of_part, part) in queue.parts.iter_mut().enumerate() {
                let target = knowing[(number_of_part + rotation) % knowing.len()];
                match part.owner {
                    Some(owner) if owner == target || part.is_revoked => {}
                    Some(owner) => {
                        part.is_revoked = true;
                        if let Some(member) = self.members.get_mut(&owner)
                            && let Some(handler) = index_of(&member.queues, position)
                        {
                            let partition = Partition { handler, number: number(layout, number_of_part) };
                            member.tell(now, Told::Revoke(partition));
                        }
                    }
                    None if part.free_at.is_some_and(|free_at| free_at > now)
                        || part.barred.contains(&target) =>
                    {
                        // It is looked at again with the next claim.
                        self.is_unassigned = true;
                    }
                    None => {
                        part.owner = Some(target);
                        part.fence += 1;
                        part.since = self.turn;
                        part.free_at = None;
                        part.close_ranks();
                        part.untold = part.parked.keys().cloned().collect();
                        if let Some(member) = self.members.get_mut(&target) {
                            member.work();
                        }
                    }
                }
            }
        }
    }

    /// Gives a partition back. It does not come back before the session knows ([`released`](Self::released)).
    pub(super) fn release(&mut self, session: SessionId, partition: Partition) -> Result<(), Error> {
        let part = self.part_mut(session, partition).ok_or_else(|| lease_lost("release"))?;
        if let Some(part) = part.filter(|part| part.owner == Some(session) && part.is_revoked) {
            part.give_back(|_| {});
            part.free_at = None;
            part.barred.push(session);
            self.is_unassigned = true;
            self.wake_all();
        }
        Ok(())
    }

    /// The session knows that it gave this partition back, or lost it.
    pub(super) fn released(&mut self, session: SessionId, partition: Partition) {
        if let Some(Some(part)) = self.part_mut(session, partition) {
            part.barred.retain(|barred| *barred != session);
        }
    }

    /// A part by the session's words; nothing if the session is over, or there is no such part.
    #[expect(clippy::option_option, reason = "two different absences")]
    fn part_mut(
        &mut self,
        session: SessionId,
        partition: Partition,
    ) -> Option<Option<&mut super::state::Part>> {
        let member = self.members.get(&session).filter(|member| member.is_alive)?;
        let layout = self.config.layout;
        let queue = member.queues.get(partition.handler.get()).copied();
        Some(queue.and_then(|queue| {
            let parts = self.queues[queue].parts.iter_mut().enumerate();
            parts
                .filter(|(position, _)| number(layout, *position) == partition.number)
                .map(|(_, part)| part)
                .next()
        }))
    }

    /// Ends a session in order: everything goes back as it is.
    pub(super) fn close(&mut self, session: SessionId) -> Result<(), Error> {
        let Some(member) = self.members.get_mut(&session).filter(|member| member.is_alive) else {
            return Err(lease_lost("close"));
        };
        member.is_alive = false;
        self.give_all_back(session, None);
        Ok(())
    }

    /// Takes a session's right away. Nobody gets what it held before `free_at`; it learns of it at `told_at`. Answers its
    /// worker, or nothing if it was over before.
    pub(super) fn lose(
        &mut self,
        session: SessionId,
        free_at: Instant,
        told_at: Option<Instant>,
    ) -> Option<u32> {
        let member = self.members.get_mut(&session).filter(|member| member.is_alive)?;
        member.is_alive = false;
        // What it lost before is free earlier than the rest, so it hears of that as it would have.
        member.notices.retain(|(_, told)| matches!(told, Told::Lost(_)));
        if let Some(told_at) = told_at {
            member.tell(told_at, Told::Ended);
        }
        let worker = member.worker;
        self.give_all_back(session, Some(free_at));
        Some(worker)
    }

    /// As [`lose`](Self::lose), for one partition that the session owns, chosen by `choice`, where there are parts. Answers the handler.
    pub(super) fn lose_partition(
        &mut self,
        session: SessionId,
        choice: usize,
        free_at: Instant,
        told_at: Instant,
    ) -> Option<Arc<str>> {
        let layout = self.config.layout;
        if layout == Layout::Whole {
            return None;
        }
        let member = self.members.get_mut(&session).filter(|member| member.is_alive)?;
        let mut owned = Vec::new();
        for (handler, queue) in handlers(&member.queues) {
            let parts = self.queues[queue].parts.iter().enumerate();
            let parts = parts.filter(|(_, part)| part.owner == Some(session));
            owned.extend(parts.map(|(position, _)| (handler, queue, position)));
        }
        let (handler, queue, position) = *owned.get(choice % owned.len().max(1))?;
        let partition = Partition { handler, number: number(layout, position) };
        member.notices.retain(|(_, told)| *told != Told::Revoke(partition));
        member.tell(told_at, Told::Lost(partition));
        let part = &mut self.queues[queue].parts[position];
        part.give_back(super::state::Row::crash);
        part.free_at = Some(free_at);
        part.barred.push(session);
        self.is_unassigned = true;
        Some(self.queues[queue].name.clone())
    }

    /// Whether the session has not yet heard that it lost a partition of this batch; it will now.
    pub(super) fn must_hear(&mut self, session: SessionId, batch: &SettleBatch, now: Instant) -> bool {
        let Some(member) = self.members.get_mut(&session) else { return false };
        let mut must_hear = false;
        for (at, told) in &mut member.notices {
            let Told::Lost(lost) = told else { continue };
            if batch.settlements.iter().any(|settlement| settlement.delivery.partition == *lost) {
                *at = (*at).min(now);
                must_hear = true;
            }
        }
        if must_hear {
            member.wake.notify_one();
        }
        must_hear
    }

    fn give_all_back(&mut self, session: SessionId, unclean: Option<Instant>) {
        let change = |row: &mut super::state::Row| {
            if unclean.is_some() {
                row.crash();
            }
        };
        for position in 0..self.queues.len() {
            let queue = &mut self.queues[position];
            for part in queue.parts.iter_mut().filter(|part| part.owner == Some(session)) {
                part.give_back(change);
                part.free_at = unclean;
            }
            for part in &mut queue.parts {
                part.barred.retain(|barred| *barred != session);
            }
            let held = queue.free.held.iter().filter(|(_, (holder, _))| *holder == session);
            let mut ids: Vec<_> = held.map(|(id, _)| *id).collect();
            ids.sort_unstable();
            for id in ids {
                let Some((_, mut row)) = self.queues[position].free.held.remove(&id) else { continue };
                change(&mut row);
                match unclean {
                    Some(free_at) => {
                        let turn = self.next_id();
                        self.queues[position].later.insert((free_at, turn), (id, row));
                    }
                    None => self.queues[position].enter(id, row),
                }
            }
        }
        self.is_unassigned = true;
        self.wake_all();
    }

    /// Tells every session that there may be work.
    pub(super) fn wake_all(&mut self) {
        self.members.values_mut().for_each(Member::work);
    }

    /// What a session is told next.
    pub(super) fn next_notice(&mut self, session: SessionId, now: Instant) -> Next {
        let Some(member) = self.members.get_mut(&session) else { return Next::At(None) };
        if let Some(position) = member.notices.iter().position(|(at, _)| *at <= now)
            && let Some((_, told)) = member.notices.remove(position)
        {
            return match told {
                Told::Revoke(partition) => Next::Now(Notice::Revoke(partition), None),
                Told::Lost(partition) => {
                    let queue = member.queues.get(partition.handler.get()).copied();
                    let handler = queue.map(|queue| self.queues[queue].name.clone());
                    self.released(session, partition);
                    Next::Now(Notice::Lost(partition), handler.map(Knows::Lost))
                }
                Told::Ended => Next::Now(Notice::Ended(lease_lost("wait")), Some(Knows::Ended)),
            };
        }
        if std::mem::take(&mut member.has_work) && member.is_alive {
            return Next::Now(Notice::Work, None);
        }
        Next::At(member.notices.iter().map(|(at, _)| *at).min())
    }
}

impl Member {
    pub(super) fn work(&mut self) {
        self.has_work = true;
        self.wake.notify_one();
    }

    fn tell(&mut self, at: Instant, told: Told) {
        self.notices.push_back((at, told));
        self.wake.notify_one();
    }
}

impl super::state::Part {
    /// Parks what an earlier owner had taken out of parked lanes: a lane's deliveries are handed out in their order, so
    /// what is parked of it must not come before what is not.
    fn close_ranks(&mut self) {
        if self.parked.is_empty() {
            return;
        }
        let lane_of = |row: &super::state::Row| row.envelope.key.clone();
        let stragglers = self.line.waiting.iter().filter_map(|(id, row)| {
            let key = lane_of(row)?;
            let (last, _) = self.parked.get(&key)?.last_key_value()?;
            (id < last).then_some((*id, key))
        });
        for (id, key) in stragglers.collect::<Vec<_>>() {
            if let Some(row) = self.line.waiting.remove(&id) {
                self.parked.entry(key).or_default().insert(id, row);
            }
        }
    }

    /// Nobody owns it any more; what was in the owner's hands is back in line.
    fn give_back(&mut self, mut change: impl FnMut(&mut super::state::Row)) {
        self.owner = None;
        self.is_revoked = false;
        self.untold.clear();
        for (id, (_, mut row)) in self.line.held.drain() {
            change(&mut row);
            self.line.waiting.insert(id, row);
        }
    }
}

fn index_of(queues: &[usize], queue: usize) -> Option<HandlerIndex> {
    handlers(queues).find(|(_, known)| *known == queue).map(|(handler, _)| handler)
}

//! Who owns what: a worker's beat, taking over from those that vanished, and sharing with those that come.

use std::time::Duration;

use event_bus_core::backend::{HandlerIndex, Notice, Partition};
use event_bus_core::clock::BootTime;
use event_bus_core::{Result, SLOTS};
use tokio::time::Instant;

use crate::connection::SESSION_SILENCE;
use crate::keeper::{Keeper, Lease};
use crate::listen::LEASES;
use crate::row::{self, FREE};
use crate::store::{self, Survey};

/// The first server version that ends silent sessions by itself.
const ENDS_SILENT_SESSIONS: i32 = 140_000;

/// How often a vanished worker is tried to be buried in one beat: what is locked is left for the next.
const BURIALS: usize = 3;

/// How many steps of transactions are waited for at once.
const MARKS: usize = 64;

/// How often old idempotency keys are forgotten, and how many at a time.
const FORGET_KEYS_EVERY: Duration = Duration::from_secs(60);
const FORGET_KEYS: i64 = 1_000;

impl Keeper {
    /// Proves that the session lives, and sees to it that every lease has an owner and every worker its share.
    pub(crate) async fn beat(&mut self) {
        self.next_beat = Instant::now() + self.beat_interval();
        if let Err(failure) = self.look_around().await {
            tracing::warn!(
                error = event_bus_core::chain(&failure),
                "a worker could not look at its leases, will look again"
            );
        }
    }

    async fn look_around(&mut self) -> Result<()> {
        let handlers: Vec<_> = self.handlers.iter().map(|handler| handler.id).collect();
        if self.must_give_back {
            let sent_at = BootTime::now();
            let told = store::give_back(self.shared.at(), &mut self.connection, &handlers).await;
            self.heard("survey", sent_at, told)?;
            self.must_give_back = false;
        }
        let sent_at = BootTime::now();
        let survey = store::survey(self.shared.at(), &mut self.connection, self.worker, &handlers).await;
        let survey = self.heard("survey", sent_at, survey)?;
        self.raise_floor(&survey);
        if !survey.workers.iter().any(|worker| worker.id == self.worker) {
            self.state.end("this worker was declared dead");
            return Ok(());
        }
        if self.is_quarantined().await? {
            return Ok(());
        }
        let has_buried = self.bury_vanished(&survey).await?;
        self.share(&survey, has_buried).await?;
        if self.version < ENDS_SILENT_SESSIONS {
            let sent_at = BootTime::now();
            let ended =
                store::end_silent_workers(self.shared.at(), &mut self.connection, SESSION_SILENCE).await;
            let ended = self.heard("survey", sent_at, ended)?;
            if ended > 0 {
                tracing::warn!(
                    workers = ended,
                    "ended sessions of workers that have been silent for too long"
                );
            }
        }
        if Instant::now() >= self.forget_keys_at {
            let (sent_at, age) = (BootTime::now(), self.shared.config.dedupe_retention);
            let forgotten =
                store::forget_keys(self.shared.at(), &mut self.connection, age, FORGET_KEYS).await;
            let forgotten = self.heard("survey", sent_at, forgotten)?;
            if forgotten < FORGET_KEYS.unsigned_abs() {
                self.forget_keys_at = Instant::now() + FORGET_KEYS_EVERY;
            }
        }
        Ok(())
    }

    /// Whether nothing may be taken yet, see [`Quarantine`](crate::keeper::Quarantine).
    async fn is_quarantined(&mut self) -> Result<bool> {
        let Some(quarantine) = &self.quarantine else { return Ok(false) };
        if Instant::now() < quarantine.until {
            return Ok(true);
        }
        let sent_at = BootTime::now();
        let turned = store::turn_history(self.shared.at(), &mut self.connection, &quarantine.history).await;
        self.heard("survey", sent_at, turned)?;
        self.quarantine = None;
        self.state.bell.notify_one();
        Ok(false)
    }

    /// Learns how far transactions have come, see the module's documentation.
    fn raise_floor(&mut self, survey: &Survey) {
        let last = self.marks.back().map_or(self.final_to, |(top, _)| *top);
        if self.top > last {
            if self.marks.len() >= MARKS {
                // The last one waits for more than it must.
                self.marks.pop_back();
            }
            self.marks.push_back((self.top, survey.next));
        }
        while let Some((top, next)) = self.marks.front().copied()
            && next <= survey.oldest
        {
            self.final_to = top;
            self.marks.pop_front();
        }
        for facts in &survey.handlers {
            let Some(position) = self.position(facts.id) else { continue };
            if self.free_floors[position].1 != facts.given_back {
                self.free_floors[position] = (0, facts.given_back);
                self.state.bell.notify_one();
            }
        }
    }

    async fn bury_vanished(&mut self, survey: &Survey) -> Result<bool> {
        let mut has_buried = false;
        for gone in survey.workers.iter().filter(|worker| worker.is_gone) {
            for _ in 0..BURIALS {
                let sent_at = BootTime::now();
                let buried = store::bury_worker(self.shared.at(), &mut self.connection, gone.id).await;
                let (is_forgotten, charged) = self.heard("survey", sent_at, buried)?;
                has_buried = true;
                if charged > 0 {
                    tracing::warn!(
                        worker = gone.id,
                        deliveries = charged,
                        "a worker vanished; they may run again"
                    );
                    self.state.bell.notify_one();
                }
                if is_forgotten {
                    break;
                }
            }
        }
        Ok(has_buried)
    }

    /// Takes free leases up to this worker's share, and asks core for those beyond it.
    async fn share(&mut self, survey: &Survey, has_buried: bool) -> Result<()> {
        let (mut wanted, mut most) = (Vec::new(), Vec::new());
        for position in 0..self.handlers.len() {
            let handler = self.handlers[position].id;
            let workers = survey.workers.iter().filter(|worker| !worker.is_gone);
            let sharers = workers.filter(|worker| worker.handlers.contains(&handler)).count().max(1);
            let share = usize::from(SLOTS).div_ceil(sharers);
            let owned = self.leases[position].len();
            let is_any_free =
                has_buried || survey.handlers.iter().any(|facts| facts.id == handler && facts.free > 0);
            if owned < share && is_any_free {
                wanted.push(handler);
                most.push(i64::try_from(share - owned).unwrap_or(0));
            }
            self.revoke_beyond(position, share);
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let sent_at = BootTime::now();
        let taken = store::take(self.shared.at(), &mut self.connection, self.worker, &wanted, &most).await;
        let taken = self.heard("survey", sent_at, taken)?;
        let now = Instant::now();
        let unclean = taken.iter().filter(|lease| lease.is_unclean).count();
        if unclean > 0 {
            tracing::warn!(
                leases = unclean,
                delay = ?self.shared.config.handover_delay,
                "taking over from a worker that vanished"
            );
        }
        for lease in taken {
            let Some(position) = self.position(lease.handler) else { continue };
            let ready_at = if lease.is_unclean { now + self.shared.config.handover_delay } else { now };
            let unreported = lease.has_parked.then(String::new);
            let lease_here = Lease {
                epoch: lease.epoch,
                ready_at,
                unreported,
                is_revoked: false,
                floor: 0,
                is_full: false,
                is_clogged: false,
            };
            self.leases[position].insert(lease.slot, lease_here);
        }
        self.state.bell.notify_one();
        Ok(())
    }

    fn revoke_beyond(&mut self, position: usize, share: usize) {
        let leases = &mut self.leases[position];
        let kept = leases.values().filter(|lease| !lease.is_revoked).count();
        let Some(surplus) = kept.checked_sub(share).filter(|surplus| *surplus > 0) else { return };
        let mut load: Vec<_> = leases
            .iter()
            .filter(|(_, lease)| !lease.is_revoked)
            .map(|(slot, _)| (self.held.values().filter(|held| **held == (position, *slot)).count(), *slot))
            .collect();
        // Those with the least in memory are free the soonest.
        load.sort_unstable();
        for (_, slot) in load.into_iter().take(surplus) {
            if let Some(lease) = leases.get_mut(&slot) {
                lease.is_revoked = true;
                self.state.say(Notice::Revoke(partition(position, slot)));
            }
        }
    }

    /// When the next lease that was taken over may be used.
    pub(crate) fn next_ready(&self) -> Option<Instant> {
        let now = Instant::now();
        let leases = self.leases.iter().flat_map(|leases| leases.values());
        leases.map(|lease| lease.ready_at).filter(|ready_at| *ready_at > now).min()
    }

    /// Leases that were taken over and whose hand-over delay is not over: whoever takes them next has to wait as well, for
    /// their old owner may not have noticed yet.
    pub(crate) fn unclean(&self) -> Vec<(i32, i16)> {
        let now = Instant::now();
        let leases = self.handlers.iter().zip(&self.leases);
        let leases = leases
            .flat_map(|(handler, leases)| leases.iter().map(|(slot, lease)| (handler.id, *slot, lease)));
        leases
            .filter(|(_, _, lease)| lease.ready_at > now)
            .map(|(handler, slot, _)| (handler, slot))
            .collect()
    }

    /// Time has passed: there may be something to claim.
    pub(crate) fn ready(&mut self) {
        if Instant::now() < self.next_beat {
            self.state.bell.notify_one();
        }
    }

    /// Gives a lease back after core has let go of it.
    pub(crate) async fn release(&mut self, partition: Partition) -> Result<()> {
        let (position, slot) = (partition.handler.get(), row::slot(partition));
        let Some(handler) = self.handlers.get(position).map(|handler| handler.id) else { return Ok(()) };
        let Some(lease) = self.leases[position].get(&slot) else { return Ok(()) };
        let is_unclean = lease.ready_at > Instant::now();
        let sent_at = BootTime::now();
        let (at, connection) = (self.shared.at(), &mut self.connection);
        let released = store::release(at, connection, self.worker, (handler, slot), is_unclean).await;
        self.heard("release", sent_at, released)?;
        self.leases[position].remove(&slot);
        self.held.retain(|_, held| *held != (position, slot));
        // Whoever takes it lines them up.
        self.strays.retain(|stray| (stray.handler, stray.slot) != (handler, slot));
        let held = &self.held;
        self.given_back.retain(|id| held.contains_key(id));
        let is_last = !self.leases[position].values().any(|lease| lease.is_revoked);
        if is_last {
            self.tell(LEASES).await;
        }
        Ok(())
    }
}

/// A partition as core knows it.
pub(crate) fn partition(position: usize, slot: i16) -> Partition {
    let handler = HandlerIndex(u32::try_from(position).unwrap_or(u32::MAX));
    let number = if slot == FREE { Partition::WHOLE } else { row::partition_number(slot) };
    Partition { handler, number }
}

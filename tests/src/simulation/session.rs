//! A worker's hold on the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use event_bus_core::backend::{ClaimRequest, Claimed, Notice, Partition, Session, SettleBatch};
use event_bus_core::{Error, ErrorKind, Result};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::backend::{Incident, SimulatedStore, outcome_unknown, pause, unavailable};
use super::faults::Fate;
use super::link::Link;
use super::members::{Knows, Next, SessionId};
use super::settle::breaches;
use super::trace;

pub(super) struct SimulatedSession {
    store: SimulatedStore,
    worker: u32,
    id: SessionId,
    wake: Arc<Notify>,
    /// A notice other than a wake-up was told.
    told: Notify,
    link: Arc<Link>,
    settles: AtomicU64,
    claiming: AtomicBool,
    settling: AtomicBool,
}

impl SimulatedSession {
    pub(super) fn new(
        store: SimulatedStore,
        worker: u32,
        id: SessionId,
        wake: Arc<Notify>,
        link: Arc<Link>,
    ) -> Self {
        Self {
            store,
            worker,
            id,
            wake,
            told: Notify::new(),
            link,
            settles: AtomicU64::new(0),
            claiming: AtomicBool::new(false),
            settling: AtomicBool::new(false),
        }
    }

    fn store_outcomes(&self, number: u64, batch: &SettleBatch) -> Result<()> {
        let shared = &self.store.shared;
        let died_at = shared.now();
        let result = shared.with(|state| state.settle(self.id, number, batch, Instant::now(), died_at));
        self.learn(&result);
        tracing::trace!("session {} settle {number}: {:?} {}", self.id, result.is_ok(), trace::settle(batch));
        result
    }

    /// An error tells the worker that its session is over.
    fn learn<T>(&self, result: &Result<T>) {
        if result.is_err() {
            self.store.shared.observe(Incident::SessionLost { worker: self.worker });
        }
    }

    fn one_at_a_time<'a>(&self, flag: &'a AtomicBool, call: &str) -> Busy<'a> {
        if flag.swap(true, Ordering::Relaxed) {
            self.store.shared.breach(self.worker, format!("two {call} calls at once"));
        }
        Busy(flag)
    }
}

/// A call under way.
struct Busy<'a>(&'a AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[async_trait]
impl Session for SimulatedSession {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed> {
        let shared = &self.store.shared;
        let turn = shared.with(|state| state.begin_claim(self.id, Instant::now()));
        let Some(faults) = &shared.faults else {
            return shared.with(|state| state.claim(self.id, turn, request, Instant::now()));
        };
        let _busy = self.one_at_a_time(&self.claiming, "claim");
        let is_empty = request.demands.iter().map(|demand| demand.limit);
        if is_empty.chain(request.lanes.iter().map(|lane| lane.limit)).any(|limit| limit == 0) {
            shared.breach(self.worker, "a claim asks for 0 deliveries");
        }
        shared.arrive(self.worker, &self.link).await;
        let drawn = shared.draw();
        pause(drawn.before).await;
        match drawn.fate {
            Fate::LostSession => shared.lose_alive(self.id),
            Fate::ErrorBefore | Fate::ErrorAfter | Fate::Late(_) => return Err(unavailable("claim")),
            Fate::Fine => {}
        }
        let claimed = shared.with(|state| state.claim(self.id, turn, request, Instant::now()));
        self.learn(&claimed);
        let mut claimed = claimed?;
        tracing::trace!("session {} claim took effect: {}", self.id, trace::claim(request, &claimed));
        if faults.duplicates()
            && let Some(delivery) = claimed.deliveries.get(faults.below(claimed.deliveries.len()))
        {
            claimed.deliveries.push(delivery.clone());
        }
        pause(drawn.after).await;
        // What was read is old by the time it arrives: the partition may be lost, the rest settled or published.
        pause(faults.staleness()).await;
        self.link.pass().await;
        tracing::trace!("session {} claim answered: {}", self.id, trace::claim(request, &claimed));
        Ok(claimed)
    }

    async fn settle(&self, batch: &SettleBatch) -> Result<()> {
        let shared = &self.store.shared;
        let number = self.settles.fetch_add(1, Ordering::Relaxed) + 1;
        if shared.faults.is_none() {
            self.store_outcomes(number, batch)?;
            shared.with(|state| state.answered(self.id));
            return Ok(());
        }
        let _busy = self.one_at_a_time(&self.settling, "settle");
        for breach in breaches(batch, shared.may_park()) {
            shared.breach(self.worker, breach);
        }
        shared.arrive(self.worker, &self.link).await;
        let drawn = shared.draw();
        pause(drawn.before).await;
        match drawn.fate {
            Fate::LostSession => shared.lose_alive(self.id),
            Fate::ErrorBefore => return Err(unavailable("settle")),
            Fate::Late(delay) => {
                let (store, id, batch) = (self.store.clone(), self.id, batch.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    let died_at = store.shared.now();
                    // Nobody waits for its answer.
                    let _ =
                        store.shared.with(|state| state.settle(id, number, &batch, Instant::now(), died_at));
                });
                return Err(outcome_unknown("settle"));
            }
            Fate::Fine | Fate::ErrorAfter => {}
        }
        self.store_outcomes(number, batch)?;
        pause(drawn.after).await;
        self.link.pass().await;
        if drawn.fate == Fate::ErrorAfter {
            return Err(outcome_unknown("settle"));
        }
        // What was dropped because its partition was lost must not pass for stored: the worker would go on with the next
        // attempt.
        while shared.with(|state| state.must_hear(self.id, batch, Instant::now())) {
            self.told.notified().await;
        }
        shared.with(|state| state.answered(self.id));
        Ok(())
    }

    async fn wait(&self) -> Notice {
        let shared = &self.store.shared;
        loop {
            let woken = self.wake.notified();
            let next = if self.link.is_cut() {
                Next::At(None)
            } else {
                shared.with(|state| state.next_notice(self.id, Instant::now()))
            };
            match next {
                Next::Now(notice, knows) => {
                    let worker = self.worker;
                    match knows {
                        Some(Knows::Ended) => shared.observe(Incident::SessionLost { worker }),
                        Some(Knows::Lost(handler)) => {
                            shared.observe(Incident::PartitionLost { worker, handler });
                        }
                        None => {}
                    }
                    if !matches!(notice, Notice::Work) {
                        self.told.notify_one();
                        tracing::trace!("session {} of worker {worker} is told: {notice:?}", self.id);
                    }
                    return notice;
                }
                Next::At(None) => woken.await,
                Next::At(Some(at)) => tokio::select! {
                    biased;
                    () = woken => {}
                    () = tokio::time::sleep_until(at) => {}
                },
            }
        }
    }

    async fn release(&self, partition: Partition) -> Result<()> {
        let shared = &self.store.shared;
        shared.arrive(self.worker, &self.link).await;
        let drawn = shared.draw();
        pause(drawn.before).await;
        match drawn.fate {
            Fate::LostSession => shared.lose_alive(self.id),
            Fate::ErrorBefore | Fate::Late(_) => return Err(unavailable("release")),
            Fate::Fine | Fate::ErrorAfter => {}
        }
        let released = shared.with(|state| state.release(self.id, partition));
        self.learn(&released);
        released?;
        tracing::trace!("session {} released {partition:?}", self.id);
        pause(drawn.after).await;
        self.link.pass().await;
        if drawn.fate == Fate::ErrorAfter {
            return Err(outcome_unknown("release"));
        }
        shared.with(|state| state.released(self.id, partition));
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        let shared = &self.store.shared;
        shared.arrive(self.worker, &self.link).await;
        let drawn = shared.draw();
        pause(drawn.before).await;
        match drawn.fate {
            Fate::LostSession => shared.lose_alive(self.id),
            Fate::ErrorBefore | Fate::Late(_) => {
                return Err(Error::new(ErrorKind::Unavailable, "close", "the store could not be told"));
            }
            Fate::Fine | Fate::ErrorAfter => {}
        }
        let closed = shared.with(|state| state.close(self.id));
        self.learn(&closed);
        closed?;
        shared.handed_over();
        pause(drawn.after).await;
        Ok(())
    }
}

impl Drop for SimulatedSession {
    /// The connection closes, and the store sees it, unless the process was cut off.
    fn drop(&mut self) {
        if !self.link.is_cut() {
            self.store.shared.lose(self.id, Duration::ZERO, None);
        }
    }
}

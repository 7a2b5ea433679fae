//! The store behind the trait: everything takes place under one lock that is never held while anything waits.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use event_bus_core::backend::{
    Backend, Capabilities, DeadLetter, DeadLetterFilter, DeliveryId, Envelope, HandlerCounts, Publication,
    Session, Stored, WorkerSpec,
};
use event_bus_core::clock::{Clock, SystemClock};
use event_bus_core::{Error, ErrorKind, Result};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::faults::{Drawn, Fate, Faults};
use super::link::Link;
use super::members::SessionId;
use super::session::SimulatedSession;
use super::state::State;

/// How long nobody gets what a session lost while it was alive: it must have heard of it by then.
const HANDOVER: Duration = Duration::from_secs(2);

/// More calls than this at one instant of a paused clock are a loop that waits for nothing.
const MAX_CALLS_AT_ONCE: u64 = 20_000;

/// A session hears of its loss within this time.
const HEARS_WITHIN: Duration = Duration::from_secs(1);

/// How a store divides and numbers what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One session works, others stand by.
    Whole,
    /// Keyed deliveries of each handler are divided into this many parts; each is owned by one session.
    Divided(u16),
}

/// What a store is like. All of these keep the contract.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Who owns what.
    pub layout: Layout,
    /// What it says that it offers. (Transactions it does not.)
    pub capabilities: Capabilities,
    /// A delivery without a place has a new number when it comes back.
    pub renumbers: bool,
    /// With a lane's claimed deliveries the rest of it is parked as well.
    pub parks_lines: bool,
    /// Free deliveries carry a fence, too.
    pub fences_free: bool,
    /// How many parked lanes of a newly acquired partition an answer tells of.
    pub told_per_claim: usize,
}

impl Default for Config {
    /// Everything but transactions, in parts of four.
    fn default() -> Self {
        let mut capabilities = Capabilities::ALL;
        capabilities.transactional_publish = false;
        capabilities.transactional_complete = false;
        Self {
            layout: Layout::Divided(4),
            capabilities,
            renumbers: true,
            parks_lines: true,
            fences_free: false,
            told_per_claim: 1_000,
        }
    }
}

/// What the store did to a worker, or found wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Incident {
    /// A session lost its right; told when it happens, and again when the worker hears of it.
    SessionLost {
        /// Whose.
        worker: u32,
    },
    /// A session lost a partition; told as for `SessionLost`.
    PartitionLost {
        /// Whose.
        worker: u32,
        /// A part of whose deliveries.
        handler: Arc<str>,
    },
    /// The engine broke its side of the contract.
    Breach {
        /// Which.
        worker: u32,
        /// How.
        text: String,
    },
}

/// Hears of incidents, at once and in order.
pub type Observer = Arc<dyn Fn(Incident) + Send + Sync>;

/// A store in memory. A cheap clone: all clones are the same store.
#[derive(Clone)]
pub struct SimulatedStore {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    state: Mutex<State>,
    config: Config,
    pub(super) faults: Option<Faults>,
    clock: Arc<dyn Clock>,
    observer: Option<Observer>,
    changed: Notify,
    /// Calls since the clock last moved.
    calls: Mutex<(Instant, u64)>,
}

impl SimulatedStore {
    /// A store that works; `clock` dates its dead letters.
    pub fn new(config: Config, clock: Arc<dyn Clock>) -> Self {
        Self::build(config, clock, None, None)
    }

    /// A store with faults; `observer` hears what they did.
    pub fn with_faults(config: Config, clock: Arc<dyn Clock>, faults: Faults, observer: Observer) -> Self {
        Self::build(config, clock, Some(faults), Some(observer))
    }

    fn build(
        config: Config,
        clock: Arc<dyn Clock>,
        faults: Option<Faults>,
        observer: Option<Observer>,
    ) -> Self {
        let state = Mutex::new(State::new(config));
        Self {
            shared: Arc::new(Shared {
                state,
                config,
                faults,
                clock,
                observer,
                changed: Notify::new(),
                calls: Mutex::new((Instant::now(), 0)),
            }),
        }
    }

    /// A connection to the store, for one process, which is worker `worker` in the history.
    pub fn connect(&self, worker: u32) -> SimulatedBackend {
        SimulatedBackend { store: self.clone(), worker, link: Arc::default() }
    }

    /// From now on the store fails no more.
    pub fn heal(&self) {
        if let Some(faults) = &self.shared.faults {
            faults.heal();
        }
    }

    /// Takes the right of a worker's session away; it hears of it a little later.
    pub fn lose_session(&self, worker: u32) {
        self.shared.lose_sessions(worker, HANDOVER, Some(self.shared.hears_in()));
    }

    /// Takes the right to one partition away, if the worker owns any; it hears of it a little later.
    pub fn lose_partition(&self, worker: u32) {
        let now = Instant::now();
        let told_at = now + self.shared.hears_in();
        let choice = self.shared.faults.as_ref().map_or(0, |faults| faults.below(usize::MAX));
        for session in self.shared.sessions(worker) {
            let handler =
                self.shared.with(|state| state.lose_partition(session, choice, now + HANDOVER, told_at));
            if let Some(handler) = handler {
                self.shared.observe(Incident::PartitionLost { worker, handler });
            }
        }
    }

    /// The store notices that a worker that was cut off is dead: what it held is free at once.
    pub fn declare_dead(&self, worker: u32) {
        self.shared.lose_sessions(worker, Duration::ZERO, None);
    }

    /// Assigns the partitions anew: owners are asked to give back what others shall have.
    pub fn rebalance(&self) {
        self.shared.with(|state| {
            state.rotation += 1;
            state.is_unassigned = true;
            state.assign(Instant::now());
        });
    }

    /// Deliveries that are neither done nor dead: handler, event, and what it waits for.
    pub fn pending(&self) -> Vec<(Arc<str>, Envelope, String)> {
        let now = Instant::now();
        self.shared.with(|state| {
            let rows = state.queues.iter().flat_map(|queue| queue.rows().map(move |row| (queue, row)));
            rows.map(|(queue, (word, due, row))| {
                let due = due.map(|due| due.saturating_duration_since(now));
                let text = format!(
                    "{word}, due in {due:?}, {} failures, {} crashes, started as {}",
                    row.failures, row.crashes, row.started
                );
                (queue.name.clone(), row.envelope.clone(), text)
            })
            .collect()
        })
    }

    /// Whether nothing is left to run. Deliveries behind a dead letter that holds their key are left.
    pub fn is_empty(&self) -> bool {
        self.shared.with(|state| state.queues.iter().all(|queue| queue.rows().next().is_none()))
    }

    /// What is in hands that nobody has any more, or still open: nothing, after every worker has ended.
    pub fn leaks(&self) -> Vec<String> {
        self.shared.with(|state| {
            let members = state.members.iter().filter(|(_, member)| member.is_alive);
            let mut leaks: Vec<_> = members
                .map(|(id, member)| format!("session {id} of worker {} is open", member.worker))
                .collect();
            for queue in &state.queues {
                let lines = queue.parts.iter().map(|part| &part.line).chain([&queue.free]);
                for (id, (session, _)) in lines.flat_map(|line| &line.held) {
                    leaks.push(format!(
                        "delivery {id} of {} is in the hands of session {session}",
                        queue.name
                    ));
                }
                for part in queue.parts.iter().filter(|part| part.owner.is_some()) {
                    leaks.push(format!("a part of {} is owned by session {:?}", queue.name, part.owner));
                }
            }
            leaks
        })
    }
}

impl fmt::Debug for SimulatedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedStore").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        // A panic while it is held would be a bug of this store; what it left is as good as any state.
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn observe(&self, incident: Incident) {
        if let Some(observer) = &self.observer {
            observer(incident);
        }
    }

    pub(super) fn breach(&self, worker: u32, text: impl Into<String>) {
        self.observe(Incident::Breach { worker, text: text.into() });
    }

    /// Counts a call of a worker; never returns from a loop of calls that lets no time pass.
    pub(super) async fn arrive(&self, worker: u32, link: &Link) {
        let now = Instant::now();
        let calls = {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            *calls = if calls.0 == now { (now, calls.1 + 1) } else { (now, 1) };
            calls.1
        };
        if calls == MAX_CALLS_AT_ONCE {
            self.breach(worker, format!("{calls} calls at one instant: the engine does not wait"));
        }
        if calls >= MAX_CALLS_AT_ONCE {
            std::future::pending::<()>().await;
        }
        link.pass().await;
    }

    pub(super) fn draw(&self) -> Drawn {
        self.faults.as_ref().map_or(Drawn::FINE, Faults::draw)
    }

    pub(super) fn may_park(&self) -> bool {
        self.config.capabilities.parking
    }

    pub(super) fn now(&self) -> event_bus_core::Timestamp {
        self.clock.now()
    }

    /// Ends a session's right.
    pub(super) fn lose(&self, session: SessionId, free_in: Duration, told_in: Option<Duration>) {
        let now = Instant::now();
        let told_at = told_in.map(|told_in| now + told_in);
        if let Some(worker) = self.with(|state| state.lose(session, now + free_in, told_at)) {
            self.observe(Incident::SessionLost { worker });
            self.changed.notify_waiters();
        }
    }

    /// As [`lose`](Self::lose), for a session that lives and will stop in time.
    pub(super) fn lose_alive(&self, session: SessionId) {
        self.lose(session, HANDOVER, Some(self.hears_in()));
    }

    fn lose_sessions(&self, worker: u32, free_in: Duration, told_in: Option<Duration>) {
        for session in self.sessions(worker) {
            self.lose(session, free_in, told_in);
        }
    }

    fn sessions(&self, worker: u32) -> Vec<SessionId> {
        self.with(|state| {
            let members = state.members.iter();
            members.filter(|(_, m)| m.worker == worker && m.is_alive).map(|(id, _)| *id).collect()
        })
    }

    fn hears_in(&self) -> Duration {
        self.faults.as_ref().map_or(Duration::ZERO, |faults| faults.part_of(HEARS_WITHIN))
    }

    /// Somebody may take over.
    pub(super) fn handed_over(&self) {
        self.changed.notify_waiters();
    }

    fn publish(&self, publication: &Publication) -> Stored {
        self.with(|state| {
            let stored = state.publish(publication, Instant::now());
            for member in state.members.values_mut() {
                if self.faults.as_ref().is_none_or(|faults| !faults.loses_wake_up()) {
                    member.work();
                }
            }
            stored
        })
    }
}

/// One process's connection to a [`SimulatedStore`].
#[derive(Clone, Debug)]
pub struct SimulatedBackend {
    store: SimulatedStore,
    worker: u32,
    link: Arc<Link>,
}

impl SimulatedBackend {
    /// The process is dead: nothing of it reaches the store any more, and all its calls wait for ever. (What was on its way
    /// may still arrive.) The store does not know before [`SimulatedStore::declare_dead`].
    pub fn cut(&self) {
        self.link.cut();
    }

    /// Nothing passes for a while. A session gives up its right in time, if that is too long for it to be kept.
    pub fn stall(&self, lasts: Duration) {
        const TRUST: Duration = Duration::from_secs(3);
        const TTL: Duration = Duration::from_secs(4);
        self.link.stall(Instant::now() + lasts);
        if lasts >= TTL {
            self.store.shared.lose_sessions(self.worker, TTL, Some(TRUST));
        }
    }
}

#[async_trait]
impl Backend for SimulatedBackend {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn capabilities(&self) -> Capabilities {
        self.store.shared.config.capabilities
    }

    async fn prepare(&self) -> Result<()> {
        Ok(())
    }

    async fn publish(&self, mut publication: Publication) -> Result<Stored> {
        let shared = &self.store.shared;
        if shared.faults.is_none() {
            return Ok(shared.publish(&publication));
        }
        if publication.events.iter().any(|event| event.handlers.is_empty()) {
            shared.breach(self.worker, "an event without handlers was published");
        }
        self.link.pass().await;
        let drawn = shared.draw();
        pause(drawn.before).await;
        match drawn.fate {
            Fate::ErrorBefore | Fate::LostSession => return Err(unavailable("publish")),
            Fate::Late(delay) => {
                let (store, publication) = (self.store.clone(), publication);
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    store.shared.publish(&publication);
                });
                return Err(outcome_unknown("publish"));
            }
            Fate::ErrorAfter
                if !self.capabilities().atomic_publish && publication.idempotency_key.is_none() =>
            {
                let kept =
                    shared.faults.as_ref().map_or(0, |faults| faults.below(publication.events.len() + 1));
                publication.events.truncate(kept);
            }
            Fate::Fine | Fate::ErrorAfter => {}
        }
        let stored = shared.publish(&publication);
        pause(drawn.after).await;
        self.link.pass().await;
        match drawn.fate {
            Fate::ErrorAfter => Err(outcome_unknown("publish")),
            _ => Ok(stored),
        }
    }

    async fn open(&self, worker: &WorkerSpec) -> Result<Arc<dyn Session>> {
        let shared = &self.store.shared;
        shared.arrive(self.worker, &self.link).await;
        let drawn = shared.draw();
        pause(drawn.before).await;
        if !matches!(drawn.fate, Fate::Fine) {
            return Err(unavailable("open"));
        }
        let session = loop {
            let changed = shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let opened =
                shared.with(|state| state.may_open(Instant::now()).map(|()| state.open(self.worker, worker)));
            match opened {
                Ok((session, wake)) => {
                    break SimulatedSession::new(
                        self.store.clone(),
                        self.worker,
                        session,
                        wake,
                        self.link.clone(),
                    );
                }
                Err(None) => changed.await,
                Err(Some(free_at)) => tokio::time::sleep_until(free_at).await,
            }
        };
        // From here on a dropped future drops the session, which ends it.
        pause(drawn.after).await;
        self.link.pass().await;
        Ok(Arc::new(session))
    }

    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        Ok(self.store.shared.with(|state| state.dead_letters(filter, after, limit)))
    }

    async fn replay(&self, filter: &DeadLetterFilter) -> Result<u64> {
        Ok(self.store.shared.with(|state| {
            let count = state.replay(filter);
            state.wake_all();
            count
        }))
    }

    async fn purge(&self, filter: &DeadLetterFilter) -> Result<u64> {
        Ok(self.store.shared.with(|state| {
            let count = state.purge(filter);
            state.wake_all();
            count
        }))
    }

    async fn counts(&self) -> Result<Vec<HandlerCounts>> {
        Ok(self.store.shared.with(|state| state.counts(Instant::now())))
    }
}

/// A backend in memory without any faults, as fast as the engine can be fed: to measure the engine, and for tests that
/// need a store of which nothing outlives the process.
#[derive(Clone, Debug)]
pub struct MemoryBackend(SimulatedBackend);

impl MemoryBackend {
    /// An empty store of its own.
    pub fn new() -> Self {
        let config = Config { layout: Layout::Divided(1), ..Config::default() };
        Self(SimulatedStore::new(config, Arc::new(SystemClock)).connect(0))
    }
}

impl Default for MemoryBackend {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn prepare(&self) -> Result<()> {
        Ok(())
    }

    async fn publish(&self, publication: Publication) -> Result<Stored> {
        self.0.publish(publication).await
    }

    async fn open(&self, worker: &WorkerSpec) -> Result<Arc<dyn Session>> {
        self.0.open(worker).await
    }

    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        self.0.dead_letters(filter, after, limit).await
    }

    async fn replay(&self, filter: &DeadLetterFilter) -> Result<u64> {
        self.0.replay(filter).await
    }

    async fn purge(&self, filter: &DeadLetterFilter) -> Result<u64> {
        self.0.purge(filter).await
    }

    async fn counts(&self) -> Result<Vec<HandlerCounts>> {
        self.0.counts().await
    }
}

/// Sleeps, if there is anything to sleep.
pub(super) async fn pause(duration: Duration) {
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}

pub(super) fn unavailable(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation, "the store is out of reach; try again later")
        .with_backend("simulated")
}

pub(super) fn outcome_unknown(operation: &'static str) -> Error {
    Error::new(ErrorKind::OutcomeUnknown, operation, "the answer was lost").with_backend("simulated")
}

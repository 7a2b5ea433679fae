//! A life from beginning to end: workers come, suffer and go; then everything heals, and the books are closed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use event_bus_conformance::checker;
use event_bus_conformance::history::{Dead, Fact, Pending};
use event_bus_conformance::simulation::{Faults, SimulatedBackend, SimulatedStore};
use event_bus_core::backend::{Backend as _, DeadLetterFilter, DeliveryId};
use event_bus_core::clock::{Environment, Randomness};
use event_bus_core::{EventBus, Worker};
use fastrand::Rng;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::events::identify;
use crate::handlers::register;
use crate::plan::{Action, Plan, WorkerPlan, millis};
use crate::world::{SimClock, World};
use crate::{Outcome, publishers};

/// How long the store may take to come to rest once nothing fails any more.
const REST_WITHIN: Duration = Duration::from_secs(60 * 60);

/// How often a dead letter that holds its key is replayed before it is purged.
const REPLAYS: u32 = 2;

/// Lives the life of a seed.
pub async fn simulate(seed: u64) -> Outcome {
    let plan = Plan::draw(seed);
    let rules = plan.rules();
    let (world, deaths) = World::new(plan);
    let clock = Arc::new(SimClock(Instant::now()));
    let faults = Faults::new(world.plan.faults, seed);
    let observer = {
        let world = world.clone();
        Arc::new(move |incident| world.incident(incident))
    };
    let store = SimulatedStore::with_faults(world.plan.config, clock.clone(), faults, observer);
    let mut controller = Controller {
        slots: (0..world.plan.slots).map(|_| None).collect(),
        rng: world.plan.dice(2_000, 0),
        next_worker: 1,
        world: world.clone(),
        store: store.clone(),
        clock,
        deaths,
        goodbyes: JoinSet::new(),
        mode: Mode::Rough,
    };
    controller.live().await;
    controller.settle_down().await;
    controller.close_the_books().await;
    let (history, tally, breaches) = world.finish();
    let mut violations: Vec<_> = breaches.into_iter().map(|text| ("Breach".to_owned(), text)).collect();
    let found = checker::check(&history, &rules);
    violations.extend(found.iter().map(|found| (format!("{:?}", found.kind), found.to_string())));
    Outcome { history, violations, tally }
}

/// Which dead letters were looked at, and how often each was replayed.
#[derive(Default)]
struct Revivals {
    seen: HashSet<DeliveryId>,
    replays: HashMap<(String, u64), u32>,
}

/// A worker as it works.
struct Working {
    number: u32,
    backend: SimulatedBackend,
    worker: Worker,
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Rough,
    Healed,
    Closing,
}

struct Controller {
    world: Arc<World>,
    store: SimulatedStore,
    clock: Arc<SimClock>,
    rng: Rng,
    slots: Vec<Option<Working>>,
    next_worker: u32,
    deaths: mpsc::UnboundedReceiver<u32>,
    goodbyes: JoinSet<()>,
    mode: Mode,
}

impl Controller {
    /// The rough part: publishers publish, workers suffer.
    async fn live(&mut self) {
        let mut publishers = JoinSet::new();
        for publisher in 0..self.world.plan.publishers {
            let publisher = u32::try_from(publisher).unwrap();
            let backend = self.store.connect(1_000 + publisher);
            let all: Vec<_> = (0..self.world.plan.handlers.len()).collect();
            let bus = self.bus(backend, 1_000 + publisher, &all);
            publishers.spawn(publishers::publish(self.world.clone(), bus, publisher));
        }
        let begun = Instant::now();
        let actions = self.world.plan.actions.clone();
        for (at, slot, action) in actions {
            self.wait_until(begun + at).await;
            self.act(slot, action).await;
        }
        while !publishers.is_empty() {
            tokio::select! {
                biased;
                result = publishers.join_next() => result.unwrap().unwrap(),
                Some(worker) = self.deaths.recv() => self.died(worker),
            }
        }
    }

    /// Everything heals; what is left is done, replayed or purged.
    async fn settle_down(&mut self) {
        self.store.heal();
        self.mode = Mode::Healed;
        if self.world.plan.is_mixed {
            // Those that know only a part make room for those that know all.
            for slot in 0..self.slots.len() {
                if let Some(working) = self.slots[slot].take() {
                    self.shut_down(working, Duration::from_secs(1));
                }
            }
        }
        // What is late arrives.
        self.wait_until(Instant::now() + Duration::from_secs(5)).await;
        let deadline = Instant::now() + REST_WITHIN;
        let mut pause = Duration::from_millis(200);
        let mut revivals = Revivals::default();
        loop {
            for slot in 0..self.slots.len() {
                self.start(slot).await;
            }
            let is_empty = self.store.is_empty();
            let has_revived = self.revive(&mut revivals, !is_empty).await;
            if is_empty && !has_revived {
                return;
            }
            if Instant::now() > deadline {
                self.world.breach(format!("the store did not come to rest within {REST_WITHIN:?}"));
                return;
            }
            self.wait_until(Instant::now() + pause).await;
            pause = (pause * 5 / 4).min(Duration::from_secs(30));
        }
    }

    /// Replays or purges dead letters: those that hold keys until none does, and some of the others, once.
    async fn revive(&mut self, revivals: &mut Revivals, only_held: bool) -> bool {
        let backend = self.store.connect(2_000);
        let dead = backend.dead_letters(&DeadLetterFilter::default(), None, usize::MAX).await.unwrap();
        let mut has_revived = false;
        for dead in dead {
            let is_chosen =
                dead.holds_key || !only_held && revivals.seen.insert(dead.id) && self.rng.f64() < 0.4;
            if !is_chosen {
                continue;
            }
            has_revived = true;
            let (handler, event) = (dead.handler.to_string(), identify(&dead.envelope.payload).0);
            let filter = DeadLetterFilter { ids: Some(vec![dead.id]), ..DeadLetterFilter::default() };
            let replays = revivals.replays.entry((handler.clone(), event)).or_default();
            let is_replay = *replays < REPLAYS && self.rng.f64() < 0.7;
            let count = if is_replay {
                *replays += 1;
                self.world.count("replays");
                self.world.record(Fact::Replay { handler, event });
                backend.replay(&filter).await.unwrap()
            } else {
                self.world.count("purges");
                self.world.record(Fact::Purge { handler, event });
                backend.purge(&filter).await.unwrap()
            };
            assert_eq!(count, 1);
        }
        has_revived
    }

    /// Stops everything in order, and writes down what is left.
    async fn close_the_books(&mut self) {
        self.mode = Mode::Closing;
        for slot in 0..self.slots.len() {
            if let Some(working) = self.slots[slot].take() {
                self.shut_down(working, Duration::from_secs(60));
            }
        }
        while let Some(goodbye) = self.goodbyes.join_next().await {
            goodbye.unwrap();
        }
        // What was dropped, and what is late, comes to its end.
        tokio::time::sleep(Duration::from_secs(60)).await;
        for leak in self.store.leaks() {
            self.world.breach(format!("leak: {leak}"));
        }
        let backend = self.store.connect(2_000);
        let dead = backend.dead_letters(&DeadLetterFilter::default(), None, usize::MAX).await.unwrap();
        let dead_letters = dead.iter().map(|dead| {
            self.world.count("dead letters");
            let (event, hash) = identify(&dead.envelope.payload);
            Dead {
                handler: dead.handler.to_string(),
                event,
                key: dead.envelope.key.as_deref().map(str::to_owned),
                hash,
                reason: dead.reason.as_str().to_owned(),
                failures: dead.failures,
                errors: dead.errors.entries().iter().map(|error| error.attempt).collect(),
                holds_key: dead.holds_key,
            }
        });
        let pending = self.store.pending().into_iter().map(|(handler, envelope, state)| Pending {
            handler: handler.to_string(),
            event: identify(&envelope.payload).0,
            state,
        });
        let rest = Fact::Rest { pending: pending.collect(), dead_letters: dead_letters.collect() };
        self.world.record(rest);
    }

    async fn wait_until(&mut self, deadline: Instant) {
        loop {
            tokio::select! {
                biased;
                Some(worker) = self.deaths.recv() => self.died(worker),
                () = tokio::time::sleep_until(deadline) => return,
            }
        }
    }

    async fn act(&mut self, slot: usize, action: Action) {
        if action == Action::Start {
            return self.start(slot).await;
        }
        let Some(working) = &self.slots[slot] else { return };
        let number = working.number;
        match action {
            Action::Start => {}
            Action::Crash => self.crash(slot),
            Action::Drop => {
                self.world.count("dropped workers");
                self.slots[slot] = None;
            }
            Action::Shutdown { grace } => {
                if let Some(working) = self.slots[slot].take() {
                    self.shut_down(working, grace);
                }
            }
            Action::LoseSession => self.store.lose_session(number),
            Action::LosePartition => self.store.lose_partition(number),
            Action::Stall(lasts) => {
                self.world.count("stalls");
                working.backend.stall(lasts);
            }
            Action::Rebalance => {
                self.world.count("rebalancings");
                self.store.rebalance();
            }
        }
    }

    async fn start(&mut self, slot: usize) {
        if self.slots[slot].is_some() {
            return;
        }
        let number = self.next_worker;
        self.next_worker += 1;
        let mut known: Vec<_> = (0..self.world.plan.handlers.len()).collect();
        if self.world.plan.is_mixed && self.mode == Mode::Rough {
            known.retain(|_| self.rng.f64() < 0.7);
        }
        // Its own indices are not those of other workers.
        self.rng.shuffle(&mut known);
        let backend = self.store.connect(number);
        self.world.connected(number, backend.clone());
        let bus = self.bus(backend.clone(), number, &known);
        self.world.count("workers");
        self.world.record(Fact::WorkerStart { worker: number });
        let worker = bus.start().await.unwrap();
        self.slots[slot] = Some(Working { number, backend, worker });
    }

    /// Kills a worker; the store finds out later.
    fn crash(&mut self, slot: usize) {
        let Some(working) = self.slots[slot].take() else { return };
        self.world.bury(working.number);
        drop(working.worker);
        let noticed = millis(&mut self.rng, &[1, 800, 5_000]);
        let store = self.store.clone();
        tokio::spawn(async move {
            tokio::time::sleep(noticed).await;
            store.declare_dead(working.number);
        });
    }

    /// A handler killed its worker; another one takes its place.
    fn died(&mut self, worker: u32) {
        self.world.count("poison");
        let is_it =
            |working: &Option<Working>| working.as_ref().is_some_and(|working| working.number == worker);
        if let Some(slot) = self.slots.iter().position(is_it) {
            self.crash(slot);
        } else {
            // It was shutting down.
            self.store.declare_dead(worker);
        }
    }

    fn shut_down(&mut self, working: Working, grace: Duration) {
        let (world, mode) = (self.world.clone(), self.mode);
        self.goodbyes.spawn(async move {
            let result = working.worker.shutdown(grace).await;
            let worker = working.number;
            if world.is_dead(worker) {
                return;
            }
            match result {
                Ok(_) => {
                    world.count("clean shutdowns");
                    world.record(Fact::WorkerStop { worker });
                }
                Err(error) if mode == Mode::Closing => {
                    world.breach(format!("worker {worker} could not stop: {error}"));
                }
                Err(_) => world.count("failed shutdowns"),
            }
        });
    }

    fn bus(&self, backend: SimulatedBackend, number: u32, known: &[usize]) -> EventBus {
        let WorkerPlan { concurrency, window, poll_interval } = self.world.plan.workers;
        let randomness = Randomness::seeded(self.world.plan.seed ^ u64::from(number) << 32);
        let environment = Environment { clock: self.clock.clone(), randomness: Arc::new(randomness) };
        let builder = EventBus::builder()
            .backend(backend)
            .environment(environment)
            .concurrency(concurrency)
            .window(window)
            .poll_interval(poll_interval);
        register(builder, &self.world, number, known).build().unwrap()
    }
}

//! What all parts of a simulated life share: the history in the making, and the dead.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use event_bus_conformance::history::{Fact, History, Record};
use event_bus_conformance::simulation::{Incident, SimulatedBackend};
use event_bus_core::Timestamp;
use event_bus_core::clock::Clock;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::plan::{Plan, Step};

/// When the first life of this process began, for log lines.
pub static BEGUN: OnceLock<Instant> = OnceLock::new();

pub struct World {
    pub plan: Plan,
    begun: Instant,
    records: Mutex<Vec<Record>>,
    tally: Mutex<BTreeMap<&'static str, u64>>,
    breaches: Mutex<Vec<String>>,
    /// Workers that have been killed: what they still do is nobody's business.
    crashed: Mutex<HashSet<u32>>,
    /// How often each delivery ran.
    runs: Mutex<HashMap<(usize, u64), usize>>,
    next_run: AtomicU64,
    next_number: AtomicU64,
    /// Everybody's connection.
    backends: Mutex<HashMap<u32, SimulatedBackend>>,
    /// Workers that kill themselves.
    suicides: mpsc::UnboundedSender<u32>,
}

impl World {
    pub fn new(plan: Plan) -> (Arc<Self>, mpsc::UnboundedReceiver<u32>) {
        BEGUN.get_or_init(Instant::now);
        let (suicides, deaths) = mpsc::unbounded_channel();
        let world = Self {
            plan,
            begun: Instant::now(),
            records: Mutex::default(),
            tally: Mutex::default(),
            breaches: Mutex::default(),
            crashed: Mutex::default(),
            runs: Mutex::default(),
            next_run: AtomicU64::new(1),
            next_number: AtomicU64::new(1),
            backends: Mutex::default(),
            suicides,
        };
        (Arc::new(world), deaths)
    }

    pub fn record(&self, fact: Fact) {
        let at = u64::try_from(self.begun.elapsed().as_nanos()).unwrap();
        self.records.lock().unwrap().push(Record { at, fact });
    }

    /// Counts something that shall happen in some lives.
    pub fn count(&self, what: &'static str) {
        *self.tally.lock().unwrap().entry(what).or_default() += 1;
    }

    pub fn breach(&self, text: String) {
        self.breaches.lock().unwrap().push(text);
    }

    /// A number that no call and no event has.
    pub fn number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    pub fn next_run(&self) -> u64 {
        self.next_run.fetch_add(1, Ordering::Relaxed)
    }

    /// What the handler does this time.
    pub fn step(&self, handler: usize, number: u64) -> Step {
        let mut runs = self.runs.lock().unwrap();
        let run = runs.entry((handler, number)).or_default();
        *run += 1;
        let script = self.plan.script(handler, number);
        script.get(*run - 1).copied().unwrap_or(Step::Done(std::time::Duration::ZERO))
    }

    /// Remembers how a worker reaches the store.
    pub fn connected(&self, worker: u32, backend: SimulatedBackend) {
        self.backends.lock().unwrap().insert(worker, backend);
    }

    /// The worker is dead from here on: nothing of it reaches the store or the history any more. Its tasks go on in vain
    /// until they find out that they were dropped.
    pub fn bury(&self, worker: u32) {
        if let Some(backend) = self.backends.lock().unwrap().get(&worker) {
            backend.cut();
        }
        if self.crashed.lock().unwrap().insert(worker) {
            self.record(Fact::WorkerCrash { worker });
            self.count("crashes");
        }
    }

    pub fn is_dead(&self, worker: u32) -> bool {
        self.crashed.lock().unwrap().contains(&worker)
    }

    /// A handler kills its worker.
    pub fn kill(&self, worker: u32) {
        self.bury(worker);
        self.suicides.send(worker).unwrap();
    }

    /// What the store did to a worker.
    pub fn incident(&self, incident: Incident) {
        match incident {
            Incident::SessionLost { worker } => {
                self.count("lost sessions");
                self.record(Fact::SessionLost { worker });
            }
            Incident::PartitionLost { worker, handler } => {
                self.count("lost partitions");
                self.record(Fact::PartitionLost { worker, handler: handler.to_string() });
            }
            Incident::Breach { worker, text } => self.breach(format!("worker {worker}: {text}")),
            _ => {}
        }
    }

    pub fn finish(&self) -> (History, BTreeMap<&'static str, u64>, Vec<String>) {
        let records = std::mem::take(&mut *self.records.lock().unwrap());
        let tally = std::mem::take(&mut *self.tally.lock().unwrap());
        (History { records }, tally, std::mem::take(&mut *self.breaches.lock().unwrap()))
    }
}

/// A wall clock that follows tokio's.
pub struct SimClock(pub Instant);

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_700_000_000_000).plus(self.0.elapsed())
    }
}

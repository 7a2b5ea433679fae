//! What a row has in hand.

use std::any::Any;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use event_bus::EventBus;
use event_bus::backend::HandlerCounts;

use super::medium::{Medium, Store};
use super::options::Pace;
use super::report::Outcome;
use super::rows::Row;
use super::surroundings::Surroundings;
use crate::checker::HandlerRules;
use crate::fleet::{Fleet, Node};
use crate::history::Fact;
use crate::node::{HANDLERS, Ledger, Manners};
use crate::proxy::Proxy;
use crate::suite::actor::FIRST;
use crate::suite::{Act, Note, note};

/// The option of a node that makes its calls again until their outcome is known. Left out where the medium does not offer
/// it: what became of a call may stay unknown then.
pub(super) const IDEMPOTENT: &str = "--idempotent";

/// How often it is written down that a worker may have lost its right.
const MARK: Duration = Duration::from_millis(20);

/// How often the store is asked whether it is at rest.
const LOOK: Duration = Duration::from_millis(10);

/// How long it may take a worker whose connection works again to know that it had lost its right.
const INSIGHT: Duration = Duration::from_secs(1);

/// How long a backlog may take to drain once all is well.
const DRAIN: Duration = Duration::from_secs(90);

/// A store, processes on it, and a source of chance.
pub(super) struct Scene {
    pub(super) medium: Medium,
    pub(super) fleet: Fleet,
    pub(super) random: fastrand::Rng,
    /// How much time there is.
    pub(super) pace: Pace,
    /// How many deliveries are neither done nor dead at the end, because the row leaves them so.
    pub(super) leaves: u64,
    /// What the report shall say beside the numbers.
    remarks: Vec<String>,
    /// The number of the next note.
    next: AtomicU64,
    /// Dropped after the processes.
    pub(super) store: Store,
    /// What must be there until the verdict, such as other servers.
    pub(super) kept: Vec<Box<dyn Any + Send + Sync>>,
    /// Dropped after the store.
    pub(super) surroundings: Arc<Surroundings>,
}

impl Scene {
    pub(super) async fn new(
        medium: Medium,
        store: Store,
        surroundings: Arc<Surroundings>,
        seed: u64,
        pace: Pace,
    ) -> Self {
        let mut scene = Self::before_the_store(store, surroundings, medium, seed, pace).await;
        scene.prepare().await;
        scene
    }

    async fn before_the_store(
        store: Store,
        surroundings: Arc<Surroundings>,
        medium: Medium,
        seed: u64,
        pace: Pace,
    ) -> Self {
        let bus = Self::bus_at(&store.url).await;
        let mut fleet = Fleet::new(program(), store.url.clone(), bus);
        fleet.rules.stores_twice = !medium.has_idempotency_keys();
        let random = fastrand::Rng::with_seed(seed);
        let remarks = Vec::new();
        let (next, kept) = (AtomicU64::new(0), Vec::new());
        Self { medium, fleet, random, pace, leaves: 0, remarks, next, store, kept, surroundings }
    }

    /// A bus of which nothing is run: it publishes, looks on, and needs the handlers' names for that.
    pub(super) async fn bus_at(url: &str) -> EventBus {
        let nowhere = Ledger::open("/dev/null".as_ref()).unwrap();
        let handlers = HANDLERS.map(str::to_owned).into();
        let manners = Manners { handlers, is_new: true, ..Manners::default() };
        crate::node::bus(url, &nowhere, 0, &manners, &Arc::new(OnceLock::new())).await.unwrap()
    }

    /// A line of success before anything goes wrong: scripts are loaded, topology is declared.
    async fn prepare(&mut self) {
        let notes = self.notes(3, 3, Duration::ZERO);
        self.fleet.publish(&notes).await;
    }

    /// The report shall say this as well.
    pub(super) fn remark(&mut self, text: impl Into<String>) {
        self.remarks.push(text.into());
    }

    /// So many notes over so many keys, whose runs take some time.
    pub(super) fn notes(&self, count: u64, keys: u64, time: Duration) -> Vec<Note> {
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        let acts = if time.is_zero() { Vec::new() } else { vec![Act::Sleep(time); 4] };
        (first..first + count)
            .map(|n| note(n).read_by(FIRST).key(format!("s{}", n % keys)).acts(acts.clone()))
            .collect()
    }

    /// One note with a script.
    pub(super) fn scripted(&self, key: &str, acts: impl IntoIterator<Item = Act>) -> Note {
        note(self.next.fetch_add(1, Ordering::Relaxed)).read_by(FIRST).key(key).acts(acts)
    }

    /// A note that both handlers read, which do nothing but succeed.
    pub(super) fn note(&self, key: &str) -> Note {
        note(self.next.fetch_add(1, Ordering::Relaxed)).key(key)
    }

    /// Waits until a worker has begun so many more runs; others may take all there is, so there is always something new.
    pub(super) async fn until_busy(&self, worker: &Node, count: usize) {
        let number = worker.number;
        let wanted = self.begun_by(number) + count;
        while self.begun_by(number) < wanted {
            self.feed().await;
        }
    }

    /// Publishes something if there is nothing left to run; answers after a moment if there is.
    async fn feed(&self) {
        match self.left().await {
            // A connection may be gone, and the server as well.
            Some(left) if left <= self.leaves => {
                let notes = self.notes(40, 8, Duration::from_millis(5));
                self.fleet.publish(&notes).await;
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }

    /// How many deliveries are neither done nor dead, if the store says so.
    async fn left(&self) -> Option<u64> {
        let counts = self.fleet.bus.counts().await.ok()?;
        Some(counts.iter().map(|handler| handler.ready + handler.waiting).sum())
    }

    fn begun_by(&self, number: u32) -> usize {
        self.fleet.count(|fact| matches!(fact, Fact::RunStart { worker, .. } if *worker == number))
    }

    /// A worker with these options of a node.
    pub(super) async fn worker_with(&mut self, options: &[&str]) -> Node {
        let url = self.store.url.clone();
        self.fleet.worker_at(&url, options).await
    }

    /// Notes published here in calls of a thousand.
    pub(super) async fn publish_in_parts(&self, notes: &[Note]) {
        for part in notes.chunks(1_000) {
            self.fleet.publish(part).await;
        }
    }

    /// How many deliveries of a handler are neither done nor dead.
    pub(super) async fn left_of(&self, handler: &str) -> u64 {
        self.counted(handler, |counts| counts.ready + counts.waiting).await
    }

    /// How many dead letters of a handler there are.
    pub(super) async fn dead_of(&self, handler: &str) -> u64 {
        self.counted(handler, |counts| counts.dead).await
    }

    async fn counted(&self, handler: &str, what: impl Fn(&HandlerCounts) -> u64) -> u64 {
        loop {
            // After an outage the first question may find a connection that is gone.
            match self.fleet.bus.counts().await {
                Ok(counts) => return counts.iter().find(|counts| counts.handler == handler).map_or(0, what),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// What a handler promises that is told to behave otherwise than usual.
    pub(super) fn rules(&mut self, handler: &str) -> &mut HandlerRules {
        self.fleet.rules.handlers.get_mut(handler).expect("a handler of a node")
    }

    /// What is left of these events on purpose, with the store: nobody shall look for it.
    pub(super) fn give_up(&self, handler: &str, events: impl IntoIterator<Item = u64>) {
        for event in events {
            self.fleet.ledger.write(Fact::Purge { handler: handler.to_owned(), event });
        }
    }

    /// A worker beside the proxy, if there is one.
    pub(super) async fn worker(&mut self) -> Node {
        self.fleet.worker().await
    }

    /// A worker behind a proxy.
    pub(super) async fn worker_behind(&mut self, proxy: &Proxy) -> Node {
        let url = proxy.url(&self.store.url);
        self.fleet.worker_at(&url, &[]).await
    }

    /// A process that publishes over some keys, with pauses; `options` are those of a node.
    pub(super) fn publisher(&mut self, url: &str, events: u64, options: &[&str]) -> Node {
        let events = events.to_string();
        let mut arguments = vec!["--publish", &*events, "--keys", "7", "--batch", "3", "--pause-ms", "10"];
        let has_keys = self.medium.has_idempotency_keys();
        arguments.extend(options.iter().filter(|option| **option != IDEMPOTENT || has_keys));
        self.fleet.start_at(url, &arguments)
    }

    /// A proxy in front of the server.
    pub(super) async fn proxy(&self) -> Proxy {
        Proxy::start(&self.store.server().host()).await
    }

    /// How many runs have begun.
    pub(super) fn begun(&self) -> usize {
        self.fleet.count(|fact| matches!(fact, Fact::RunStart { .. }))
    }

    /// How many publish calls have returned Ok.
    pub(super) fn published(&self) -> usize {
        self.fleet.count(|fact| matches!(fact, Fact::PublishOk { .. }))
    }

    /// Waits until so many more runs have begun, wherever; there is always something new.
    pub(super) async fn until_more(&self, count: usize) {
        let wanted = self.begun() + count;
        while self.begun() < wanted {
            self.feed().await;
        }
    }

    /// Waits until everything is done.
    pub(super) async fn rest(&self) {
        while self.left().await != Some(self.leaves) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Does something during which workers may lose their right at any moment, and writes that down, until they must
    /// know.
    pub(super) async fn in_doubt<T>(&self, workers: &[u32], act: impl Future<Output = T>) -> T {
        let mark = async {
            loop {
                self.mark(workers);
                tokio::time::sleep(MARK).await;
            }
        };
        let act = async {
            let answer = act.await;
            tokio::time::sleep(INSIGHT).await;
            answer
        };
        tokio::select! {
            biased;
            answer = act => answer,
            () = mark => unreachable!("it marks for ever"),
        }
    }

    fn mark(&self, workers: &[u32]) {
        for worker in workers {
            self.fleet.ledger.write(Fact::SessionLost { worker: *worker });
        }
    }

    /// Nothing goes on: what is left, and what happened last.
    pub(super) async fn stuck(self, since: Duration) -> Outcome {
        let counts = self.fleet.bus.counts().await;
        let records = self.fleet.history().records;
        let last: Vec<_> = records
            .iter()
            .filter(|record| !matches!(record.fact, Fact::SessionLost { .. }))
            .rev()
            .take(8)
            .map(ToString::to_string)
            .collect();
        Outcome::broken(format!(
            "still not through after {since:?}: {counts:?}; last came\n    {}",
            last.join("\n    ")
        ))
    }

    /// Lets everything come to rest, ends the workers and holds the history against the promises.
    pub(super) async fn finish(self, workers: Vec<Node>, row: &Row) -> Outcome {
        if tokio::time::timeout(DRAIN, self.rest()).await.is_err() {
            return self.stuck(DRAIN).await;
        }
        for worker in workers {
            worker.stop().await;
        }
        let (history, violations) = self.fleet.judge().await;
        self.store.clear().await;
        Outcome::new(&history, &violations, row.expects, self.remarks)
    }
}

/// The program called `node`, beside this one.
fn program() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let node = here.with_file_name("node");
    assert!(node.is_file(), "{} is missing: cargo build -p event-bus-conformance --bins", node.display());
    node
}

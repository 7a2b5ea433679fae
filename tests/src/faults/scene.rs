//! What a row has in hand.

use std::any::Any;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::medium::{Medium, Store};
use super::report::Outcome;
use super::rows::Row;
use crate::fleet::{Fleet, Node};
use crate::history::Fact;
use crate::node::Ledger;
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
    /// How long a row lasts that lasts as long as it is told.
    pub(super) lasts: Duration,
    next: u64,
    /// Dropped after the processes.
    pub(super) store: Store,
    /// What must be there until the verdict, such as other servers.
    pub(super) kept: Vec<Box<dyn Any + Send + Sync>>,
}

impl Scene {
    pub(super) async fn new(medium: Medium, seed: u64, lasts: Duration) -> Self {
        let store = medium.store().await;
        let mut scene = Self::before_the_store(store, medium, seed, lasts).await;
        scene.prepare().await;
        scene
    }

    async fn before_the_store(store: Store, medium: Medium, seed: u64, lasts: Duration) -> Self {
        // Of this bus nothing is run: it publishes, looks on, and needs the handlers' names for that.
        let nowhere = Ledger::open("/dev/null".as_ref()).unwrap();
        let bus = crate::node::bus(&store.url, &nowhere, 0, None, &Arc::new(OnceLock::new())).await.unwrap();
        let fleet = Fleet::new(program(), store.url.clone(), bus);
        let random = fastrand::Rng::with_seed(seed);
        Self { medium, fleet, random, lasts, next: 0, store, kept: Vec::new() }
    }

    /// A line of success before anything goes wrong: scripts are loaded, topology is declared.
    async fn prepare(&mut self) {
        let notes = self.notes(3, 3, Duration::ZERO);
        self.fleet.publish(&notes).await;
    }

    /// So many notes over so many keys, whose runs take some time.
    pub(super) fn notes(&mut self, count: u64, keys: u64, time: Duration) -> Vec<Note> {
        let first = self.next;
        self.next += count;
        let acts = if time.is_zero() { Vec::new() } else { vec![Act::Sleep(time); 4] };
        (first..self.next)
            .map(|n| note(n).read_by(FIRST).key(format!("s{}", n % keys)).acts(acts.clone()))
            .collect()
    }

    /// One note with a script.
    pub(super) fn scripted(&mut self, key: &str, acts: impl IntoIterator<Item = Act>) -> Note {
        self.next += 1;
        note(self.next - 1).read_by(FIRST).key(key).acts(acts)
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
        let records = self.fleet.history().records;
        records.iter().filter(|record| matches!(record.fact, Fact::RunStart { .. })).count()
    }

    /// How many publish calls have returned Ok.
    pub(super) fn published(&self) -> usize {
        let records = self.fleet.history().records;
        records.iter().filter(|record| matches!(record.fact, Fact::PublishOk { .. })).count()
    }

    /// Waits until so many more runs have begun, wherever.
    pub(super) async fn until_more(&self, count: usize) {
        let wanted = self.begun() + count;
        self.fleet
            .until(|facts| facts.iter().filter(|f| matches!(f, Fact::RunStart { .. })).count() >= wanted)
            .await;
    }

    /// Waits until everything is done.
    pub(super) async fn rest(&self) {
        loop {
            // After an outage the first question may find a connection that is gone.
            if let Ok(counts) = self.fleet.bus.counts().await
                && counts.iter().all(|handler| handler.ready + handler.waiting == 0)
            {
                return;
            }
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
        Outcome::new(&history, &violations, row.expects)
    }
}

/// The program called `node`, beside this one.
fn program() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let node = here.with_file_name("node");
    assert!(node.is_file(), "{} is missing: cargo build -p event-bus-conformance --bins", node.display());
    node
}

//! What the tests of this backend share: a file, publications, a session.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "a test binary has no other crates")]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::collections::BTreeMap;
use std::panic::Location;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::Poll;
use std::time::Duration;

use event_bus_core::Order;
use event_bus_core::backend::{
    Addressed, Backend, ClaimRequest, Claimed, Delivery, Demand, Envelope, EventId, HandlerIndex,
    HandlerSpec, Outcome, Publication, Session, SettleBatch, Settlement, Stored, Timestamp, WorkerSpec,
};
use event_bus_core::clock::Clock;
use event_bus_sqlite::{SqliteBackend, SqliteConfig};
use tempfile::TempDir;
use uuid::Uuid;

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    pub fn advance(&self, duration: Duration) {
        self.0.fetch_add(i64::try_from(duration.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// A migrated file in a directory of its own.
pub struct Store {
    pub backend: SqliteBackend,
    pub clock: Arc<ManualClock>,
    pub directory: TempDir,
}

impl Store {
    pub async fn new() -> Self {
        let store = Self::unprepared();
        store.backend.prepare().await.unwrap();
        store
    }

    pub fn unprepared() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock(AtomicI64::new(1_700_000_000_000)));
        let backend = another_backend(directory.path().join("events.db"), &clock);
        Self { backend, clock, directory }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("events.db")
    }

    pub fn url(&self) -> String {
        format!("sqlite://{}", self.path().display())
    }

    /// Another backend over the same file, as another process would have.
    pub fn another(&self) -> SqliteBackend {
        another_backend(self.path(), &self.clock)
    }

    pub async fn open(&self, handlers: &[HandlerSpec]) -> Arc<dyn Session> {
        self.backend.open(&worker(handlers)).await.unwrap()
    }

    pub async fn publish(&self, publication: Publication) -> Stored {
        self.backend.publish(publication).await.unwrap()
    }
}

fn another_backend(path: PathBuf, clock: &Arc<ManualClock>) -> SqliteBackend {
    let config = SqliteConfig::new(path).clock(clock.clone()).write_timeout(Duration::from_secs(10));
    SqliteBackend::new(config).unwrap()
}

pub fn handler(name: &str) -> HandlerSpec {
    HandlerSpec { name: name.into(), priority: 0, order: Order::Hold, window: 1024 }
}

pub fn worker(handlers: &[HandlerSpec]) -> WorkerSpec {
    WorkerSpec { incarnation: Uuid::now_v7(), handlers: handlers.into() }
}

/// An event whose payload is `text`.
pub fn envelope(text: &str, key: Option<&str>) -> Envelope {
    Envelope {
        id: EventId::from_uuid(Uuid::now_v7()),
        name: "orders.order_created".into(),
        version: 3,
        key: key.map(Arc::from),
        payload: text.to_owned().into(),
        headers: Some(Arc::new(BTreeMap::from([("tenant".to_owned(), "\"acme\" 🚲".to_owned())]))),
        published_at: Timestamp::from_millis(1_600_000_000_123),
    }
}

#[track_caller]
pub fn publication(events: Vec<Envelope>, handlers: &[&str]) -> Publication {
    let handlers: Arc<[Arc<str>]> = handlers.iter().map(|name| Arc::from(*name)).collect();
    Publication {
        events: events
            .into_iter()
            .map(|envelope| Addressed { envelope, handlers: handlers.clone() })
            .collect(),
        delay: Duration::ZERO,
        idempotency_key: None,
        location: Location::caller(),
    }
}

/// One publication of events with these payloads and this key, for the handler `a`.
#[track_caller]
pub fn events(texts: &[&str], key: Option<&str>) -> Publication {
    publication(texts.iter().map(|text| envelope(text, key)).collect(), &["a"])
}

pub fn demand(handlers: usize, limit: usize) -> ClaimRequest {
    let demands = (0..handlers)
        .map(|handler| Demand { handler: HandlerIndex(u32::try_from(handler).unwrap()), limit })
        .collect();
    ClaimRequest { demands, lanes: Vec::new(), max_bytes: usize::MAX }
}

pub async fn claim(session: &Arc<dyn Session>, handlers: usize, limit: usize) -> Claimed {
    session.claim(&demand(handlers, limit)).await.unwrap()
}

pub fn texts(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|delivery| String::from_utf8(delivery.envelope.payload.to_vec()).unwrap()).collect()
}

pub fn batch(settlements: impl IntoIterator<Item = (Delivery, Outcome)>) -> SettleBatch {
    let settlements = settlements
        .into_iter()
        .map(|(delivery, outcome)| Settlement { delivery: Arc::new(delivery), outcome })
        .collect();
    SettleBatch { settlements, parks: Vec::new() }
}

pub async fn settle(session: &Arc<dyn Session>, delivery: &Delivery, outcome: Outcome) {
    session.settle(&batch([(delivery.clone(), outcome)])).await.unwrap();
}

pub async fn complete(session: &Arc<dyn Session>, deliveries: Vec<Delivery>) {
    session
        .settle(&batch(deliveries.into_iter().map(|delivery| (delivery, Outcome::Complete))))
        .await
        .unwrap();
}

/// Polls a call once; its answer if it is done.
pub async fn poll_once<T>(call: &mut Pin<Box<dyn Future<Output = T> + Send + '_>>) -> Option<T> {
    std::future::poll_fn(|task| match call.as_mut().poll(task) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

//! What the tests of this backend share: a server, publications, sessions.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "a test binary has no other crates")]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use event_bus_conformance::servers::Redis;
use event_bus_core::backend::{
    Addressed, Backend, ClaimRequest, Delivery, Demand, Envelope, EventId, HandlerIndex, HandlerSpec,
    Outcome, Publication, Session, SettleBatch, Settlement, Timestamp, WorkerSpec,
};
use event_bus_core::{Error, ErrorKind, Order, Result};
use event_bus_redis::{RedisBackend, RedisConfig};
use redis::FromRedisValue;
use uuid::Uuid;

/// A server of its own, and a bus on it.
pub struct Store {
    pub server: Redis,
}

impl Store {
    pub async fn new() -> Self {
        let store = Self { server: Redis::start(&[]).await };
        store.backend().prepare().await.unwrap();
        store
    }

    pub async fn unprepared(settings: &[(&str, &str)]) -> Self {
        Self { server: Redis::start(settings).await }
    }

    pub fn config(&self) -> RedisConfig {
        let url = format!("{}?bus=test&lease_ms=1000&command_timeout_ms=2000", self.server.url());
        RedisConfig::from_url(&url).unwrap()
    }

    /// A handle that shares nothing with the others.
    pub fn backend(&self) -> RedisBackend {
        RedisBackend::new(self.config()).unwrap()
    }

    /// A command of an operator.
    pub async fn command<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(self.server.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut connection).await.unwrap()
    }
}

pub fn worker() -> WorkerSpec {
    let handler = HandlerSpec { name: "a".into(), priority: 0, order: Order::Hold, window: 1024 };
    WorkerSpec { incarnation: Uuid::new_v4(), handlers: [handler].into() }
}

/// An event whose payload is `text`.
pub fn envelope(text: &str, key: Option<&str>) -> Envelope {
    Envelope {
        id: EventId::from_uuid(Uuid::now_v7()),
        name: "orders.order_created".into(),
        version: 3,
        key: key.map(Arc::from),
        payload: text.to_owned().into(),
        headers: None,
        published_at: Timestamp::from_millis(1_600_000_000_123),
    }
}

/// One publication for the handler `a`.
#[track_caller]
pub fn publication(events: impl IntoIterator<Item = Envelope>) -> Publication {
    let handlers: Arc<[Arc<str>]> = [Arc::from("a")].into();
    let addressed = |envelope| Addressed { envelope, handlers: handlers.clone() };
    Publication {
        events: events.into_iter().map(addressed).collect(),
        delay: Duration::ZERO,
        idempotency_key: None,
        location: Location::caller(),
    }
}

pub fn everything() -> ClaimRequest {
    let demands = vec![Demand { handler: HandlerIndex(0), limit: 1_024 }];
    ClaimRequest { demands, lanes: Vec::new(), max_bytes: usize::MAX }
}

/// Claims until that many are there; what passes is tried again, as the engine does.
pub async fn claim(session: &Arc<dyn Session>, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        match session.claim(&everything()).await {
            Ok(claimed) => deliveries.extend(claimed.deliveries),
            Err(error) => assert_passing(&error),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    deliveries
}

pub fn batch(deliveries: &[Delivery], outcome: &Outcome) -> SettleBatch {
    let settlement =
        |delivery: &Delivery| Settlement { delivery: Arc::new(delivery.clone()), outcome: outcome.clone() };
    SettleBatch { settlements: deliveries.iter().map(settlement).collect(), parks: Vec::new() }
}

/// Settles; what passes is repeated, as the engine does.
pub async fn settle(session: &Arc<dyn Session>, deliveries: &[Delivery], outcome: Outcome) {
    let batch = batch(deliveries, &outcome);
    while let Err(error) = session.settle(&batch).await {
        assert_passing(&error);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn assert_passing(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", event_bus_core::chain(error));
}

pub async fn ready_and_waiting(backend: &RedisBackend) -> u64 {
    backend.counts().await.unwrap().iter().map(|counts| counts.ready + counts.waiting).sum()
}

#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(answer: Result<T>, kind: ErrorKind, part: &str) {
    let error = answer.unwrap_err();
    let text = event_bus_core::chain(&error);
    assert_eq!(error.kind(), kind, "{text}");
    assert!(text.contains(part), "{text:?} does not say {part:?}");
    assert!(!text.contains("hunter2"), "{text}");
}

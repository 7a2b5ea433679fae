//! What the tests of this backend share: a database, publications, a session.

use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use event_bus_conformance::servers::{self, Database};
use event_bus_core::Order;
use event_bus_core::backend::{
    Addressed, Backend, ClaimRequest, Claimed, Delivery, Demand, Envelope, EventId, HandlerIndex,
    HandlerSpec, Outcome, Publication, Session, SettleBatch, Settlement, Stored, Timestamp, WorkerSpec,
};
use event_bus_postgres::{PostgresBackend, PostgresConfig};
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{AssertSqlSafe, Connection as _};
use uuid::Uuid;

/// A short time for others to find out, so that tests are quick.
const HANDOVER: Duration = Duration::from_millis(200);

/// A migrated database.
pub(crate) struct Store {
    pub(crate) backend: PostgresBackend,
    pub(crate) database: Database,
}

impl Store {
    pub(crate) async fn new() -> Self {
        let store = Self::unprepared().await;
        store.backend.prepare().await.unwrap();
        store
    }

    pub(crate) async fn unprepared() -> Self {
        let database = servers::postgres().await.database().await;
        Self { backend: backend(database.url()), database }
    }

    /// Another backend over the same database, as another process would have.
    pub(crate) fn another(&self) -> PostgresBackend {
        backend(self.database.url())
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(self.database.url()).await.unwrap()
    }

    pub(crate) async fn pool(&self) -> PgPool {
        PgPool::connect(self.database.url()).await.unwrap()
    }

    pub(crate) async fn execute(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        sqlx::raw_sql(sql).execute(&mut self.connect().await).await.unwrap();
    }

    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        sqlx::query_scalar(sql).fetch_one(&mut self.connect().await).await.unwrap()
    }

    pub(crate) async fn open(&self, handlers: &[HandlerSpec]) -> Arc<dyn Session> {
        self.another().open(&worker(handlers)).await.unwrap()
    }

    pub(crate) async fn publish(&self, publication: Publication) -> Stored {
        self.backend.publish(publication).await.unwrap()
    }
}

pub(crate) fn config(url: &str) -> PostgresConfig {
    PostgresConfig::from_url(url).unwrap().handover_delay(HANDOVER).write_timeout(Duration::from_secs(10))
}

pub(crate) fn backend(url: &str) -> PostgresBackend {
    PostgresBackend::new(config(url)).unwrap()
}

/// Claims until that many deliveries are there: leases come with a beat, and those of a vanished worker after a while.
pub(crate) async fn claim_all(session: &Arc<dyn Session>, handlers: usize, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        let claimed = claim(session, handlers, count - all.len()).await;
        if claimed.deliveries.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        all.extend(claimed.deliveries);
    }
    all
}

pub(crate) fn handler(name: &str) -> HandlerSpec {
    HandlerSpec { name: name.into(), priority: 0, order: Order::Hold, window: 1024 }
}

pub(crate) fn worker(handlers: &[HandlerSpec]) -> WorkerSpec {
    WorkerSpec { incarnation: Uuid::now_v7(), handlers: handlers.into() }
}

/// An event whose payload is `text`.
pub(crate) fn envelope(text: &str, key: Option<&str>) -> Envelope {
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
pub(crate) fn publication(events: Vec<Envelope>, handlers: &[&str]) -> Publication {
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
pub(crate) fn events(texts: &[&str], key: Option<&str>) -> Publication {
    publication(texts.iter().map(|text| envelope(text, key)).collect(), &["a"])
}

pub(crate) fn demand(handlers: usize, limit: usize) -> ClaimRequest {
    let demands = (0..handlers)
        .map(|handler| Demand { handler: HandlerIndex(u32::try_from(handler).unwrap()), limit })
        .collect();
    ClaimRequest { demands, lanes: Vec::new(), max_bytes: usize::MAX }
}

pub(crate) async fn claim(session: &Arc<dyn Session>, handlers: usize, limit: usize) -> Claimed {
    session.claim(&demand(handlers, limit)).await.unwrap()
}

pub(crate) fn texts(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|delivery| String::from_utf8(delivery.envelope.payload.to_vec()).unwrap()).collect()
}

pub(crate) fn batch(settlements: impl IntoIterator<Item = (Delivery, Outcome)>) -> SettleBatch {
    let settlements = settlements
        .into_iter()
        .map(|(delivery, outcome)| Settlement { delivery: Arc::new(delivery), outcome })
        .collect();
    SettleBatch { settlements, parks: Vec::new() }
}

pub(crate) async fn settle(session: &Arc<dyn Session>, delivery: &Delivery, outcome: Outcome) {
    session.settle(&batch([(delivery.clone(), outcome)])).await.unwrap();
}

pub(crate) async fn complete(session: &Arc<dyn Session>, deliveries: Vec<Delivery>) {
    session
        .settle(&batch(deliveries.into_iter().map(|delivery| (delivery, Outcome::Complete))))
        .await
        .unwrap();
}

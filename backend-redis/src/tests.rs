//! What can be said only with the scripts in hand: copies of requests that arrive late.

use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use event_bus_conformance::servers::Redis;
use event_bus_core::Order;
use event_bus_core::backend::{
    Addressed, Backend, ClaimRequest, Demand, Envelope, EventId, HandlerIndex, HandlerSpec, Outcome,
    Publication, SettleBatch, Settlement, Timestamp, WorkerSpec,
};
use uuid::Uuid;

use crate::backend::RedisBackend;
use crate::config::RedisConfig;
use crate::link::Link;
use crate::script;

const BASE: &str = "{test}";

struct Bus {
    _server: Redis,
    backend: RedisBackend,
    link: Link,
}

impl Bus {
    async fn new() -> Self {
        let server = Redis::start(&[]).await;
        let config = RedisConfig::from_url(&format!("{}?bus=test&lease_ms=2000", server.url())).unwrap();
        let backend = RedisBackend::new(config).unwrap();
        let link = Link::new(&backend.shared, Duration::from_secs(5), None);
        backend.prepare().await.unwrap();
        Self { _server: server, backend, link }
    }

    async fn publish(&self) {
        let envelope = Envelope {
            id: EventId::from_uuid(Uuid::from_u128(1)),
            name: "orders.order_created".into(),
            version: 1,
            key: None,
            payload: "payload".into(),
            headers: None,
            published_at: Timestamp::default(),
        };
        let handlers: Arc<[Arc<str>]> = [Arc::from("a")].into();
        let publication = Publication {
            events: vec![Addressed { envelope, handlers }],
            delay: Duration::ZERO,
            idempotency_key: None,
            location: Location::caller(),
        };
        self.backend.publish(publication).await.unwrap();
    }

    async fn stored(&self) -> u64 {
        self.backend.counts().await.unwrap().iter().map(|counts| counts.ready + counts.waiting).sum()
    }
}

fn worker() -> WorkerSpec {
    let handler = HandlerSpec { name: "a".into(), priority: 0, order: Order::Hold, window: 64 };
    WorkerSpec { incarnation: Uuid::new_v4(), handlers: [handler].into() }
}

fn everything() -> ClaimRequest {
    let demands = vec![Demand { handler: HandlerIndex(0), limit: 64 }];
    ClaimRequest { demands, lanes: Vec::new(), max_bytes: usize::MAX }
}

#[tokio::test]
async fn a_late_copy_of_an_outcome_changes_nothing() {
    let bus = Bus::new().await;
    bus.publish().await;
    let spec = worker();
    let session = bus.backend.open(&spec).await.unwrap();
    let delivery = Arc::new(session.claim(&everything()).await.unwrap().deliveries.remove(0));
    for failures in [1, 2] {
        let outcome = Outcome::Start { attempt: failures };
        let settlements = vec![Settlement { delivery: delivery.clone(), outcome }];
        session.settle(&SettleBatch { settlements, parks: Vec::new() }).await.unwrap();
    }
    // The first batch once more, as something else: it would complete the delivery.
    for (number, word) in [(1, "ALREADY"), (2, "ALREADY")] {
        let mut late = script::SETTLE.call(BASE);
        late.arg(spec.incarnation.to_string()).arg(number).arg(1).arg("a");
        late.arg("C").arg(1).arg("f").arg(1).arg(crate::ids::text(delivery.id));
        assert_eq!(bus.link.eval(&late).await.unwrap().text().unwrap(), word);
        assert_eq!(bus.stored().await, 1);
    }
    // Whoever was declared dead writes nothing, whatever the number.
    let mut stranger = script::SETTLE.call(BASE);
    stranger.arg(Uuid::new_v4().to_string()).arg(9).arg(1).arg("a");
    stranger.arg("C").arg(1).arg("f").arg(1).arg(crate::ids::text(delivery.id));
    assert_eq!(bus.link.eval(&stranger).await.unwrap().text().unwrap(), "FENCED");
    assert_eq!(bus.stored().await, 1);
    session.close().await.unwrap();
}

#[tokio::test]
async fn a_late_copy_of_a_claim_takes_nothing() {
    let bus = Bus::new().await;
    let spec = worker();
    let session = bus.backend.open(&spec).await.unwrap();
    session.claim(&everything()).await.unwrap();
    bus.publish().await;
    let mut late = script::CLAIM.call(BASE);
    late.arg(spec.incarnation.to_string()).arg("any").arg(1).arg(1_000).arg(1).arg(1).arg("a");
    late.arg("F").arg(1).arg(64);
    assert_eq!(bus.link.eval(&late).await.unwrap().text().unwrap(), "LATE");
    assert_eq!(session.claim(&everything()).await.unwrap().deliveries.len(), 1);
    session.close().await.unwrap();
}

#[tokio::test]
async fn a_repeated_publish_is_stored_once_and_a_late_one_not_at_all() {
    let bus = Bus::new().await;
    let call = |number: u32| {
        let mut call = script::PUBLISH.call(BASE);
        call.arg("1").arg("publisher").arg(number).arg(60_000).arg(60_000).arg(1).arg("a");
        call.arg("").arg(0).arg(1).arg(1).arg(1).arg("envelope").arg("f");
        call
    };
    for (number, word) in [(1, "OK"), (1, "ALREADY"), (2, "OK"), (1, "LATE"), (2, "ALREADY")] {
        assert_eq!(bus.link.eval(&call(number)).await.unwrap().text().unwrap(), word);
    }
    assert_eq!(bus.stored().await, 2);
}

#[tokio::test]
async fn a_worker_that_moved_is_not_declared_dead() {
    let bus = Bus::new().await;
    let spec = worker();
    let session = bus.backend.open(&spec).await.unwrap();
    let leave = |beat: &str| {
        let mut leave = script::LEAVE.call(BASE);
        leave.arg("").arg(spec.incarnation.to_string()).arg("lost").arg(beat);
        leave
    };
    assert_eq!(bus.link.eval(&leave("0")).await.unwrap().text().unwrap(), "ALIVE");
    session.close().await.unwrap();
    assert_eq!(bus.link.eval(&leave("0")).await.unwrap().text().unwrap(), "GONE");
}

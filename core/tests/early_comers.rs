//! What a store hands out anew before it has answered that it was given up.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use event_bus_core::backend::{
    Backend, Capabilities, ClaimRequest, Claimed, Delivery, DeliveryId, Envelope, ErrorLog, EventId,
    HandlerIndex, Notice, Outcome, Partition, Publication, Session, SettleBatch, Stored, Timestamp,
    WorkerSpec,
};
use event_bus_core::{Context, Event, EventBus, Failure, Handler, Partitioned, Result};
use tokio::sync::Notify;
use uuid::Uuid;

/// Hands one delivery out; when that is given up, hands it out again, and answers that it was given up only afterwards.
#[derive(Default)]
struct Script {
    claims: AtomicUsize,
    is_trusted: AtomicBool,
    given_up: Notify,
    handed_out_anew: Notify,
    has_completed: Notify,
}

fn one() -> Claimed {
    let delivery = Delivery {
        id: DeliveryId(1),
        partition: Partition { handler: HandlerIndex(0), number: 0 },
        failures: 0,
        crashes: 0,
        errors: ErrorLog::default(),
        due_in: None,
        is_held: false,
        fence: 1,
        envelope: Envelope {
            id: EventId::from_uuid(Uuid::nil()),
            name: Ping::NAME.into(),
            version: 1,
            key: Some("k".into()),
            payload: event_bus_core::codec::encode(&Ping).unwrap(),
            headers: None,
            published_at: Timestamp::default(),
        },
    };
    Claimed { deliveries: vec![delivery], ..Claimed::default() }
}

#[async_trait]
impl Session for Script {
    async fn claim(&self, _: &ClaimRequest) -> Result<Claimed> {
        match self.claims.fetch_add(1, Ordering::SeqCst) {
            0 => Ok(one()),
            1 => {
                self.given_up.notified().await;
                Ok(one())
            }
            _ => {
                // The engine has taken in what came before it claims again.
                self.handed_out_anew.notify_one();
                std::future::pending().await
            }
        }
    }

    async fn settle(&self, batch: &SettleBatch) -> Result<()> {
        match batch.settlements[0].outcome {
            Outcome::Release => {
                self.is_trusted.store(true, Ordering::SeqCst);
                self.given_up.notify_one();
                self.handed_out_anew.notified().await;
            }
            Outcome::Complete => self.has_completed.notify_one(),
            _ => {}
        }
        Ok(())
    }

    /// The first run is not started, and so it is given up.
    fn is_trusted(&self) -> bool {
        self.is_trusted.load(Ordering::SeqCst)
    }

    async fn wait(&self) -> Notice {
        std::future::pending().await
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

struct Scripted(Arc<Script>);

#[async_trait]
impl Backend for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { durable: true, ..Capabilities::NONE }
    }

    async fn prepare(&self) -> Result<()> {
        Ok(())
    }

    async fn publish(&self, _: Publication) -> Result<Stored> {
        Ok(Stored::New)
    }

    async fn open(&self, _: &WorkerSpec) -> Result<Arc<dyn Session>> {
        Ok(self.0.clone())
    }
}

#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Ping;

impl Partitioned for Ping {}

impl Event for Ping {
    const NAME: &'static str = "test.ping";
}

struct Counting(Arc<AtomicUsize>);

#[async_trait]
impl Handler for Counting {
    const NAME: &'static str = "test.counting";
    type Event = Ping;
    type Output = ();

    async fn handle(&self, _: Ping, _: &Context) -> std::result::Result<(), Failure> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_again_before_it_is_known_to_be_given_up_is_not_taken_for_an_old_copy() {
    let runs = Arc::new(AtomicUsize::new(0));
    let script = Arc::new(Script::default());
    let bus = EventBus::builder()
        .handler(Counting(runs.clone()))
        .backend(Scripted(script.clone()))
        .build()
        .unwrap();
    let worker = bus.start().await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), script.has_completed.notified()).await.unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    drop(worker);
}

//! A store without a store: what is left to measure is the engine.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use event_bus::async_trait;
use event_bus::backend::{
    Backend, Capabilities, ClaimRequest, Claimed, Delivery, DeliveryId, Envelope, ErrorLog, EventId, Notice,
    Partition, Publication, Session, SettleBatch, Stored, Timestamp, WorkerSpec,
};
use event_bus::{Error, ErrorKind, Result};
use uuid::Uuid;

/// Deliveries for the first handler, made beforehand.
#[derive(Clone, Default)]
pub struct MemoryBackend(Arc<Mutex<VecDeque<Delivery>>>);

impl MemoryBackend {
    /// `count` deliveries of one payload, spread over `keys`.
    pub fn preloaded(name: &'static str, payload: &Bytes, count: usize, keys: Option<usize>) -> Self {
        let keys: Vec<Arc<str>> = (0..keys.unwrap_or(0)).map(|key| format!("key-{key}").into()).collect();
        let name: Arc<str> = name.into();
        let deliveries = (0..count)
            .map(|number| Delivery {
                id: DeliveryId(number as u128),
                partition: Partition {
                    handler: event_bus_core::backend::HandlerIndex(0),
                    number: Partition::WHOLE,
                },
                envelope: Envelope {
                    id: EventId::from_uuid(Uuid::from_u128(number as u128)),
                    name: name.clone(),
                    version: 1,
                    key: (!keys.is_empty()).then(|| keys[number % keys.len()].clone()),
                    // A payload of its own each, as from a real store.
                    payload: Bytes::copy_from_slice(payload),
                    headers: None,
                    published_at: Timestamp::from_millis(0),
                },
                failures: 0,
                crashes: 0,
                errors: ErrorLog::default(),
                due_in: None,
                is_held: false,
                fence: 0,
            })
            .collect();
        Self(Arc::new(Mutex::new(deliveries)))
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { durable: true, ..Capabilities::NONE }
    }

    async fn prepare(&self) -> Result<()> {
        Ok(())
    }

    async fn publish(&self, _: Publication) -> Result<Stored> {
        Err(Error::new(ErrorKind::Unsupported, "publish", "this store is loaded beforehand"))
    }

    async fn open(&self, _: &WorkerSpec) -> Result<Arc<dyn Session>> {
        Ok(Arc::new(self.clone()))
    }
}

#[async_trait]
impl Session for MemoryBackend {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed> {
        let mut claimed = Claimed::default();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for demand in &request.demands {
            let count = demand.limit.min(waiting.len());
            claimed.deliveries.extend(waiting.drain(..count));
            if !waiting.is_empty() {
                claimed.more.push(demand.handler);
            }
        }
        Ok(claimed)
    }

    async fn settle(&self, _: &SettleBatch) -> Result<()> {
        Ok(())
    }

    async fn wait(&self) -> Notice {
        std::future::pending().await
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

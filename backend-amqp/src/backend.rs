//! The backend: translates core's questions, hands them on, returns.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use event_bus_core::Result;
use event_bus_core::backend::{
    Backend, Capabilities, DeadLetter, DeadLetterFilter, DeliveryId, HandlerCounts, Publication, Session,
    Stored, WorkerSpec,
};
use event_bus_core::registry::Registry;
use tokio::time::Instant;

use crate::catalogue::Administration;
use crate::config::{AmqpConfig, Routing};
use crate::counts;
use crate::dead;
use crate::error::NAME;
use crate::link::Link;
use crate::post::{self, DeadNumbers, Post};
use crate::publisher::Publisher;
use crate::session::AmqpSession;
use crate::topology::Names;

/// Publish calls go over so many channels: while one waits for its confirmations, the others send.
const PUBLISHING_CHANNELS: usize = 2;

/// Deliveries in quorum queues of RabbitMQ, 3.10 or newer.
///
/// A cheap clone. Nothing is opened before the first call, which must be made within a tokio runtime. No plugin is needed
/// with [`Routing::Direct`], and no management API.
///
/// # Publishing
/// One persistent message for each handler, each confirmed by the broker before `publish` returns, over a connection of its
/// own. A call is not atomic: with an error a part of it may be stored, and a repeat is safe.
///
/// # Working
/// The keys of each handler are divided over [`partitions`](AmqpConfig::partitions) queues, each with one active consumer.
/// Workers share them out among themselves. A worker that is killed is followed at once; one that is cut off or stopped when
/// the broker has missed it for about 2.4 heartbeats, and it stops by itself after one.
///
/// # Limits
/// A worker holds up to 1,000 deliveries of each of its queues in memory. More than 1,000 deliveries behind keys that wait
/// for a retry stall the queue they share until one of the heads is through. A run must be shorter than the broker's
/// `consumer_timeout` (30 minutes). The crate's README has the rest.
#[derive(Clone)]
pub struct AmqpBackend {
    shared: Arc<Shared>,
}

/// What the backend and its sessions share.
pub(crate) struct Shared {
    pub(crate) config: Arc<AmqpConfig>,
    pub(crate) names: Names,
    pub(crate) administration: Arc<Administration>,
    pub(crate) post: Post,
    /// What the application publishes.
    pub(crate) publisher: Publisher,
    /// What sessions store: journals, retries, dead letters. One channel: the newest journal must come last.
    pub(crate) journals: Publisher,
    /// What workers tell one another.
    pub(crate) notes: Publisher,
    pub(crate) dead_numbers: DeadNumbers,
    /// The handlers of the buses over this backend.
    handlers: Mutex<Vec<Arc<str>>>,
}

impl AmqpBackend {
    /// A backend over the broker of `config`. Nothing is opened yet.
    ///
    /// # Errors
    /// `InvalidConfiguration` with everything that is wrong.
    pub fn new(config: AmqpConfig) -> Result<Self> {
        let config = Arc::new(config.load()?);
        let names = Names::new(&config);
        let publishing = Arc::new(Link::new(config.clone(), "publisher"));
        let shared = Shared {
            administration: Administration::new(config.clone(), names.clone()),
            post: Post::new(names.clone()),
            publisher: Publisher::new(publishing.clone(), PUBLISHING_CHANNELS),
            journals: Publisher::new(publishing.clone(), 1),
            notes: Publisher::new(publishing, 1),
            dead_numbers: DeadNumbers::default(),
            handlers: Mutex::default(),
            config,
            names,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A backend over the broker of a url, see [`AmqpConfig::from_url`]. Nothing is opened yet.
    ///
    /// # Errors
    /// `InvalidConfiguration` with everything that is wrong.
    pub fn from_url(url: &str) -> Result<Self> {
        Self::new(AmqpConfig::from_url(url)?)
    }

    /// The settings.
    pub fn config(&self) -> &AmqpConfig {
        &self.shared.config
    }

    fn handlers(&self) -> Vec<Arc<str>> {
        self.shared.handlers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for AmqpBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpBackend").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for AmqpBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durable: true,
            delay: true,
            dead_letters: true,
            parking: true,
            key_order: self.shared.config.routing == Routing::Direct,
            ..Capabilities::NONE
        }
    }

    fn attach(&self, registry: &Arc<Registry>) -> Result<()> {
        let mut handlers = self.shared.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        for handler in registry.handlers() {
            if !handlers.contains(handler.name()) {
                handlers.push(handler.name().clone());
            }
        }
        Ok(())
    }

    async fn prepare(&self) -> Result<()> {
        self.shared.administration.prepare("migrate", self.handlers()).await
    }

    async fn publish(&self, publication: Publication) -> Result<Stored> {
        let Shared { config, administration, post, publisher, .. } = &*self.shared;
        let deadline = Instant::now() + config.publish_timeout;
        let (letters, handlers) = post::letters(post, &publication);
        let prepared =
            tokio::time::timeout_at(deadline, administration.ensure("publish", handlers.clone(), false));
        prepared.await.map_err(|_| crate::error::no_answer("publish"))??;
        let delivered =
            post::deliver(publisher, administration, "publish", letters, &handlers, deadline).await;
        delivered.map(|()| Stored::New).map_err(|undelivered| undelivered.error)
    }

    async fn open(&self, worker: &WorkerSpec) -> Result<Arc<dyn Session>> {
        let handlers = worker.handlers.iter().map(|handler| handler.name.clone()).collect();
        self.shared.administration.ensure("open", handlers, false).await?;
        Ok(Arc::new(AmqpSession::open(&self.shared, worker).await?))
    }

    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        dead::list(&self.shared, filter, after, limit).await
    }

    async fn replay(&self, filter: &DeadLetterFilter) -> Result<u64> {
        dead::replay(&self.shared, filter).await
    }

    async fn purge(&self, filter: &DeadLetterFilter) -> Result<u64> {
        dead::purge(&self.shared, filter).await
    }

    async fn counts(&self) -> Result<Vec<HandlerCounts>> {
        counts::counts(&self.shared).await
    }
}

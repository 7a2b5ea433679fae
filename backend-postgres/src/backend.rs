//! The backend: translates core's questions for the store.

use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use event_bus_core::backend::{
    Backend, Capabilities, Connection, DeadLetter, DeadLetterFilter, DeliveryId, HandlerCounts, Publication,
    Session, Stored, WorkerSpec,
};
use event_bus_core::{ErrorKind, Result};

use crate::config::PostgresConfig;
use crate::connection::{Hands, Shared, locked};
use crate::dead;
use crate::error::{NAME, error};
use crate::migrate;
use crate::publisher::Publisher;
use crate::session;
use crate::transaction;

/// Deliveries in a PostgreSQL database (13 or newer).
///
/// A cheap clone. Nothing is opened before the first call, which must be made within a tokio runtime. What it promises and
/// what it needs stands in the documentation of this crate.
#[derive(Clone)]
pub struct PostgresBackend {
    shared: Arc<Shared>,
    publisher: Arc<Mutex<Option<Publisher>>>,
    hands: Arc<Hands>,
}

impl PostgresBackend {
    /// A backend over the database of `config`. Nothing is opened yet.
    ///
    /// # Errors
    /// `InvalidConfiguration` with everything that is wrong.
    pub fn new(config: PostgresConfig) -> Result<Self> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(error(ErrorKind::InvalidConfiguration, "connect", problems.join("; ")));
        }
        let shared = Arc::new(Shared::new(config));
        Ok(Self { hands: Arc::new(Hands::new(&shared)), shared, publisher: Arc::default() })
    }

    /// A backend over the database of a url, see [`PostgresConfig::from_url`]. Nothing is opened yet.
    ///
    /// # Errors
    /// `InvalidConfiguration` with everything that is wrong.
    pub fn from_url(url: &str) -> Result<Self> {
        Self::new(PostgresConfig::from_url(url)?)
    }

    /// The settings.
    pub fn config(&self) -> &PostgresConfig {
        &self.shared.config
    }

    /// All tables as one script, for people who run their own migrations. A database on which it was run needs no
    /// [`migrate`](event_bus_core::EventBus::migrate).
    pub fn migrations_sql(&self) -> String {
        migrate::script(&self.shared.config.schema)
    }

    fn publisher(&self) -> Publisher {
        let mut publisher = locked(&self.publisher);
        match &*publisher {
            Some(running) if !running.is_dead() => running.clone(),
            _ => publisher.insert(Publisher::start(&self.shared)).clone(),
        }
    }

    /// Something was stored that workers may claim.
    fn wake(&self) {
        self.shared.ring();
        if self.shared.config.is_notifying {
            self.publisher().wake();
        }
    }
}

impl fmt::Debug for PostgresBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBackend").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for PostgresBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }

    async fn prepare(&self) -> Result<()> {
        migrate::migrate(&self.shared).await
    }

    async fn publish(&self, publication: Publication) -> Result<Stored> {
        if transaction::is_plain(&self.shared, &publication) {
            return self.publisher().publish(publication).await;
        }
        // A rival that holds the key keeps this one waiting, and must not keep the others.
        let handlers = transaction::know_handlers(&self.shared, &self.hands, &publication).await?;
        let shared = self.shared.clone();
        let stored = self
            .hands
            .run("publish", true, move |connection, _| {
                Box::pin(
                    async move { transaction::store_on(&shared, &handlers, connection, &publication).await },
                )
            })
            .await?;
        self.wake();
        Ok(stored)
    }

    async fn open(&self, worker: &WorkerSpec) -> Result<Arc<dyn Session>> {
        Ok(Arc::new(session::open(&self.shared, worker).await?))
    }

    async fn publish_in(&self, connection: Connection<'_>, publication: Publication) -> Result<Stored> {
        let handlers = transaction::know_handlers(&self.shared, &self.hands, &publication).await?;
        let stored = transaction::publish_in(&self.shared, &handlers, connection, &publication).await?;
        self.publisher().wake_later();
        Ok(stored)
    }

    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        dead::dead_letters(&self.hands, filter, after, limit).await
    }

    async fn replay(&self, filter: &DeadLetterFilter) -> Result<u64> {
        let replayed = dead::replay(&self.hands, filter).await;
        self.wake();
        replayed
    }

    async fn purge(&self, filter: &DeadLetterFilter) -> Result<u64> {
        dead::purge(&self.hands, filter).await
    }

    async fn counts(&self) -> Result<Vec<HandlerCounts>> {
        dead::counts(&self.hands).await
    }
}

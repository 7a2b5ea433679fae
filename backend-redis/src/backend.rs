//! The backend: translates core's questions for the scripts.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use event_bus_core::backend::{
    Backend, Capabilities, DeadLetter, DeadLetterFilter, DeliveryId, HandlerCounts, Publication, Session,
    Stored, WorkerSpec,
};
use event_bus_core::{ErrorKind, Result, SLOTS};

use crate::config::RedisConfig;
use crate::dead;
use crate::error::{Failure, NAME, error};
use crate::link::{self, Link};
use crate::publisher::Publisher;
use crate::script;
use crate::session::RedisSession;

/// The version of what is in the store.
pub(crate) const SCHEMA: &str = "1";

/// Deliveries in Redis 7.0 or newer: streams, moved by scripts.
///
/// A cheap clone. Nothing is connected before the first call, which must be made within a tokio runtime.
///
/// # Publishing
/// A publish call is one script, so it is stored whole or not at all; calls that wait at the same time share one. Each is
/// numbered: when an answer is lost it is repeated, and stored once. What Ok means is chosen by
/// [`Durability`](crate::Durability), and verified.
///
/// # Working
/// Keyed deliveries lie in 64 streams for each handler. A worker owns some of them and reads them alone; when workers come
/// and go, streams move. Free deliveries are shared by all. A worker that closes hands over at once. One that vanishes is
/// followed when its counter has stood still for its whole [`lease`](RedisConfig::lease); it has stopped by itself before
/// that, should it be alive.
///
/// # Limits
/// One server, its replicas for the data's sake, no cluster. Redis with automatic failover keeps what was published, and one
/// owner for a key, only as far as it keeps acknowledged writes and a single primary; the crate's README says what that
/// means.
#[derive(Clone)]
pub struct RedisBackend {
    pub(crate) shared: Arc<Shared>,
    publisher: Arc<Mutex<Option<Publisher>>>,
    link: Arc<Link>,
}

/// What the backend and its sessions share.
pub(crate) struct Shared {
    pub(crate) config: Arc<RedisConfig>,
    pub(crate) client: redis::Client,
    /// Before what all keys begin.
    pub(crate) base: String,
    /// The server, for messages.
    pub(crate) server: String,
    /// Was the server ever fit to work with? Then it is only away, whatever it says of itself in a failover.
    pub(crate) was_fit: AtomicBool,
}

impl RedisBackend {
    /// A backend on the server of `config`. Nothing is connected yet.
    ///
    /// # Errors
    /// `InvalidConfiguration` with everything that is wrong.
    pub fn new(config: RedisConfig) -> Result<Self> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(error(ErrorKind::InvalidConfiguration, "connect", problems.join("; ")));
        }
        let client = link::client(&config)?;
        let (base, server) = (config.base(), config.server());
        let config = Arc::new(config);
        let shared = Arc::new(Shared { config, client, base, server, was_fit: AtomicBool::new(false) });
        let link = Arc::new(Link::new(&shared, shared.config.command_timeout, None));
        Ok(Self { shared, publisher: Arc::default(), link })
    }

    /// A backend on the server of a url, see [`RedisConfig::from_url`]. Nothing is connected yet.
    ///
    /// # Errors
    /// `InvalidConfiguration` with everything that is wrong.
    pub fn from_url(url: &str) -> Result<Self> {
        Self::new(RedisConfig::from_url(url)?)
    }

    /// The settings.
    pub fn config(&self) -> &RedisConfig {
        &self.shared.config
    }

    fn publisher(&self) -> Publisher {
        let mut publisher = self.publisher.lock().unwrap_or_else(PoisonError::into_inner);
        match &*publisher {
            Some(running) if !running.is_dead() => running.clone(),
            _ => publisher.insert(Publisher::start(&self.shared)).clone(),
        }
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackend").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl Shared {
    /// Whether the store is one of this version.
    pub(crate) fn check_meta(&self, operation: &'static str, schema: &str, slots: &str) -> Result<()> {
        if schema != SCHEMA {
            return Err(error(ErrorKind::InvalidConfiguration, operation, schema_problem(self, schema)));
        }
        if slots != SLOTS.to_string() {
            return Err(error(
                ErrorKind::InvalidConfiguration,
                operation,
                format!(
                    "the bus {} was created with {slots} slots, this binary has {SLOTS}; a bus keeps its slots for ever",
                    self.base
                ),
            ));
        }
        Ok(())
    }
}

/// Why a store of this schema version cannot be used.
pub(crate) fn schema_problem(shared: &Shared, schema: &str) -> String {
    let base = &shared.base;
    match schema {
        "" => format!(
            "there is no bus {base} on the server {}; call `migrate` before anything else",
            shared.server
        ),
        schema => format!(
            "the bus {base} is of version {schema}, which is newer than this binary (version {SCHEMA}); use a newer binary"
        ),
    }
}

#[async_trait]
impl Backend for RedisBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { transactional_publish: false, transactional_complete: false, ..Capabilities::ALL }
    }

    async fn prepare(&self) -> Result<()> {
        let failed = |failure: Failure| failure.into_error("migrate", &self.shared.server);
        let run = self.link.run().await.map_err(failed)?;
        let mut call = script::PREPARE.call(&self.shared.base);
        call.arg(SCHEMA).arg(SLOTS).arg(&*run);
        let mut reply = self.link.eval(&call).await.map_err(failed)?;
        let (schema, slots) = (reply.text().map_err(failed)?, reply.text().map_err(failed)?);
        self.shared.check_meta("migrate", &schema, &slots)
    }

    async fn publish(&self, publication: Publication) -> Result<Stored> {
        self.publisher().publish(publication, self.shared.config.publish_timeout).await
    }

    async fn open(&self, worker: &WorkerSpec) -> Result<Arc<dyn Session>> {
        Ok(RedisSession::open(&self.shared, worker).await?)
    }

    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        dead::dead_letters(&self.shared, &self.link, filter, after, limit).await
    }

    async fn replay(&self, filter: &DeadLetterFilter) -> Result<u64> {
        dead::replay(&self.shared, &self.link, filter).await
    }

    async fn purge(&self, filter: &DeadLetterFilter) -> Result<u64> {
        dead::purge(&self.shared, &self.link, filter).await
    }

    async fn counts(&self) -> Result<Vec<HandlerCounts>> {
        dead::counts(&self.shared, &self.link).await
    }
}

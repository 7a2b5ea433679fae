//! The backend: translates core's questions for the writer and for the store.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use event_bus_core::backend::{
    Backend, Capabilities, Connection, DeadLetter, DeadLetterFilter, DeliveryId, HandlerCounts, Publication,
    Session, Stored, WorkerSpec,
};
use event_bus_core::{ErrorKind, Result};
use tokio::sync::Notify;

use crate::config::SqliteConfig;
use crate::dead;
use crate::error::{NAME, error, translate};
use crate::filesystem;
use crate::lock::WorkerLock;
use crate::migrate;
use crate::operation::{Open, Operation};
use crate::session::SqliteSession;
use crate::store;
use crate::transaction;
use crate::writer::Writer;

/// Deliveries in one SQLite file: durable, and no server to run.
///
/// A cheap clone. Nothing is opened before the first call, which must be made within a tokio runtime.
///
/// # Publishing
/// Any number of processes on the machine may publish into the file. All calls of one process go through one connection
/// and share commits: whatever waits when a commit returns is stored by the next one. With [`Synchronous::Full`], the
/// default, what was published survives a power loss.
///
/// # Working
/// One process works at a time; it holds an operating-system lock on `<file>.worker.lock`. Others stand by and take over
/// as soon as it ends, however it ends. The worker sees what its own process publishes at once, and what others publish
/// within [`poll_interval`](SqliteConfig::poll_interval).
///
/// # The caller's own database
/// The file may be the application's own: all tables begin with `event_bus_`. Only then can an event be published, and a
/// delivery completed, in one transaction with the application's writes. Begin such a transaction with
/// `pool.begin_with("BEGIN IMMEDIATE")`: a plain `begin` that reads before it writes fails as soon as somebody else has
/// written meanwhile. Keep it short, for nobody else can write while it lasts, and do not await a publish outside of it
/// before it has ended: that publish waits for its lock. `migrate` turns the write-ahead log of the file on, for good.
///
/// # Limits
/// A local disk (network file systems are refused), UTF-8 as the database's encoding, half a million handlers and 8 * 10^12
/// deliveries of each.
///
/// [`Synchronous::Full`]: crate::Synchronous::Full
#[derive(Clone)]
pub struct SqliteBackend {
    shared: Arc<Shared>,
    writer: Arc<Mutex<Option<Writer>>>,
}

/// What the backend, its writer and its session share.
pub(crate) struct Shared {
    pub(crate) config: SqliteConfig,
    /// Something was committed that a worker may claim.
    pub(crate) wake: Notify,
}

/// How often a standby looks whether it may take over.
const STANDBY_INTERVAL: Duration = Duration::from_millis(50);

impl SqliteBackend {
    /// A backend over the file of `config`. Nothing is opened yet.
    ///
    /// # Errors
    /// `InvalidConfiguration` with everything that is wrong.
    pub fn new(config: SqliteConfig) -> Result<Self> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(error(ErrorKind::InvalidConfiguration, "connect", problems.join("; ")));
        }
        Ok(Self { shared: Arc::new(Shared { config, wake: Notify::new() }), writer: Arc::default() })
    }

    /// A backend over the file at `path`, with the defaults of [`SqliteConfig`]. Nothing is opened yet.
    ///
    /// # Errors
    /// `InvalidConfiguration` for an empty path or an in-memory database.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(SqliteConfig::new(path))
    }

    /// A backend over the file of a url, see [`SqliteConfig::from_url`]. Nothing is opened yet.
    ///
    /// # Errors
    /// `InvalidConfiguration` with everything that is wrong.
    pub fn from_url(url: &str) -> Result<Self> {
        Self::new(SqliteConfig::from_url(url)?)
    }

    /// The settings.
    pub fn config(&self) -> &SqliteConfig {
        &self.shared.config
    }

    fn writer(&self) -> Writer {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        match &*writer {
            Some(running) if !running.is_dead() => running.clone(),
            _ => writer.insert(Writer::start(&self.shared)).clone(),
        }
    }
}

impl fmt::Debug for SqliteBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteBackend").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for SqliteBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }

    async fn prepare(&self) -> Result<()> {
        migrate::migrate(&self.shared.config).await
    }

    async fn publish(&self, publication: Publication) -> Result<Stored> {
        self.writer().ask("publish", |reply| Operation::Publish { publication, reply }).await
    }

    async fn open(&self, worker: &WorkerSpec) -> Result<Arc<dyn Session>> {
        let config = &self.shared.config;
        let path = &config.path;
        filesystem::check(config, "open")?;
        let mut reader =
            store::connect_reader(config).await.map_err(|failure| translate("open", path, &failure))?;
        migrate::check_migrated(&mut reader, config).await?;
        let lock = loop {
            let lock = WorkerLock::try_acquire(path).map_err(|failure| {
                error(
                    ErrorKind::Unavailable,
                    "open",
                    format!("the lock file of {} cannot be locked", path.display()),
                )
                .with_source(failure)
            })?;
            match lock {
                Some(lock) => break lock,
                None => tokio::time::sleep(STANDBY_INTERVAL).await,
            }
        };
        let writer = self.writer();
        let open = Open {
            incarnation: worker.incarnation,
            handlers: worker.handlers.iter().map(|handler| (handler.name.clone(), handler.window)).collect(),
            lock,
            writer: writer.clone(),
            taken: None,
        };
        let opened = writer.ask("open", |reply| Operation::Open { open, reply }).await?;
        Ok(Arc::new(SqliteSession::new(self.shared.clone(), writer, reader, opened)))
    }

    async fn publish_in(&self, connection: Connection<'_>, publication: Publication) -> Result<Stored> {
        transaction::publish_in(&self.shared.config, connection, &publication).await
    }

    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        dead::dead_letters(&self.shared.config, filter, after, limit).await
    }

    async fn replay(&self, filter: &DeadLetterFilter) -> Result<u64> {
        dead::replay(&self.shared.config, &self.writer(), filter).await
    }

    async fn purge(&self, filter: &DeadLetterFilter) -> Result<u64> {
        dead::purge(&self.shared.config, &self.writer(), filter).await
    }

    async fn counts(&self) -> Result<Vec<HandlerCounts>> {
        dead::counts(&self.shared.config).await
    }
}

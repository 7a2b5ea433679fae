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
use event_bus_core::{ErrorKind, Result, SLOTS};
use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::Notify;

use crate::config::SqliteConfig;
use crate::dead;
use crate::error::{NAME, error, translate};
use crate::lock::WorkerLock;
use crate::operation::{Open, Operation};
use crate::session::SqliteSession;
use crate::store;
use crate::transaction;
use crate::writer::Writer;

/// Deliveries in one SQLite file, in this process and in others on the same machine.
///
/// Any number of processes may publish; one at a time works, the others stand by and take over when it ends, however it
/// ends. A cheap clone.
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

/// The version of the newest migration, and the statements that lead there, one after the other.
const MIGRATIONS: [&str; 1] = [include_str!("migrations/0001_tables.sql")];

/// The hash that assigns keys to slots; part of every store's format.
const HASH: &str = "xxh3-64";

/// The first SQLite without the bug that can damage a write-ahead log with two writers
/// (<https://www.sqlite.org/wal.html#walresetbug>).
const OLDEST_LIBRARY: (u32, u32, u32) = (3, 51, 3);

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
        let config = self.shared.config.clone();
        // In a task of its own, so that a dropped future cannot leave a transaction open.
        let migration = tokio::spawn(async move { migrate(&config).await });
        migration
            .await
            .map_err(|failure| error(ErrorKind::Unavailable, "migrate", "was aborted").with_source(failure))?
    }

    async fn publish(&self, publication: Publication) -> Result<Stored> {
        self.writer().ask("publish", |reply| Operation::Publish { publication, reply }).await
    }

    async fn open(&self, worker: &WorkerSpec) -> Result<Arc<dyn Session>> {
        let config = &self.shared.config;
        let path = &config.path;
        let mut reader =
            store::connect_reader(config).await.map_err(|failure| translate("open", path, &failure))?;
        check_schema(&mut reader, config).await?;
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

/// Creates or upgrades the tables.
async fn migrate(config: &SqliteConfig) -> Result<()> {
    let failed = |failure: sqlx::Error| translate("migrate", &config.path, &failure);
    let mut connection = store::connect_writer(config, true).await.map_err(failed)?;
    let (mode, version) = store::environment(&mut connection).await.map_err(failed)?;
    check_library(&version)?;
    if mode != "wal" {
        return Err(error(
            ErrorKind::InvalidConfiguration,
            "migrate",
            format!("{} cannot use a write-ahead log (its journal mode is {mode})", config.path.display()),
        ));
    }
    store::begin_plain(&mut connection).await.map_err(failed)?;
    let result = run_migrations(&mut connection, config).await;
    let result = match result {
        Ok(()) => store::commit(&mut connection).await.map_err(failed),
        Err(refused) => {
            let _ = store::rollback(&mut connection).await;
            Err(refused)
        }
    };
    let _ = connection.close().await;
    result
}

async fn run_migrations(connection: &mut SqliteConnection, config: &SqliteConfig) -> Result<()> {
    let failed = |failure: sqlx::Error| translate("migrate", &config.path, &failure);
    let present = check_store(connection, config, "migrate").await?;
    for (position, sql) in MIGRATIONS.iter().enumerate().skip(present) {
        store::run_migration(connection, sql).await.map_err(failed)?;
        store::set_meta(connection, "schema", &(position + 1).to_string()).await.map_err(failed)?;
    }
    if present == 0 {
        store::set_meta(connection, "slots", &SLOTS.to_string()).await.map_err(failed)?;
        store::set_meta(connection, "hash", HASH).await.map_err(failed)?;
    }
    Ok(())
}

/// The schema version of the file, 0 if it has none; refuses a file that this binary must not touch.
async fn check_store(
    connection: &mut SqliteConnection,
    config: &SqliteConfig,
    operation: &'static str,
) -> Result<usize> {
    let failed = |failure: sqlx::Error| translate(operation, &config.path, &failure);
    let refuse = |message: String| {
        Err(error(
            ErrorKind::InvalidConfiguration,
            operation,
            format!("{}: {message}", config.path.display()),
        ))
    };
    if !store::has_meta(connection).await.map_err(failed)? {
        return Ok(0);
    }
    let schema = store::meta(connection, "schema").await.map_err(failed)?.unwrap_or_default();
    let newest = MIGRATIONS.len();
    let schema = match schema.parse::<usize>() {
        Ok(schema) if schema <= newest => schema,
        _ => {
            return refuse(format!(
                "its tables have version {schema:?}, this binary knows {newest}; upgrade the binary"
            ));
        }
    };
    for (key, ours) in [("slots", SLOTS.to_string()), ("hash", HASH.to_owned())] {
        let theirs = store::meta(connection, key).await.map_err(failed)?.unwrap_or_default();
        if theirs != ours {
            return refuse(format!("it was created with {key} {theirs:?}, this binary uses {ours:?}"));
        }
    }
    Ok(schema)
}

/// Refuses a file that is not migrated.
async fn check_schema(connection: &mut SqliteConnection, config: &SqliteConfig) -> Result<()> {
    let schema = check_store(connection, config, "open").await?;
    if schema == MIGRATIONS.len() {
        return Ok(());
    }
    let file = config.path.display();
    Err(error(
        ErrorKind::InvalidConfiguration,
        "open",
        format!("the tables in {file} are not up to date; call `migrate`"),
    ))
}

fn check_library(version: &str) -> Result<()> {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    let found = (next(), next(), next());
    if found >= OLDEST_LIBRARY {
        return Ok(());
    }
    let (major, minor, patch) = OLDEST_LIBRARY;
    Err(error(
        ErrorKind::InvalidConfiguration,
        "migrate",
        format!(
            "SQLite {version} can damage a file that two processes write to; {major}.{minor}.{patch} is needed"
        ),
    ))
}

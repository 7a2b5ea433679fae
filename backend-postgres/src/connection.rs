//! Connections: how they are made, and who may use them.
//!
//! Nothing here can be cancelled in the middle: work on a connection runs in a task of its own, and whoever waits for it
//! may stop waiting. A connection whose work did not end well is thrown away.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use event_bus_core::{ErrorKind, Result};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::config::PostgresConfig;
use crate::error::{Cause, error, translate};
use crate::publish::Handlers;
use crate::statements::Statements;

/// A connection that was not used for this long is asked whether it still lives before it is used again.
const FRESH: Duration = Duration::from_secs(1);

/// How long the server lets a transaction of ours stand still.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(10);

/// How long a worker waits for the locks of others. Short: everything it does waits with it.
const SESSION_LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a worker believes in its session without an answer, counted from when it asked.
pub(crate) const TRUST: Duration = Duration::from_secs(8);

/// How long a statement of a worker may take. Longer than [`TRUST`]: the lock that the session holds must outlive the trust
/// of an owner that hears nothing any more.
const SESSION_STATEMENT_TIMEOUT: Duration = Duration::from_secs(9);

/// How long the server waits for a silent worker.
pub(crate) const SESSION_SILENCE: Duration = Duration::from_secs(10);

/// What the parts of a backend share.
pub(crate) struct Shared {
    pub(crate) config: PostgresConfig,
    pub(crate) statements: Statements,
    /// The channel of NOTIFY.
    pub(crate) channel: String,
    /// The database in words.
    pub(crate) place: String,
    /// The ids of handler names that were met.
    handlers: Mutex<Arc<Handlers>>,
    /// The workers of this process, to be woken when something was committed that they may claim.
    bells: Mutex<Vec<Weak<Notify>>>,
}

impl Shared {
    pub(crate) fn new(config: PostgresConfig) -> Self {
        Self {
            statements: Statements::new(&config.schema),
            channel: format!("event_bus:{}", config.schema),
            place: config.place(),
            config,
            handlers: Mutex::default(),
            bells: Mutex::default(),
        }
    }

    /// The statements for a session of ours.
    pub(crate) fn at(&self) -> At<'_> {
        At { sql: &self.statements, is_named: true }
    }

    /// The statements for a connection that may lead to a pooler.
    pub(crate) fn at_client(&self) -> At<'_> {
        At { sql: &self.statements, is_named: !self.config.is_pooled }
    }

    /// The statements for a migration, whose connection is direct if there is a way.
    pub(crate) fn at_direct(&self) -> At<'_> {
        At { sql: &self.statements, is_named: !self.config.is_pooled || self.config.direct.is_some() }
    }

    /// The handlers whose ids are known.
    pub(crate) fn handlers(&self) -> Arc<Handlers> {
        locked(&self.handlers).clone()
    }

    /// More of them.
    pub(crate) fn learn(&self, handlers: Handlers) {
        Arc::make_mut(&mut *locked(&self.handlers)).extend(handlers);
    }

    /// The next connection may lead to another database.
    pub(crate) fn forget_handlers(&self) {
        *locked(&self.handlers) = Arc::default();
    }

    /// A worker of this process wants to be woken.
    pub(crate) fn hang_bell(&self, bell: &Arc<Notify>) {
        let mut bells = locked(&self.bells);
        bells.retain(|bell| bell.strong_count() > 0);
        bells.push(Arc::downgrade(bell));
    }

    /// Wakes the workers of this process.
    pub(crate) fn ring(&self) {
        locked(&self.bells).iter().filter_map(Weak::upgrade).for_each(|bell| bell.notify_one());
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is done under these locks can panic half way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which statements, and whether the server may keep them by name.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) sql: &'a Statements,
    pub(crate) is_named: bool,
}

fn millis(time: Duration) -> String {
    time.as_millis().to_string()
}

/// With time-outs that the server keeps.
fn with_timeouts(options: PgConnectOptions, statement: Duration, lock: Duration) -> PgConnectOptions {
    options.options([
        ("statement_timeout", millis(statement)),
        ("lock_timeout", millis(lock)),
        ("idle_in_transaction_session_timeout", millis(IDLE_IN_TRANSACTION)),
        ("jit", "off".to_owned()),
        // What the statements guarantee rests on it: under a lock they look again at what is there.
        ("default_transaction_isolation", "read committed".to_owned()),
    ])
}

fn base(options: &PgConnectOptions) -> PgConnectOptions {
    let options = match options.get_application_name() {
        Some(_) => options.clone(),
        None => options.clone().application_name("event-bus"),
    };
    options.disable_statement_logging()
}

/// The options for publishing and looking.
pub(crate) fn client_options(config: &PostgresConfig) -> PgConnectOptions {
    let options = base(&config.options);
    if config.is_pooled {
        // What a pooler does not know it refuses. Time-outs are set in each transaction instead.
        options.statement_cache_capacity(0).extra_float_digits(None)
    } else {
        with_timeouts(options, config.write_timeout, config.write_timeout)
    }
}

/// The options for listening.
pub(crate) fn listen_options(config: &PostgresConfig) -> PgConnectOptions {
    with_timeouts(direct_options(config), SESSION_STATEMENT_TIMEOUT, SESSION_LOCK_TIMEOUT)
}

/// The options of a direct connection, for workers and migrations.
fn direct_options(config: &PostgresConfig) -> PgConnectOptions {
    base(config.direct.as_ref().unwrap_or(&config.options))
}

/// Connects for a worker. The plans of its statements are made when the tables may be empty and are kept when they are
/// full, so that no plan may read a table from end to end.
pub(crate) async fn connect_session(config: &PostgresConfig) -> sqlx::Result<PgConnection> {
    with_timeouts(direct_options(config), SESSION_STATEMENT_TIMEOUT, SESSION_LOCK_TIMEOUT)
        .options([("enable_seqscan", "off")])
        .connect()
        .await
}

/// The statement time-out of a worker's session, as the server shows it.
pub(crate) fn session_statement_timeout() -> String {
    format!("{}s", SESSION_STATEMENT_TIMEOUT.as_secs())
}

/// Connects for a migration.
pub(crate) async fn connect_direct(config: &PostgresConfig) -> sqlx::Result<PgConnection> {
    if config.is_pooled && config.direct.is_none() {
        return client_options(config).connect().await;
    }
    let timeout = config.write_timeout;
    with_timeouts(direct_options(config), timeout, timeout).connect().await
}

/// Begins a transaction with the same settings on a connection that may not have them.
pub(crate) fn begin(config: &PostgresConfig) -> String {
    let timeout = millis(config.write_timeout);
    format!(
        "begin isolation level read committed; set local statement_timeout = {timeout}; set local lock_timeout = {timeout}; \
         set local idle_in_transaction_session_timeout = {}",
        millis(IDLE_IN_TRANSACTION)
    )
}

/// A connection for publishing and looking.
pub(crate) struct Client {
    connection: PgConnection,
    used_at: Instant,
    begin: Option<Arc<str>>,
}

pub(crate) type Work<'a, T> = Pin<Box<dyn Future<Output = sqlx::Result<T>> + Send + 'a>>;

impl Client {
    pub(crate) async fn connect(config: &PostgresConfig) -> sqlx::Result<Self> {
        let connection = client_options(config).connect().await?;
        // A pooler gives us a server for the length of a transaction only, and sqlx sends a statement and its values in
        // two steps. Nobody cancels what runs here, so a transaction cannot be left open.
        let begin = config.is_pooled.then(|| begin(config).into());
        Ok(Self { connection, used_at: Instant::now(), begin })
    }

    /// Whether it can still be used.
    async fn is_alive(&mut self) -> bool {
        self.used_at.elapsed() < FRESH || self.connection.ping().await.is_ok()
    }

    /// The connection, for one piece of work; with a pooler in a transaction.
    pub(crate) async fn begin(&mut self) -> sqlx::Result<&mut PgConnection> {
        if let Some(begin) = self.begin.clone() {
            sqlx::raw_sql(sqlx::AssertSqlSafe(begin)).execute(&mut self.connection).await?;
        }
        Ok(&mut self.connection)
    }

    /// The work is done, or failed.
    pub(crate) async fn end<T>(&mut self, result: sqlx::Result<T>) -> sqlx::Result<T> {
        self.used_at = Instant::now();
        if self.begin.is_none() {
            return result;
        }
        match result {
            Ok(value) => {
                sqlx::raw_sql("commit").execute(&mut self.connection).await?;
                Ok(value)
            }
            Err(failure) => {
                // If this fails as well, the connection is of no more use and found out to be so.
                let _ = sqlx::raw_sql("rollback").execute(&mut self.connection).await;
                Err(failure)
            }
        }
    }

    pub(crate) async fn close(self) {
        let _ = self.connection.close().await;
    }
}

/// Takes a kept connection that lives, or makes one.
pub(crate) async fn revive(kept: Option<Client>, config: &PostgresConfig) -> sqlx::Result<Client> {
    if let Some(mut client) = kept
        && client.is_alive().await
    {
        return Ok(client);
    }
    Client::connect(config).await
}

/// The connections for all that is not published in groups.
pub(crate) struct Hands {
    shared: Arc<Shared>,
    idle: Mutex<Vec<Client>>,
    permits: Semaphore,
}

impl Hands {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        let permits = usize::try_from(shared.config.max_connections).unwrap_or(1).min(Semaphore::MAX_PERMITS);
        Self { shared: shared.clone(), idle: Mutex::default(), permits: Semaphore::new(permits) }
    }

    /// Does something on a connection and waits for it, at most as long as the write time-out says.
    ///
    /// # Cancel safety
    /// A dropped future leaves it to be done, or not begun.
    pub(crate) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        operation: &'static str,
        is_write: bool,
        work: impl for<'a> FnOnce(&'a mut PgConnection, At<'a>) -> Work<'a, T> + Send + 'static,
    ) -> Result<T> {
        let hands = self.clone();
        let task = tokio::spawn(async move { hands.run_here(operation, is_write, work).await });
        match task.await {
            Ok(result) => result,
            Err(_) => Err(error(ErrorKind::Unavailable, operation, "the runtime is ending")),
        }
    }

    async fn run_here<T>(
        &self,
        operation: &'static str,
        is_write: bool,
        work: impl for<'a> FnOnce(&'a mut PgConnection, At<'a>) -> Work<'a, T>,
    ) -> Result<T> {
        let shared = &*self.shared;
        let deadline = Instant::now() + shared.config.write_timeout;
        let late = |kind| error(kind, operation, format!("{} does not answer in time", shared.place));
        let permit = tokio::time::timeout_at(deadline, self.permits.acquire()).await;
        let Ok(Ok(_permit)) = permit else { return Err(late(ErrorKind::Unavailable)) };
        let kept = locked(&self.idle).pop();
        let mut client = match tokio::time::timeout_at(deadline, revive(kept, &shared.config)).await {
            Ok(connected) => {
                connected.map_err(|failure| translate(operation, &shared.place, &failure, false))?
            }
            Err(_) => return Err(late(ErrorKind::Unavailable)),
        };
        let at = shared.at_client();
        // The server's own time-out comes first, if the server is there.
        let patience = deadline + FRESH;
        let worked = async {
            let result = work(client.begin().await?, at).await;
            client.end(result).await
        };
        let result = match tokio::time::timeout_at(patience, worked).await {
            Ok(result) => result,
            Err(_) => {
                return Err(late(if is_write { ErrorKind::OutcomeUnknown } else { ErrorKind::Unavailable }));
            }
        };
        match result {
            Ok(value) => {
                locked(&self.idle).push(client);
                Ok(value)
            }
            Err(failure) => {
                if !Cause::of(&failure).ends_connection(&failure) {
                    locked(&self.idle).push(client);
                }
                Err(translate(operation, &shared.place, &failure, is_write))
            }
        }
    }
}

//! The stores that faults befall.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Connection as _, PgConnection, SqliteConnection};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::surroundings::Surroundings;
use crate::servers::{Engine, Postgres, RabbitMq, Redis, Server, Vhost};

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    Sqlite,
    Postgres,
    Redis,
    RabbitMq,
}

impl Medium {
    pub(super) const ALL: [Self; 4] = [Self::Sqlite, Self::Postgres, Self::Redis, Self::RabbitMq];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::RabbitMq => "amqp",
        }
    }

    /// Whether there is a server, with connections to it.
    pub(super) fn has_server(self) -> bool {
        self != Self::Sqlite
    }

    /// How long a worker that does not answer keeps its right, with what a successor waits; a fault of three times this
    /// is a long one. For SQLite, where a stopped process keeps it for as long as it stands, just some time.
    pub(super) const fn lease(self) -> Duration {
        match self {
            Self::Sqlite => Duration::from_millis(300),
            // The server ends sessions that have said nothing for this long.
            Self::Postgres => Duration::from_secs(10),
            // Longer than a busy machine leaves a process waiting.
            Self::Redis => Duration::from_secs(2),
            // Two and a half heartbeats, of two seconds each.
            Self::RabbitMq => Duration::from_secs(5),
        }
    }

    /// Whether a call may be made again without its events being stored twice.
    pub(super) fn has_idempotency_keys(self) -> bool {
        self != Self::RabbitMq
    }

    /// What it is, and which version of it.
    pub(super) async fn version(self, store: &Store) -> String {
        match self {
            Self::Sqlite => {
                let mut connection = SqliteConnection::connect(":memory:").await.unwrap();
                let version = sqlx::query_scalar("select sqlite_version()").fetch_one(&mut connection).await;
                format!("SQLite {}", version.unwrap_or_else(|_| "?".to_owned()))
            }
            Self::Postgres => {
                let mut connection = PgConnection::connect(&store.own_url).await.unwrap();
                let version = sqlx::query_scalar("show server_version").fetch_one(&mut connection).await;
                format!("PostgreSQL {}", version.unwrap_or_else(|_| "?".to_owned()))
            }
            Self::Redis => {
                let answer = redis_says(&store.server().host(), "INFO server").await.unwrap_or_default();
                format!("Redis {}", after(&answer, "redis_version:", "\r"))
            }
            Self::RabbitMq => {
                let server = store.engine::<RabbitMq>();
                let answer = server.manage("GET", "/api/overview", "").await.unwrap_or_default();
                let version = after(&answer, "\"rabbitmq_version\":\"", "\"");
                format!("RabbitMQ {version}, Erlang {}", after(&answer, "\"erlang_version\":\"", "\""))
            }
        }
    }

    /// A server of its own for one row; none for a file.
    pub(super) async fn server(self, surroundings: &Surroundings) -> Option<Arc<dyn Victim>> {
        let around = surroundings.settings();
        let mut settings: Vec<_> = around.iter().map(|(name, value)| (&**name, &**value)).collect();
        match self {
            Self::Sqlite => None,
            Self::Postgres => {
                settings.push(("max_connections", "500"));
                Some(Arc::new(Postgres::start(&settings).await))
            }
            Self::Redis => {
                // An operator may do everything to it.
                settings.push(("enable-debug-command", "yes"));
                Some(Arc::new(Redis::start(&settings).await))
            }
            Self::RabbitMq => Some(Arc::new(RabbitMq::start(&settings).await)),
        }
    }

    /// An empty store; on a server that is shared a place of its own: a database, a bus, a virtual host.
    pub(super) async fn store(
        self,
        server: Option<Arc<dyn Victim>>,
        is_shared: bool,
        surroundings: &Surroundings,
    ) -> Store {
        static STORES: AtomicU64 = AtomicU64::new(1);
        let number = STORES.fetch_add(1, Ordering::Relaxed);
        let mut store = Store::nowhere(server);
        store.own_url = match self {
            Self::Sqlite => {
                let directory = match &surroundings.disk {
                    Some(disk) => tempfile::tempdir_in(disk.path()).unwrap(),
                    None => tempfile::tempdir().unwrap(),
                };
                let url = format!("sqlite://{}", directory.path().join("bus.db").display());
                store.directory = Some(directory);
                url
            }
            Self::Postgres if is_shared => {
                let database = store.engine::<Postgres>().database().await;
                let url = database.url().to_owned();
                store.place = Some(Box::new(database));
                url
            }
            Self::RabbitMq if is_shared => {
                let vhost = store.engine::<RabbitMq>().vhost().await;
                let url = vhost.url().to_owned();
                store.place = Some(Box::new(vhost));
                url
            }
            Self::Postgres | Self::Redis | Self::RabbitMq => store.server().own_url().to_owned(),
        };
        let own_url = &store.own_url;
        store.patient_url = match self {
            Self::Sqlite | Self::Postgres => own_url.clone(),
            Self::Redis => format!("{own_url}?bus=faults-{number}"),
            Self::RabbitMq => format!("{own_url}?partitions=4&presence_ms=200&vacancy_ms=50"),
        };
        let patient_url = &store.patient_url;
        store.url = match self {
            Self::Sqlite => patient_url.clone(),
            Self::Postgres => format!("{patient_url}?handover_delay_ms=400"),
            Self::Redis => format!("{patient_url}&lease_ms={}", self.lease().as_millis()),
            Self::RabbitMq => format!("{patient_url}&heartbeat_s=2"),
        };
        store
    }
}

/// A store of one row.
pub(super) struct Store {
    /// With short leases, so that rows are quick.
    pub(super) url: String,
    /// With the usual ones.
    pub(super) patient_url: String,
    /// The store itself, without the options of the bus.
    pub(super) own_url: String,
    /// What makes it a store of its own on its server.
    place: Option<Box<dyn Any + Send + Sync>>,
    server: Option<Arc<dyn Victim>>,
    pub(super) directory: Option<TempDir>,
}

impl Store {
    /// Another server is the one that counts, from now on.
    pub(super) fn fail_over<E: Engine>(&mut self, server: Server<E>) {
        server.url().clone_into(&mut self.own_url);
        self.url.clone_from(&self.own_url);
        self.patient_url.clone_from(&self.own_url);
        self.server = Some(Arc::new(server));
    }

    fn nowhere(server: Option<Arc<dyn Victim>>) -> Self {
        Self {
            url: String::new(),
            patient_url: String::new(),
            own_url: String::new(),
            place: None,
            server,
            directory: None,
        }
    }

    /// The server. Rows ask beforehand whether there is one.
    pub(super) fn server(&self) -> &dyn Victim {
        self.server.as_deref().expect("a medium with a server")
    }

    /// The server as what it is.
    pub(super) fn engine<T: 'static>(&self) -> &T {
        let server: &dyn Any = self.server();
        server.downcast_ref().expect("a server of this kind")
    }

    /// Removes a place on a server that goes on. A virtual host with its queues is a burden to it.
    pub(super) async fn clear(&self) {
        if let Some(vhost) = self.place.as_ref().and_then(|place| place.downcast_ref::<Vhost>()) {
            let path = format!("/api/vhosts/{}", vhost.name());
            if let Err(why) = self.engine::<RabbitMq>().manage("DELETE", &path, "").await {
                eprintln!("a virtual host is left: {why}");
            }
        }
    }
}

/// What can be done to a server of whatever kind.
#[async_trait]
pub(super) trait Victim: Any + Send + Sync {
    /// Where it listens.
    fn host(&self) -> String;
    /// As `kill -9`.
    async fn kill(&self);
    /// Its own URL, without the options of the bus.
    fn own_url(&self) -> &str;
    /// In peace.
    async fn stop(&self);
    /// Again, after either.
    async fn restart(&self);
    /// As `kill -STOP`.
    async fn pause(&self);
    /// As `kill -CONT`.
    async fn resume(&self);
}

#[async_trait]
impl<E: Engine> Victim for Server<E> {
    fn host(&self) -> String {
        Self::host(self).to_owned()
    }

    async fn kill(&self) {
        Self::kill(self).await;
    }

    fn own_url(&self) -> &str {
        self.url()
    }

    async fn stop(&self) {
        Self::stop(self).await;
    }

    async fn restart(&self) {
        Self::restart(self).await;
    }

    async fn pause(&self) {
        Self::pause(self).await;
    }

    async fn resume(&self) {
        Self::resume(self).await;
    }
}

/// What a Redis server answers to a command.
pub(super) async fn redis_says(host: &str, command: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(host).await?;
    stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// What stands between a sign and the next end.
fn after<'t>(text: &'t str, sign: &str, end: &str) -> &'t str {
    let rest = text.split_once(sign).map_or("?", |(_, rest)| rest);
    rest.split(end).next().unwrap_or(rest)
}

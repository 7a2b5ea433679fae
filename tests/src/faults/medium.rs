//! The stores that faults befall.

use std::any::Any;
use std::time::Duration;

use async_trait::async_trait;
use tempfile::TempDir;

use crate::servers::{Engine, Postgres, RabbitMq, Redis, Server};

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
            Self::Redis => Duration::from_secs(1),
            // Two and a half heartbeats, of two seconds each.
            Self::RabbitMq => Duration::from_secs(5),
        }
    }

    /// Whether a call may be made again without its events being stored twice.
    pub(super) fn has_idempotency_keys(self) -> bool {
        self != Self::RabbitMq
    }

    /// A store of its own for one row.
    pub(super) async fn store(self) -> Store {
        match self {
            Self::Sqlite => {
                let directory = tempfile::tempdir().unwrap();
                let url = format!("sqlite://{}", directory.path().join("bus.db").display());
                Store { patient_url: url.clone(), url, server: None, directory: Some(directory) }
            }
            Self::Postgres => {
                let server = Postgres::start(&[("max_connections", "500")]).await;
                let url = format!("{}?handover_delay_ms=400", server.url());
                Store {
                    patient_url: server.url().to_owned(),
                    url,
                    server: Some(Box::new(server)),
                    directory: None,
                }
            }
            Self::Redis => {
                // An operator may do everything to it.
                let server = Redis::start(&[("enable-debug-command", "yes")]).await;
                let patient_url = format!("{}?bus=faults", server.url());
                let url = format!("{patient_url}&lease_ms={}", self.lease().as_millis());
                Store { patient_url, url, server: Some(Box::new(server)), directory: None }
            }
            Self::RabbitMq => {
                let server = RabbitMq::start(&[]).await;
                let patient_url = format!("{}?partitions=4&presence_ms=200&vacancy_ms=50", server.url());
                let url = format!("{patient_url}&heartbeat_s=2");
                Store { patient_url, url, server: Some(Box::new(server)), directory: None }
            }
        }
    }
}

/// A store of one row.
pub(super) struct Store {
    /// With short leases, so that rows are quick.
    pub(super) url: String,
    /// With the usual ones.
    pub(super) patient_url: String,
    server: Option<Box<dyn Victim>>,
    pub(super) directory: Option<TempDir>,
}

impl Store {
    /// Another server is the one that counts, from now on.
    pub(super) fn fail_over<E: Engine>(&mut self, server: Server<E>) {
        self.url = server.url().to_owned();
        self.patient_url.clone_from(&self.url);
        self.server = Some(Box::new(server));
    }

    /// The server. Rows ask beforehand whether there is one.
    pub(super) fn server(&self) -> &dyn Victim {
        self.server.as_deref().expect("a medium with a server")
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

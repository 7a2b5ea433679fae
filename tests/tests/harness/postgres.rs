//! A database of its own on a server that all cases share.

use std::path::PathBuf;
use std::sync::Arc;

use event_bus::backend::{Backend, Capabilities};
use event_bus::postgres::PostgresConfig;
use event_bus::{Context, PostgresBackend, Publish, Receipt, Result, async_trait};
use event_bus_conformance::servers::{self, Database, PgBouncer};
use event_bus_conformance::suite::{Harness, Outage, Sandbox, Tamper, Transaction};
use sqlx::Row as _;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

/// The ways in which the backend is tested.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Postgres {
    /// Workers listen for notifications.
    Listening,
    /// Nobody notifies.
    Polling,
    /// All but the workers reach the database through PgBouncer in transaction mode.
    PgBouncer,
}

struct Sandboxed {
    database: Database,
    mode: Postgres,
    /// The application's own connections.
    pool: PgPool,
    bouncer: Option<PgBouncer>,
}

#[async_trait]
impl Harness for Postgres {
    fn name(&self) -> &'static str {
        match self {
            Self::Listening => "postgres[listening]",
            Self::Polling => "postgres[polling]",
            Self::PgBouncer => "postgres[pgbouncer]",
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }

    async fn sandbox(&self) -> Arc<dyn Sandbox> {
        let server = servers::postgres().await;
        let database = server.database().await;
        let bouncer = match self {
            Self::PgBouncer => Some(PgBouncer::before(server).await),
            _ => None,
        };
        let (url, options) = match &bouncer {
            Some(bouncer) => (bouncer.url_of(database.url()), pooled()),
            None => (database.url().to_owned(), PgConnectOptions::new()),
        };
        let options = same_place(options, &url);
        let pool = PgPoolOptions::new().max_connections(4).connect_lazy_with(options);
        sqlx::raw_sql("create table effect (id serial, number bigint)").execute(&pool).await.unwrap();
        Arc::new(Sandboxed { database, mode: *self, pool, bouncer })
    }

    fn has_outages(&self) -> bool {
        true
    }

    fn can_tamper(&self) -> bool {
        true
    }

    fn node(&self) -> Option<PathBuf> {
        Some(env!("CARGO_BIN_EXE_node").into())
    }
}

/// What a client needs that shares its servers with others.
fn pooled() -> PgConnectOptions {
    PgConnectOptions::new().statement_cache_capacity(0).extra_float_digits(None)
}

fn same_place(options: PgConnectOptions, url: &str) -> PgConnectOptions {
    let place: PgConnectOptions = url.parse().unwrap();
    options
        .host(place.get_host())
        .port(place.get_port())
        .username(place.get_username())
        .database(place.get_database().unwrap())
}

impl Sandboxed {
    async fn execute(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.pool).await.unwrap();
    }

    async fn begin(&self) -> Begun {
        Begun(self.pool.begin().await.unwrap())
    }
}

#[async_trait]
impl Sandbox for Sandboxed {
    fn backend(&self) -> Arc<dyn Backend> {
        let config = PostgresConfig::from_url(&self.url()).unwrap();
        Arc::new(PostgresBackend::new(config).unwrap())
    }

    fn url(&self) -> String {
        let direct = self.database.url();
        // A short handover delay, for cases that kill often.
        let options = "handover_delay_ms=160";
        match (&self.bouncer, self.mode) {
            (Some(bouncer), _) => {
                let direct = direct.replace(':', "%3A").replace('/', "%2F").replace('@', "%40");
                let url = bouncer.url_of(self.database.url());
                format!("{url}?{options}&pooler=true&direct_url={direct}")
            }
            (None, Postgres::Polling) => format!("{direct}?{options}&notify=off"),
            _ => format!("{direct}?{options}"),
        }
    }

    async fn transaction(&self) -> Box<dyn Transaction> {
        Box::new(self.begin().await)
    }

    async fn effects(&self) -> Vec<u64> {
        let sql = sqlx::raw_sql("select number from effect order by id");
        let rows = sql.fetch_all(&self.pool).await.unwrap();
        rows.iter().map(|row| u64::try_from(row.get::<i64, _>(0)).unwrap()).collect()
    }

    /// Somebody locks the tables.
    async fn outage(&self) -> Box<dyn Outage> {
        let mut begun = self.begin().await;
        sqlx::raw_sql(
            "lock table event_bus.delivery, event_bus.worker, event_bus.lease in access exclusive mode",
        )
        .execute(&mut *begun.0)
        .await
        .unwrap();
        Box::new(begun)
    }

    async fn tamper(&self, tamper: Tamper) {
        self.execute(match tamper {
            Tamper::NewerSchema => "update event_bus.meta set value = '99' where key = 'schema'",
            Tamper::OtherSlots => "update event_bus.meta set value = '32' where key = 'slots'",
        })
        .await;
    }
}

struct Begun(sqlx::Transaction<'static, sqlx::Postgres>);

#[async_trait]
impl Transaction for Begun {
    async fn publish<'a>(&'a mut self, publish: Publish<'a>) -> Result<Receipt> {
        publish.within(&mut *self.0).await
    }

    async fn complete(&mut self, cx: &Context) -> Result<()> {
        cx.complete_in(&mut *self.0).await
    }

    async fn effect(&mut self, number: u64) {
        let number = i64::try_from(number).unwrap();
        sqlx::query("insert into effect (number) values ($1)")
            .persistent(false)
            .bind(number)
            .execute(&mut *self.0)
            .await
            .unwrap();
    }

    async fn commit(self: Box<Self>) {
        self.0.commit().await.unwrap();
    }

    async fn rollback(self: Box<Self>) {
        self.0.rollback().await.unwrap();
    }
}

#[async_trait]
impl Outage for Begun {
    async fn end(self: Box<Self>) {
        self.0.rollback().await.unwrap();
    }
}

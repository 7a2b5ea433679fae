//! A schema of its own in a database that all cases share.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use event_bus::backend::{Backend, Capabilities};
use event_bus::postgres::PostgresConfig;
use event_bus::{Context, PostgresBackend, Publish, Receipt, Result, async_trait};
use event_bus_conformance::suite::{Harness, Outage, Sandbox, Tamper, Transaction};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Postgres as Database, Row as _};

/// The ways in which the backend is tested.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Postgres {
    /// Workers listen for notifications.
    Listening,
    /// Nobody notifies.
    Polling,
}

struct Schema {
    server: String,
    name: String,
    mode: Postgres,
    /// The application's own connections.
    pool: PgPool,
}

const EFFECTS: &str = "create table if not exists schema.effect (id serial, number bigint)";

static SCHEMAS: AtomicU32 = AtomicU32::new(0);

/// The address of a server that may be filled with schemas.
#[expect(clippy::panic, reason = "the message says how to get a server")]
fn server() -> String {
    std::env::var("EVENT_BUS_TEST_POSTGRES_URL").unwrap_or_else(|_| {
        panic!(
            "no PostgreSQL to test on: start one and set EVENT_BUS_TEST_POSTGRES_URL=postgres://user@host:port/database"
        )
    })
}

#[async_trait]
impl Harness for Postgres {
    fn name(&self) -> &'static str {
        match self {
            Self::Listening => "postgres[listening]",
            Self::Polling => "postgres[polling]",
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }

    async fn sandbox(&self) -> Arc<dyn Sandbox> {
        let server = server();
        let number = SCHEMAS.fetch_add(1, Ordering::Relaxed);
        let name = format!("case_{}_{number}", std::process::id());
        let pool = PgPoolOptions::new().max_connections(4).connect_lazy(&server).unwrap();
        let schema = Schema { server, name, mode: *self, pool };
        schema.execute(format!("drop schema if exists {0} cascade; create schema {0}", schema.name)).await;
        Arc::new(schema)
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

impl Schema {
    fn sql(&self, sql: &str) -> String {
        sql.replace("schema.", &format!("{}.", self.name))
    }

    async fn execute(&self, sql: String) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.pool).await.unwrap();
    }

    async fn begin(&self) -> Begun {
        self.execute(self.sql(EFFECTS)).await;
        Begun { transaction: self.pool.begin().await.unwrap(), schema: self.name.clone() }
    }
}

#[async_trait]
impl Sandbox for Schema {
    fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(PostgresBackend::new(PostgresConfig::from_url(&self.url()).unwrap()).unwrap())
    }

    fn url(&self) -> String {
        let notify = if self.mode == Postgres::Listening { "on" } else { "off" };
        // A short handover delay, for cases that kill often.
        format!("{}?schema={}&notify={notify}&handover_delay_ms=400", self.server, self.name)
    }

    async fn transaction(&self) -> Box<dyn Transaction> {
        Box::new(self.begin().await)
    }

    async fn effects(&self) -> Vec<u64> {
        self.execute(self.sql(EFFECTS)).await;
        let sql = self.sql("select number from schema.effect order by id");
        let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&self.pool).await.unwrap();
        rows.iter().map(|row| u64::try_from(row.get::<i64, _>(0)).unwrap()).collect()
    }

    /// Somebody locks the tables.
    async fn outage(&self) -> Box<dyn Outage> {
        let mut begun = self.begin().await;
        let sql =
            self.sql("lock table schema.delivery, schema.worker, schema.lease in access exclusive mode");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *begun.transaction).await.unwrap();
        Box::new(begun)
    }

    async fn tamper(&self, tamper: Tamper) {
        let sql = match tamper {
            Tamper::NewerSchema => "update schema.meta set value = '99' where key = 'schema'",
            Tamper::OtherSlots => "update schema.meta set value = '32' where key = 'slots'",
        };
        self.execute(self.sql(sql)).await;
    }
}

struct Begun {
    transaction: sqlx::Transaction<'static, Database>,
    schema: String,
}

#[async_trait]
impl Transaction for Begun {
    async fn publish<'a>(&'a mut self, publish: Publish<'a>) -> Result<Receipt> {
        publish.within(&mut *self.transaction).await
    }

    async fn complete(&mut self, cx: &Context) -> Result<()> {
        cx.complete_in(&mut *self.transaction).await
    }

    async fn effect(&mut self, number: u64) {
        let number = i64::try_from(number).unwrap();
        let sql = format!("insert into {}.effect (number) values ($1)", self.schema);
        sqlx::query(AssertSqlSafe(sql)).bind(number).execute(&mut *self.transaction).await.unwrap();
    }

    async fn commit(self: Box<Self>) {
        self.transaction.commit().await.unwrap();
    }

    async fn rollback(self: Box<Self>) {
        self.transaction.rollback().await.unwrap();
    }
}

#[async_trait]
impl Outage for Begun {
    async fn end(self: Box<Self>) {
        self.transaction.rollback().await.unwrap();
    }
}

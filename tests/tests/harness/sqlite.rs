//! One file in a directory of its own.

use std::path::PathBuf;
use std::sync::Arc;

use event_bus::backend::{Backend, Capabilities};
use event_bus::{Context, Publish, Receipt, Result, SqliteBackend, async_trait};
use event_bus_conformance::suite::{Harness, Outage, Sandbox, Tamper, Transaction};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use sqlx::{Row as _, Sqlite as Database};
use tempfile::TempDir;

pub(crate) struct Sqlite;

struct File {
    directory: TempDir,
    /// The application's own connections.
    pool: SqlitePool,
}

#[async_trait]
impl Harness for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }

    async fn sandbox(&self) -> Arc<dyn Sandbox> {
        let directory = tempfile::tempdir().unwrap();
        let options =
            SqliteConnectOptions::new().filename(directory.path().join("bus.db")).create_if_missing(true);
        let pool = SqlitePoolOptions::new().max_connections(4).connect_lazy_with(options);
        Arc::new(File { directory, pool })
    }

    fn has_outages(&self) -> bool {
        true
    }

    fn can_tamper(&self) -> bool {
        true
    }

    fn keeps_stopped_workers(&self) -> bool {
        true
    }

    fn node(&self) -> Option<PathBuf> {
        Some(env!("CARGO_BIN_EXE_node").into())
    }
}

impl File {
    fn path(&self) -> PathBuf {
        self.directory.path().join("bus.db")
    }

    async fn execute(&self, sql: &'static str) {
        sqlx::query(sql).execute(&self.pool).await.unwrap();
    }
}

#[async_trait]
impl Sandbox for File {
    fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(SqliteBackend::open(self.path()).unwrap())
    }

    fn url(&self) -> String {
        format!("sqlite://{}", self.path().display())
    }

    async fn transaction(&self) -> Box<dyn Transaction> {
        self.execute("create table if not exists effect (number integer)").await;
        Box::new(Begun(self.pool.begin_with("BEGIN IMMEDIATE").await.unwrap()))
    }

    async fn effects(&self) -> Vec<u64> {
        self.execute("create table if not exists effect (number integer)").await;
        let rows =
            sqlx::query("select number from effect order by rowid").fetch_all(&self.pool).await.unwrap();
        rows.iter().map(|row| u64::try_from(row.get::<i64, _>(0)).unwrap()).collect()
    }

    /// Somebody holds the write lock.
    async fn outage(&self) -> Box<dyn Outage> {
        Box::new(Begun(self.pool.begin_with("BEGIN IMMEDIATE").await.unwrap()))
    }

    async fn tamper(&self, tamper: Tamper) {
        self.execute(match tamper {
            Tamper::NewerSchema => "update event_bus_meta set value = '99' where key = 'schema'",
            Tamper::OtherSlots => "update event_bus_meta set value = '32' where key = 'slots'",
        })
        .await;
    }
}

struct Begun(sqlx::Transaction<'static, Database>);

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
        sqlx::query("insert into effect values (?)").bind(number).execute(&mut *self.0).await.unwrap();
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

//! SQLite: one file, and sqlx with the best statements known for the same rows.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use event_bus::async_trait;
use hdrhistogram::Histogram;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqliteConnection};
use tempfile::TempDir;

use crate::AnyError;
use crate::event::rate;
use crate::target::{Figure, Measured, Raw, Store, Target};

const ROWS_A_STATEMENT: usize = 100;

/// Files in this directory.
pub struct Sqlite {
    pub dir: PathBuf,
}

#[async_trait]
impl Target for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    async fn fresh(&self) -> Result<Box<dyn Store>, AnyError> {
        Ok(Box::new(File(tempfile::tempdir_in(&self.dir)?)))
    }
}

struct File(TempDir);

#[async_trait]
impl Store for File {
    fn url(&self) -> String {
        format!("sqlite://{}", self.0.path().join("bench.db").display())
    }

    async fn raw(&self, question: Raw, count: usize, payload: &[u8]) -> Result<Option<Measured>, AnyError> {
        let mut connection = open(self.0.path()).await?;
        let (how, rate) = match question {
            Raw::Singles => {
                // Each waits for a sync of the disk: a quarter of them takes long enough.
                let rate = insert_singles(&mut connection, payload, count / 4).await?;
                ("raw sqlx, one row a transaction", rate)
            }
            Raw::Batches => {
                let rate = insert_batches(&mut connection, payload, count).await?;
                ("raw sqlx, 1,000 rows a transaction", rate)
            }
            Raw::Drain => {
                insert_batches(&mut connection, payload, count).await?;
                ("raw sqlx, update + delete of 500", drain(&mut connection, count).await?)
            }
            Raw::Latency => {
                let figure = latency(&mut connection, payload, count).await?;
                return Ok(Some(Measured { how: "raw sqlx, commit and read in turn", figure }));
            }
            Raw::PublishAndProcess => return Ok(None),
        };
        Ok(Some(Measured { how, figure: Figure::PerSecond(rate) }))
    }
}

async fn open(dir: &Path) -> Result<SqliteConnection, AnyError> {
    let mut connection = SqliteConnectOptions::new()
        .filename(dir.join("raw.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .connect()
        .await?;
    sqlx::query("create table delivery (id integer primary key, key text, payload blob not null, state integer not null)")
        .execute(&mut connection)
        .await?;
    Ok(connection)
}

/// One row a transaction, one after the other.
async fn insert_singles(
    connection: &mut SqliteConnection,
    payload: &[u8],
    count: usize,
) -> Result<f64, AnyError> {
    let start = Instant::now();
    for _ in 0..count {
        sqlx::query("insert into delivery (key, payload, state) values (null, ?, 0)")
            .bind(payload)
            .execute(&mut *connection)
            .await?;
    }
    Ok(rate(count, start))
}

/// 1,000 rows a transaction, in statements of many rows.
async fn insert_batches(
    connection: &mut SqliteConnection,
    payload: &[u8],
    count: usize,
) -> Result<f64, AnyError> {
    let values = vec!["(null, ?, 0)"; ROWS_A_STATEMENT].join(",");
    let statement = format!("insert into delivery (key, payload, state) values {values}");
    let start = Instant::now();
    for _ in 0..count / 1_000 {
        let mut transaction = connection.begin_with("begin immediate").await?;
        for _ in 0..1_000 / ROWS_A_STATEMENT {
            let mut query = sqlx::query(sqlx::AssertSqlSafe(statement.as_str()));
            for _ in 0..ROWS_A_STATEMENT {
                query = query.bind(payload);
            }
            query.execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
    }
    Ok(rate(count, start))
}

/// Reads 500 rows, marks them, deletes them; each a statement with a commit of its own.
async fn drain(connection: &mut SqliteConnection, count: usize) -> Result<f64, AnyError> {
    let start = Instant::now();
    let mut drained = 0;
    while drained < count {
        let rows = sqlx::query(
            "update delivery set state = 1 where id in (select id from delivery where state = 0 order by id limit 500) \
             returning id, key, payload",
        )
        .fetch_all(&mut *connection)
        .await?;
        if rows.is_empty() {
            break;
        }
        let ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        sqlx::query("delete from delivery where id in (select value from json_each(?))")
            .bind(serde_json::to_string(&ids)?)
            .execute(&mut *connection)
            .await?;
        drained += rows.len();
    }
    Ok(rate(drained, start))
}

/// Commits a row and reads it, 200 times a second: the floor of what a reader who is told at once can reach.
async fn latency(
    connection: &mut SqliteConnection,
    payload: &[u8],
    count: usize,
) -> Result<Figure, AnyError> {
    let mut every = tokio::time::interval(Duration::from_millis(5));
    let mut histogram = Histogram::<u64>::new(3)?;
    for _ in 0..count {
        every.tick().await;
        let start = Instant::now();
        let id = sqlx::query("insert into delivery (key, payload, state) values (null, ?, 0)")
            .bind(payload)
            .execute(&mut *connection)
            .await?
            .last_insert_rowid();
        sqlx::query("select payload from delivery where id >= ?")
            .bind(id)
            .fetch_all(&mut *connection)
            .await?;
        histogram.record(u64::try_from(start.elapsed().as_nanos())?)?;
    }
    Ok(Figure::latency(&histogram))
}

//! What sqlx and SQLite do with the best statements known, for the same rows: the ceiling.

use std::path::Path;
use std::time::Instant;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqliteConnection};

use crate::AnyError;
use crate::event::rate;

const ROWS_A_STATEMENT: usize = 100;

pub async fn open(dir: &Path) -> Result<SqliteConnection, AnyError> {
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
pub async fn insert_singles(
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
pub async fn insert_batches(
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
pub async fn drain(connection: &mut SqliteConnection, count: usize) -> Result<f64, AnyError> {
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

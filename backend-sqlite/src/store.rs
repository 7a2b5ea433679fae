//! Every statement on the file: one typed function each.

use std::path::Path;
use std::sync::Arc;

use event_bus_core::backend::{Envelope, Timestamp};
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sqlx::{Arguments as _, AssertSqlSafe, ConnectOptions as _, Row as _, SqlSafeStr};

use crate::config::{SqliteConfig, Synchronous};
use crate::row;
use crate::template::{SIZES, Template};

/// Room for every size of the templates on one connection, and for the plain statements.
const STATEMENT_CACHE: usize = 8 * SIZES + 64;

/// Rows that SQLite's thread may be ahead of us. More costs memory when payloads are large, fewer costs wake-ups.
const ROW_BUFFER: usize = 64;

/// The write-ahead log is cut back to this after a burst.
const JOURNAL_SIZE_LIMIT: &str = "67108864";

static PUBLISH: Template = Template::values(include_str!("queries/publish.sql"));
static SCHEDULE: Template = Template::values(include_str!("queries/schedule.sql"));
static CLAIM: Template = Template::union(include_str!("queries/claim.sql"));

type Result<T, E = sqlx::Error> = std::result::Result<T, E>;

/// How to open the file; `create` only where a migration follows.
fn options(config: &SqliteConfig) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(&config.path)
        .busy_timeout(config.busy_timeout)
        .statement_cache_capacity(STATEMENT_CACHE)
        .row_buffer_size(ROW_BUFFER)
        .thread_name(|number| format!("event-bus-sqlite-{number}"))
        .disable_statement_logging()
}

pub(crate) async fn connect_writer(config: &SqliteConfig, create: bool) -> Result<SqliteConnection> {
    let synchronous = match config.synchronous {
        Synchronous::Full => SqliteSynchronous::Full,
        Synchronous::Normal => SqliteSynchronous::Normal,
    };
    options(config)
        .create_if_missing(create)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .pragma("journal_size_limit", JOURNAL_SIZE_LIMIT)
        .connect()
        .await
}

pub(crate) async fn connect_reader(config: &SqliteConfig) -> Result<SqliteConnection> {
    options(config).create_if_missing(false).pragma("query_only", "on").connect().await
}

/// The journal mode and the version of the library, as text.
pub(crate) async fn environment(connection: &mut SqliteConnection) -> Result<(String, String)> {
    let mode: String = sqlx::query_scalar("pragma journal_mode").fetch_one(&mut *connection).await?;
    let version: String = sqlx::query_scalar("select sqlite_version()").fetch_one(connection).await?;
    Ok((mode, version))
}

pub(crate) async fn has_meta(connection: &mut SqliteConnection) -> Result<bool> {
    sqlx::query_scalar("select count(*) from sqlite_schema where name = 'event_bus_meta'")
        .fetch_one(connection)
        .await
        .map(|tables: i64| tables > 0)
}

pub(crate) async fn meta(connection: &mut SqliteConnection, key: &'static str) -> Result<Option<String>> {
    sqlx::query_scalar("select value from event_bus_meta where key = ?1")
        .bind(key)
        .fetch_optional(connection)
        .await
}

pub(crate) async fn set_meta(
    connection: &mut SqliteConnection,
    key: &'static str,
    value: &str,
) -> Result<()> {
    let sql =
        "insert into event_bus_meta (key, value) values (?1, ?2) on conflict (key) do update set value = ?2";
    sqlx::query(sql).bind(key).bind(value).execute(connection).await.map(drop)
}

pub(crate) async fn run_migration(connection: &mut SqliteConnection, sql: &'static str) -> Result<()> {
    sqlx::raw_sql(sql).execute(connection).await.map(drop)
}

/// Begins a write and reads the fence; 0 before the first worker.
pub(crate) async fn begin(connection: &mut SqliteConnection) -> Result<u64> {
    let fence: Option<String> =
        sqlx::query_scalar(include_str!("queries/fence.sql")).fetch_optional(connection).await?;
    Ok(fence.and_then(|fence| fence.parse().ok()).unwrap_or(0))
}

/// As [`begin`], before there are tables.
pub(crate) async fn begin_plain(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::query("begin immediate").execute(connection).await.map(drop)
}

pub(crate) async fn commit(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::query("commit").execute(connection).await.map(drop)
}

pub(crate) async fn rollback(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::query("rollback").execute(connection).await.map(drop)
}

/// A delivery on its way into the store.
pub(crate) struct NewDelivery<'a> {
    pub(crate) handler: i64,
    pub(crate) envelope: &'a Envelope,
    pub(crate) headers: Option<&'a Arc<str>>,
}

/// The last of the numbers handed out to each handler, for these counts.
pub(crate) async fn allocate(
    connection: &mut SqliteConnection,
    counts: &[(i64, i64)],
) -> Result<Vec<(i64, i64)>> {
    let counts: Vec<_> = counts.iter().map(|(handler, count)| format!("\"{handler}\":{count}")).collect();
    let counts = format!("{{{}}}", counts.join(","));
    let rows = sqlx::query(include_str!("queries/allocate.sql")).bind(counts).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Stores deliveries under these ids.
pub(crate) async fn publish(
    connection: &mut SqliteConnection,
    deliveries: &[(i64, NewDelivery<'_>)],
) -> Result<()> {
    repeat(connection, &PUBLISH, deliveries, 8, |arguments, (id, delivery)| {
        arguments.add(*id)?;
        add_envelope(arguments, delivery)
    })
    .await
}

/// Stores deliveries that are due later.
pub(crate) async fn schedule(
    connection: &mut SqliteConnection,
    deliveries: &[(Timestamp, NewDelivery<'_>)],
) -> Result<()> {
    repeat(connection, &SCHEDULE, deliveries, 9, |arguments, (due_at, delivery)| {
        arguments.add(due_at.as_millis())?;
        arguments.add(delivery.handler)?;
        add_envelope(arguments, delivery)
    })
    .await
}

fn add_envelope(arguments: &mut SqliteArguments, delivery: &NewDelivery<'_>) -> Result<(), Boxed> {
    let envelope = delivery.envelope;
    arguments.add(envelope.id.as_uuid().as_bytes().to_vec())?;
    arguments.add(envelope.name.clone())?;
    arguments.add(i64::from(envelope.version))?;
    arguments.add(envelope.key.clone())?;
    arguments.add(envelope.payload.to_vec())?;
    arguments.add(delivery.headers.cloned())?;
    arguments.add(envelope.published_at.as_millis())
}

type Boxed = sqlx::error::BoxDynError;

async fn repeat<T>(
    connection: &mut SqliteConnection,
    template: &Template,
    mut items: &[T],
    columns: usize,
    add: impl Fn(&mut SqliteArguments, &T) -> Result<(), Boxed>,
) -> Result<()> {
    while !items.is_empty() {
        let (size, sql) = template.largest(items.len());
        let (now, later) = items.split_at(size);
        let mut arguments = SqliteArguments::default();
        arguments.reserve(size * columns, 0);
        for item in now {
            add(&mut arguments, item).map_err(sqlx::Error::Encode)?;
        }
        sqlx::query_with(safe(sql), arguments).execute(&mut *connection).await?;
        items = later;
    }
    Ok(())
}

/// The texts of templates come from this crate's own files.
fn safe(sql: Arc<str>) -> impl SqlSafeStr {
    AssertSqlSafe(sql)
}

/// Remembers an idempotency key; false if it was known.
pub(crate) async fn remember(
    connection: &mut SqliteConnection,
    key: &Arc<str>,
    now: Timestamp,
    forgotten_before: Timestamp,
) -> Result<bool> {
    let done = sqlx::query(include_str!("queries/remember.sql"))
        .bind(key.clone())
        .bind(now.as_millis())
        .bind(forgotten_before.as_millis())
        .execute(connection)
        .await?;
    Ok(done.rows_affected() > 0)
}

pub(crate) async fn forget_keys(connection: &mut SqliteConnection, before: Timestamp) -> Result<()> {
    sqlx::query(include_str!("queries/forget_keys.sql"))
        .bind(before.as_millis())
        .execute(connection)
        .await
        .map(drop)
}

/// The id of a handler, given on first sight.
pub(crate) async fn handler(connection: &mut SqliteConnection, name: &Arc<str>) -> Result<i64> {
    let known = sqlx::query_scalar(include_str!("queries/handler.sql"))
        .bind(name.clone())
        .fetch_optional(&mut *connection)
        .await?;
    match known {
        Some(id) => Ok(id),
        None => {
            sqlx::query_scalar(include_str!("queries/add_handler.sql"))
                .bind(name.clone())
                .fetch_one(connection)
                .await
        }
    }
}

/// What a claim wants of one handler.
pub(crate) struct Range {
    pub(crate) after: i64,
    pub(crate) end: i64,
    pub(crate) limit: i64,
}

/// Rows for at most [`Template`]'s largest size of ranges, handed to `take` until it says stop.
pub(crate) async fn claim(
    connection: &mut SqliteConnection,
    mut ranges: &[Range],
    mut take: impl FnMut(SqliteRow) -> Result<bool>,
) -> Result<()> {
    use futures_util::TryStreamExt as _;
    while !ranges.is_empty() {
        let (size, sql) = CLAIM.largest(ranges.len());
        let (now, later) = ranges.split_at(size);
        let mut query = sqlx::query(safe(sql));
        for range in now {
            query = query.bind(range.after).bind(range.end).bind(range.limit);
        }
        let mut rows = query.fetch(&mut *connection);
        while let Some(row) = rows.try_next().await? {
            if !take(row)? {
                return Ok(());
            }
        }
        drop(rows);
        ranges = later;
    }
    Ok(())
}

pub(crate) async fn next_due(connection: &mut SqliteConnection) -> Result<Option<Timestamp>> {
    let due: Option<i64> =
        sqlx::query_scalar(include_str!("queries/next_due.sql")).fetch_one(connection).await?;
    Ok(due.map(Timestamp::from_millis))
}

pub(crate) async fn data_version(connection: &mut SqliteConnection) -> Result<i64> {
    sqlx::query_scalar("pragma data_version").fetch_one(connection).await
}

pub(crate) async fn complete(connection: &mut SqliteConnection, ids: &[i64]) -> Result<u64> {
    let done = sqlx::query(include_str!("queries/complete.sql")).bind(json(ids)).execute(connection).await?;
    Ok(done.rows_affected())
}

/// A JSON array of ids.
fn json(ids: &[i64]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(ids.len() * 16 + 2);
    text.push('[');
    for id in ids {
        if text.len() > 1 {
            text.push(',');
        }
        let _ = write!(text, "{id}");
    }
    text.push(']');
    text
}

/// What an unclean end left behind: handler ids and windows.
pub(crate) async fn left_by_worker(connection: &mut SqliteConnection) -> Result<Vec<(i64, i64)>> {
    let rows = sqlx::query(include_str!("queries/worker.sql")).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

pub(crate) async fn charge(connection: &mut SqliteConnection, handler: i64, window: i64) -> Result<u64> {
    let done = sqlx::query(include_str!("queries/charge.sql"))
        .bind(row::range_start(handler))
        .bind(row::range_end(handler))
        .bind(window)
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}

pub(crate) async fn clear_worker(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::query(include_str!("queries/clear_worker.sql")).execute(connection).await.map(drop)
}

pub(crate) async fn enter_worker(
    connection: &mut SqliteConnection,
    handler: i64,
    incarnation: &[u8],
    window: i64,
) -> Result<()> {
    sqlx::query(include_str!("queries/enter_worker.sql"))
        .bind(handler)
        .bind(incarnation.to_vec())
        .bind(window)
        .execute(connection)
        .await
        .map(drop)
}

pub(crate) async fn raise_fence(connection: &mut SqliteConnection) -> Result<u64> {
    let fence: String =
        sqlx::query_scalar(include_str!("queries/raise_fence.sql")).fetch_one(connection).await?;
    fence.parse().map_err(|_| sqlx::Error::Protocol(format!("the fence of the file is {fence:?}")))
}

/// Whether the file at `path` is there.
pub(crate) fn exists(path: &Path) -> bool {
    path.try_exists().unwrap_or(false)
}

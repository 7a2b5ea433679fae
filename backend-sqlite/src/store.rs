//! Every statement on the file: one typed function each.

use std::sync::Arc;
use std::time::Duration;

use event_bus_core::backend::{
    DeadLetterFilter, DeadReason, DeliveryId, Envelope, ErrorLog, HandlerCounts, Timestamp,
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sqlx::{Arguments as _, AssertSqlSafe, ConnectOptions as _, Row as _, SqlSafeStr, Sqlite};

use crate::config::{SqliteConfig, Synchronous};
use crate::row;
use crate::template::{SIZES, Template};

/// Room for every size of the templates on one connection, and for the plain statements.
const STATEMENT_CACHE: usize = TEMPLATES * SIZES + 64;

/// How long a connection waits for a lock; the writer's own waits by itself, more evenly.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Rows that SQLite's thread may be ahead of us. More costs memory when payloads are large, fewer costs wake-ups.
const ROW_BUFFER: usize = 64;

/// The write-ahead log is cut back to this after a burst.
const JOURNAL_SIZE_LIMIT: &str = "67108864";

static PUBLISH: Template = Template::values(include_str!("queries/publish.sql"));
static SCHEDULE: Template = Template::values(include_str!("queries/schedule.sql"));
static CLAIM: Template = Template::union(include_str!("queries/claim.sql"));
static RETRY_IN_PLACE: Template = Template::values(include_str!("queries/retry_in_place.sql"));
static SNOOZE_IN_PLACE: Template = Template::values(include_str!("queries/snooze_in_place.sql"));
static LEAVE: Template = Template::values(include_str!("queries/leave.sql"));
static BURY: Template = Template::values(include_str!("queries/bury.sql"));
static START: Template = Template::values(include_str!("queries/start.sql"));
static REPLAY: Template = Template::values(include_str!("queries/replay.sql"));

/// How many templates a connection can meet.
const TEMPLATES: usize = 9;

type Result<T, E = sqlx::Error> = std::result::Result<T, E>;

fn options(config: &SqliteConfig) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(&config.path)
        .busy_timeout(BUSY_TIMEOUT)
        .statement_cache_capacity(STATEMENT_CACHE)
        .row_buffer_size(ROW_BUFFER)
        .thread_name(|number| format!("event-bus-sqlite-{number}"))
        .disable_statement_logging()
}

/// A connection that writes. `migrates`: it may create the file, and waits for locks.
pub(crate) async fn connect_writer(config: &SqliteConfig, migrates: bool) -> Result<SqliteConnection> {
    let synchronous = match config.synchronous {
        Synchronous::Full => SqliteSynchronous::Full,
        Synchronous::Normal => SqliteSynchronous::Normal,
    };
    options(config)
        .create_if_missing(migrates)
        .busy_timeout(if migrates { BUSY_TIMEOUT } else { Duration::ZERO })
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .pragma("journal_size_limit", JOURNAL_SIZE_LIMIT)
        .connect()
        .await
}

pub(crate) async fn connect_reader(config: &SqliteConfig) -> Result<SqliteConnection> {
    options(config).create_if_missing(false).pragma("query_only", "on").connect().await
}

/// What the file and the library are like.
pub(crate) struct FileFacts {
    pub(crate) journal_mode: String,
    pub(crate) encoding: String,
    pub(crate) library: String,
}

pub(crate) async fn file_facts(connection: &mut SqliteConnection) -> Result<FileFacts> {
    Ok(FileFacts {
        journal_mode: sqlx::query_scalar("pragma journal_mode").fetch_one(&mut *connection).await?,
        encoding: sqlx::query_scalar("pragma encoding").fetch_one(&mut *connection).await?,
        library: sqlx::query_scalar("select sqlite_version()").fetch_one(connection).await?,
    })
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
        sqlx::query_scalar(include_str!("queries/begin.sql")).fetch_optional(connection).await?;
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

/// Hands out this many ids to each handler; for each the id before the first of them.
pub(crate) async fn allocate(
    connection: &mut SqliteConnection,
    counts: &[(i64, i64)],
) -> Result<Vec<(i64, i64)>> {
    let wanted: Vec<_> = counts.iter().map(|(handler, count)| format!("\"{handler}\":{count}")).collect();
    let wanted = format!("{{{}}}", wanted.join(","));
    let rows = sqlx::query(include_str!("queries/allocate.sql")).bind(wanted).fetch_all(connection).await?;
    if rows.len() != counts.len() {
        return Err(sqlx::Error::Protocol("a handler has vanished from event_bus_handler".to_owned()));
    }
    let before = |row: &SqliteRow| {
        let (handler, last): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        if last > row::MAX_SEQ {
            return Err(sqlx::Error::Protocol(format!(
                "handler {handler} has no number left for a delivery"
            )));
        }
        let count = counts.iter().find(|(known, _)| *known == handler).map_or(0, |(_, count)| *count);
        Ok((handler, row::range_start(handler) + last - count))
    };
    rows.iter().map(before).collect()
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

/// Forgets a bounded number of old idempotency keys; whether all old ones are gone.
pub(crate) async fn forget_keys(connection: &mut SqliteConnection, before: Timestamp) -> Result<bool> {
    let done = sqlx::query(include_str!("queries/forget_keys.sql"))
        .bind(before.as_millis())
        .execute(connection)
        .await?;
    Ok(done.rows_affected() == 0)
}

/// The id of a handler, given on first sight.
pub(crate) async fn handler(connection: &mut SqliteConnection, name: &Arc<str>) -> Result<i64> {
    let known = sqlx::query_scalar(include_str!("queries/handler.sql"))
        .bind(name.clone())
        .fetch_optional(&mut *connection)
        .await?;
    let id = match known {
        Some(id) => id,
        None => {
            let add = sqlx::query_scalar(include_str!("queries/add_handler.sql"));
            add.bind(name.clone()).fetch_one(connection).await?
        }
    };
    if (1..=row::MAX_HANDLER).contains(&id) {
        Ok(id)
    } else {
        Err(sqlx::Error::Protocol(format!(
            "handler {name:?} has the id {id}, which leaves its deliveries none"
        )))
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

/// The fence of the file, and when the next scheduled delivery becomes due.
pub(crate) async fn look(connection: &mut SqliteConnection) -> Result<(u64, Option<Timestamp>)> {
    let row = sqlx::query(include_str!("queries/look.sql")).fetch_one(connection).await?;
    let fence: Option<String> = row.try_get(0)?;
    let due: Option<i64> = row.try_get(1)?;
    Ok((fence.and_then(|fence| fence.parse().ok()).unwrap_or(0), due.map(Timestamp::from_millis)))
}

pub(crate) async fn data_version(connection: &mut SqliteConnection) -> Result<i64> {
    sqlx::query_scalar("pragma data_version").fetch_one(connection).await
}

/// Runs a statement whose only input is a list of ids, if there are any.
async fn for_ids(connection: &mut SqliteConnection, sql: &'static str, ids: &[i64]) -> Result<u64> {
    if ids.is_empty() {
        return Ok(0);
    }
    Ok(sqlx::query(sql).bind(json(ids)).execute(connection).await?.rows_affected())
}

/// Forgets deliveries that are done.
pub(crate) async fn complete(connection: &mut SqliteConnection, ids: &[i64]) -> Result<u64> {
    for_ids(connection, include_str!("queries/complete.sql"), ids).await
}

/// Leaves deliveries as markers that hold their keys.
pub(crate) async fn hold(connection: &mut SqliteConnection, ids: &[i64]) -> Result<u64> {
    for_ids(connection, include_str!("queries/hold.sql"), ids).await
}

/// Closes the recorded starts of deliveries that did not run.
pub(crate) async fn release(connection: &mut SqliteConnection, ids: &[i64]) -> Result<u64> {
    for_ids(connection, include_str!("queries/release.sql"), ids).await
}

/// Gives deliveries of stuck lanes back.
pub(crate) async fn park(connection: &mut SqliteConnection, ids: &[i64]) -> Result<u64> {
    for_ids(connection, include_str!("queries/park.sql"), ids).await
}

/// A delivery that failed; `due_at` says when it is handed out again.
pub(crate) struct Failed {
    pub(crate) id: i64,
    pub(crate) failures: u32,
    pub(crate) errors: ErrorLog,
    pub(crate) due_at: Timestamp,
}

pub(crate) async fn retry_in_place(connection: &mut SqliteConnection, failed: &[Failed]) -> Result<()> {
    repeat(connection, &RETRY_IN_PLACE, failed, 4, |arguments, failed| {
        arguments.add(failed.id)?;
        arguments.add(i64::from(failed.failures))?;
        arguments.add(errors(&failed.errors))?;
        arguments.add(failed.due_at.as_millis())
    })
    .await
}

pub(crate) async fn snooze_in_place(
    connection: &mut SqliteConnection,
    snoozed: &[(i64, Timestamp)],
) -> Result<()> {
    repeat(connection, &SNOOZE_IN_PLACE, snoozed, 2, |arguments, (id, due_at)| {
        arguments.add(*id)?;
        arguments.add(due_at.as_millis())
    })
    .await
}

/// Copies deliveries that failed and give up their place to where they wait.
pub(crate) async fn leave_failed(connection: &mut SqliteConnection, failed: &[Failed]) -> Result<()> {
    repeat(connection, &LEAVE, failed, 4, |arguments, failed| {
        arguments.add(failed.id)?;
        arguments.add(failed.due_at.as_millis())?;
        arguments.add(i64::from(failed.failures))?;
        arguments.add(errors(&failed.errors))
    })
    .await
}

/// Copies deliveries that wait without having failed, and give up their place, to where they wait.
pub(crate) async fn leave_snoozed(
    connection: &mut SqliteConnection,
    snoozed: &[(i64, Timestamp)],
) -> Result<()> {
    repeat(connection, &LEAVE, snoozed, 4, |arguments, (id, due_at)| {
        arguments.add(*id)?;
        arguments.add(due_at.as_millis())?;
        arguments.add(None::<i64>)?;
        arguments.add(None::<Vec<u8>>)
    })
    .await
}

/// A delivery that failed for good.
pub(crate) struct Dead {
    pub(crate) id: i64,
    pub(crate) reason: DeadReason,
    pub(crate) failures: u32,
    pub(crate) errors: ErrorLog,
    pub(crate) holds_key: bool,
}

/// Copies deliveries to the dead letters.
pub(crate) async fn bury(connection: &mut SqliteConnection, dead: &[Dead], now: Timestamp) -> Result<()> {
    repeat(connection, &BURY, dead, 6, |arguments, dead| {
        arguments.add(dead.id)?;
        arguments.add(dead.reason.as_str())?;
        arguments.add(i64::from(dead.failures))?;
        arguments.add(errors(&dead.errors))?;
        arguments.add(now.as_millis())?;
        arguments.add(i64::from(dead.holds_key))
    })
    .await
}

fn errors(log: &ErrorLog) -> Option<Vec<u8>> {
    (!log.is_empty()).then(|| log.as_bytes().to_vec())
}

/// Records that deliveries are about to run as these attempts.
pub(crate) async fn start(connection: &mut SqliteConnection, starts: &[(i64, u32)]) -> Result<()> {
    repeat(connection, &START, starts, 2, |arguments, (id, attempt)| {
        arguments.add(*id)?;
        arguments.add(i64::from(*attempt))
    })
    .await
}

/// Hands out parked deliveries of a lane, in id order, until their payloads reach `max_bytes`.
pub(crate) async fn refill(
    connection: &mut SqliteConnection,
    handler: i64,
    key: &Arc<str>,
    limit: i64,
    max_bytes: i64,
) -> Result<Vec<(i64, SqliteRow)>> {
    let rows = sqlx::query(include_str!("queries/refill.sql"))
        .bind(handler)
        .bind(key.clone())
        .bind(limit)
        .bind(max_bytes)
        .fetch_all(connection)
        .await?;
    let mut rows = rows.into_iter().map(|row| Ok((row::id(&row)?, row))).collect::<Result<Vec<_>>>()?;
    rows.sort_unstable_by_key(|(id, _)| *id);
    Ok(rows)
}

/// The first parked delivery of a lane.
pub(crate) async fn first_parked(
    connection: &mut SqliteConnection,
    handler: i64,
    key: &Arc<str>,
) -> Result<Option<i64>> {
    sqlx::query_scalar(include_str!("queries/first_parked.sql"))
        .bind(handler)
        .bind(key.clone())
        .fetch_one(connection)
        .await
}

/// Lanes with parked deliveries behind the key `after`, with the first id of each.
pub(crate) async fn parked_lanes(
    connection: &mut SqliteConnection,
    handler: i64,
    after: &str,
    limit: i64,
) -> Result<Vec<(String, i64)>> {
    let rows = sqlx::query(include_str!("queries/parked_lanes.sql"))
        .bind(handler)
        .bind(after)
        .bind(limit)
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Deliveries that were given back, in id order.
pub(crate) async fn returned(connection: &mut SqliteConnection, ids: &[i64]) -> Result<Vec<SqliteRow>> {
    sqlx::query(include_str!("queries/returned.sql")).bind(json(ids)).fetch_all(connection).await
}

/// Gives scheduled deliveries that are due their place.
pub(crate) async fn promote(connection: &mut SqliteConnection, now: Timestamp, limit: i64) -> Result<()> {
    sqlx::query(include_str!("queries/promote.sql"))
        .bind(now.as_millis())
        .bind(limit)
        .execute(connection)
        .await
        .map(drop)
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

pub(crate) async fn line_up(connection: &mut SqliteConnection, handler: i64, window: i64) -> Result<()> {
    let query = sqlx::query(include_str!("queries/line_up.sql"))
        .bind(row::range_start(handler))
        .bind(row::range_end(handler))
        .bind(window)
        .bind(handler);
    query.execute(connection).await.map(drop)
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

/// The inputs of a filter, in the order of the queries.
fn bind_filter<'q>(sql: &'static str, filter: &DeadLetterFilter) -> Query<'q, Sqlite, SqliteArguments> {
    sqlx::query(sql)
        .bind(filter.handler.clone())
        .bind(filter.event.clone())
        .bind(filter.key.clone())
        .bind(filter.reason.map(DeadReason::as_str))
        .bind(filter.died_before.map(Timestamp::as_millis))
}

fn filter_ids(ids: &[DeliveryId]) -> String {
    json(&ids.iter().filter_map(|id| row::private_id(*id)).collect::<Vec<_>>())
}

/// Dead letters that match, as rows.
pub(crate) async fn dead_letters(
    connection: &mut SqliteConnection,
    filter: &DeadLetterFilter,
    after: i64,
    limit: i64,
) -> Result<Vec<SqliteRow>> {
    let query = match &filter.ids {
        None => bind_filter(include_str!("queries/dead_letters.sql"), filter).bind(after).bind(limit),
        Some(ids) => bind_filter(include_str!("queries/dead_letters_by_id.sql"), filter)
            .bind(after)
            .bind(limit)
            .bind(filter_ids(ids)),
    };
    query.fetch_all(connection).await
}

/// The ids of all dead letters that match, in the order of publication.
pub(crate) async fn dead_ids(
    connection: &mut SqliteConnection,
    filter: &DeadLetterFilter,
) -> Result<Vec<i64>> {
    let query = match &filter.ids {
        None => bind_filter(include_str!("queries/dead_ids.sql"), filter),
        Some(ids) => bind_filter(include_str!("queries/dead_ids_by_id.sql"), filter).bind(filter_ids(ids)),
    };
    query.fetch(connection).map(|row| row.and_then(|row| row.try_get::<i64, _>(0))).try_collect().await
}

/// A dead letter and the delivery it was.
pub(crate) struct Origin {
    pub(crate) dead: i64,
    pub(crate) handler: i64,
    pub(crate) delivery: i64,
}

pub(crate) async fn replay_origins(connection: &mut SqliteConnection, ids: &[i64]) -> Result<Vec<Origin>> {
    let rows =
        sqlx::query(include_str!("queries/replay_origins.sql")).bind(json(ids)).fetch_all(connection).await?;
    let origin = |row: &SqliteRow| {
        Ok(Origin { dead: row.try_get(0)?, handler: row.try_get(1)?, delivery: row.try_get(2)? })
    };
    rows.iter().map(origin).collect()
}

/// Lets dead letters that hold their key come back in their old place; the ids of their deliveries.
pub(crate) async fn replay_held(connection: &mut SqliteConnection, ids: &[i64]) -> Result<Vec<i64>> {
    sqlx::query_scalar(include_str!("queries/replay_held.sql")).bind(json(ids)).fetch_all(connection).await
}

/// Makes deliveries of dead letters: pairs of the dead letter's id and the delivery's.
pub(crate) async fn replay(connection: &mut SqliteConnection, pairs: &[(i64, i64)]) -> Result<()> {
    repeat(connection, &REPLAY, pairs, 2, |arguments, (dead, delivery)| {
        arguments.add(*dead)?;
        arguments.add(*delivery)
    })
    .await
}

/// Lets go of the keys that dead letters hold.
pub(crate) async fn let_go(connection: &mut SqliteConnection, ids: &[i64]) -> Result<u64> {
    for_ids(connection, include_str!("queries/let_go.sql"), ids).await
}

/// Forgets dead letters; how many there were.
pub(crate) async fn forget_dead(connection: &mut SqliteConnection, ids: &[i64]) -> Result<u64> {
    for_ids(connection, include_str!("queries/forget_dead.sql"), ids).await
}

pub(crate) async fn counts(connection: &mut SqliteConnection, now: Timestamp) -> Result<Vec<HandlerCounts>> {
    let rows =
        sqlx::query(include_str!("queries/counts.sql")).bind(now.as_millis()).fetch_all(connection).await?;
    let count = |row: &SqliteRow, index| row.try_get(index).map(|count: i64| count.unsigned_abs());
    rows.iter()
        .map(|row| {
            Ok(HandlerCounts {
                handler: row.try_get(0)?,
                ready: count(row, 1)?,
                waiting: count(row, 2)?,
                dead: count(row, 3)?,
            })
        })
        .collect()
}

/// Begins the library's part of the caller's transaction.
pub(crate) async fn savepoint(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::query(include_str!("queries/savepoint.sql")).execute(connection).await.map(drop)
}

/// Ends the library's part of the caller's transaction, which keeps it.
pub(crate) async fn keep(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::query("release event_bus").execute(connection).await.map(drop)
}

/// Ends the library's part of the caller's transaction as if it had not been.
pub(crate) async fn undo(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::query("rollback to event_bus; release event_bus").execute(connection).await.map(drop)
}

/// Forgets a delivery in the caller's transaction; false if the right to it is gone.
pub(crate) async fn complete_in(connection: &mut SqliteConnection, id: i64, fence: u64) -> Result<bool> {
    let done = sqlx::query(include_str!("queries/complete_in.sql"))
        .bind(id)
        .bind(fence.to_string())
        .execute(connection)
        .await?;
    Ok(done.rows_affected() > 0)
}

#[cfg(test)]
mod tests {
    use sqlx::Connection as _;

    use super::*;

    /// The plans of all statements but those for people.
    async fn plans(connection: &mut SqliteConnection) -> Vec<(String, String)> {
        let mut texts: Vec<String> =
            [PUBLISH.largest(2), SCHEDULE.largest(2), CLAIM.largest(1), CLAIM.largest(3)]
                .into_iter()
                .chain([
                    RETRY_IN_PLACE.largest(64),
                    SNOOZE_IN_PLACE.largest(64),
                    LEAVE.largest(64),
                    BURY.largest(64),
                ])
                .chain([START.largest(64), REPLAY.largest(64)])
                .map(|(_, text)| text.to_string())
                .collect();
        let plain = [
            include_str!("queries/allocate.sql"),
            include_str!("queries/charge.sql"),
            include_str!("queries/complete.sql"),
            include_str!("queries/complete_in.sql"),
            include_str!("queries/first_parked.sql"),
            include_str!("queries/forget_dead.sql"),
            include_str!("queries/forget_keys.sql"),
            include_str!("queries/handler.sql"),
            include_str!("queries/hold.sql"),
            include_str!("queries/let_go.sql"),
            include_str!("queries/line_up.sql"),
            include_str!("queries/look.sql"),
            include_str!("queries/park.sql"),
            include_str!("queries/parked_lanes.sql"),
            include_str!("queries/promote.sql"),
            include_str!("queries/refill.sql"),
            include_str!("queries/release.sql"),
            include_str!("queries/remember.sql"),
            include_str!("queries/replay_held.sql"),
            include_str!("queries/replay_origins.sql"),
            include_str!("queries/returned.sql"),
        ];
        for text in plain {
            let text: Vec<_> = text.lines().filter(|line| !line.starts_with("--")).collect();
            texts.extend(text.join("\n").split(';').map(str::to_owned));
        }
        let mut plans = Vec::new();
        for text in texts {
            let rows = sqlx::query(AssertSqlSafe(format!("explain query plan {text}")))
                .fetch_all(&mut *connection)
                .await
                .unwrap();
            plans.extend(rows.iter().map(|row| (text.clone(), row.get::<String, _>(3))));
        }
        plans
    }

    #[tokio::test]
    async fn no_statement_of_the_hot_path_reads_a_whole_table() {
        let mut connection = SqliteConnectOptions::new().in_memory(true).connect().await.unwrap();
        run_migration(&mut connection, include_str!("migrations/0001_tables.sql")).await.unwrap();
        check_plans(&mut connection).await;
        // Whoever owns the file may have statistics made, at a moment when the tables were full.
        let fill = "
            insert into event_bus_handler (id, name, last_seq) values (1, 'a', 9000), (2, 'b', 0);
            with recursive n (n) as (select 1 union all select n + 1 from n where n < 9000)
            insert into event_bus_delivery (id, event_id, name, version, key, payload, published_at, is_parked)
            select (1 << 43) + n, x'00', 'name', 1, n % 10, x'00', 1, n % 3 = 0 from n;
            insert into event_bus_scheduled (due_at, handler_id, event_id, name, version, payload, published_at)
            select id, 1, event_id, name, version, payload, published_at from event_bus_delivery;
            insert into event_bus_dead (handler_id, origin_id, event_id, name, version, payload, published_at, failures,
                crashes, reason, died_at, holds_key)
            select 1, id, event_id, name, version, payload, 1, 1, 0, 'exhausted', 1, 0 from event_bus_delivery;
            insert into event_bus_dedupe select id, id from event_bus_delivery;
            analyze";
        sqlx::raw_sql(fill).execute(&mut connection).await.unwrap();
        connection.clear_cached_statements().await.unwrap();
        check_plans(&mut connection).await;
    }

    async fn check_plans(connection: &mut SqliteConnection) {
        for (text, plan) in plans(connection).await {
            // `d` stands for one of the tables, `s` for what promote.sql has picked. Walking an index until a limit is met
            // is no such reading.
            let is_table =
                ["event_bus_delivery", "event_bus_scheduled", "event_bus_dead", "event_bus_dedupe", "d"]
                    .iter()
                    .any(|table| plan == format!("SCAN {table}"));
            let is_indexed_anew = plan.contains("AUTOMATIC") && !plan.starts_with("SEARCH s ");
            assert!(!is_table && !is_indexed_anew, "{plan}\n{text}");
        }
    }
}

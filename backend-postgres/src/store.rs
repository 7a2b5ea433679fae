//! Every statement on the database: one typed function each.

use std::sync::Arc;
use std::time::Duration;

use event_bus_core::backend::{DeadLetterFilter, DeadReason, HandlerCounts};
use sqlx::postgres::{PgArguments, PgConnection, PgQueryResult, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Postgres, Row as _};
use uuid::Uuid;

use crate::connection::At;
use crate::publish::{Handlers, Rows};
use crate::row::{self, Place};

type Result<T, E = sqlx::Error> = std::result::Result<T, E>;

fn query<'q>(at: At<'_>, text: &Arc<str>) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(AssertSqlSafe(text.clone())).persistent(at.is_named)
}

fn changed(result: &PgQueryResult) -> u64 {
    result.rows_affected()
}

/// Places, as three arrays.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    pub(crate) handlers: Vec<i32>,
    pub(crate) slots: Vec<i16>,
    pub(crate) ids: Vec<i64>,
}

impl Places {
    pub(crate) fn push(&mut self, place: Place) {
        self.handlers.push(place.handler);
        self.slots.push(place.slot);
        self.ids.push(place.id);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

fn bind_places<'q>(
    query: Query<'q, Postgres, PgArguments>,
    places: &'q Places,
) -> Query<'q, Postgres, PgArguments> {
    query.bind(&places.handlers).bind(&places.slots).bind(&places.ids)
}

/// What the store says about itself.
pub(crate) async fn meta(at: At<'_>, connection: &mut PgConnection) -> Result<Vec<(String, String)>> {
    let rows = query(at, &at.sql.meta).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

pub(crate) async fn set_meta(
    at: At<'_>,
    connection: &mut PgConnection,
    key: &str,
    value: &str,
) -> Result<()> {
    query(at, &at.sql.set_meta).bind(key).bind(value).execute(connection).await.map(drop)
}

/// Runs statements that have no values.
pub(crate) async fn run_script(connection: &mut PgConnection, sql: String) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop)
}

/// Waits for the lock that lets one node migrate at a time, until the transaction ends.
pub(crate) async fn lock_migrations(connection: &mut PgConnection, schema: &str) -> Result<()> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('event-bus migrations of ' || $1, 0))")
        .persistent(false)
        .bind(schema)
        .execute(connection)
        .await
        .map(drop)
}

/// The server's version, and whether there are tables of the bus in this schema.
pub(crate) async fn look(connection: &mut PgConnection, schema: &str) -> Result<(i32, bool, bool)> {
    let row = sqlx::query(
        // Asked of the catalogue itself: what to_regclass says may be older than the wait for the lock.
        "select current_setting('server_version_num')::int4, \
         exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         where n.nspname = $1 and c.relname = 'meta'), \
         exists (select from pg_namespace where nspname = $1)",
    )
    .persistent(false)
    .bind(schema)
    .fetch_one(connection)
    .await?;
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
}

/// The ids of those names that are known.
pub(crate) async fn handlers(at: At<'_>, connection: &mut PgConnection, names: &[&str]) -> Result<Handlers> {
    let rows = query(at, &at.sql.handlers).bind(names).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((Arc::from(row.try_get::<&str, _>(0)?), row.try_get(1)?))).collect()
}

pub(crate) async fn add_handlers(at: At<'_>, connection: &mut PgConnection, names: &[&str]) -> Result<()> {
    query(at, &at.sql.add_handlers).bind(names).execute(connection).await.map(drop)
}

fn bind_rows<'q>(
    query: Query<'q, Postgres, PgArguments>,
    rows: &'q Rows<'q>,
) -> Query<'q, Postgres, PgArguments> {
    let headers: Vec<Option<&str>> = rows.headers.iter().map(Option::as_deref).collect();
    query
        .bind(&rows.handlers)
        .bind(&rows.slots)
        .bind(&rows.event_ids)
        .bind(&rows.names)
        .bind(&rows.versions)
        .bind(&rows.keys)
        .bind(&rows.payloads)
        .bind(headers)
        .bind(&rows.published_at)
}

/// Stores deliveries.
pub(crate) async fn publish(at: At<'_>, connection: &mut PgConnection, rows: &Rows<'_>) -> Result<()> {
    bind_rows(query(at, &at.sql.publish), rows).execute(connection).await.map(drop)
}

/// Stores deliveries with an idempotency key, a delay, or in strict order. False if the key was known.
pub(crate) async fn publish_once(
    at: At<'_>,
    connection: &mut PgConnection,
    rows: &Rows<'_>,
    key: Option<&str>,
    delay_ms: i64,
    is_strict: bool,
) -> Result<bool> {
    let query = bind_rows(query(at, &at.sql.publish_once), rows).bind(key).bind(delay_ms).bind(is_strict);
    query.fetch_one(connection).await?.try_get(0)
}

/// Wakes who listens.
pub(crate) async fn notify(
    at: At<'_>,
    connection: &mut PgConnection,
    channel: &str,
    about: &str,
) -> Result<()> {
    query(at, &at.sql.notify).bind(channel).bind(about).execute(connection).await.map(drop)
}

/// What a new session of a worker is told about itself.
pub(crate) struct SessionFacts {
    pub(crate) version: i32,
    pub(crate) is_standby: bool,
    pub(crate) statement_timeout: String,
}

pub(crate) async fn session(
    at: At<'_>,
    connection: &mut PgConnection,
    silence: Duration,
) -> Result<SessionFacts> {
    let silence = i64::try_from(silence.as_millis()).unwrap_or(i64::MAX);
    let row = query(at, &at.sql.session).bind(silence).fetch_one(connection).await?;
    Ok(SessionFacts {
        version: row.try_get(0)?,
        is_standby: row.try_get(1)?,
        statement_timeout: row.try_get(2)?,
    })
}

/// The history of this server's tables, and the one that was noted last.
pub(crate) async fn history(at: At<'_>, connection: &mut PgConnection) -> Result<(String, Option<String>)> {
    let row = query(at, &at.sql.history).fetch_one(connection).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Leases are given out under this history from now on.
pub(crate) async fn turn_history(at: At<'_>, connection: &mut PgConnection, history: &str) -> Result<()> {
    query(at, &at.sql.turn_history).bind(history).execute(connection).await.map(drop)
}

/// A worker begins: its id, and whether its lock was taken.
pub(crate) async fn enter(
    at: At<'_>,
    connection: &mut PgConnection,
    incarnation: Uuid,
    info: &str,
) -> Result<(i32, bool)> {
    let row = query(at, &at.sql.enter).bind(incarnation).bind(info).fetch_one(connection).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

pub(crate) async fn enter_handlers(
    at: At<'_>,
    connection: &mut PgConnection,
    worker: i32,
    handlers: &[i32],
    windows: &[i32],
    slots: i32,
) -> Result<()> {
    query(at, &at.sql.enter_handlers)
        .bind(worker)
        .bind(handlers)
        .bind(windows)
        .bind(slots)
        .execute(connection)
        .await
        .map(drop)
}

/// Who works, what is free, and how far transactions have come.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub(crate) workers: Vec<WorkerFacts>,
    pub(crate) handlers: Vec<HandlerFacts>,
    /// The first transaction that had not ended.
    pub(crate) oldest: i64,
    /// The first transaction that had not begun.
    pub(crate) next: i64,
}

#[derive(Debug)]
pub(crate) struct WorkerFacts {
    pub(crate) id: i32,
    pub(crate) is_gone: bool,
    pub(crate) handlers: Vec<i32>,
}

#[derive(Debug)]
pub(crate) struct HandlerFacts {
    pub(crate) id: i32,
    /// How many of its leases nobody has.
    pub(crate) free: i64,
    /// How often free deliveries of it came back.
    pub(crate) given_back: i64,
}

pub(crate) async fn survey(
    at: At<'_>,
    connection: &mut PgConnection,
    worker: i32,
    handlers: &[i32],
) -> Result<Survey> {
    let rows = query(at, &at.sql.survey).bind(worker).bind(handlers).fetch_all(connection).await?;
    let mut survey = Survey::default();
    for row in rows {
        let id = row.try_get(1)?;
        (survey.oldest, survey.next) = (row.try_get(6)?, row.try_get(7)?);
        if row.try_get::<i32, _>(0)? == 0 {
            let handlers = row.try_get(3)?;
            survey.workers.push(WorkerFacts { id, is_gone: row.try_get(2)?, handlers });
        } else {
            let (free, given_back) = (row.try_get(4)?, row.try_get(5)?);
            survey.handlers.push(HandlerFacts { id, free, given_back });
        }
    }
    Ok(survey)
}

/// Tells all workers to look at all free deliveries of these handlers again.
pub(crate) async fn give_back(at: At<'_>, connection: &mut PgConnection, handlers: &[i32]) -> Result<()> {
    query(at, &at.sql.give_back).bind(handlers).execute(connection).await.map(drop)
}

/// A lease that was taken.
pub(crate) struct Taken {
    pub(crate) handler: i32,
    pub(crate) slot: i16,
    pub(crate) epoch: i64,
    pub(crate) is_unclean: bool,
    pub(crate) has_parked: bool,
}

pub(crate) async fn take(
    at: At<'_>,
    connection: &mut PgConnection,
    worker: i32,
    handlers: &[i32],
    most: &[i64],
) -> Result<Vec<Taken>> {
    let rows = query(at, &at.sql.take).bind(worker).bind(handlers).bind(most).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            Ok(Taken {
                handler: row.try_get(0)?,
                slot: row.try_get(1)?,
                epoch: row.try_get(2)?,
                is_unclean: row.try_get(3)?,
                has_parked: row.try_get(4)?,
            })
        })
        .collect()
}

/// Frees what a vanished worker held. Whether nothing is left of it, and how many free deliveries were charged.
pub(crate) async fn bury_worker(
    at: At<'_>,
    connection: &mut PgConnection,
    worker: i32,
) -> Result<(bool, i64)> {
    let row = query(at, &at.sql.bury_worker).bind(worker).fetch_one(connection).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Ends sessions of workers that have been silent for too long.
pub(crate) async fn end_silent_workers(
    at: At<'_>,
    connection: &mut PgConnection,
    silence: Duration,
) -> Result<i64> {
    let silence = i64::try_from(silence.as_millis()).unwrap_or(i64::MAX);
    query(at, &at.sql.end_silent_workers).bind(silence).fetch_one(connection).await?.try_get(0)
}

pub(crate) async fn release(
    at: At<'_>,
    connection: &mut PgConnection,
    worker: i32,
    lease: (i32, i16),
    is_unclean: bool,
) -> Result<()> {
    let query = query(at, &at.sql.release).bind(worker).bind([lease.0]).bind([lease.1]).bind([is_unclean]);
    query.execute(connection).await.map(drop)
}

/// A worker ends in peace.
pub(crate) async fn leave(
    at: At<'_>,
    connection: &mut PgConnection,
    worker: i32,
    free: &Places,
    unclean: &[(i32, i16)],
) -> Result<()> {
    let (handlers, slots): (Vec<_>, Vec<_>) = unclean.iter().copied().unzip();
    query(at, &at.sql.leave)
        .bind(worker)
        .bind(&free.handlers)
        .bind(&free.ids)
        .bind(handlers)
        .bind(slots)
        .execute(connection)
        .await
        .map(drop)
}

pub(crate) async fn claim_free(
    at: At<'_>,
    connection: &mut PgConnection,
    worker: i32,
    demands: &[SlotDemand],
    max_bytes: i64,
    ahead: i64,
) -> Result<Vec<PgRow>> {
    let handlers: Vec<_> = demands.iter().map(|demand| demand.handler).collect();
    let limits: Vec<_> = demands.iter().map(|demand| demand.limit).collect();
    let floors: Vec<_> = demands.iter().map(|demand| demand.floor).collect();
    let query = query(at, &at.sql.claim_free).bind(worker).bind(handlers).bind(limits);
    query.bind(max_bytes).bind(ahead).bind(floors).fetch_all(connection).await
}

/// How much of a slot is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotDemand {
    pub(crate) handler: i32,
    pub(crate) slot: i16,
    pub(crate) limit: i64,
    /// Up to here nothing can be new.
    pub(crate) floor: i64,
}

pub(crate) async fn claim_keyed(
    at: At<'_>,
    connection: &mut PgConnection,
    demands: &[SlotDemand],
    held: &[i64],
    max_bytes: i64,
) -> Result<Vec<PgRow>> {
    let handlers: Vec<_> = demands.iter().map(|demand| demand.handler).collect();
    let slots: Vec<_> = demands.iter().map(|demand| demand.slot).collect();
    let limits: Vec<_> = demands.iter().map(|demand| demand.limit).collect();
    let floors: Vec<_> = demands.iter().map(|demand| demand.floor).collect();
    let query = query(at, &at.sql.claim_keyed).bind(handlers).bind(slots).bind(limits);
    query.bind(held).bind(max_bytes).bind(floors).fetch_all(connection).await
}

/// A worker is about to hold ids up to these.
pub(crate) async fn load(
    at: At<'_>,
    connection: &mut PgConnection,
    worker: i32,
    loads: &[(i32, i64)],
) -> Result<()> {
    let (handlers, ids): (Vec<i32>, Vec<i64>) = loads.iter().copied().unzip();
    query(at, &at.sql.load).bind(worker).bind(handlers).bind(ids).execute(connection).await.map(drop)
}

/// Lanes, as arrays.
#[derive(Default)]
pub(crate) struct LaneArrays<'a> {
    pub(crate) handlers: Vec<i32>,
    pub(crate) slots: Vec<i16>,
    pub(crate) keys: Vec<&'a str>,
    pub(crate) limits: Vec<i64>,
}

pub(crate) async fn refill(
    at: At<'_>,
    connection: &mut PgConnection,
    worker: i32,
    lanes: &LaneArrays<'_>,
    max_bytes: i64,
) -> Result<Vec<PgRow>> {
    let query = query(at, &at.sql.refill).bind(&lanes.handlers).bind(&lanes.slots).bind(&lanes.keys);
    query.bind(&lanes.limits).bind(max_bytes).bind(worker).fetch_all(connection).await
}

/// For lanes with something parked: the lane's position, the first id.
pub(crate) async fn first_parked(
    at: At<'_>,
    connection: &mut PgConnection,
    lanes: &LaneArrays<'_>,
) -> Result<Vec<(usize, i64)>> {
    let query = query(at, &at.sql.first_parked).bind(&lanes.handlers).bind(&lanes.slots).bind(&lanes.keys);
    let rows = query.fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let position: i64 = row.try_get(0)?;
            Ok((usize::try_from(position - 1).unwrap_or(usize::MAX), row.try_get(1)?))
        })
        .collect()
}

pub(crate) async fn parked_lanes(
    at: At<'_>,
    connection: &mut PgConnection,
    handler: i32,
    slot: i16,
    after: &str,
    limit: i64,
) -> Result<Vec<(String, i64)>> {
    let query = query(at, &at.sql.parked_lanes).bind(handler).bind(slot).bind(after).bind(limit);
    let rows = query.fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// In how many milliseconds the next delivery without a place becomes due.
pub(crate) async fn next_due(at: At<'_>, connection: &mut PgConnection) -> Result<Option<i64>> {
    let row = query(at, &at.sql.next_due).fetch_optional(connection).await?;
    row.map(|row| row.try_get(0)).transpose()
}

pub(crate) async fn promote(at: At<'_>, connection: &mut PgConnection, limit: i64) -> Result<u64> {
    Ok(changed(&query(at, &at.sql.promote).bind(limit).execute(connection).await?))
}

pub(crate) async fn complete(at: At<'_>, connection: &mut PgConnection, places: &Places) -> Result<()> {
    bind_places(query(at, &at.sql.complete), places).execute(connection).await.map(drop)
}

pub(crate) async fn start(
    at: At<'_>,
    connection: &mut PgConnection,
    places: &Places,
    attempts: &[i32],
) -> Result<()> {
    bind_places(query(at, &at.sql.start), places).bind(attempts).execute(connection).await.map(drop)
}

/// Deliveries that wait, and what there is to say about them.
#[derive(Default)]
pub(crate) struct Waits {
    pub(crate) places: Places,
    pub(crate) delays: Vec<i64>,
    /// None: as they were, and so are the errors.
    pub(crate) failures: Vec<Option<i32>>,
    pub(crate) errors: Vec<Option<Vec<u8>>>,
}

fn bind_waits<'q>(
    query: Query<'q, Postgres, PgArguments>,
    waits: &'q Waits,
) -> Query<'q, Postgres, PgArguments> {
    bind_places(query, &waits.places).bind(&waits.delays).bind(&waits.failures).bind(&waits.errors)
}

pub(crate) async fn wait_in_place(at: At<'_>, connection: &mut PgConnection, waits: &Waits) -> Result<()> {
    bind_waits(query(at, &at.sql.wait_in_place), waits).execute(connection).await.map(drop)
}

pub(crate) async fn wait_apart(at: At<'_>, connection: &mut PgConnection, waits: &Waits) -> Result<()> {
    bind_waits(query(at, &at.sql.wait_apart), waits).execute(connection).await.map(drop)
}

/// Deliveries that failed for good.
#[derive(Default)]
pub(crate) struct Verdicts {
    pub(crate) places: Places,
    pub(crate) reasons: Vec<&'static str>,
    pub(crate) failures: Vec<i32>,
    pub(crate) errors: Vec<Option<Vec<u8>>>,
    pub(crate) holds_key: Vec<bool>,
}

pub(crate) async fn bury(at: At<'_>, connection: &mut PgConnection, verdicts: &Verdicts) -> Result<()> {
    bind_places(query(at, &at.sql.bury), &verdicts.places)
        .bind(&verdicts.reasons)
        .bind(&verdicts.failures)
        .bind(&verdicts.errors)
        .bind(&verdicts.holds_key)
        .execute(connection)
        .await
        .map(drop)
}

pub(crate) async fn let_go(at: At<'_>, connection: &mut PgConnection, places: &Places) -> Result<()> {
    bind_places(query(at, &at.sql.let_go), places).execute(connection).await.map(drop)
}

pub(crate) async fn park(at: At<'_>, connection: &mut PgConnection, places: &Places) -> Result<()> {
    bind_places(query(at, &at.sql.park), places).execute(connection).await.map(drop)
}

/// Forgets a delivery in its handler's transaction; false if the right to it is gone.
pub(crate) async fn complete_in(
    at: At<'_>,
    connection: &mut PgConnection,
    place: Place,
    worker: i32,
    epoch: i64,
) -> Result<bool> {
    let query = query(at, &at.sql.complete_in).bind(place.handler).bind(place.slot).bind(place.id);
    Ok(changed(&query.bind(worker).bind(epoch).execute(connection).await?) > 0)
}

/// Forgets old idempotency keys; how many.
pub(crate) async fn forget_keys(
    at: At<'_>,
    connection: &mut PgConnection,
    age: Duration,
    limit: i64,
) -> Result<u64> {
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX / 1_000_000);
    Ok(changed(&query(at, &at.sql.forget_keys).bind(age).bind(limit).execute(connection).await?))
}

pub(crate) async fn counts(at: At<'_>, connection: &mut PgConnection) -> Result<Vec<HandlerCounts>> {
    let rows = query(at, &at.sql.counts).fetch_all(connection).await?;
    let number = |row: &PgRow, index| -> Result<u64> {
        row.try_get::<i64, _>(index).map(|number| u64::try_from(number).unwrap_or(0))
    };
    rows.iter()
        .map(|row| {
            Ok(HandlerCounts {
                handler: row.try_get(0)?,
                ready: number(row, 1)?,
                waiting: number(row, 2)?,
                dead: number(row, 3)?,
            })
        })
        .collect()
}

fn bind_filter<'q>(
    query: Query<'q, Postgres, PgArguments>,
    filter: &'q DeadLetterFilter,
) -> Query<'q, Postgres, PgArguments> {
    let ids = filter.ids.as_ref();
    // What is no id of ours matches nothing.
    let ids: Option<Vec<i64>> = ids.map(|ids| ids.iter().filter_map(|id| row::private_id(*id)).collect());
    query
        .bind(ids)
        .bind(filter.handler.as_deref())
        .bind(filter.event.as_deref())
        .bind(filter.key.as_deref())
        .bind(filter.reason.map(DeadReason::as_str))
        .bind(filter.died_before.map(|before| before.as_millis()))
}

pub(crate) async fn dead_letters(
    at: At<'_>,
    connection: &mut PgConnection,
    filter: &DeadLetterFilter,
    after: i64,
    limit: i64,
) -> Result<Vec<PgRow>> {
    let query = bind_filter(query(at, &at.sql.dead_letters), filter).bind(after).bind(limit);
    query.fetch_all(connection).await
}

fn ids(rows: &[PgRow]) -> Result<Vec<i64>> {
    rows.iter().map(|row| row.try_get(0)).collect()
}

pub(crate) async fn dead_ids(
    at: At<'_>,
    connection: &mut PgConnection,
    filter: &DeadLetterFilter,
) -> Result<Vec<i64>> {
    ids(&bind_filter(query(at, &at.sql.dead_ids), filter).fetch_all(connection).await?)
}

pub(crate) async fn replay(
    at: At<'_>,
    connection: &mut PgConnection,
    dead: &[i64],
    is_last_try: bool,
) -> Result<Vec<i64>> {
    ids(&query(at, &at.sql.replay).bind(dead).bind(is_last_try).fetch_all(connection).await?)
}

pub(crate) async fn purge(
    at: At<'_>,
    connection: &mut PgConnection,
    dead: &[i64],
    is_last_try: bool,
) -> Result<Vec<i64>> {
    ids(&query(at, &at.sql.purge).bind(dead).bind(is_last_try).fetch_all(connection).await?)
}

//! Listing, replaying and purging dead letters; counting deliveries.

use std::sync::Arc;

use event_bus_core::Result;
use event_bus_core::backend::{
    DeadLetter, DeadLetterFilter, DeadReason, DeliveryId, Envelope, EventId, HandlerCounts, Timestamp,
};
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use uuid::Uuid;

use crate::config::SqliteConfig;
use crate::error::translate;
use crate::operation::{Operation, Reply};
use crate::row::{self, Names};
use crate::store;
use crate::writer::Writer;

/// How many dead letters are moved in one transaction: publishers wait that long.
const CHUNK: usize = 500;

/// Reads with a connection of its own, so that a long list does not hold up a worker.
async fn read<T>(
    config: &SqliteConfig,
    operation: &'static str,
    query: impl AsyncFnOnce(&mut SqliteConnection) -> sqlx::Result<T>,
) -> Result<T> {
    let failed = |failure: sqlx::Error| translate(operation, &config.path, &failure);
    let mut connection = store::connect_reader(config).await.map_err(failed)?;
    let result = query(&mut connection).await.map_err(failed);
    let _ = connection.close().await;
    result
}

pub(crate) async fn dead_letters(
    config: &SqliteConfig,
    filter: &DeadLetterFilter,
    after: Option<DeliveryId>,
    limit: usize,
) -> Result<Vec<DeadLetter>> {
    // An id that is greater than all of ours has nothing after it.
    let after = after.map_or(0, |after| row::private_id(after).unwrap_or(i64::MAX));
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = read(config, "dead_letters", async |connection: &mut SqliteConnection| {
        store::dead_letters(connection, filter, after, limit).await
    })
    .await?;
    let mut names = Names::default();
    Ok(rows.iter().map(|row| dead_letter(row, &mut names)).collect())
}

/// Never fails: a dead letter may be dead because it cannot be read, and must be seen all the more.
fn dead_letter(row: &SqliteRow, names: &mut Names) -> DeadLetter {
    let number = |index| row::column::<i64>(row, index, "").unwrap_or_default();
    let handler = row::column::<&str>(row, 1, "").unwrap_or("?");
    let reason = row::column::<&str>(row, 11, "").ok().and_then(DeadReason::from_word);
    DeadLetter {
        id: row::public_id(number(0)),
        handler: names.share(handler),
        envelope: row::envelope(row, 2, names).unwrap_or_else(|_| damaged_envelope(row)),
        failures: u32::try_from(number(9)).unwrap_or_default(),
        errors: row::errors(row, 10).unwrap_or_default(),
        reason: reason.unwrap_or(DeadReason::Undecodable),
        died_at: Timestamp::from_millis(number(12)),
        holds_key: number(13) != 0,
    }
}

/// What can be shown of an envelope that cannot be read.
fn damaged_envelope(row: &SqliteRow) -> Envelope {
    let bytes = |index| row::column::<&[u8]>(row, index, "").unwrap_or_default();
    let text = |index| -> Arc<str> { String::from_utf8_lossy(bytes(index)).into() };
    let number = |index| row::column::<i64>(row, index, "").unwrap_or_default();
    Envelope {
        id: EventId::from_uuid(Uuid::from_slice(bytes(2)).unwrap_or_default()),
        name: text(3),
        version: u32::try_from(number(4)).unwrap_or_default(),
        key: (!bytes(5).is_empty()).then(|| text(5)),
        payload: bytes(6).to_vec().into(),
        headers: None,
        published_at: Timestamp::from_millis(number(8)),
    }
}

pub(crate) async fn replay(config: &SqliteConfig, writer: &Writer, filter: &DeadLetterFilter) -> Result<u64> {
    in_chunks(config, writer, filter, "replay", |ids, reply| Operation::Replay { ids, reply }).await
}

pub(crate) async fn purge(config: &SqliteConfig, writer: &Writer, filter: &DeadLetterFilter) -> Result<u64> {
    in_chunks(config, writer, filter, "purge", |ids, reply| Operation::Purge { ids, reply }).await
}

/// Decides which once, then moves them in the order in which they were published: one that dies again meanwhile has
/// another id and stays dead.
async fn in_chunks(
    config: &SqliteConfig,
    writer: &Writer,
    filter: &DeadLetterFilter,
    operation: &'static str,
    ask: impl Fn(Vec<i64>, Reply<u64>) -> Operation,
) -> Result<u64> {
    let ids = read(config, operation, async |connection: &mut SqliteConnection| {
        store::dead_ids(connection, filter).await
    })
    .await?;
    let mut moved = 0;
    for chunk in ids.chunks(CHUNK) {
        moved += writer.ask(operation, |reply| ask(chunk.to_vec(), reply)).await?;
    }
    Ok(moved)
}

pub(crate) async fn counts(config: &SqliteConfig) -> Result<Vec<HandlerCounts>> {
    let now = config.clock.now();
    read(config, "counts", async |connection: &mut SqliteConnection| store::counts(connection, now).await)
        .await
}

//! Listing, replaying and purging dead letters; counting deliveries.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use event_bus_core::Result;
use event_bus_core::backend::{
    DeadLetter, DeadLetterFilter, DeadReason, DeliveryId, Envelope, EventId, HandlerCounts, Timestamp,
};
use sqlx::postgres::PgRow;

use crate::connection::Hands;
use crate::row::{self, Names};
use crate::store;

/// How many dead letters are moved by one statement.
const CHUNK: usize = 500;

/// How often a dead letter is tried whose marker is on its way between its line and the parked ones.
const TRIES: usize = 50;

/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(5);

pub(crate) async fn dead_letters(
    hands: &Arc<Hands>,
    filter: &DeadLetterFilter,
    after: Option<DeliveryId>,
    limit: usize,
) -> Result<Vec<DeadLetter>> {
    // An id that is greater than all of ours has nothing after it.
    let after = after.map_or(0, |after| row::private_id(after).unwrap_or(i64::MAX));
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let filter = filter.clone();
    let rows = hands
        .run("dead_letters", false, move |connection, at| {
            Box::pin(async move { store::dead_letters(at, connection, &filter, after, limit).await })
        })
        .await?;
    let mut names = Names::default();
    Ok(rows.iter().map(|row| dead_letter(row, &mut names)).collect())
}

/// Never fails: a dead letter may be dead because it cannot be read, and must be seen all the more.
fn dead_letter(row: &PgRow, names: &mut Names) -> DeadLetter {
    let number = |index| row::column::<i64>(row, index, "").unwrap_or_default();
    let handler = row::column::<&str>(row, 1, "").unwrap_or("?");
    let reason = row::column::<&str>(row, 11, "").ok().and_then(DeadReason::from_word);
    DeadLetter {
        id: row::public_id(number(0)),
        handler: names.share(handler),
        envelope: row::envelope(row, 2, names).unwrap_or_else(|_| damaged_envelope(row)),
        failures: row::count(row, 9, "").unwrap_or_default(),
        errors: row::errors(row, 10).unwrap_or_default(),
        reason: reason.unwrap_or(DeadReason::Undecodable),
        died_at: Timestamp::from_millis(number(12)),
        holds_key: row::column(row, 13, "").unwrap_or_default(),
    }
}

/// What can be shown of an envelope that cannot be read.
fn damaged_envelope(row: &PgRow) -> Envelope {
    let text = |index| row::column::<Option<&str>>(row, index, "").ok().flatten().map(Arc::<str>::from);
    Envelope {
        id: EventId::from_uuid(row::column(row, 2, "").unwrap_or_default()),
        name: text(3).unwrap_or_default(),
        version: row::count(row, 4, "").unwrap_or_default(),
        key: text(5),
        payload: row::column::<Vec<u8>>(row, 6, "").unwrap_or_default().into(),
        headers: None,
        published_at: Timestamp::from_millis(row::column::<i64>(row, 8, "").unwrap_or_default()),
    }
}

#[derive(Clone, Copy)]
enum Move {
    Replay,
    Purge,
}

pub(crate) async fn replay(hands: &Arc<Hands>, filter: &DeadLetterFilter) -> Result<u64> {
    in_chunks(hands, filter, "replay", Move::Replay).await
}

pub(crate) async fn purge(hands: &Arc<Hands>, filter: &DeadLetterFilter) -> Result<u64> {
    in_chunks(hands, filter, "purge", Move::Purge).await
}

/// Decides which once, then moves them in the order in which they were published: one that dies again meanwhile has
/// another id and stays dead.
async fn in_chunks(
    hands: &Arc<Hands>,
    filter: &DeadLetterFilter,
    operation: &'static str,
    how: Move,
) -> Result<u64> {
    let filter = filter.clone();
    let ids = hands
        .run(operation, false, move |connection, at| {
            Box::pin(async move { store::dead_ids(at, connection, &filter).await })
        })
        .await?;
    let mut moved = 0;
    for chunk in ids.chunks(CHUNK) {
        let mut left = chunk.to_vec();
        for tries in 1..=TRIES {
            let (wanted, is_last_try) = (left.clone(), tries == TRIES);
            let done: HashSet<i64> = hands
                .run(operation, true, move |connection, at| {
                    Box::pin(async move {
                        match how {
                            Move::Replay => store::replay(at, connection, &wanted, is_last_try).await,
                            Move::Purge => store::purge(at, connection, &wanted, is_last_try).await,
                        }
                    })
                })
                .await?
                .into_iter()
                .collect();
            moved += done.len() as u64;
            left.retain(|id| !done.contains(id));
            if !left.is_empty() {
                left = still_dead(hands, operation, left).await?;
            }
            if left.is_empty() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(moved)
}

/// Which of these have not gone meanwhile.
async fn still_dead(hands: &Arc<Hands>, operation: &'static str, ids: Vec<i64>) -> Result<Vec<i64>> {
    let ids = Some(ids.into_iter().map(row::public_id).collect());
    let filter = DeadLetterFilter { ids, ..DeadLetterFilter::default() };
    hands
        .run(operation, false, move |connection, at| {
            Box::pin(async move { store::dead_ids(at, connection, &filter).await })
        })
        .await
}

pub(crate) async fn counts(hands: &Arc<Hands>) -> Result<Vec<HandlerCounts>> {
    hands
        .run("counts", false, |connection, at| Box::pin(async move { store::counts(at, connection).await }))
        .await
}

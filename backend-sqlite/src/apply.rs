//! How the writer does what it was asked for, within a transaction that is open.
//!
//! Everything here can be done a second time if the transaction fails: answers are kept in the operations until the
//! commit, and overwritten by the next try.

use std::collections::HashSet;

use event_bus_core::backend::{Stored, Timestamp};
use event_bus_core::{Error, ErrorKind};
use sqlx::sqlite::SqliteConnection;

use crate::error::error;
use crate::operation::{Open, Operation, Refill, Refilled, Request, Settle};
use crate::publish::{Handlers, store_publications};
use crate::row;
use crate::store;

/// What operations need to know.
pub(crate) struct Surroundings<'a> {
    pub(crate) now: Timestamp,
    /// Idempotency keys from before this point in time are not remembered.
    pub(crate) forgotten_before: Timestamp,
    /// The fence of the file as this transaction sees it.
    pub(crate) fence: u64,
    /// Handler names whose ids are committed.
    pub(crate) handlers: &'a Handlers,
}

/// Does a group of operations. Handlers that were met for the first time are added to `new_handlers`.
pub(crate) async fn apply(
    connection: &mut SqliteConnection,
    group: &mut [Request],
    around: &Surroundings<'_>,
    new_handlers: &mut Handlers,
) -> sqlx::Result<()> {
    publish(connection, group, around, new_handlers).await?;
    let mut is_fenced = around.fence;
    for request in group {
        match &mut request.operation {
            Operation::Publish { .. } => {}
            Operation::Settle { settle: outcomes, reply } => {
                let is_owner = outcomes.fence == is_fenced;
                if is_owner {
                    settle(connection, outcomes, around.now).await?;
                }
                reply.answer = Some(owner_only(is_owner, ()));
            }
            Operation::Promote { fence, limit, reply } => {
                let is_owner = *fence == is_fenced;
                if is_owner {
                    store::promote(connection, around.now, *limit).await?;
                }
                reply.answer = Some(owner_only(is_owner, ()));
            }
            Operation::Refill { refill: wanted, reply } => {
                let is_owner = wanted.fence == is_fenced;
                let refilled = if is_owner { refill(connection, wanted).await? } else { Refilled::default() };
                reply.answer = Some(owner_only(is_owner, refilled));
            }
            Operation::Open { open: worker, .. } => {
                let (fence, handlers) = open(connection, worker).await?;
                is_fenced = fence;
                worker.taken = Some((fence, handlers));
            }
            Operation::Close { fence, reply, .. } => {
                if *fence == is_fenced {
                    end_worker(connection).await?;
                }
                reply.answer = Some(Ok(()));
            }
            Operation::Replay { ids, reply } => reply.answer = Some(Ok(replay(connection, ids).await?)),
            Operation::Purge { ids, reply } => {
                store::let_go(connection, ids).await?;
                reply.answer = Some(Ok(store::forget_dead(connection, ids).await?));
            }
        }
    }
    Ok(())
}

/// The error of a session that is not the owner any more.
pub(crate) fn fenced(operation: &'static str) -> Error {
    error(ErrorKind::LeaseLost, operation, "another worker has taken this file over")
}

fn owner_only<T>(is_owner: bool, answer: T) -> Result<T, Error> {
    if is_owner { Ok(answer) } else { Err(fenced("session")) }
}

/// Stores the deliveries of all publications of a group together.
async fn publish(
    connection: &mut SqliteConnection,
    group: &mut [Request],
    around: &Surroundings<'_>,
    new_handlers: &mut Handlers,
) -> sqlx::Result<()> {
    let mut wanted = Vec::new();
    for request in group {
        let Operation::Publish { publication, reply } = &mut request.operation else { continue };
        if let Some(key) = &publication.idempotency_key
            && !store::remember(connection, key, around.now, around.forgotten_before).await?
        {
            reply.answer = Some(Ok(Stored::Duplicate));
            continue;
        }
        reply.answer = Some(Ok(Stored::New));
        wanted.push(&*publication);
    }
    store_publications(connection, &wanted, around.handlers, new_handlers, around.now).await
}

async fn settle(connection: &mut SqliteConnection, settle: &Settle, now: Timestamp) -> sqlx::Result<()> {
    store::start(connection, &settle.start).await?;
    store::retry_in_place(connection, &settle.retry_in_place).await?;
    store::snooze_in_place(connection, &settle.snooze_in_place).await?;
    store::leave_failed(connection, &settle.retry).await?;
    store::leave_snoozed(connection, &settle.snooze).await?;
    store::bury(connection, &settle.dead, now).await?;
    store::release(connection, &settle.release).await?;

    let held: Vec<_> = settle.dead.iter().filter(|dead| dead.holds_key).map(|dead| dead.id).collect();
    store::hold(connection, &held).await?;
    let mut gone = settle.complete.clone();
    gone.extend(settle.retry.iter().map(|failed| failed.id));
    gone.extend(settle.snooze.iter().map(|(id, _)| *id));
    gone.extend(settle.dead.iter().filter(|dead| !dead.holds_key).map(|dead| dead.id));
    store::complete(connection, &gone).await?;

    store::park(connection, &settle.park).await.map(drop)
}

async fn refill(connection: &mut SqliteConnection, refill: &Refill) -> sqlx::Result<Refilled> {
    let mut refilled = Refilled::default();
    let mut bytes_left = i64::try_from(refill.max_bytes).unwrap_or(i64::MAX);
    for (position, lane) in refill.lanes.iter().enumerate() {
        if bytes_left > 0 {
            let rows = store::refill(connection, lane.handler, &lane.key, lane.limit, bytes_left).await?;
            for (id, row) in rows {
                bytes_left -= row::payload_bytes(&row);
                refilled.rows.push((position, id, row));
            }
        }
        if let Some(first) = store::first_parked(connection, lane.handler, &lane.key).await? {
            refilled.still.push((position, first));
        }
    }
    Ok(refilled)
}

/// Leaves every parked lane parked from its first delivery on, for whoever comes next.
async fn end_worker(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    for (handler, window) in store::left_by_worker(connection).await? {
        store::line_up(connection, handler, window).await?;
    }
    store::clear_worker(connection).await
}

async fn open(connection: &mut SqliteConnection, open: &Open) -> sqlx::Result<(u64, Vec<i64>)> {
    for (handler, window) in store::left_by_worker(connection).await? {
        let charged = store::charge(connection, handler, window).await?;
        if charged > 0 {
            tracing::warn!(
                handler,
                deliveries = charged,
                "the last worker of this file vanished; they may run again"
            );
        }
    }
    end_worker(connection).await?;
    let mut ids = Vec::with_capacity(open.handlers.len());
    for (name, window) in &open.handlers {
        let id = store::handler(connection, name).await?;
        let window = i64::try_from(*window).unwrap_or(i64::MAX);
        store::enter_worker(connection, id, open.incarnation.as_bytes(), window).await?;
        ids.push(id);
    }
    Ok((store::raise_fence(connection).await?, ids))
}

async fn replay(connection: &mut SqliteConnection, ids: &[i64]) -> sqlx::Result<u64> {
    let in_place: HashSet<_> = store::replay_held(connection, ids).await?.into_iter().collect();
    let mut origins = store::replay_origins(connection, ids).await?;
    origins.retain(|origin| !in_place.contains(&origin.delivery));

    let mut counts: Vec<(i64, i64)> = Vec::new();
    let mut numbers = Vec::with_capacity(origins.len());
    for origin in &origins {
        numbers.push(row::count_up(&mut counts, origin.handler));
    }
    if !counts.is_empty() {
        let firsts = store::allocate(connection, &counts).await?;
        let pairs: Vec<_> = origins
            .iter()
            .zip(numbers)
            .map(|(origin, number)| (origin.dead, row::numbered(&firsts, origin.handler, number)))
            .collect();
        store::replay(connection, &pairs).await?;
    }
    store::forget_dead(connection, ids).await
}

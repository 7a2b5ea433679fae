//! A worker's hold on the file.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use event_bus_core::backend::{
    ClaimRequest, Claimed, Connection, Delivery, Notice, Outcome, Session, SettleBatch, Timestamp,
};
use event_bus_core::{Error, ErrorKind, Result};
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::Instant;

use crate::backend::Shared;
use crate::claim::{Owner, Reader};
use crate::error::error;
use crate::lock::WorkerLock;
use crate::operation::{Opened, Operation, Settle};
use crate::publish::after;
use crate::row;
use crate::store::{Dead, Failed};
use crate::transaction;
use crate::writer::Writer;

/// The owner of the file. Dropped without [`close`](Session::close), it leaves an unclean end.
pub(crate) struct SqliteSession {
    owner: Owner,
    reader: AsyncMutex<Reader>,
    lock: Mutex<Option<WorkerLock>>,
    /// Deliveries that were given back since the last claim.
    released: Mutex<Vec<i64>>,
    is_closed: AtomicBool,
    closed: Notify,
    /// When to look next whether another process has written. Kept here, so that calls of `wait` that are dropped and
    /// repeated neither put it off nor bring it forward.
    next_look: Mutex<Instant>,
}

impl SqliteSession {
    pub(crate) fn new(shared: Arc<Shared>, writer: Writer, reader: SqliteConnection, opened: Opened) -> Self {
        let (fence, handlers) = (opened.fence, opened.handlers.clone());
        Self {
            reader: AsyncMutex::new(Reader::new(reader, &handlers)),
            owner: Owner { shared, writer, fence, handlers },
            lock: Mutex::new(opened.into_lock()),
            released: Mutex::default(),
            is_closed: AtomicBool::new(false),
            closed: Notify::new(),
            next_look: Mutex::new(Instant::now()),
        }
    }

    fn check_open(&self, operation: &'static str) -> Result<()> {
        // Without its writer, which ends only with the runtime it ran in, the session can do nothing more.
        if self.is_closed.load(Ordering::Acquire) || self.owner.writer.is_dead() {
            return Err(closed(operation));
        }
        Ok(())
    }
}

fn closed(operation: &'static str) -> Error {
    error(ErrorKind::Closed, operation, "the session is closed")
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing that is done under these locks can panic half way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Session for SqliteSession {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed> {
        self.check_open("claim")?;
        let mut reader = self.reader.lock().await;
        reader.give_back(std::mem::take(&mut *locked(&self.released)));
        reader.claim(&self.owner, request).await
    }

    async fn settle(&self, batch: &SettleBatch) -> Result<()> {
        self.check_open("settle")?;
        let settle = sorted(batch, self.owner.fence, self.owner.shared.config.clock.now());
        let released = settle.release.clone();
        self.owner.writer.ask("settle", |reply| Operation::Settle { settle, reply }).await?;
        locked(&self.released).extend(released);
        Ok(())
    }

    async fn complete_in(&self, connection: Connection<'_>, delivery: &Delivery) -> Result<()> {
        self.check_open("complete_in")?;
        transaction::complete_in(&self.owner.shared.config.path, connection, delivery, self.owner.fence).await
    }

    async fn wait(&self) -> Notice {
        loop {
            let end = self.closed.notified();
            if self.check_open("wait").is_err() {
                return Notice::Ended(closed("wait"));
            }
            let next_look = *locked(&self.next_look);
            tokio::select! {
                () = self.owner.shared.wake.notified() => return Notice::Work,
                () = end => {}
                () = tokio::time::sleep_until(next_look) => {
                    let has_changed = self.reader.lock().await.has_changed().await;
                    *locked(&self.next_look) = Instant::now() + self.owner.shared.config.poll_interval;
                    if has_changed {
                        return Notice::Work;
                    }
                }
            }
        }
    }

    async fn close(&self) -> Result<()> {
        if self.is_closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.closed.notify_waiters();
        // The lock travels with the operation: nobody takes over before the end is known to be clean.
        let lock = locked(&self.lock).take();
        let fence = self.owner.fence;
        self.owner.writer.ask("close", |reply| Operation::Close { fence, lock, reply }).await
    }
}

/// A batch, sorted by what the file has to do.
fn sorted(batch: &SettleBatch, fence: u64, now: Timestamp) -> Settle {
    let mut settle = Settle { fence, ..Settle::default() };
    for settlement in &batch.settlements {
        let Some(id) = row::private_id(settlement.delivery.id) else { continue };
        match &settlement.outcome {
            Outcome::Complete => settle.complete.push(id),
            Outcome::Start { attempt } => settle.start.push((id, *attempt)),
            Outcome::Retry { failures, delay, errors, keeps_place } => {
                let list = if *keeps_place { &mut settle.retry_in_place } else { &mut settle.retry };
                let due_at = after(now, *delay);
                list.push(Failed { id, failures: *failures, errors: errors.clone(), due_at });
            }
            Outcome::Snooze { delay, keeps_place } => {
                let list = if *keeps_place { &mut settle.snooze_in_place } else { &mut settle.snooze };
                list.push((id, after(now, *delay)));
            }
            Outcome::Dead { reason, failures, errors, holds_key } => settle.dead.push(Dead {
                id,
                reason: *reason,
                failures: *failures,
                errors: errors.clone(),
                holds_key: *holds_key,
            }),
            Outcome::Release => settle.release.push(id),
        }
    }
    for park in &batch.parks {
        // The first one may be the marker of a held key, which this session does not hold as a delivery any more.
        settle.park.extend(row::private_id(park.from));
        settle.park.extend(park.claimed.iter().filter_map(|id| row::private_id(*id)));
    }
    settle
}

//! A worker's hold on the file.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use event_bus_core::backend::{
    ClaimRequest, Claimed, HandlerIndex, Notice, Outcome, Partition, Session, SettleBatch,
};
use event_bus_core::{Error, ErrorKind, Result};
use sqlx::sqlite::SqliteConnection;
use tokio::sync::Mutex as AsyncMutex;

use crate::backend::Shared;
use crate::error::{error, translate};
use crate::lock::WorkerLock;
use crate::operation::{Opened, Operation, Settle, fenced};
use crate::row::{self, Names, Reading};
use crate::store::{self, Range};
use crate::writer::Writer;

/// The owner of the file.
pub(crate) struct SqliteSession {
    shared: Arc<Shared>,
    writer: Writer,
    fence: u64,
    /// The store's ids of the handlers, by [`HandlerIndex`].
    handlers: Vec<i64>,
    reader: AsyncMutex<Reader>,
    lock: Mutex<Option<WorkerLock>>,
    is_closed: AtomicBool,
}

/// The session's own connection and what it has handed out so far.
struct Reader {
    connection: SqliteConnection,
    names: Names,
    /// The last id handed out of each handler.
    cursors: Vec<i64>,
    /// What the file looked like at the last look of `wait`.
    data_version: i64,
}

impl SqliteSession {
    pub(crate) fn new(shared: Arc<Shared>, writer: Writer, reader: SqliteConnection, opened: Opened) -> Self {
        let cursors = opened.handlers.iter().map(|handler| row::range_start(*handler)).collect();
        Self {
            shared,
            writer,
            fence: opened.fence,
            handlers: opened.handlers,
            reader: AsyncMutex::new(Reader {
                connection: reader,
                names: Names::default(),
                cursors,
                data_version: 0,
            }),
            lock: Mutex::new(Some(opened.lock)),
            is_closed: AtomicBool::new(false),
        }
    }

    fn check_open(&self, operation: &'static str) -> Result<()> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(error(ErrorKind::Closed, operation, "the session is closed"));
        }
        Ok(())
    }

    fn failed(&self, operation: &'static str) -> impl Fn(sqlx::Error) -> Error {
        move |failure| translate(operation, &self.shared.config.path, &failure)
    }
}

#[async_trait]
impl Session for SqliteSession {
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed> {
        self.check_open("claim")?;
        let failed = self.failed("claim");
        let mut reader = self.reader.lock().await;
        let Reader { connection, names, cursors, .. } = &mut *reader;
        let mut claimed = Claimed::default();

        let ranges: Vec<_> = request
            .demands
            .iter()
            .map(|demand| Range {
                after: cursors[demand.handler.get()],
                end: row::range_end(self.handlers[demand.handler.get()]),
                limit: i64::try_from(demand.limit).unwrap_or(i64::MAX),
            })
            .collect();
        let mut counts = vec![0_usize; self.handlers.len()];
        let mut last = cursors.clone();
        let mut bytes = 0;
        let mut is_full = false;
        let mut reading = Reading { names, now: self.shared.config.clock.now(), fence: self.fence };
        store::claim(connection, &ranges, |row| {
            let id = row::id(&row)?;
            let owner = row::handler_of(id);
            let Some(position) = self.handlers.iter().position(|handler| *handler == owner) else {
                return Ok(true);
            };
            counts[position] += 1;
            last[position] = last[position].max(id);
            let handler = HandlerIndex(u32::try_from(position).unwrap_or(u32::MAX));
            match row::delivery(&row, id, Partition { handler, number: Partition::WHOLE }, &mut reading) {
                Ok(delivery) => {
                    bytes += delivery.envelope.size();
                    claimed.deliveries.push(delivery);
                }
                Err(unreadable) => {
                    tracing::error!(id = unreadable.id, why = unreadable.why, "a delivery cannot be read")
                }
            }
            is_full = bytes >= request.max_bytes;
            Ok(!is_full)
        })
        .await
        .map_err(failed)?;
        *cursors = last;
        for demand in &request.demands {
            if is_full || counts[demand.handler.get()] >= demand.limit {
                claimed.more.push(demand.handler);
            }
        }
        Ok(claimed)
    }

    async fn settle(&self, batch: &SettleBatch) -> Result<()> {
        self.check_open("settle")?;
        let mut settle = Settle { fence: self.fence, ..Settle::default() };
        for settlement in &batch.settlements {
            let Some(id) = row::private_id(settlement.delivery.id) else { continue };
            if settlement.delivery.fence != self.fence {
                return Err(fenced("settle"));
            }
            if settlement.outcome == Outcome::Complete {
                settle.complete.push(id);
            }
        }
        self.writer.ask("settle", |reply| Operation::Settle { settle, reply }).await
    }

    async fn wait(&self) -> Notice {
        let mut interval = tokio::time::interval(self.shared.config.poll_interval);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.shared.wake.notified() => return Notice::Work,
                _ = interval.tick() => {}
            }
            let mut reader = self.reader.lock().await;
            match store::data_version(&mut reader.connection).await {
                Ok(version) if version != reader.data_version => {
                    reader.data_version = version;
                    return Notice::Work;
                }
                Ok(_) => {}
                // The next claim meets the same trouble and reports it.
                Err(_) => return Notice::Work,
            }
        }
    }

    async fn close(&self) -> Result<()> {
        if self.is_closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let result = self.writer.ask("close", |reply| Operation::Close { fence: self.fence, reply }).await;
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        result
    }
}

//! What the writer can be asked for.

use std::sync::Arc;

use event_bus_core::backend::{Publication, Stored, Timestamp};
use event_bus_core::{Error, ErrorKind};
use sqlx::sqlite::SqliteRow;
use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

use crate::error::error;
use crate::lock::WorkerLock;
use crate::store::{Dead, Failed};
use crate::writer::Writer;

/// Where an answer goes, and the answer between its making and the commit.
pub(crate) struct Reply<T> {
    to: oneshot::Sender<Result<T, Error>>,
    pub(crate) answer: Option<Result<T, Error>>,
}

impl<T> Reply<T> {
    pub(crate) fn new() -> (Self, oneshot::Receiver<Result<T, Error>>) {
        let (to, receiver) = oneshot::channel();
        (Self { to, answer: None }, receiver)
    }

    /// Says what was made, now that it is committed.
    fn send(self, operation: &'static str) {
        let answer = self.answer.unwrap_or_else(|| {
            Err(error(ErrorKind::OutcomeUnknown, operation, "the writer did not come to this operation"))
        });
        // Whoever asked may be gone; what was stored stays stored.
        let _ = self.to.send(answer);
    }

    fn fail(mut self, error: Error) {
        self.answer = Some(Err(error));
        self.send("");
    }
}

/// An operation, and until when it may wait for other connections' locks.
pub(crate) struct Request {
    pub(crate) operation: Operation,
    pub(crate) deadline: Instant,
}

/// One thing to do in a transaction.
pub(crate) enum Operation {
    Publish { publication: Publication, reply: Reply<Stored> },
    Settle { settle: Settle, reply: Reply<()> },
    Promote { fence: u64, limit: i64, reply: Reply<()> },
    Refill { refill: Refill, reply: Reply<Refilled> },
    Open { open: Open, reply: Reply<Opened> },
    Close { fence: u64, lock: Option<WorkerLock>, reply: Reply<()> },
    Replay { ids: Vec<i64>, reply: Reply<u64> },
    Purge { ids: Vec<i64>, reply: Reply<u64> },
}

/// Outcomes, sorted by what the file has to do.
#[derive(Default)]
pub(crate) struct Settle {
    pub(crate) fence: u64,
    pub(crate) complete: Vec<i64>,
    pub(crate) start: Vec<(i64, u32)>,
    pub(crate) retry_in_place: Vec<Failed>,
    pub(crate) retry: Vec<Failed>,
    pub(crate) snooze_in_place: Vec<(i64, Timestamp)>,
    pub(crate) snooze: Vec<(i64, Timestamp)>,
    pub(crate) dead: Vec<Dead>,
    pub(crate) release: Vec<i64>,
    pub(crate) park: Vec<i64>,
}

impl Settle {
    fn weight(&self) -> usize {
        self.complete.len()
            + self.start.len()
            + self.retry_in_place.len()
            + self.retry.len()
            + self.snooze_in_place.len()
            + self.snooze.len()
            + self.dead.len()
            + self.park.len()
    }

    fn schedules(&self) -> bool {
        !self.retry.is_empty() || !self.snooze.is_empty()
    }
}

/// Lanes whose parked deliveries are wanted.
pub(crate) struct Refill {
    pub(crate) fence: u64,
    pub(crate) lanes: Vec<RefillLane>,
    pub(crate) max_bytes: usize,
}

pub(crate) struct RefillLane {
    pub(crate) handler: i64,
    pub(crate) key: Arc<str>,
    pub(crate) limit: i64,
}

/// What was parked, by the position of the lane in the request.
#[derive(Default)]
pub(crate) struct Refilled {
    /// Rows of the lanes, in id order within each.
    pub(crate) rows: Vec<(usize, i64, SqliteRow)>,
    /// The first delivery that is still parked.
    pub(crate) still: Vec<(usize, i64)>,
}

/// A worker that takes the file over.
pub(crate) struct Open {
    pub(crate) incarnation: Uuid,
    /// Names and windows.
    pub(crate) handlers: Vec<(Arc<str>, usize)>,
    /// Travels with the operation, so that nobody else can become the owner before it is done.
    pub(crate) lock: WorkerLock,
    /// Where to say that the worker ends, should nobody take the answer.
    pub(crate) writer: Writer,
    /// What the transaction made of it: the fence and the ids of the handlers.
    pub(crate) taken: Option<(u64, Vec<i64>)>,
}

/// The file is taken over. Dropped before it became a session, it is a clean end: the next worker must not find a crash
/// where nothing was ever handed out.
pub(crate) struct Opened {
    pub(crate) fence: u64,
    /// The ids of the handlers, in the order in which they were asked for.
    pub(crate) handlers: Vec<i64>,
    lock: Option<WorkerLock>,
    writer: Writer,
}

impl Opened {
    /// It becomes a session, whose duty the end is from now on.
    pub(crate) fn into_lock(mut self) -> Option<WorkerLock> {
        self.lock.take()
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(lock) = self.lock.take() {
            let (reply, _) = Reply::new();
            self.writer.submit_now(Operation::Close { fence: self.fence, lock: Some(lock), reply });
        }
    }
}

impl Operation {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Publish { .. } => "publish",
            Self::Settle { .. } => "settle",
            Self::Promote { .. } | Self::Refill { .. } => "claim",
            Self::Open { .. } => "open",
            Self::Close { .. } => "close",
            Self::Replay { .. } => "replay",
            Self::Purge { .. } => "purge",
        }
    }

    /// How much it adds to a group.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Publish { publication, .. } => publication.deliveries(),
            Self::Settle { settle, .. } => settle.weight(),
            Self::Promote { limit, .. } => usize::try_from(*limit).unwrap_or(0),
            Self::Refill { refill, .. } => refill.lanes.len(),
            Self::Replay { ids, .. } | Self::Purge { ids, .. } => ids.len(),
            Self::Open { .. } | Self::Close { .. } => 1,
        }
    }

    /// A publish that nobody waits for any more need not be done.
    pub(crate) fn is_unwanted(&self) -> bool {
        matches!(self, Self::Publish { reply, .. } if reply.to.is_closed())
    }

    /// Whether it remembers an idempotency key.
    pub(crate) fn has_key(&self) -> bool {
        matches!(self, Self::Publish { publication, .. } if publication.idempotency_key.is_some())
    }

    /// Whether a worker should look after it is committed.
    pub(crate) fn brings_work(&self) -> bool {
        match self {
            Self::Publish { .. } | Self::Replay { .. } | Self::Purge { .. } => true,
            Self::Settle { settle, .. } => settle.schedules(),
            _ => false,
        }
    }

    /// Says what was made.
    pub(crate) fn answer(self) {
        let name = self.name();
        match self {
            Self::Publish { reply, .. } => reply.send(name),
            Self::Settle { reply, .. } | Self::Promote { reply, .. } => reply.send(name),
            Self::Close { lock, reply, .. } => {
                // Before the answer: whoever has it may count on a free file.
                drop(lock);
                reply.send(name);
            }
            Self::Refill { reply, .. } => reply.send(name),
            Self::Replay { reply, .. } | Self::Purge { reply, .. } => reply.send(name),
            Self::Open { open, mut reply } => {
                if let Some((fence, handlers)) = open.taken {
                    let (lock, writer) = (Some(open.lock), open.writer);
                    reply.answer = Some(Ok(Opened { fence, handlers, lock, writer }));
                }
                reply.send(name);
            }
        }
    }

    /// Says that it failed.
    pub(crate) fn fail(self, error: Error) {
        match self {
            Self::Publish { reply, .. } => reply.fail(error),
            Self::Settle { reply, .. } | Self::Promote { reply, .. } | Self::Close { reply, .. } => {
                reply.fail(error)
            }
            Self::Refill { reply, .. } => reply.fail(error),
            Self::Replay { reply, .. } | Self::Purge { reply, .. } => reply.fail(error),
            Self::Open { reply, .. } => reply.fail(error),
        }
    }
}

//! What the writer does: one operation for each question that changes the file.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use event_bus_core::backend::{Headers, Publication, Stored, Timestamp};
use event_bus_core::{Error, ErrorKind};
use sqlx::sqlite::SqliteConnection;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::error::error;
use crate::lock::WorkerLock;
use crate::row;
use crate::store::{self, NewDelivery};

/// Where an answer goes, and the answer between its making and the commit.
pub(crate) struct Reply<T> {
    to: oneshot::Sender<Result<T, Error>>,
    answer: Option<Result<T, Error>>,
}

impl<T> Reply<T> {
    pub(crate) fn new(to: oneshot::Sender<Result<T, Error>>) -> Self {
        Self { to, answer: None }
    }

    fn is_unwanted(&self) -> bool {
        self.to.is_closed()
    }

    /// Says what was made, now that it is committed.
    fn send(self, operation: &'static str) {
        let answer = self.answer.unwrap_or_else(|| {
            Err(error(ErrorKind::OutcomeUnknown, operation, "the writer did not come to this operation"))
        });
        // Whoever asked may be gone; what was stored stays stored.
        let _ = self.to.send(answer);
    }
}

/// One thing to do in a transaction.
pub(crate) enum Operation {
    Publish { publication: Publication, reply: Reply<Stored> },
    Settle { settle: Settle, reply: Reply<()> },
    Open { open: Open, reply: Reply<Opened> },
    Close { fence: u64, reply: Reply<()> },
}

/// Outcomes, sorted by what the file has to do.
#[derive(Default)]
pub(crate) struct Settle {
    pub(crate) fence: u64,
    pub(crate) complete: Vec<i64>,
}

/// A worker that takes the file over.
pub(crate) struct Open {
    pub(crate) incarnation: Uuid,
    pub(crate) handlers: Vec<(Arc<str>, usize)>,
    /// Travels with the operation, so that nobody else can become the owner before it is done.
    pub(crate) lock: Option<WorkerLock>,
    /// What the transaction made of it: the fence and the ids of the handlers.
    pub(crate) taken: Option<(u64, Vec<i64>)>,
}

/// The file is taken over.
pub(crate) struct Opened {
    pub(crate) fence: u64,
    /// The ids of the handlers, in the order in which they were asked for.
    pub(crate) handlers: Vec<i64>,
    pub(crate) lock: WorkerLock,
}

impl Operation {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Publish { .. } => "publish",
            Self::Settle { .. } => "settle",
            Self::Open { .. } => "open",
            Self::Close { .. } => "close",
        }
    }

    /// How much it adds to a group.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Publish { publication, .. } => publication.deliveries(),
            Self::Settle { settle, .. } => settle.complete.len(),
            _ => 1,
        }
    }

    /// A publish that nobody waits for any more need not be done.
    pub(crate) fn is_unwanted(&self) -> bool {
        matches!(self, Self::Publish { reply, .. } if reply.is_unwanted())
    }

    /// Whether a worker should look after it is committed.
    pub(crate) fn brings_work(&self) -> bool {
        matches!(self, Self::Publish { .. })
    }

    /// Says what was made.
    pub(crate) fn answer(self) {
        let name = self.name();
        match self {
            Self::Publish { reply, .. } => reply.send(name),
            Self::Settle { reply, .. } | Self::Close { reply, .. } => reply.send(name),
            Self::Open { open, mut reply } => {
                if let (Some((fence, handlers)), Some(lock)) = (open.taken, open.lock) {
                    reply.answer = Some(Ok(Opened { fence, handlers, lock }));
                }
                reply.send(name);
            }
        }
    }

    /// Says that it failed.
    pub(crate) fn fail(self, error: Error) {
        let name = self.name();
        match self {
            Self::Publish { mut reply, .. } => {
                reply.answer = Some(Err(error));
                reply.send(name);
            }
            Self::Settle { mut reply, .. } | Self::Close { mut reply, .. } => {
                reply.answer = Some(Err(error));
                reply.send(name);
            }
            Self::Open { mut reply, .. } => {
                reply.answer = Some(Err(error));
                reply.send(name);
            }
        }
    }
}

/// What operations need to know.
pub(crate) struct Surroundings {
    pub(crate) now: Timestamp,
    pub(crate) dedupe_retention: Duration,
    /// The fence of the file as this transaction sees it.
    pub(crate) fence: u64,
}

/// Handler names whose ids are committed.
pub(crate) type Handlers = HashMap<Arc<str>, i64>;

/// Does a group of operations in the transaction that is open.
pub(crate) async fn apply(
    connection: &mut SqliteConnection,
    group: &mut [Operation],
    handlers: &Handlers,
    new_handlers: &mut Handlers,
    around: &Surroundings,
) -> sqlx::Result<()> {
    publish_all(connection, group, handlers, new_handlers, around).await?;
    for operation in group {
        match operation {
            Operation::Publish { .. } => {}
            Operation::Settle { settle, reply } => {
                let answer = if settle.fence == around.fence {
                    apply_settle(connection, settle).await?;
                    Ok(())
                } else {
                    Err(fenced("settle"))
                };
                reply.answer = Some(answer);
            }
            Operation::Open { open, .. } => {
                open.taken = Some(apply_open(connection, open).await?);
            }
            Operation::Close { fence, reply } => {
                if *fence == around.fence {
                    store::clear_worker(connection).await?;
                }
                reply.answer = Some(Ok(()));
            }
        }
    }
    Ok(())
}

pub(crate) fn fenced(operation: &'static str) -> Error {
    error(ErrorKind::LeaseLost, operation, "another worker has taken this file over")
}

/// Stores the deliveries of all publications of a group together.
async fn publish_all(
    connection: &mut SqliteConnection,
    group: &mut [Operation],
    handlers: &Handlers,
    new_handlers: &mut Handlers,
    around: &Surroundings,
) -> sqlx::Result<()> {
    let forgotten_before = before(around.now, around.dedupe_retention);
    let mut wanted = Vec::new();
    let mut has_keys = false;
    for operation in group.iter_mut() {
        let Operation::Publish { publication, reply } = operation else { continue };
        if let Some(key) = &publication.idempotency_key {
            has_keys = true;
            if !store::remember(connection, key, around.now, forgotten_before).await? {
                reply.answer = Some(Ok(Stored::Duplicate));
                continue;
            }
        }
        reply.answer = Some(Ok(Stored::New));
        wanted.push(&*publication);
    }
    if has_keys {
        store::forget_keys(connection, forgotten_before).await?;
    }
    store_publications(connection, &wanted, handlers, new_handlers, around.now).await
}

/// Stores the deliveries of publications, in their order.
pub(crate) async fn store_publications(
    connection: &mut SqliteConnection,
    publications: &[&Publication],
    handlers: &Handlers,
    new_handlers: &mut Handlers,
    now: Timestamp,
) -> sqlx::Result<()> {
    if publications.is_empty() {
        return Ok(());
    }
    for name in publications.iter().flat_map(|p| &p.events).flat_map(|event| event.handlers.iter()) {
        if !handlers.contains_key(name) && !new_handlers.contains_key(name) {
            let id = store::handler(connection, name).await?;
            new_handlers.insert(name.clone(), id);
        }
    }
    let id_of = |name: &Arc<str>| handlers.get(name).or_else(|| new_handlers.get(name)).copied().unwrap_or(0);

    let mut texts = HeaderTexts::default();
    let mut ready = Vec::new();
    let mut later = Vec::new();
    let mut counts: Vec<(i64, i64)> = Vec::new();
    for publication in publications {
        let due_at = (!publication.delay.is_zero()).then(|| after(now, publication.delay));
        for event in &publication.events {
            let headers = texts.position(event.envelope.headers.as_ref());
            for name in event.handlers.iter() {
                let handler = id_of(name);
                match due_at {
                    Some(due_at) => later.push((due_at, handler, &event.envelope, headers)),
                    None => {
                        let number = match counts.iter_mut().find(|(known, _)| *known == handler) {
                            Some((_, count)) => {
                                *count += 1;
                                *count
                            }
                            None => {
                                counts.push((handler, 1));
                                1
                            }
                        };
                        ready.push((number, handler, &event.envelope, headers));
                    }
                }
            }
        }
    }
    if !ready.is_empty() {
        let last = store::allocate(connection, &counts).await?;
        let first_of = |handler: i64| {
            let last = last.iter().find(|(known, _)| *known == handler).map_or(0, |(_, last)| *last);
            let count = counts.iter().find(|(known, _)| *known == handler).map_or(0, |(_, count)| *count);
            row::range_start(handler) + last - count
        };
        let firsts: Vec<_> = counts.iter().map(|(handler, _)| (*handler, first_of(*handler))).collect();
        let rows: Vec<_> = ready
            .into_iter()
            .map(|(number, handler, envelope, headers)| {
                let first = firsts.iter().find(|(known, _)| *known == handler).map_or(0, |(_, first)| *first);
                (first + number, NewDelivery { handler, envelope, headers: texts.get(headers) })
            })
            .collect();
        store::publish(connection, &rows).await?;
    }
    if !later.is_empty() {
        let rows: Vec<_> = later
            .into_iter()
            .map(|(due_at, handler, envelope, headers)| {
                (due_at, NewDelivery { handler, envelope, headers: texts.get(headers) })
            })
            .collect();
        store::schedule(connection, &rows).await?;
    }
    Ok(())
}

/// The texts of headers: the events of one publish call share theirs, so they are written once.
#[derive(Default)]
struct HeaderTexts<'a> {
    last: Option<&'a Arc<Headers>>,
    texts: Vec<Arc<str>>,
    is_empty: bool,
}

impl<'a> HeaderTexts<'a> {
    fn position(&mut self, headers: Option<&'a Arc<Headers>>) -> Option<usize> {
        let headers = headers?;
        if !self.last.is_some_and(|last| Arc::ptr_eq(last, headers)) {
            self.last = Some(headers);
            let text = row::headers_text(headers);
            self.is_empty = text.is_none();
            self.texts.extend(text.map(Arc::from));
        }
        if self.is_empty { None } else { self.texts.len().checked_sub(1) }
    }

    fn get(&self, position: Option<usize>) -> Option<&Arc<str>> {
        self.texts.get(position?)
    }
}

async fn apply_settle(connection: &mut SqliteConnection, settle: &Settle) -> sqlx::Result<()> {
    if !settle.complete.is_empty() {
        store::complete(connection, &settle.complete).await?;
    }
    Ok(())
}

async fn apply_open(connection: &mut SqliteConnection, open: &Open) -> sqlx::Result<(u64, Vec<i64>)> {
    for (handler, window) in store::left_by_worker(connection).await? {
        let charged = store::charge(connection, handler, window).await?;
        tracing::warn!(handler, deliveries = charged, "the last worker of this file vanished");
    }
    store::clear_worker(connection).await?;
    let mut ids = Vec::with_capacity(open.handlers.len());
    for (name, window) in &open.handlers {
        let id = store::handler(connection, name).await?;
        let window = i64::try_from(*window).unwrap_or(i64::MAX);
        store::enter_worker(connection, id, open.incarnation.as_bytes(), window).await?;
        ids.push(id);
    }
    Ok((store::raise_fence(connection).await?, ids))
}

/// When a wait of `delay` that begins now has surely passed: the clock shows whole milliseconds, so one more.
pub(crate) fn after(now: Timestamp, delay: Duration) -> Timestamp {
    now.plus(delay.saturating_add(Duration::from_millis(1)))
}

fn before(now: Timestamp, age: Duration) -> Timestamp {
    let millis = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis(now.as_millis().saturating_sub(millis))
}

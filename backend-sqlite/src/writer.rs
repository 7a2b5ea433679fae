//! The writer: the one task of a backend that writes.
//!
//! Whatever waits when a commit returns is committed together by the next one: the more callers, the larger the groups,
//! and one sync of the disk for each group. The task owns its connection, so no dropped future can leave a transaction
//! open. It ends when the last handle is gone and everything accepted is done.

use std::sync::Arc;
use std::time::Duration;

use event_bus_core::{Error, ErrorKind, Result};
use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::apply::{Surroundings, apply};
use crate::backend::Shared;
use crate::error::{Cause, error, translate};
use crate::operation::{Operation, Reply, Request};
use crate::publish::{Handlers, before};
use crate::store;

/// Operations that may wait. Beyond it callers wait for room.
const QUEUE: usize = 1_024;

/// The most deliveries in one transaction: one more would not make it cheaper, and everybody in it waits for all of it.
const MAX_WEIGHT: usize = 1_000;

/// Pauses between tries while another connection holds the write lock. SQLite's own waiting sleeps longer and longer: two
/// processes with eight publishers each then wait up to a second for one another (50 ms this way; measured, same rate).
const PAUSE: Duration = Duration::from_millis(1);
/// A lock that has been held for this long belongs to a transaction that takes its time.
const LONG: Duration = Duration::from_millis(100);
const LONG_PAUSE: Duration = Duration::from_millis(10);

/// How often old idempotency keys are forgotten.
const FORGET_KEYS_EVERY: Duration = Duration::from_secs(10);

/// A handle to the writer.
#[derive(Clone)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Request>,
    timeout: Duration,
    shared: Arc<Shared>,
}

impl Writer {
    /// Starts a writer in the present runtime.
    pub(crate) fn start(shared: &Arc<Shared>) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE);
        let task = Task {
            shared: shared.clone(),
            requests,
            connection: None,
            handlers: Handlers::new(),
            forget_keys_at: Instant::now(),
        };
        tokio::spawn(task.run());
        Self { queue, timeout: shared.config.write_timeout, shared: shared.clone() }
    }

    /// Whether its task is gone, with the runtime it ran in.
    pub(crate) fn is_dead(&self) -> bool {
        self.queue.is_closed()
    }

    /// Has an operation done, and waits for the answer.
    ///
    /// # Cancel safety
    /// A dropped future leaves the operation not done or done whole.
    pub(crate) async fn ask<T>(
        &self,
        name: &'static str,
        operation: impl FnOnce(Reply<T>) -> Operation,
    ) -> Result<T> {
        let answer = self.submit(name, operation).await?;
        received(name, answer.await)
    }

    /// Has an operation done; the answer comes later.
    ///
    /// # Cancel safety
    /// A dropped future leaves the operation undone; afterwards it is done even if nobody waits for the answer.
    pub(crate) async fn submit<T>(
        &self,
        name: &'static str,
        operation: impl FnOnce(Reply<T>) -> Operation,
    ) -> Result<oneshot::Receiver<Result<T>>> {
        let deadline = Instant::now() + self.timeout;
        let (reply, answer) = Reply::new();
        let request = Request { operation: operation(reply), deadline };
        match tokio::time::timeout_at(deadline, self.queue.send(request)).await {
            Ok(Ok(())) => Ok(answer),
            Ok(Err(_)) => Err(gone(name, ErrorKind::Unavailable)),
            Err(_) => Err(self.too_busy(name)),
        }
    }

    /// Has an operation done if there is room in the queue, for who cannot wait.
    pub(crate) fn submit_now(&self, operation: Operation) {
        let deadline = Instant::now() + self.timeout;
        let _ = self.queue.try_send(Request { operation, deadline });
    }

    fn too_busy(&self, name: &'static str) -> Error {
        let file = self.shared.config.path.display();
        error(
            ErrorKind::Unavailable,
            name,
            format!("writes to {file} are queueing up for longer than the write timeout"),
        )
    }
}

/// What came of an operation that was submitted.
pub(crate) fn received<T>(
    name: &'static str,
    answer: Result<Result<T>, oneshot::error::RecvError>,
) -> Result<T> {
    answer.unwrap_or_else(|_| Err(gone(name, ErrorKind::OutcomeUnknown)))
}

fn gone(name: &'static str, kind: ErrorKind) -> Error {
    error(kind, name, "the writer of the file has ended with its runtime")
}

struct Task {
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Request>,
    connection: Option<SqliteConnection>,
    handlers: Handlers,
    /// When old idempotency keys are forgotten next.
    forget_keys_at: Instant,
}

impl Task {
    async fn run(mut self) {
        while let Some(first) = self.requests.recv().await {
            // Callers whose answers have just been sent are about to ask again: let them join this group.
            tokio::task::yield_now().await;
            let group = self.gather(first);
            self.commit(group).await;
        }
        if let Some(connection) = self.connection.take() {
            let _ = connection.close().await;
        }
    }

    fn gather(&mut self, first: Request) -> Vec<Request> {
        let mut weight = first.operation.weight();
        let mut group = vec![first];
        while weight < MAX_WEIGHT && group.len() < QUEUE {
            let Ok(next) = self.requests.try_recv() else { break };
            weight += next.operation.weight();
            group.push(next);
        }
        group.retain(|request| !request.operation.is_unwanted());
        group
    }

    /// Commits a group together; if one of them may be the reason why that fails, each alone.
    async fn commit(&mut self, group: Vec<Request>) {
        let Some((group, failure)) = self.try_commit(group).await else { return };
        if group.len() == 1 || !failure.is_of_one() {
            self.fail(group, &failure);
            return;
        }
        tracing::warn!(
            operations = group.len(),
            error = %failure.source,
            "a group of writes failed, trying each alone"
        );
        for request in group {
            if let Some((group, failure)) = self.try_commit(vec![request]).await {
                self.fail(group, &failure);
            }
        }
    }

    /// Commits and answers a group, or hands it back with what went wrong. Waits for other connections' locks.
    async fn try_commit(&mut self, mut group: Vec<Request>) -> Option<(Vec<Request>, Failure)> {
        let begun_at = Instant::now();
        while !group.is_empty() {
            let Err(failure) = self.transaction(&mut group).await else {
                let brings_work = group.iter().any(|request| request.operation.brings_work());
                group.into_iter().for_each(|request| request.operation.answer());
                if brings_work {
                    self.shared.wake.notify_one();
                }
                return None;
            };
            if Cause::of(&failure.source) != Cause::Busy {
                return Some((group, failure));
            }
            let now = Instant::now();
            let (late, waiting) = group.into_iter().partition(|request| request.deadline <= now);
            self.fail(late, &failure);
            group = waiting;
            tokio::time::sleep(if now - begun_at < LONG { PAUSE } else { LONG_PAUSE }).await;
        }
        None
    }

    /// One transaction. On a failure nothing of it is stored and none is open.
    async fn transaction(&mut self, group: &mut [Request]) -> Result<(), Failure> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let connected = store::connect_writer(&self.shared.config, false).await;
                connected.map_err(|source| Failure { source, stage: Stage::Begin })?
            }
        };
        let mut new_handlers = Handlers::new();
        let result = self.steps(&mut connection, group, &mut new_handlers).await;
        match &result {
            Ok(()) => {
                self.handlers.extend(new_handlers);
                self.connection = Some(connection);
            }
            Err(failure) if Cause::of(&failure.source).breaks_connection() => {
                // Closing it rolls back. Handlers are looked up again: the next one may open another file.
                self.handlers.clear();
                let _ = connection.close_hard().await;
            }
            Err(_) => {
                // Fails only if no transaction was begun.
                let _ = store::rollback(&mut connection).await;
                self.connection = Some(connection);
            }
        }
        result
    }

    async fn steps(
        &mut self,
        connection: &mut SqliteConnection,
        group: &mut [Request],
        new_handlers: &mut Handlers,
    ) -> Result<(), Failure> {
        let at = |stage| move |source| Failure { source, stage };
        let fence = store::begin(connection).await.map_err(at(Stage::Begin))?;
        let config = &self.shared.config;
        let now = config.clock.now();
        let forgotten_before = before(now, config.dedupe_retention);
        let around = Surroundings { now, forgotten_before, fence, handlers: &self.handlers };
        apply(connection, group, &around, new_handlers).await.map_err(at(Stage::Apply))?;
        if Instant::now() >= self.forget_keys_at && group.iter().any(|request| request.operation.has_key()) {
            let is_done = store::forget_keys(connection, forgotten_before).await.map_err(at(Stage::Apply))?;
            self.forget_keys_at = Instant::now() + if is_done { FORGET_KEYS_EVERY } else { Duration::ZERO };
        }
        store::commit(connection).await.map_err(at(Stage::Commit))
    }

    fn fail(&self, group: Vec<Request>, failure: &Failure) {
        let path = &self.shared.config.path;
        for request in group {
            let name = request.operation.name();
            let error = if failure.is_of_unknown_outcome() {
                let message = format!("the commit into {} was not confirmed by its disk", path.display());
                error(ErrorKind::OutcomeUnknown, name, message).with_source(failure.source.to_string())
            } else {
                translate(name, path, &failure.source)
            };
            request.operation.fail(error);
        }
    }
}

/// What went wrong with a transaction, and how far it had come.
struct Failure {
    source: sqlx::Error,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Begin,
    Apply,
    Commit,
}

impl Failure {
    /// Whether one operation may be the reason, and others could do without it.
    fn is_of_one(&self) -> bool {
        let is_of_file =
            matches!(Cause::of(&self.source), Cause::InputOutput | Cause::Corrupt | Cause::ReadOnly);
        self.stage != Stage::Begin && !is_of_file
    }

    /// SQLite takes a commit back that it could not sync, but if the machine stops before the next one, what did reach
    /// the disk may come back.
    fn is_of_unknown_outcome(&self) -> bool {
        self.stage == Stage::Commit && Cause::of(&self.source) == Cause::InputOutput
    }
}
